"""Lightning's training epoch loop, many minibatches per `advance`.

It rests on private classes of pytorch-lightning 2.6; tests/test_loop.py compares it with the stock loop, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loops.fetchers import _DataFetcher
from pytorch_lightning.loops.progress import _Progress
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.trainer import call
from torch import Tensor

from dnnkit.data.resident import Batches
from dnnkit.errors import ConfigError, DivergedError, Problem, nearest
from dnnkit.loop.chunk import Chunk, chunk_of, minibatches_until, until_multiple
from dnnkit.loop.compatible import reason_against_chunks
from dnnkit.loop.engine import ENGINES, Engine, Wanted
from dnnkit.loop.step import run_chunk
from dnnkit.module import Module, Outcome, ScheduleLR

log = logging.getLogger("dnnkit")


class ChunkedEpochLoop(_TrainingEpochLoop):
    """Runs up to `chunk_size` minibatches per `advance` and leaves everything as the stock loop would.

    A chunk ends wherever somebody looks: at the epoch's end, a flush, `log_every_n_steps`, validation, a checkpoint by
    steps, `max_steps`, every `looks_every` updates of a callback that has them. Batch hooks of callbacks fire once per chunk,
    as for its last minibatch. Where something needs every minibatch, `advance` is the stock one, with the same numbers, and
    the reason is logged. Training that diverges is broken off at that minibatch, with the counters of the last whole update.
    """

    def __init__(
        self, trainer: pl.Trainer, min_steps: int | None = None, max_steps: int = -1, chunk_size: int = 50, engine: Wanted = "auto"
    ) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self.chunk_size = chunk_size
        self._wanted = engine
        self._engine: Engine | None = None
        self._by_chunks = False
        self._reasons: set[str] = set()

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Decide how this epoch is run: callbacks may have changed the trainer since the last one."""
        super().on_run_start(data_fetcher)
        trainer = self.trainer
        if isinstance(trainer.train_dataloader, Batches):
            # Lightning has set it, but to one too many after a resume from an epoch's end under max_steps.
            trainer.train_dataloader.set_epoch(trainer.current_epoch)
            trainer.train_dataloader.to(trainer.strategy.root_device)
        reason = reason_against_chunks(trainer)
        self._by_chunks = reason is None
        if reason is None:
            self._begin_epoch()
        elif self._wanted in ("captured", "compiled"):
            raise ConfigError([Problem("trainer.engine", f"cannot be {self._wanted} here: {reason}", ("auto", "eager"))])
        elif reason not in self._reasons:
            self._reasons.add(reason)
            log.warning("training goes one minibatch at a time: %s", reason)

    def _begin_epoch(self) -> None:
        if self._engine is None or self._engine.module is not self._module:
            self._engine = Engine(self.trainer, self._module, self._wanted)
        else:
            self._engine.begin_epoch()

    @property
    def report(self) -> dict[str, Any]:
        """How minibatches are run, and why: `wanted used why`, and `ms_per_minibatch` by way where both were timed."""
        if self._by_chunks and self._engine is not None:
            return self._engine.report
        return {"wanted": self._wanted, "used": "eager", "why": "; ".join(sorted(self._reasons)) or "nothing was trained"}

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Run one chunk, or one minibatch where chunks cannot be.

        Raises StopIteration where the epoch has no minibatch left.
        """
        if not self._by_chunks:
            super().advance(data_fetcher)
            return
        if self.restarting and self._leads_to_validation(data_fetcher):
            return
        self.val_loop.restarting = False
        trainer = self.trainer
        if trainer.world_size > 1:
            self._broadcast_sigterm_tensor()
        if self.batch_progress.current.ready >= trainer.num_training_batches:
            raise StopIteration  # resumed at an epoch's end: the stock loop would train one minibatch too many
        chunk = self._next_chunk()
        indices = self._fetch(data_fetcher, chunk)
        number = self.batch_progress.total.ready
        self._begin(chunk, indices)
        try:
            with trainer.profiler.profile("run_training_batch"):
                outcome = self._run(chunk, indices, number)
        except DivergedError:
            if self._module.guard.broke_off:
                self._count_up_to_here(chunk)
            else:
                self._count(chunk)
            raise
        self._count(chunk)
        self._end(chunk, indices, outcome)

    def _leads_to_validation(self, data_fetcher: _DataFetcher) -> bool:
        """Whether a restarted loop has nothing to train before `on_advance_end`; the first lines of the stock `advance`."""
        if not self._should_check_val_fx(data_fetcher):
            return False
        if self.val_loop.restarted_mid_evaluation:
            return True
        if self.restarted_on_last:
            self._skip_next_val = True
            return True
        self.val_loop.increment_progress_to_evaluation_end()
        return False

    def _next_chunk(self) -> Chunk:
        trainer, first, accumulate = self.trainer, self.batch_progress.current.ready, self.trainer.accumulate_grad_batches
        boundaries = [minibatches_until(updates, first, accumulate) for updates in self._updates_until_somebody_looks()]
        if trainer.val_check_batch not in (None, float("inf")):
            done = self.batch_progress.total.ready if trainer.check_val_every_n_epoch is None else first
            boundaries.append(until_multiple(done, int(trainer.val_check_batch)))
        assert self._engine is not None
        return chunk_of(self._engine.longest(self.chunk_size), first, int(trainer.num_training_batches), accumulate, boundaries)

    def _updates_until_somebody_looks(self) -> Iterator[int]:
        trainer, step = self.trainer, self.global_step
        yield until_multiple(step, self._module.log_every)
        if trainer.log_every_n_steps:
            yield until_multiple(self._batches_that_stepped, trainer.log_every_n_steps)
        if self.max_steps > 0:
            yield self.max_steps - step
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback._every_n_train_steps:
                yield until_multiple(step, callback._every_n_train_steps)
        for callback in trainer.callbacks:
            if every := getattr(callback, "looks_every", 0):
                yield until_multiple(step, every)

    def _fetch(self, data_fetcher: _DataFetcher, chunk: Chunk) -> Tensor:
        source = self._source
        source.chunk = chunk.size
        try:
            indices: Tensor = next(data_fetcher)[0]
        finally:
            source.chunk = 0
        data_fetcher.fetched += chunk.size - 1
        data_fetcher.done = data_fetcher.length is not None and data_fetcher.fetched >= data_fetcher.length
        self.batch_progress.is_last_batch = data_fetcher.done
        return indices

    def _begin(self, chunk: Chunk, indices: Tensor) -> None:
        """The counters and the rate that the chunk's last minibatch begins with, then the hooks that look at them."""
        _add(self.batch_progress, "ready", chunk.size)
        self.trainer._logger_connector.on_batch_start(indices)
        before_last = chunk.updates - chunk.ends_on_update
        self._batches_that_stepped += before_last
        self._schedule.put(self._schedule.last_epoch + before_last)
        call._call_callback_hooks(self.trainer, "on_train_batch_start", indices, chunk.stop - 1)
        _add(self.batch_progress, "started", chunk.size)

    def _run(self, chunk: Chunk, indices: Tensor, number: int) -> Outcome:
        assert self._engine is not None
        source, module, convert = self._source, self._module, self.trainer.precision_plugin.convert_input
        minibatches = source.minibatches(indices)
        if any(convert(part[:0]).dtype != part.dtype for part in (source.x, source.y)):
            minibatches = map(convert, minibatches)
        name, module._current_fx_name = module._current_fx_name, "training_step"
        outcome = run_chunk(module, self._schedule, self._engine.chunk(), chunk, minibatches, number)
        module._current_fx_name = name
        return outcome

    def _count(self, chunk: Chunk) -> None:
        """Count the chunk as that many single minibatches, the last of them not yet completed."""
        updates, optimizer = chunk.updates, self.automatic_optimization.optim_progress.optimizer
        for field in ("ready", "completed"):
            _add(optimizer.step, field, updates)
            _add(self.scheduler_progress, field, updates)
        for field in ("ready", "started", "completed"):
            _add(optimizer.zero_grad, field, chunk.openings)
        _add(self.batch_progress, "processed", chunk.size)
        # A checkpoint saved by an end hook must say that one minibatch is not completed: that is how a restart knows it.
        _add(self.batch_progress, "completed", chunk.size - 1)
        self._schedule.seek(self._schedule.last_epoch + updates)

    def _count_up_to_here(self, chunk: Chunk) -> None:
        """Of a chunk that was broken off, the whole updates before the one at hand count, and the minibatches that made them."""
        updates = self._module.window.update - 1 - self.global_step
        size = minibatches_until(updates, chunk.first, chunk.accumulate) if updates > 0 else 0
        for field in ("ready", "started"):
            _add(self.batch_progress, field, size - chunk.size)
        if size:
            self._count(Chunk(chunk.first, size, chunk.length, chunk.accumulate))
            self.batch_progress.increment_completed()

    def _end(self, chunk: Chunk, indices: Tensor, outcome: Outcome) -> None:
        trainer = self.trainer
        outputs = {"loss": outcome.total.detach() / chunk.accumulate}
        call._call_callback_hooks(trainer, "on_train_batch_end", outputs, indices, chunk.stop - 1)
        trainer._logger_connector.on_batch_end()
        self.batch_progress.increment_completed()
        trainer._logger_connector.update_train_step_metrics()

    @property
    def _module(self) -> Module:
        module = self.trainer.lightning_module
        assert isinstance(module, Module)
        return module

    @property
    def _source(self) -> Batches:
        source = self.trainer.train_dataloader
        assert isinstance(source, Batches)
        return source

    @property
    def _schedule(self) -> ScheduleLR:
        schedule: Any = self.trainer.lr_scheduler_configs[0].scheduler
        assert isinstance(schedule, ScheduleLR)
        return schedule


def use_chunks(trainer: pl.Trainer, chunk_size: int = 50, engine: Wanted = "auto") -> pl.Trainer:
    """Give `trainer` the chunked epoch loop, `chunk_size` minibatches at most per chunk, and hand it back. Before `fit`.

    `engine`: how a step is run, `eager`, `captured`, `auto` (the faster of these, by the times of the first chunks) or `compiled`.
    The numbers depend on neither, but that those of a compiled step are equal to rounding only.
    """
    if engine not in ENGINES:
        raise ConfigError([Problem("engine", f"must be one of {', '.join(ENGINES)}, got {engine!r}", nearest(str(engine), ENGINES))])
    if chunk_size < 1:
        raise ConfigError([Problem("chunk_size", f"must be at least 1, got {chunk_size}")])
    stock = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = ChunkedEpochLoop(trainer, stock.min_steps, stock.max_steps, chunk_size, engine)
    return trainer


def engine_report(trainer: pl.Trainer) -> dict[str, Any]:
    """How the chunked loop of `trainer` runs its minibatches, and why: `wanted used why`, `ms_per_minibatch` where it was measured."""
    loop = trainer.fit_loop.epoch_loop
    assert isinstance(loop, ChunkedEpochLoop)
    return loop.report


def _add(progress: _Progress, field: str, n: int) -> None:
    for part in (progress.total, progress.current):
        setattr(part, field, getattr(part, field) + n)
