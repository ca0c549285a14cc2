"""What the contenders on Lightning share: how an epoch of theirs is measured, and the callbacks and logger of the templates."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping, LearningRateMonitor, ModelCheckpoint

from benchmarks.jobs import Boundary, Facts, Work
from benchmarks.networks import parameters


class EpochMeter(pl.Callback):
    """Calls `boundary` as each epoch begins and after the last, validation, checkpoints and loggers' epoch-end work included.

    Only as a trainer's first callback: what the others do as an epoch begins then belongs to that epoch. The trainer is
    stopped after `epochs` of them, if it would go on.
    """

    def __init__(self, boundary: Boundary, epochs: int | None = None) -> None:
        self._boundary, self._epochs = boundary, epochs
        self.facts: Facts = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._boundary()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 == self._epochs:
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._boundary()
        accuracy = float(trainer.callback_metrics["val/acc"])
        self.facts = {"parameters": parameters(pl_module), "steps": trainer.global_step, "val_acc": accuracy}


def fit(work: Work, boundary: Boundary, module: pl.LightningModule, train_loader: Any, val_loader: Any) -> Facts:
    """Train as the templates do: best and last checkpoint, early stopping, rates, bar, MLflow."""
    meter = EpochMeter(boundary)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=work.epochs,
        logger=mlflow_logger() if work.tracking else False,
        callbacks=[meter, *callbacks(work.epochs, work.tracking)],
        num_sanity_val_steps=0,
        default_root_dir=Path.cwd(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, train_loader, val_loader)
    return meter.facts


def callbacks(patience: int, tracking: bool) -> list[Callback]:
    always: list[Callback] = [
        ModelCheckpoint(dirpath="checkpoints", filename="best", monitor="val/acc", mode="max", save_last=True),
        EarlyStopping("val/acc", mode="max", patience=patience),
    ]
    return [*always, LearningRateMonitor("step")] if tracking else always


def mlflow_logger() -> Any:
    """Lightning's own, on SQLite in the working folder."""
    from pytorch_lightning.loggers import MLFlowLogger

    return MLFlowLogger("bench", tracking_uri=f"sqlite:///{Path.cwd() / 'mlflow.db'}", artifact_location=(Path.cwd() / "mlruns").as_uri())
