"""How much arithmetic a network's large operations take: what decides how many CPU threads are worth it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dnnkit.data.sizing import hollow_copy, run_hollow


def multiplications(network: nn.Module, shape: Iterable[int], examples: int) -> list[int]:
    """Multiply-adds of each matrix product and convolution of a forward pass over `examples` examples of `shape`.

    Counted on a copy of the network whose tensors have a shape but no values. Raises what a network raises that cannot be
    copied or that looks at values.
    """
    hollow = hollow_copy(network)
    dtype = next((parameter.dtype for parameter in hollow.parameters()), torch.get_default_dtype())
    counting = _Counting()
    run_hollow(hollow, torch.empty(examples, *shape, dtype=dtype, device="meta"), counting)
    return counting.found


def typical(operations: Sequence[int]) -> int:
    """The size of operation in which, counted with all larger ones, at least half of the arithmetic is done; 0 without any."""
    left = sum(operations) / 2
    for size in sorted(operations, reverse=True):
        left -= size
        if left <= 0:
            return size
    return 0


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.found.append(int(count(*args, **(kwargs or {}), out_val=result)) // 2)
        return result
