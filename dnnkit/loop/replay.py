"""A program as a CUDA graph: all its kernels are launched at once, into memory that stays where it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from dnnkit.loop.program import Program

_WARM_UP = 3

Results = tuple[Tensor, ...]


class Record(Protocol):
    """Runs work once and returns what runs it again, on the same memory, and where its results are each time."""

    def __call__(self, work: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
        """Do it."""
        ...


def record_on_gpu(work: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
    """With torch.cuda.CUDAGraph. The warm-up runs for real, so that what it changes has to be put back by the caller."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work()
    return graph.replay, results


def replayed(run: Program, x: Tensor, y: Tensor, kept: int, record: Record = record_on_gpu) -> Program:
    """`run` for minibatches of the shape of (x, y), recorded once and replayed from then on.

    A seed given to the device's generator before a call is the seed of what the call draws, as in `run` itself.
    The first `kept` results are copies and stay; the others are overwritten by the next call.
    """
    still_x, still_y = x.clone(), y.clone()
    with torch.no_grad():
        replay, results = record(lambda: run(still_x, still_y))

    def step(x: Tensor, y: Tensor) -> Results:
        still_x.copy_(x, non_blocking=True)
        still_y.copy_(y, non_blocking=True)
        replay()
        return *(result.clone() for result in results[:kept]), *results[kept:]

    return step
