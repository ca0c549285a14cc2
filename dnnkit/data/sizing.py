"""How many examples are evaluated at a time: as many as one of a few megabytes of activations allow, and no more."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dnnkit.data.loaders import EVALUATION_BATCH

log = logging.getLogger("dnnkit")

#: Bytes that the largest tensor of a forward pass may take. On a CPU larger ones leave the cache, and beyond 32 MiB glibc
#: fetches fresh pages for each (docs/performance.md); on a GPU this is work enough for all of it, and a small part of its memory.
#: Fixed, not a share of what is free: in the last digits results depend on the batch, and they must not depend on the hour.
_BUDGET, _BUDGET_OF_GPU = 16 << 20, 256 << 20
#: Batches are this times a power of two, so that they begin on a cache line and hardly cut Monte-Carlo dropout's blocks of 100.
_UNIT = 25


def evaluation_batch(network: nn.Module, shape: Iterable[int], dtype: torch.dtype, device: torch.device, limit: int | float = 1.0) -> int:
    """The examples of `shape` that `network` is asked about at a time, at least 1; a function of the arguments alone.

    `limit` is `trainer.limit_val_batches`: where it is set, it counts minibatches of `EVALUATION_BATCH` examples. So many
    are taken also where `bytes_per_example` cannot be told; the log says so.
    """
    if isinstance(limit, int) or limit < 1:
        log.info("evaluation: %d examples at a time, of which trainer.limit_val_batches takes %s", EVALUATION_BATCH, limit)
        return EVALUATION_BATCH
    try:
        each = bytes_per_example(network, shape, dtype)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        log.info("evaluation: %d examples at a time; what one needs cannot be told without data (%s)", EVALUATION_BATCH, reason)
        return EVALUATION_BATCH
    budget = _BUDGET if device.type == "cpu" else _BUDGET_OF_GPU
    batch = _rounded(budget // max(1, each))
    log.info("evaluation: %d examples at a time; the largest layer of one takes %d bytes, of %d MiB for all", batch, each, budget >> 20)
    return batch


def bytes_per_example(network: nn.Module, shape: Iterable[int], dtype: torch.dtype) -> int:
    """By how many bytes the largest tensor of a forward pass in evaluation mode, its input included, grows with each example.

    Found with a copy of the network whose tensors have a shape but no values, so that nothing is computed and `network`
    is not called. Raises what a network raises that cannot be copied or that looks at values.
    """
    hollow = hollow_copy(network).to(dtype)
    few, many = (_sizes(hollow, torch.empty(examples, *shape, dtype=dtype, device="meta")) for examples in (32, 64))
    # What is made of weights alone has the same size both times.
    growth = (more - less for less, more in zip(few, many, strict=True)) if len(few) == len(many) else iter(many)
    return max(growth) // (32 if len(few) == len(many) else 64)


def hollow_copy(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode, without hooks, on the device that has no memory."""
    instead: dict[int, Any] = {}
    for tensor in chain(network.parameters(), network.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        instead[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    hollow = copy.deepcopy(network, instead).eval()
    for module in hollow.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return hollow


class _Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the bytes of what each operation makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            parts = result if isinstance(result, tuple | list) else (result,)
            self.made.append(sum(part.numel() * part.element_size() for part in parts if isinstance(part, Tensor)))
        return result


def run_hollow(network: nn.Module, x: Tensor, seen_by: TorchDispatchMode) -> None:
    """A forward pass, every operation of which is `seen_by` a mode."""
    # A network that draws random numbers on the CPU whatever its device takes none from training.
    with torch.random.fork_rng(devices=()), torch.no_grad(), seen_by:
        network(x)


def _sizes(network: nn.Module, x: Tensor) -> list[int]:
    sizes = _Sizes()
    run_hollow(network, x, sizes)
    return [x.numel() * x.element_size(), *sizes.made]


def _rounded(count: int) -> int:
    """`count` rounded down to a power of two times `_UNIT`, or itself where it is less than that, and at least 1."""
    return max(1, count) if count < _UNIT else _UNIT << ((count // _UNIT).bit_length() - 1)
