"""How many of a run's CPU threads an operation of a graph is given: fewer on a busy machine, where that changes no bit.

A run's sums depend on the number of its threads, so that number stays what the record says. But most operations give the
same bits with one thread as with all: a matrix product whose threads share out rows and columns, anything elementwise.
`steady` finds out which ones do. Where other programs want the cores, a graph runs those with one thread, because threads
that wait for one another lose far more than their share of a core; the rest, often one small product, keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from dnnkit.data.cores import CROWD
from dnnkit.loop.graph import is_view, writes
from dnnkit.loop.verify import same_bits

#: Of random numbers that are tried: where threads add in another order, one draw in two or more shows it, even in a single sum.
_DRAWS = 4
#: PyTorch gives no thread fewer numbers than these (`at::internal::GRAIN_SIZE`); a multiple of all processors' vectors, twice.
_GRAIN, _VECTORS = 32_768, 64


def giving(threads: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Two calls for a program: the first gives the next operations one thread if there is a crowd, the second all `threads`."""
    give = torch.set_num_threads

    def fewer() -> None:
        if CROWD.here:
            give(1)

    def every() -> None:
        give(threads)  # asking whether it is needed takes as long, and the crowd may have gone meanwhile

    return fewer, every


def steady(node: fx.Node, threads: int) -> bool:
    """Whether an operation was seen to give the same bits with one thread and with `threads`, on random numbers of its shapes.

    One that changes its inputs, draws random numbers or reads anything but floating-point tensors is not tried.
    """
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload) or writes(node) or torch.Tag.nondeterministic_seeded in target.tags:
        return False
    if is_view(node):
        return True
    before = torch.get_num_threads()
    try:
        return all(_alike(node, threads, draw) for draw in range(_DRAWS))
    except Exception:
        return False  # it then keeps all threads, with which it is known to work
    finally:
        torch.set_num_threads(before)


def _alike(node: fx.Node, threads: int, draw: int) -> bool:
    generator = torch.Generator().manual_seed(draw)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda needed: _like(needed.meta["val"], generator))
    torch.set_num_threads(1)
    alone = _tensors(node.target(*args, **kwargs))  # type: ignore[operator]
    if not all(_cut_between_vectors(part.numel(), threads) for part in alone):
        return False
    torch.set_num_threads(threads)
    together = _tensors(node.target(*args, **kwargs))  # type: ignore[operator]
    return bool(alone) and all(map(same_bits, alone, together))


def _cut_between_vectors(numbers: int, threads: int) -> bool:
    """Whether PyTorch divides so many numbers among threads where whole vectors of the processor end.

    What is left of a part after its last whole vector is computed one by one, by other code, whose exponential function may
    differ in a last bit now and then: too rarely for a few draws to show it.
    """
    parts = min(threads, -(-numbers // _GRAIN))
    return parts <= 1 or -(-numbers // parts) % _VECTORS == 0


def _like(value: Any, generator: torch.Generator) -> Tensor:
    """Random numbers in the shape and the order in memory of a tensor. TypeError for anything that holds no real numbers."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.device.type != "cpu":
        raise TypeError("no floating-point tensor of the CPU")
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    return made.copy_(torch.randn(value.shape, generator=generator, dtype=value.dtype))


def _tensors(result: Any) -> list[Tensor]:
    parts = result if isinstance(result, tuple | list) else (result,)
    return [part for part in parts if isinstance(part, Tensor)]
