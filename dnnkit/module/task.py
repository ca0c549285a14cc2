"""What is learnt and how, and what a minibatch and a pass over the data give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from dnnkit.config.schedule import Schedule
from dnnkit.data import BaseTask, ClassTask
from dnnkit.module.groups import Clip, Groups
from dnnkit.network.groups import Grouping


@dataclass(frozen=True)
class Task:
    """What is learnt. `loss` and every metric map (prediction, target) to a scalar, a mean over the samples.

    `mc_samples`: so many passes of Monte-Carlo dropout over what is tested, 0 for none. `target_std`: of values, that of one
    standardised unit in the target's own, broadcastable to `(outputs,)`; None for classes. `meaning`: what outputs mean, by
    default logits of classes, or where there is a `target_std` values.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=dict)
    mc_samples: int = 0
    target_std: Tensor | None = None
    meaning: BaseTask | None = None

    @property
    def means(self) -> BaseTask:
        """`meaning`, or its default."""
        return self.meaning or (ClassTask() if self.target_std is None else BaseTask())


@dataclass(frozen=True)
class Recipe:
    """How it is learnt.

    `optimizer`: parameters, or groups of them, to optimizer, at the peak rate.
    `schedule`: (optimizer steps done, total optimizer steps) to the factor of the peak rate, or (factor, momentum);
    a `Watching` is told what it watches.
    `clip`: parameters to the total norm before clipping; clips their gradients in place, once per optimizer step.
    `penalty`: network to a scalar that is added to the training loss only.
    `constrain`: acts on the network in place after each optimizer step.
    `seed`: of everything random in a step.
    `groups`: which parameters have a rate, a weight decay or a clipping of their own.
    """

    optimizer: Callable[[Any], Optimizer]
    schedule: Schedule
    clip: Clip | None = None
    penalty: Callable[[nn.Module], Tensor] | None = None
    constrain: Callable[[nn.Module], object] | None = None
    seed: int = 0
    groups: Groups = Groups(Grouping(), 0.0)  # noqa: RUF009 (frozen)


class Outcome(NamedTuple):
    """One minibatch: `total` is what is minimised, `loss` + `penalty` where nothing is weighted; all but `output` are scalars."""

    total: Tensor
    loss: Tensor
    output: Tensor
    penalty: Tensor | None


def scaled(outcome: Outcome, factor: float) -> Outcome:
    """The outcome with `factor` times what is minimised."""
    return outcome if factor == 1.0 else outcome._replace(total=outcome.total * factor)


def minimised(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    penalty: Callable[[nn.Module], Tensor] | None,
    weight: float = 1.0,
    factor: float = 1.0,
) -> Outcome:
    """What is minimised of one minibatch: `total` = factor · (weight · loss + penalty)."""
    output = net(x)
    found = loss(output, y)
    weighted = found if weight == 1.0 else weight * found
    if penalty is None:
        return scaled(Outcome(weighted, found, output, None), factor)
    added = penalty(net)
    return scaled(Outcome(weighted + added, found, output, added), factor)


@dataclass(frozen=True)
class Evaluation:
    """Predictions and targets of a whole validation or test pass, on the device, samples first."""

    prediction: Tensor
    target: Tensor
