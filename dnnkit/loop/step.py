"""How minibatches are executed: one function does a minibatch, another runs a chunk of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import pytorch_lightning as pl
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.strategies import ParallelStrategy
from torch import Tensor

from dnnkit.data.resident import Minibatch, default_generator, minibatch_seed
from dnnkit.loop.chunk import Chunk
from dnnkit.module import Module, Outcome, ScheduleLR, scaled


class Execute(Protocol):
    """Does one minibatch: x `(batch, *inputs)`, y `(batch, ...)`; `weight` times its data loss, `factor` times loss and penalty.

    `opens`: clear the gradients first. `closes`: clip and update afterwards. In between the minibatch's gradient, over
    the number of minibatches in a whole group, is added. Everything else about a step is the caller's.
    """

    def __call__(self, x: Tensor, y: Tensor, opens: bool, closes: bool, weight: float = 1.0, factor: float = 1.0) -> Outcome:
        """Do it."""
        ...


def eager_step(trainer: pl.Trainer, module: Module) -> Execute:
    """Operation by operation, as Lightning's automatic optimization would."""
    optimizer, accumulate = trainer.optimizers[0], trainer.accumulate_grad_batches
    clip_value, clip_algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
    forward, autocast, unsynchronised = _forward(trainer, module), autocast_of(trainer), _unsynchronised(trainer)

    def execute(x: Tensor, y: Tensor, opens: bool, closes: bool, weight: float = 1.0, factor: float = 1.0) -> Outcome:
        if opens:
            optimizer.zero_grad()
        with nullcontext() if closes else unsynchronised():
            with autocast():
                outcome = scaled(forward(x, y, weight), factor)
            module.guard.see_loss(outcome, module.window.update)
            (outcome.total / accumulate if accumulate > 1 else outcome.total).backward()  # type: ignore[no-untyped-call]
        if closes:
            module.configure_gradient_clipping(optimizer, clip_value, clip_algorithm)
            optimizer.step()
        return outcome

    return execute


def run_chunk(
    module: Module, schedule: ScheduleLR, execute: Execute, chunk: Chunk, minibatches: Iterable[Minibatch], number: int
) -> Outcome:
    """Run a chunk, whose first minibatch is `number` since the start of the run; returns the last minibatch's outcome.

    The schedule gives each update its rate and stays where it is.
    """
    trainer = module.trainer
    generator, seed, rank = default_generator(module.device), module.recipe.seed, trainer.global_rank
    window, with_output = module.window, bool(module.task.metrics)
    end = chunk.stop - 1  # of a window too, if one ends here: chunks end where windows do
    updates, scheduled = trainer.global_step, schedule.last_epoch - trainer.global_step
    # Beforehand: between two minibatches, which leave little else in the processor's cache, the same code takes several times as long.
    seeds = [minibatch_seed(seed, number + place, rank) for place in range(chunk.size)]
    rates = iter([schedule.at(scheduled + updates + done) for done in range(chunk.updates)])
    portions = module.portions(range(chunk.first, chunk.stop))
    for index, (own_seed, part, (x, y, *weight)) in enumerate(zip(seeds, portions, minibatches, strict=True), start=chunk.first):
        generator.manual_seed(own_seed)
        window.latest, window.update, closes = (x, y), updates + 1, chunk.closes(index)
        if closes:
            schedule.give(*next(rates))
            updates += 1
            module.begin_update(updates, index, index == end)
        outcome = execute(x, y, chunk.opens(index), closes, weight[0] * part.loss if weight else part.loss, part.total)
        window.keep(outcome, y, with_output)
        if closes:
            module.finish_update(updates)
    return outcome


def _forward(trainer: pl.Trainer, module: Module) -> Callable[[Tensor, Tensor, float], Outcome]:
    strategy = trainer.strategy
    if strategy.model is module:
        return module.objective
    # A wrapper such as DistributedDataParallel prepares its gradient hooks in its own forward.
    return lambda x, y, weight: strategy._forward_redirection(strategy.model, module, "objective", x, y, weight)  # type: ignore[arg-type, return-value]


def autocast_of(trainer: pl.Trainer) -> Callable[[], AbstractContextManager[None]]:
    """The context in which this run's precision has a forward pass."""
    # Plain 32-bit precision has an empty context: not entering it saves two generators per minibatch.
    return nullcontext if type(trainer.precision_plugin) is Precision else trainer.precision_plugin.train_step_context


def _unsynchronised(trainer: pl.Trainer) -> Callable[[], AbstractContextManager[None]]:
    strategy = trainer.strategy
    return strategy.block_backward_sync if isinstance(strategy, ParallelStrategy) else nullcontext
