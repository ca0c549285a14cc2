"""Minibatches of data that would not fit on the device: standardised and moved one by one, with the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dnnkit.data.lanes import Ahead, lane_to
from dnnkit.data.resident import Augment, Batches, Minibatch, share
from dnnkit.data.stored import StoredRows


class _Rows(Dataset[Any]):
    """What a DataLoader reads: a whole minibatch at a time, by the indices of its examples."""

    def __init__(self, x: Tensor | StoredRows, y: Tensor | StoredRows, augment: Augment | None, epoch: int) -> None:
        self._x, self._y, self._augment, self._epoch = x, y, augment, epoch

    def __len__(self) -> int:
        return len(self._x)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        rows = torch.tensor(indices, dtype=torch.int64)
        x, y = self._x[rows], self._y[rows]
        return (x if self._augment is None else self._augment(x, self._epoch, rows)), y


class StreamedBatches(Batches):
    """`Batches` whose examples are read by torch's DataLoader, as they are needed, and then moved to the device.

    `x` and `y` stay where they are, as `StoredRows` or tensors in CPU memory. `workers` processes prepare minibatches ahead
    of the training; with none they are prepared in turn. To a GPU each is copied while the one before is trained on. The
    order, the shares and the numbers are those of `Batches`.
    """

    def __init__(self, x: Any, y: Any, batch_size: int, seed: int, *, workers: int = 0, **keywords: Any) -> None:
        super().__init__(x, y, batch_size, seed, **keywords)
        self._workers = workers
        self._device = torch.device("cpu")
        self._feed: Iterator[list[Tensor]] = iter(())

    def to(self, device: torch.device | str) -> Self:
        """Move minibatches to `device` from now on."""
        self._device = torch.device(device)
        return self

    def minibatches(self, indices: Tensor) -> Iterator[Minibatch]:
        """The minibatches at `indices`, which have to be the next ones of the epoch: the DataLoader is ahead of them."""
        minibatches = torch.split(indices, self.batch_size)
        for number, minibatch in enumerate(minibatches, start=1):
            x, y = next(self._feed)
            if self.position == len(self) and number == len(minibatches):
                self._feed = iter(())  # the epoch is over: its worker processes end
            if self.world > 1:
                yield x, y, len(y) * self.world / len(minibatch)
            else:
                yield x, y

    @property
    def _in_place(self) -> bool:
        return False

    def _start(self, order: Tensor) -> None:
        minibatches = torch.split(order, self.batch_size)[self.position :]
        mine = [part[share(len(part), self.rank, self.world)].tolist() for part in minibatches]
        loader: DataLoader[Any] = DataLoader(
            _Rows(self.x, self.y, self.augment, self.epoch),
            batch_sampler=mine,
            num_workers=self._workers,
            collate_fn=_as_it_is,
            pin_memory=self._device.type == "cuda",
            # A generator of its own: DataLoader draws a seed for its workers from the one that training uses otherwise.
            generator=torch.Generator(),
        )
        self._feed = Ahead(iter(loader), lane_to(self._device))


def _as_it_is(minibatch: Any) -> Any:
    return minibatch
