"""Batches over tensors that live on one device, in an order that is a pure function of (seed, epoch)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import SimpleNamespace
from typing import Self

import torch
from torch import Tensor

from dnnkit.errors import DataError

_MASK = (1 << 64) - 1
_GATHERED_BYTES = 4 << 20
_ORDER, _MINIBATCH, _EXAMPLE = 1, 2, 3  # one stream of seeds per purpose: the order of an epoch never shares one with a minibatch

Minibatch = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, float]
Augment = Callable[[Tensor, int, Tensor], Tensor]
"""Standardised examples `(n, *shape)`, the epoch, their indices in the data set `(n,)`: the examples as they are trained on."""


def splitmix64(value: int) -> int:
    """The next output of SplitMix64 in state `value`, in [0, 2^64). Steele, Lea & Flood 2014."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


@lru_cache(maxsize=256)
def _stream(purpose: int, seed: int, rank: int) -> int:
    return splitmix64(splitmix64(splitmix64(purpose) + seed) + rank)


def minibatch_seed(seed: int, minibatch: int, rank: int) -> int:
    """The seed of one minibatch: a pure function of (seed, minibatches since the start of the run, rank), in [0, 2^64).

    torch's CPU generator uses the low 32 bits, so two of n minibatches share a stream with probability about n²/2^33;
    nothing depends on their being distinct.
    """
    return splitmix64(_stream(_MINIBATCH, seed, rank) + minibatch)


def example_seed(seed: int, epoch: int, index: int) -> int:
    """The seed of what is random about one example in one epoch: a pure function of (seed, epoch, index), in [0, 2^64)."""
    return splitmix64(_stream(_EXAMPLE, seed, epoch) + index)


def share(count: int, rank: int, world: int) -> slice:
    """The part of `count` examples that device `rank` of `world` takes; the first devices take one more where it does not divide."""
    each, more = divmod(count, world)
    start = rank * each + min(rank, more)
    return slice(start, start + each + (rank < more))


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order of the n samples in an epoch (counted from 0), shape `(n,)`, int64, on the CPU, so that it is the same on every device."""
    generator = torch.Generator().manual_seed(splitmix64(_stream(_ORDER, seed, 0) + epoch))
    return torch.randperm(n, generator=generator)


def default_generator(device: torch.device) -> torch.Generator:
    """The generator that dropout and its like draw from on `device`."""
    if device.type == "cpu":
        return torch.default_generator
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    raise DataError(f"the device {str(device)!r} has no default random generator", "use one of cpu, cuda, mps")


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`. A GPU is sent it while the CPU goes on, for which it has to lie in pinned memory."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class Batches:
    """A loader over `x` of shape `(n, *shape)` and `y` of shape `(n, ...)`, both on one device.

    Its length counts minibatches, a ragged last one included.
    It yields pairs `(x, y)`, one minibatch at a time. While `chunk` is k > 0 it yields the indices of the next k
    minibatches instead, shape `(samples,)`, in the same order; `minibatches(indices)` turns them into pairs.

    The order of an epoch is `epoch_order(n, seed, epoch)`; the epoch is set by `set_epoch`, which Lightning calls at
    the start of each. Without `shuffle` it is the stored one. `augment` changes the examples of each minibatch.

    On `world` > 1 devices every loader has all of the data and the same order, and gives its `share` of each minibatch, as
    a triple `(x, y, weight)`. The weight is its number of examples over the mean number of a device: the mean over devices
    of weight · (mean loss of the share) is the mean loss of the minibatch, also where it does not divide.

    Raises DataError where x and y have different lengths or none, or batch_size < 1.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        augment: Augment | None = None,
    ) -> None:
        if len(x) != len(y) or len(x) == 0:
            raise DataError(f"x has {len(x)} samples and y has {len(y)}: they must have equally many, at least 1", "check the data source")
        if batch_size < 1:
            raise DataError(f"data.batch_size must be at least 1, got {batch_size}", "set data.batch_size")
        self.x, self.y, self.batch_size, self.seed, self.shuffle = x, y, batch_size, seed, shuffle
        self.rank, self.world, self.augment = rank, world, augment
        self.epoch = self.position = self.chunk = 0
        self._resume: tuple[int, int] | None = None

    def __len__(self) -> int:
        return math.ceil(len(self.x) / self.batch_size)

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """Where Lightning looks for the `set_epoch` to call: on a loader's `batch_sampler.sampler`."""
        return SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        """Take the order of `epoch`, counted from 0, from the next `iter` on."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands: the epoch and the number of its minibatches that were handed out."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at `state`: the next pass over that epoch begins at its position. A pass over another epoch begins at 0."""
        self._resume = (state["epoch"], state["position"])

    def to(self, device: torch.device | str) -> Self:
        """Move the tensors to `device`, in place."""
        self.x, self.y = self.x.to(device), self.y.to(device)
        return self

    def __iter__(self) -> Iterator[Minibatch | Tensor]:
        # A generator: nothing below runs before the first minibatch is asked for, when epoch and state are known.
        epoch, position = self._resume or (self.epoch, 0)
        self.position, self._resume = (position if epoch == self.epoch else 0), None
        order = self._order()
        self._start(order)
        while self.position < len(self):
            start, self.position = self.position, min(self.position + max(1, self.chunk), len(self))
            indices = order[start * self.batch_size : self.position * self.batch_size]
            if self.chunk:
                yield indices
            elif self._in_place:
                span = slice(start * self.batch_size, self.position * self.batch_size)
                yield self.x[span], self.y[span]
            else:
                yield from self.minibatches(indices)

    def minibatches(self, indices: Tensor) -> Iterator[Minibatch]:
        """The minibatches at `indices`, a whole number of them but for a ragged last: x `(batch, *shape)` and y `(batch, ...)`.

        They are gathered a few at a time: a block that comes and goes is cheap only while it fits into what the allocator
        keeps, and a chunk of large minibatches would be fresh pages of memory each time.
        """
        if self.world > 1:
            yield from map(self._shared, torch.split(indices, self.batch_size))
            return
        together = max(1, _GATHERED_BYTES // (self.x[0].numel() * self.x.element_size() * self.batch_size)) if self._aligned else 1
        for block in torch.split(indices, together * self.batch_size):
            x, y = self._gather(block)
            yield from zip(torch.split(x, self.batch_size), torch.split(y, self.batch_size), strict=True)

    def _shared(self, minibatch: Tensor) -> Minibatch:
        mine = minibatch[share(len(minibatch), self.rank, self.world)]
        return *self._gather(mine), len(mine) * self.world / len(minibatch)

    def _gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.x.index_select(0, indices), self.y.index_select(0, indices)
        return (x if self.augment is None else self.augment(x, self.epoch, indices)), y

    def _start(self, order: Tensor) -> None:
        """An epoch begins at `position`, in this order."""

    @property
    def _in_place(self) -> bool:
        """Whether a minibatch may be a view of the data."""
        return not self.shuffle and self._aligned and self.world == 1 and self.augment is None

    @property
    def _aligned(self) -> bool:
        """Whether every minibatch of one contiguous block starts on a 64-byte line.

        Off such a line kernels may sum in another order, and the numbers must not depend on how many minibatches were
        gathered at once; so only aligned minibatches are views.
        """
        return self.x[0].numel() * self.x.element_size() * self.batch_size % 64 == 0

    def _order(self) -> Tensor:
        if not self.shuffle:
            return torch.arange(len(self.x), device=self.x.device)
        return moved(epoch_order(len(self.x), self.seed, self.epoch), self.x.device)
