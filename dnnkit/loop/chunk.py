"""Which minibatches make up a chunk: pure arithmetic on minibatches and optimizer updates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """The minibatches `first` to `first + size - 1` of an epoch of `length`, whose gradients are added over groups of `accumulate`.

    A group's first minibatch opens it, its last one closes it with an update; the epoch's last minibatch closes a shorter group.
    """

    first: int
    size: int
    length: int
    accumulate: int

    @property
    def stop(self) -> int:
        """The minibatch after the last."""
        return self.first + self.size

    def opens(self, index: int) -> bool:
        """Whether gradients are cleared at minibatch `index` of the epoch."""
        return index % self.accumulate == 0

    def closes(self, index: int) -> bool:
        """Whether the update comes after minibatch `index` of the epoch."""
        return (index + 1) % self.accumulate == 0 or index + 1 == self.length

    @property
    def openings(self) -> int:
        """How many groups begin in the chunk."""
        return -(-self.stop // self.accumulate) - -(-self.first // self.accumulate)

    @property
    def updates(self) -> int:
        """How many updates are made in the chunk."""
        return self.stop // self.accumulate - self.first // self.accumulate + (self.stop == self.length and self.stop % self.accumulate > 0)

    @property
    def ends_on_update(self) -> bool:
        """Whether the chunk's last minibatch makes an update."""
        return self.closes(self.stop - 1)


def minibatches_until(updates: int, first: int, accumulate: int) -> int:
    """How many minibatches from `first` on make that many updates, the end of the epoch aside."""
    return updates * accumulate - first % accumulate


def until_multiple(done: int, every: int) -> int:
    """How many more until `done` is a multiple of `every`: 1 to `every`."""
    return every - done % every


def chunk_of(limit: int, first: int, length: int, accumulate: int, boundaries: Iterable[int]) -> Chunk:
    """The longest chunk from `first` on that has at most `limit` minibatches and passes none of `boundaries`, minibatches from `first` on.

    Where `limit` reaches past the end of a group, the chunk ends with one, so that it leaves no gradients behind.
    """
    whole = (first + limit) // accumulate * accumulate - first
    size = min(whole if whole > 0 else limit, length - first, *boundaries)
    return Chunk(first, max(1, size), length, accumulate)
