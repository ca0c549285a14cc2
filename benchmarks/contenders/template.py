"""Lightning as its templates show it: DataLoader, torchmetrics, self.log on every step and epoch, bar, callbacks, MLflow's logger."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, LearningRateMonitor, ModelCheckpoint
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.jobs import EVALUATION_BATCH, ONE_CYCLE, PEAK_RATE, Boundary, Facts, Job, flat, load, perceptron
from benchmarks.meter import EpochMeter

Batch = tuple[Tensor, Tensor]


class Classifier(pl.LightningModule):
    def __init__(self, net: nn.Module, classes: int) -> None:
        super().__init__()
        self.net = net
        self.train_acc = MulticlassAccuracy(classes, average="micro")
        self.val_acc = MulticlassAccuracy(classes, average="micro")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self.net(batch[0])
        loss = cross_entropy(logits, batch[1])
        self.train_acc(logits, batch[1])
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("train/acc", self.train_acc, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self.net(batch[0])
        self.val_acc(logits, batch[1])
        self.log("val/loss", cross_entropy(logits, batch[1]), prog_bar=True)
        self.log("val/acc", self.val_acc, prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.net.parameters(), lr=PEAK_RATE, momentum=0.9)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, int(self.trainer.estimated_stepping_batches), **ONE_CYCLE)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(job: Job, boundary: Boundary) -> Facts:
    pl.seed_everything(0, verbose=False)
    data = load(job)
    train_loader = DataLoader(TensorDataset(*flat(data.train)), job.batch_size, shuffle=True, num_workers=0)
    val_loader = DataLoader(TensorDataset(*flat(data.validation)), EVALUATION_BATCH, num_workers=0)
    meter = EpochMeter(boundary)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=job.epochs,
        logger=_logger() if job.tracking else False,
        callbacks=[meter, *_callbacks(job)],
        num_sanity_val_steps=0,
        default_root_dir=Path.cwd(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Classifier(perceptron(data), data.outputs), train_loader, val_loader)
    return meter.facts


def _callbacks(job: Job) -> list[Callback]:
    always: list[Callback] = [
        ModelCheckpoint(dirpath="checkpoints", filename="best", monitor="val/acc", mode="max", save_last=True),
        EarlyStopping("val/acc", mode="max", patience=job.epochs),
    ]
    return [*always, LearningRateMonitor("step")] if job.tracking else always


def _logger() -> Any:
    from pytorch_lightning.loggers import MLFlowLogger

    return MLFlowLogger("bench", tracking_uri=f"sqlite:///{Path.cwd() / 'mlflow.db'}", artifact_location=(Path.cwd() / "mlruns").as_uri())
