"""A run in miniature, before it begins: whether its updates lead anywhere, and how large its first gradients are."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from dnnkit.config.schedule import schedule_of
from dnnkit.data.loaders import training_batches
from dnnkit.data.randomness import same_randomness
from dnnkit.data.resident import default_generator, minibatch_seed
from dnnkit.diagnostics import MOST_SAMPLES, Verdict, evenly_spaced, probe
from dnnkit.diagnostics.clipping import Clipped
from dnnkit.errors import PluginError
from dnnkit.network import component
from dnnkit.network.freezing import freezing
from dnnkit.network.groups import Clipped as Together
from dnnkit.training.assemble import augment, grouping, measures
from dnnkit.training.run import Prepared
from dnnkit.training.scheduling import total_steps

#: The updates of a rehearsal, and the minibatches whose gradients are looked at before any update.
UPDATES, MEASURED = 100, 10
#: How many times what it began with the loss may be after any update, and in the mean of the last tenth of them.
PEAK, END = 10.0, 1.5
#: The share of a layer's units that is not to die in a rehearsal. ReLU networks on digits that learnt, without normalization, had .22
#: at most, and nearly all of those that did not .53 and more.
DIED = 0.5


@dataclass(frozen=True)
class Rehearsal:
    """The losses of a rehearsal, one for each update, up to the first that is not finite or far over what it began with.

    `began` is the loss of the first minibatch or, where that is larger, what answering 0 to everything loses there: weights of
    another run may begin with next to none. `lr` is the config's rate. `died`: the layers of which more than half became 0 on
    all examples, with the share at the end.
    """

    lr: float
    began: float
    losses: tuple[float, ...]
    died: Mapping[str, float]

    @property
    def diverges(self) -> bool:
        """Whether units died, or the loss was not finite, ten times what it began with, or in the last tenth 1.5 times that in the mean."""
        last = self.losses[-max(1, len(self.losses) // 10) :]
        return bool(self.died) or _far(self.losses[-1], self.began) or sum(last) > END * self.began * len(last)

    def verdict(self) -> Verdict:
        """What to say of one that diverges."""
        way = f"the loss goes from {self.losses[0]:.2g} to {self.losses[-1]:.2g} within {len(self.losses)} updates"
        if self.died:
            worst = max(self.died, key=lambda layer: self.died[layer])
            way += f", after which {self.died[worst]:.0%} of {worst} are zero on all training examples"
        text = f"diverging updates: with optimizer.lr={self.lr:g} {way}, in a rehearsal of the run"
        return Verdict("diverging", tuple(self.died), text)


def rehearse(run: Prepared, times: float = 1.0) -> Rehearsal:
    """A run in at most 100 updates, at `times` its rate: its first minibatches, its schedule at as many places evenly spaced.

    As in the run: optimizer, parameter groups, penalty, clipping, constraint, dropout and augmentation, on its device. Not as in
    the run: each update has one minibatch, in float32.

    Why not the largest eigenvalue λ of the Hessian, beyond 2/λ of which gradient descent is unstable (Cohen et al. 2021): on
    digits SGD learnt at up to 9.7 times that bound (ReLU), momentum diverged at 1.4 times its own, 2(1 + momentum)/λ (SELU), and it
    says nothing of Adam. Of 105 runs, 35 of which came to nothing, the rehearsal named 34, and one of the others, which learnt as
    more than half of a layer died.

    Network and random states are afterwards what they were, bit for bit. Raises PluginError for a network that cannot be copied.
    """
    with same_randomness([run.device]), torch.enable_grad():
        one = _Understudy(run)
        total = total_steps(run.cfg, len(run.data.train.y))
        updates, losses, began = min(UPDATES, total), [], 0.0
        for number, (x, y) in enumerate(islice(_minibatches(run), updates)):
            loss, output = one.gradient(number, x, y)
            if number == 0:
                began = max(loss, float(one.loss(torch.zeros_like(output), y)))
            losses.append(loss)
            if _far(loss, began):
                break
            one.update(number * total // updates, total, times)
        return Rehearsal(run.cfg.optimizer.lr, began, tuple(losses), _died(run, one))


def _died(run: Prepared, one: _Understudy) -> dict[str, float]:
    """The layers of which more than half of the units are zero on all examples now, and were not at the start."""
    rows = evenly_spaced(len(run.data.train.x), MOST_SAMPLES)
    x, y = run.data.train.x[rows], run.data.train.y[rows]
    now = {signal.layer: signal.dead for signal in probe(one.network, x, y, one.loss) if (signal.dead or 0) > DIED}
    if not now:
        return {}
    before = {signal.layer: signal.dead or 0 for signal in probe(run.network, x, y, one.loss)}
    return {layer: dead for layer, dead in now.items() if dead is not None and before.get(layer, 0) <= DIED}


def first_gradients(run: Prepared) -> list[dict[str, Tensor]]:
    """By the names of their parameters the gradients of the first minibatches of a run, penalty included, at the initial weights.

    Leaves all as it was, as `rehearse` does.
    """
    found = []
    with same_randomness([run.device]), torch.enable_grad():
        one = _Understudy(run)
        for number, (x, y) in enumerate(islice(_minibatches(run), MEASURED)):
            one.gradient(number, x, y)
            found.append({name: p.grad.clone() for name, p in one.network.named_parameters() if p.grad is not None})
    return found


def clipped_gradients(run: Prepared) -> list[Clipped]:
    """Every clipping of a run, with those of its first gradients that it clips together."""
    parts = [(where, node, names) for where, node, names in _clippings(run) if node["name"] != "none"]
    found = first_gradients(run) if parts else []
    return [Clipped(where, node, [[of[name] for name in names if name in of] for of in found]) for where, node, names in parts]


class _Understudy:
    """A copy of a run's network, and all that it is trained with."""

    def __init__(self, run: Prepared) -> None:
        cfg = run.cfg
        try:
            self.network = copy.deepcopy(run.network).float().to(run.device).train()
        except Exception as error:
            told = f"the network cannot be copied ({type(error).__name__}: {error})"
            raise PluginError(told, "a run is rehearsed on a copy: see that copy.deepcopy takes it") from error
        for name in freezing(run.network, cfg.freeze).still(epoch=1):
            self.network.get_submodule(name).eval()
        self.loss, _ = measures(cfg, run.data.task, run.data.target_scaling)
        self._penalty, self._constrain = (component(group, cfg[group]) for group in ("regularizer", "constraint"))
        self._optimizer = _optimizer(run, self.network)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._clips = _clips(run, self.network)
        self._schedule, self._seed, self._device = schedule_of(cfg.scheduler), cfg.seed, run.device

    def gradient(self, number: int, x: Tensor, y: Tensor) -> tuple[float, Tensor]:
        """Leave the gradient of minibatch `number` in the parameters; its loss without the penalty, and the output."""
        default_generator(self._device).manual_seed(minibatch_seed(self._seed, number, 0))
        self._optimizer.zero_grad()
        output = self.network(x)
        loss = self.loss(output, y)
        (loss if self._penalty is None else loss + self._penalty(self.network)).backward()
        return loss.item(), output.detach()

    def update(self, step: int, total: int, times: float) -> None:
        """Clip, and update at `times` the rate that the schedule has after `step` of `total` updates."""
        for clip, parameters in self._clips:
            if any(parameter.grad is not None for parameter in parameters):
                clip(parameters)
        factor = self._schedule(step, total)
        factor, momentum = factor if isinstance(factor, tuple) else (factor, None)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = times * rate * factor
            if momentum is not None:
                _put_momentum(group, momentum)
        self._optimizer.step()
        if self._constrain is not None:
            kept = [(parameter, parameter.clone()) for parameter in self.network.parameters() if not parameter.requires_grad]
            with torch.no_grad():
                self._constrain(self.network)
                for parameter, value in kept:
                    parameter.copy_(value)


def _optimizer(run: Prepared, network: nn.Module) -> Optimizer:
    """As a run's own is made, groups with their rate and decay included."""
    node, groups, named = run.cfg.optimizer, grouping(run.cfg, network), dict(network.named_parameters())
    made = []
    for group in groups.groups(network):
        decay = {} if group.weight_decay is None else {"weight_decay": group.weight_decay}
        made.append({"params": [named[name] for name in group.names], "lr": node.lr * group.lr_scale, **decay})
    make = component("optimizer", node)
    assert make is not None
    optimizer: Optimizer = make(made)
    return optimizer


def _clippings(run: Prepared) -> list[tuple[str, Mapping[str, Any], Sequence[str]]]:
    """Every clipping of a run: where the config has it, its node, and the names of the parameters that it clips together."""
    common, whole = run.cfg.clipping, grouping(run.cfg, run.network)
    trained = tuple(name for name, parameter in run.network.named_parameters() if parameter.requires_grad)
    where = {id(entry.clipping): f"{entry.where}.clipping" for entry in whole.entries}
    return [
        ("clipping", common, part.names) if part.clipping is None else (where[id(part.clipping)], part.clipping, part.names)
        for part in whole.clipped(run.network) or [Together(trained, None)]
    ]


def _clips(run: Prepared, network: nn.Module) -> list[tuple[Callable[[list[Parameter]], object], list[Parameter]]]:
    """Every clipping with the parameters of this copy of the network that it clips together."""
    named = dict(network.named_parameters())
    found = [(component("clipping", node), [named[name] for name in names]) for _, node, names in _clippings(run)]
    return [(clip, parameters) for clip, parameters in found if clip is not None]


def _put_momentum(group: dict[str, Any], momentum: float) -> None:
    """Where a group has one, as the schedule of a run does."""
    if "betas" in group:
        group["betas"] = (momentum, *group["betas"][1:])
    elif group.get("momentum", 0) > 0:
        group["momentum"] = momentum


def _minibatches(run: Prepared) -> Iterator[tuple[Tensor, Tensor]]:
    """Those of a run, epoch after epoch without end."""
    (x, y), cfg = run.data.train, run.cfg
    batches = training_batches(x, y, cfg.data.batch_size, cfg.seed, augment=augment(cfg)).to(run.device)
    for epoch in count():
        batches.set_epoch(epoch)
        for given in batches:
            yield given[0], given[1]


def _far(loss: float, began: float) -> bool:
    return not math.isfinite(loss) or loss > PEAK * began
