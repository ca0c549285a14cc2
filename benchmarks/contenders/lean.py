"""Lightning by somebody who has profiled it: tensors in memory, sums kept on the device and logged once an epoch; all features on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.contenders.of_lightning import fit
from benchmarks.jobs import EVALUATION_BATCH, Boundary, Facts, Work, load
from benchmarks.networks import network, optimizer, schedule, tensors

Batch = tuple[Tensor, Tensor]


class Slices:
    """Minibatches `(x, y)` cut from tensors, in a new order each time or, without `shuffle`, in theirs."""

    def __init__(self, x: Tensor, y: Tensor, batch_size: int, shuffle: bool) -> None:
        self.x, self.y, self.batch_size, self.shuffle = x, y, batch_size, shuffle

    def __len__(self) -> int:
        return math.ceil(len(self.x) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if not self.shuffle:
            yield from zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True)
            return
        for chosen in torch.randperm(len(self.x)).split(self.batch_size):
            yield self.x[chosen], self.y[chosen]


class Sums:
    """Loss, hits and samples of an epoch: `count` accuracies, among the k likeliest for k from 1."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.clear()

    def clear(self) -> None:
        self.loss, self.hits, self.samples = torch.zeros(()), torch.zeros(self.count, dtype=torch.int64), 0

    def add(self, logits: Tensor, target: Tensor, loss: Tensor) -> None:
        self.loss += loss.detach() * len(target)
        if self.count == 1:
            self.hits[0] += (logits.detach().argmax(1) == target).sum()
        else:
            self.hits += (logits.detach().topk(self.count, 1).indices == target[:, None]).sum(0).cumsum(0)
        self.samples += len(target)

    def means(self, prefix: str) -> dict[str, Tensor]:
        shares = self.hits / self.samples
        names = [f"{prefix}/acc", *(f"{prefix}/among_{k}" for k in range(2, self.count + 1))]
        return {f"{prefix}/loss": self.loss / self.samples, **dict(zip(names, shares, strict=True))}


class Classifier(pl.LightningModule):
    def __init__(self, net: nn.Module, work: Work) -> None:
        super().__init__()
        self.net, self.work = net, work
        self.train_sums, self.val_sums = Sums(work.metrics), Sums(work.metrics)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self.net(batch[0])
        loss = cross_entropy(logits, batch[1])
        self.train_sums.add(logits, batch[1], loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self.net(batch[0])
        self.val_sums.add(logits, batch[1], cross_entropy(logits, batch[1]))

    def on_train_epoch_end(self) -> None:
        self._log(self.train_sums, "train")

    def on_validation_epoch_end(self) -> None:
        self._log(self.val_sums, "val")

    def _log(self, sums: Sums, prefix: str) -> None:
        self.log_dict(sums.means(prefix), prog_bar=True)
        sums.clear()

    def configure_optimizers(self) -> Any:
        made = optimizer(self.work, self.net, fused=True)
        rates = schedule(self.work, made, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": made, "lr_scheduler": {"scheduler": rates, "interval": "step"}}


def train(work: Work, boundary: Boundary) -> Facts:
    pl.seed_everything(0, verbose=False)
    rows = load(work)
    training, validation = tensors(rows)
    loaders = Slices(*training, work.batch_size, True), Slices(*validation, EVALUATION_BATCH, False)
    return fit(work, boundary, Classifier(network(work, rows), work), *loaders)
