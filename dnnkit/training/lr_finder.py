"""Which learning rate to begin with: a short training whose rate climbs from far too low to far too high, of which nothing stays."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import count, islice

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from dnnkit.config import Config
from dnnkit.data.loaders import training_batches
from dnnkit.data.randomness import same_randomness
from dnnkit.data.resident import Batches, default_generator, minibatch_seed
from dnnkit.diagnostics.ramp import Ramp, geometric_rates
from dnnkit.errors import ConfigError, DnnkitError, PluginError, Problem
from dnnkit.module import Recipe, minimised, portion, scaled
from dnnkit.module.frozen import Frozen
from dnnkit.module.groups import clip_apart
from dnnkit.network.freezing import Freezing, freezing
from dnnkit.training.assemble import assemble, augment
from dnnkit.training.devices import computing_with
from dnnkit.training.fit import in_precision
from dnnkit.training.run import Prepared, prepare_run

Loss = Callable[[Tensor, Tensor], Tensor]
Numbered = tuple[int, Tensor, Tensor]
"""A minibatch with its number since the start of the run."""


def find_rate(cfg: Config) -> Ramp:
    """The ramp of a config from its initial weights: rates from 1e-7 to 10, one for each optimizer step, as a run would train.

    That is with the run's minibatches, epoch after epoch, augmentation, dropout, penalty, clipping, constraint, precision and
    parameter groups, which keep their part of the rate. The scheduler plays no part, nor its momentum; what is frozen until a
    later epoch stays frozen; several devices are one. Nothing is written.

    Raises what a run raises before it begins, ConfigError for an optimizer that has no rate or cannot be made, and what `climb` raises.
    """
    run = prepare_run(cfg)
    module = assemble(run.cfg, run.network.double() if _precision(run) == "64" else run.network.float(), run.data)
    trainer, data = run.trainer, run.cfg.data
    x, y = in_precision(run.data.train, trainer)
    batches = training_batches(x, y, data.batch_size, run.cfg.seed, augment=augment(run.cfg), workers=data.workers)
    with computing_with(run.threads):
        return climb(
            module.net.to(run.device),
            module.recipe,
            module.task.loss,
            batches.to(run.device),
            frozen=freezing(run.network, run.cfg.freeze),
            accumulate=trainer.accumulate_grad_batches,
            autocast=_autocast(run),
        )


def climb(
    network: nn.Module,
    recipe: Recipe,
    loss: Loss,
    batches: Batches,
    rates: Sequence[float] | None = None,
    *,
    frozen: Freezing = Freezing(),  # noqa: B008 (frozen)
    accumulate: int = 1,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Ramp:
    """Train a copy of the network, update i at `rates[i]`, until the smoothed loss is four times its best or not finite.

    `rates` are those of `geometric_rates` unless they are given. The loader goes round its data as often as it takes; each
    update has the gradients of `accumulate` minibatches. Smith 2017, section 3.3, has the rate climb by equal steps; here it
    climbs by equal factors, as with Gugger 2018 and Géron 2019, chapter 11.

    Weights, gradients, buffers, modes, the place of the loader and the random states of torch, NumPy and Python are afterwards
    what they were, bit for bit, also where a pass raises. Raises PluginError for a network that cannot be copied.
    """
    try:
        net, recipe, loss = copy.deepcopy((network, recipe, loss))
    except Exception as error:
        told = f"the network, its loss or its optimizer cannot be copied ({type(error).__name__}: {error})"
        raise PluginError(told, "rates are tried on a copy: see that copy.deepcopy takes it") from error
    with same_randomness(parameter.device for parameter in net.parameters()), torch.enable_grad():
        one = _Climb(net, recipe, loss, Frozen(net, frozen), accumulate, autocast)
        return one.along(rates or geometric_rates(), _updates(copy.copy(batches), accumulate))


class _Climb:
    """One ramp, on a network that is used up by it."""

    def __init__(
        self,
        net: nn.Module,
        recipe: Recipe,
        loss: Loss,
        frozen: Frozen,
        accumulate: int,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._net, self._recipe, self._loss, self._frozen = net, recipe, loss, frozen
        self._accumulate, self._autocast = accumulate, autocast
        frozen.begin(1, False, recipe.constrain is not None)
        net.train()
        frozen.stay_still()
        self._optimizer = _optimizer(net, recipe)
        self._parts = [group["lr"] / self._optimizer.defaults["lr"] for group in self._optimizer.param_groups]
        self._clip = _clipping(net, recipe, self._optimizer)
        self._generator = default_generator(next(net.parameters()).device)

    def along(self, rates: Iterable[float], updates: Iterator[Sequence[Numbered]]) -> Ramp:
        """One update at each rate, while there is something to see."""
        ramp = Ramp()
        for rate, minibatches in zip(rates, updates, strict=False):
            loss = self._gradient(minibatches)
            if not math.isfinite(loss):
                ramp.diverged = True
                break
            ramp.add(rate, loss)
            if ramp.over:
                break
            self._update(rate)
        return ramp

    def _gradient(self, minibatches: Sequence[Numbered]) -> float:
        """Leave the gradient of the mean over these minibatches' examples, as a run would; that mean, of loss and penalty."""
        self._optimizer.zero_grad()
        examples, losses = sum(len(y) for _, _, y in minibatches), []
        for number, x, y in minibatches:
            self._generator.manual_seed(minibatch_seed(self._recipe.seed, number, 0))
            part = portion(len(y), examples, len(minibatches), self._accumulate)
            with self._autocast():
                found = minimised(self._net, x, y, self._loss, self._recipe.penalty, part.loss)
            (scaled(found, part.total).total / self._accumulate).backward()  # type: ignore[no-untyped-call]
            losses.append(float(found.total.detach()))
        return sum(losses) / len(losses)

    def _update(self, rate: float) -> None:
        self._frozen.drop_gradients()
        self._clip()
        for group, part in zip(self._optimizer.param_groups, self._parts, strict=True):
            group["lr"] = rate * part
        self._optimizer.step()
        if self._recipe.constrain is not None:
            with torch.no_grad():
                self._recipe.constrain(self._net)
            self._frozen.put_back()


def _optimizer(net: nn.Module, recipe: Recipe) -> Optimizer:
    try:
        made = recipe.optimizer(recipe.groups.parameters(net))
    except DnnkitError:
        raise
    except Exception as error:
        raise ConfigError([Problem("optimizer", f"it cannot be made ({type(error).__name__}: {error})")]) from error
    if not all("lr" in settings for settings in (made.defaults, *made.param_groups)):
        raise ConfigError([Problem("optimizer", f"its {type(made).__name__} has no lr, so that there is no rate to look for")])
    return made


def _clipping(net: nn.Module, recipe: Recipe, optimizer: Optimizer) -> Callable[[], object]:
    """What is done to the gradients before an update."""
    clips = recipe.groups.clips(net, recipe.clip)
    if clips is not None:
        return partial(clip_apart, clips)
    if recipe.clip is None:
        return lambda: None
    parameters: list[Parameter] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return partial(recipe.clip, parameters)


def _updates(batches: Batches, accumulate: int) -> Iterator[list[Numbered]]:
    """The minibatches of each update, epoch after epoch without end; the last update of an epoch has those that are left."""
    number = 0
    for epoch in count():
        batches.set_epoch(epoch)
        minibatches = iter(batches)
        while together := list(islice(minibatches, accumulate)):
            yield [(number + place, x, y) for place, (x, y, *_) in enumerate(together)]
            number += len(together)


def _precision(run: Prepared) -> str:
    return str(run.trainer.precision)


def _autocast(run: Prepared) -> Callable[[], AbstractContextManager[object]]:
    """The context in which this run's precision has a forward pass, as Lightning has it."""
    return partial(torch.autocast, run.device.type, torch.bfloat16) if _precision(run) == "bf16" else nullcontext
