"""Copies of minibatches to a device, made while the device works on something else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Lane(Protocol):
    """A way to a device. `ahead`: how many minibatches are on their way beside the one that is used."""

    ahead: int

    def send(self, parts: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        """Begin to copy `parts`; gives what they become, and what `receive` takes with it. Waits for nothing."""
        ...

    def receive(self, parts: list[Tensor], sent: Any) -> list[Tensor]:
        """The copies, fit for use by what is queued on the device from here on. The CPU does not wait."""
        ...


class OwnMemory:
    """To the CPU and to a device that has no queue of copies: at once, when they are needed."""

    ahead = 0

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def send(self, parts: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        """Tensors that are there already stay what they are."""
        return [part.to(self._device, non_blocking=True) for part in parts], None

    def receive(self, parts: list[Tensor], sent: Any) -> list[Tensor]:
        """They are there."""
        return parts


class SideStream:
    """To an NVIDIA or AMD GPU, from pinned memory, on a stream of its own: the copy and the training overlap."""

    ahead = 1

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, parts: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        """Queue the copies on the side stream."""
        with torch.cuda.stream(self._stream):
            copies = [part.to(self._device, non_blocking=True) for part in parts]
            return copies, self._stream.record_event()

    def receive(self, parts: list[Tensor], sent: Any) -> list[Tensor]:
        """The stream at work waits for this copy alone, and memory is not given away before that stream is done with it."""
        working = torch.cuda.current_stream(self._device)
        working.wait_event(sent)
        for part in parts:
            part.record_stream(working)
        return parts


def lane_to(device: torch.device) -> Lane:
    """The way to `device`."""
    return SideStream(device) if device.type == "cuda" else OwnMemory(device)


class Ahead(Iterator[list[Tensor]]):
    """The minibatches of `feed` on the other side of `lane`, in their order; `lane.ahead` of them are sent before they are asked for."""

    def __init__(self, feed: Iterator[Sequence[Tensor]], lane: Lane) -> None:
        self._feed, self._lane = feed, lane
        self._sent: list[tuple[list[Tensor], Any]] = []

    def __next__(self) -> list[Tensor]:
        """The next minibatch; the one after it is sent first, so that its copy does not wait for what is done with this one."""
        while len(self._sent) <= self._lane.ahead and (parts := next(self._feed, None)) is not None:
            self._sent.append(self._lane.send(parts))
        if not self._sent:
            raise StopIteration
        return self._lane.receive(*self._sent.pop(0))
