"""What happens around training: the clock, the bar on the terminal, and stopping on a signal."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dnnkit.errors import Interrupted
from dnnkit.record import Journal
from dnnkit.training.signals import give_signals, take_signals


class JournalLogger(Logger):
    """Hands Lightning's metrics to the run's journal."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    @property
    def name(self) -> str:
        """Of the logger."""
        return "journal"

    @property
    def version(self) -> str:
        """There is one run to a journal."""
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append to `metrics.jsonl`; Lightning's own counters are left out."""
        self._journal.log(step or 0, {key: value for key, value in metrics.items() if key != "epoch"})

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Parameters are written with the run folder, before training."""


class Clock(pl.Callback):
    """`time/epoch_s`, the seconds of each training epoch without its validation, and `time/samples_per_s` in it."""

    chunked = True

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._began = 0.0
        self._paused = 0.0
        self._validating = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._began, self._paused = time.perf_counter(), 0.0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hold it."""
        self._validating = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let it run on."""
        self._paused += time.perf_counter() - self._validating

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch down."""
        seconds = time.perf_counter() - self._began - self._paused
        loader: Any = trainer.train_dataloader
        samples = min(trainer.fit_loop.epoch_loop.batch_progress.current.completed * loader.batch_size, len(loader.x))
        self._journal.time(trainer.global_step, {"time/epoch_s": seconds, "time/samples_per_s": samples / seconds})


class Bar(pl.Callback):
    """A progress bar over the epoch at hand and a line for each that is done; without a terminal the lines alone."""

    chunked = True

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._began = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._progress = Progress(*columns, console=self._console, transient=True, refresh_per_second=8)
            self._progress.add_task("", total=None, note="")
            self._progress.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin an epoch."""
        self._began = time.perf_counter()
        if self._progress is not None:
            title = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self._progress.reset(self._progress.task_ids[0], total=int(trainer.num_training_batches), description=title, note="")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move on."""
        if self._progress is not None:
            loss = trainer.progress_bar_metrics.get("train/loss")
            note = f"train/loss {loss:.4f}" if loss is not None else ""
            self._progress.update(self._progress.task_ids[0], completed=batch_idx + 1, note=note)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the epoch's line."""
        width = len(str(trainer.max_epochs))
        shown = [f"{part:<5} {_row(trainer.callback_metrics, part)}" for part in ("train", "val")]
        seconds = time.perf_counter() - self._began
        line = f"epoch {trainer.current_epoch + 1:>{width}}/{trainer.max_epochs}  {'   '.join(shown)}  {seconds:5.1f} s"
        self._console.print(line, highlight=False, soft_wrap=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message stands below it."""
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _row(metrics: Mapping[str, Any], part: str) -> str:
    """The loss and then the metrics of training or validation, in columns."""
    keys = sorted((key for key in metrics if key.startswith(f"{part}/")), key=lambda key: (not key.endswith("/loss"), key))
    return "  ".join(f"{key.removeprefix(f'{part}/')} {float(metrics[key]):<7.4g}" for key in keys)


class StopOnSignal(pl.Callback):
    """During training, SIGINT and SIGTERM end it after the minibatches at hand; a second one ends it at once.

    `received` is the signal, or None. Of several devices the first takes the signals, and all of them stop after the same
    minibatches; then `agreed` is true on each.
    """

    chunked = True

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.agreed = False
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over from Lightning, whose own handlers exit without a checkpoint."""

        def handle(number: int, _frame: FrameType | None) -> None:
            if self.received is not None:
                raise Interrupted(number, f"stopped at once by a second {signal.Signals(number).name}")
            self.received = signal.Signals(number)
            trainer.should_stop = trainer.should_stop or trainer.world_size == 1

        self._before = take_signals(handle) if trainer.is_global_zero else {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Ask the other devices' processes whether one was told to stop."""
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            self.agreed = trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give them back."""
        give_signals(self._before)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give them back."""
        give_signals(self._before)
