"""Lightning as its templates show it: DataLoader, torchmetrics, self.log on every step and epoch, bar, callbacks, MLflow's logger."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.contenders.of_lightning import fit
from benchmarks.jobs import EVALUATION_BATCH, Boundary, Facts, Rows, Work, load
from benchmarks.networks import network, optimizer, schedule, tensors

Batch = tuple[Tensor, Tensor]


class Classifier(pl.LightningModule):
    def __init__(self, net: nn.Module, work: Work, classes: int) -> None:
        super().__init__()
        self.net, self.work = net, work
        self.train_metrics = _accuracies(classes, work.metrics)
        self.test_metrics = _accuracies(classes, work.metrics)
        self.val_metrics = _accuracies(classes, work.metrics)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self.net(batch[0])
        loss = cross_entropy(logits, batch[1])
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        for name, metric in self.train_metrics.items():
            metric(logits, batch[1])
            self.log(f"train/{name}", metric, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test", self.test_metrics)

    def _evaluate(self, batch: Batch, prefix: str, metrics: nn.ModuleDict) -> None:
        logits = self.net(batch[0])
        self.log(f"{prefix}/loss", cross_entropy(logits, batch[1]), prog_bar=True)
        for name, metric in metrics.items():
            metric(logits, batch[1])
            self.log(f"{prefix}/{name}", metric, prog_bar=True)

    def configure_optimizers(self) -> Any:
        made = optimizer(self.work, self.net)
        rates = schedule(self.work, made, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": made, "lr_scheduler": {"scheduler": rates, "interval": "step"}}


def train(work: Work, boundary: Boundary) -> Facts:
    pl.seed_everything(0, verbose=False)
    rows = load(work)
    return fit(work, boundary, Classifier(network(work, rows), work, rows.classes), *loaders(work, rows))


def loaders(work: Work, rows: Rows) -> tuple[DataLoader[Any], DataLoader[Any]]:
    training, validation = tensors(rows)
    return (
        DataLoader(TensorDataset(*training), work.batch_size, shuffle=True, num_workers=0),
        DataLoader(TensorDataset(*validation), EVALUATION_BATCH, num_workers=0),
    )


def _accuracies(classes: int, count: int) -> nn.ModuleDict:
    """`count` objects of torchmetrics, as templates have them."""
    among = {f"among_{k}": MulticlassAccuracy(classes, top_k=k, average="micro") for k in range(2, count + 1)}
    return nn.ModuleDict({"acc": MulticlassAccuracy(classes, average="micro"), **among})
