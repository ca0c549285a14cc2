"""What is learnt and how, and what a minibatch and a pass over the data give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from dnnkit.module.schedule import Factor


@dataclass(frozen=True)
class Task:
    """What is learnt. `loss` and every metric map (prediction, target) to a scalar, a mean over the samples."""

    loss: Callable[[Tensor, Tensor], Tensor]
    metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """How it is learnt.

    `optimizer`: parameters to optimizer, at the peak rate.
    `schedule`: (optimizer steps done, total optimizer steps) to the factor of the peak rate, or (factor, momentum).
    `clip`: parameters to the total norm before clipping; clips their gradients in place, once per optimizer step.
    `penalty`: network to a scalar that is added to the training loss only.
    `constrain`: acts on the network in place after each optimizer step.
    `seed`: of everything random in a step.
    """

    optimizer: Callable[[list[Parameter]], Optimizer]
    schedule: Callable[[int, int], Factor]
    clip: Callable[[list[Parameter]], Tensor] | None = None
    penalty: Callable[[nn.Module], Tensor] | None = None
    constrain: Callable[[nn.Module], object] | None = None
    seed: int = 0


class Outcome(NamedTuple):
    """One minibatch: `total` = `loss` + `penalty` is what is minimised; all but `output` are scalars."""

    total: Tensor
    loss: Tensor
    output: Tensor
    penalty: Tensor | None


@dataclass(frozen=True)
class Evaluation:
    """Predictions and targets of a whole validation or test pass, on the device, samples first."""

    prediction: Tensor
    target: Tensor
