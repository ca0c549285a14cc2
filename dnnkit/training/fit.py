"""Lightning at work: fit, then test on the best weights, then the figures."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from rich.console import Console

from dnnkit.checkpoint import STATE_KEY, AtomicCheckpointIO, RunState, load_weights
from dnnkit.config import Config, Trainer
from dnnkit.data import DataSet, Examples
from dnnkit.data.resident import Batches, evaluation_batches
from dnnkit.diagnostics import LayerSignal, as_metrics, probe
from dnnkit.errors import CheckpointError, Interrupted
from dnnkit.loop import use_chunks
from dnnkit.module import Module
from dnnkit.record import RunFolder, config_digest, read_journal
from dnnkit.record.figures import confusion_matrix, learning_curves, learning_rate
from dnnkit.record.identity import version
from dnnkit.record.journal import METRICS
from dnnkit.record.signal import write_signal
from dnnkit.training.assemble import monitor
from dnnkit.training.callbacks import Bar, Clock, JournalLogger, StopOnSignal

#: Lightning's advice that does not apply: metrics are flushed at an epoch's end too, and there are no workers.
_BESIDE_THE_POINT = (
    r".*The number of training batches .* is smaller than the logging interval",
    r".*does not have many workers",
    r".*GPU available but not used",
    r".*Checkpoint directory .* exists and is not empty",
    r".*isinstance\(treespec, LeafSpec\)",
)
_PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "64": "64-true"}


class KeepState(Callback):
    """Puts what is needed to use the weights again into every checkpoint."""

    def __init__(self, state: RunState) -> None:
        self._state = state

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the run's state."""
        checkpoint[STATE_KEY] = self._state.as_dict()


def fit_and_test(
    cfg: Config, settings: Trainer, data: DataSet, module: Module, device: torch.device, folder: RunFolder, console: Console
) -> dict[str, float]:
    """Train to the end, test on the best weights, draw the figures; the last value of every metric by key.

    Raises Interrupted after a signal, with `checkpoints/last.ckpt` at the state of that moment.
    """
    stop = StopOnSignal()
    best = _best(cfg, folder)
    last = folder.path / "checkpoints" / "last.ckpt"
    train = Batches(*_as(data.train, settings), cfg.values["data"]["batch_size"], cfg.values["seed"]).to(device)
    with _quiet():
        callbacks = [best, KeepState(_state(cfg, data)), Clock(folder.journal), Bar(console), stop]
        trainer = _trainer(cfg, settings, device, folder, callbacks)
        start = _probe(module, data, folder, 0)
        trainer.fit(module, train, evaluation_batches(*_as(data.validation, settings)).to(device))
        trainer.save_checkpoint(last)
        # After the checkpoint, so that nothing here can cost it; before the best weights take the last ones' place.
        end = _probe(module, data, folder, trainer.global_step)
        write_signal(folder.path, {"start": start, "end": end})
        if stop.received is not None:
            _draw(folder)
            cause = f"stopped by {stop.received.name} after {trainer.global_step} optimizer steps"
            raise Interrupted(stop.received, cause, f"the state of that moment is in {last}")
        _take_best(best, module)
        trainer.test(module, evaluation_batches(*_as(data.test, settings)).to(device), verbose=False)
    _draw(folder)
    _draw_confusion(folder, module, data)
    return {row.key: row.value for row in read_journal(folder.path / METRICS)}


def _probe(module: Module, data: DataSet, folder: RunFolder, step: int) -> list[LayerSignal]:
    """Measure the signal in each layer on training examples, and write it into the journal."""
    signals = probe(module.net, data.train.x, data.train.y, module.task.loss)
    folder.journal.log(step, as_metrics(signals))
    return signals


def _best(cfg: Config, folder: RunFolder) -> ModelCheckpoint:
    key, mode = monitor(cfg)
    return ModelCheckpoint(
        dirpath=folder.path / "checkpoints",
        filename="best",
        monitor=key,
        mode=mode,
        save_last=True,
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )


def _trainer(cfg: Config, settings: Trainer, device: torch.device, folder: RunFolder, callbacks: list[Callback]) -> pl.Trainer:
    key, mode = monitor(cfg)
    if settings.early_stopping is not None:
        callbacks = [*callbacks, EarlyStopping(key, mode=mode, patience=settings.early_stopping)]
    trainer = pl.Trainer(
        accelerator={"cpu": "cpu", "cuda": "gpu", "mps": "mps"}[device.type],
        devices=1,
        precision=_PRECISIONS[str(settings.precision)],
        max_epochs=settings.max_epochs,
        accumulate_grad_batches=settings.accumulate_grad_batches,
        limit_train_batches=settings.limit_train_batches,
        limit_val_batches=settings.limit_val_batches,
        val_check_interval=settings.val_check_interval,
        log_every_n_steps=settings.log_every_n_steps,
        logger=JournalLogger(folder.journal),
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder.path,
    )
    return use_chunks(trainer, settings.chunk_size)


def _state(cfg: Config, data: DataSet) -> RunState:
    values = dict(cfg.values)
    return RunState(
        config=values,
        digest=config_digest(values),
        inputs=data.inputs,
        outputs=data.outputs,
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        seed=values["seed"],
        version=version(),
    )


def _as(examples: Examples, settings: Trainer) -> Examples:
    """The examples in the precision of the run; mixed precision takes them as float32."""
    return Examples(examples.x.double(), examples.y) if str(settings.precision) == "64" else examples


def _take_best(best: ModelCheckpoint, module: Module) -> None:
    if not best.best_model_path:
        raise CheckpointError("no checkpoint was saved, so there are no best weights to test", "validate at least once")
    load_weights(Path(best.best_model_path), module)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's notices about the machine, and its advice on loaders that are not used here, stay off the terminal."""
    lightning = logging.getLogger("pytorch_lightning"), logging.getLogger("lightning_fabric")
    levels = [logger.level for logger in lightning]
    for logger in lightning:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for text in _BESIDE_THE_POINT:
            warnings.filterwarnings("ignore", message=text)
        try:
            yield
        finally:
            for logger, level in zip(lightning, levels, strict=True):
                logger.setLevel(level)


def _draw(folder: RunFolder) -> None:
    learning_curves(folder.path)
    learning_rate(folder.path)


def _draw_confusion(folder: RunFolder, module: Module, data: DataSet) -> None:
    seen = module.evaluations["test"]
    pairs = seen.target.cpu() * data.outputs + seen.prediction.argmax(1).cpu()
    counts = torch.bincount(pairs, minlength=data.outputs**2).reshape(data.outputs, data.outputs)
    confusion_matrix(folder.path, counts.tolist(), data.classes)
