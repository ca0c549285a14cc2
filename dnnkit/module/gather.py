"""What several devices hold of the same minibatches, put together: every rank gets the same whole, in the order of one device.

Each minibatch is shared among the ranks in rank order, so the shares of one minibatch, joined in that order, are the
minibatch, and what is measured of the whole is what a single device would measure.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def several() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather(part: Tensor) -> list[Tensor]:
    """`part` of every rank, in rank order: shape `(n_r, *rest)`, where only n_r may differ between ranks."""
    length = torch.tensor([len(part)], device=part.device)
    lengths = [torch.zeros_like(length) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, length)
    counts = [int(count) for count in lengths]
    padded = part.new_zeros(max(counts), *part.shape[1:])
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return [whole[:count] for whole, count in zip(parts, counts, strict=True)]


def gather_batches(shares: Sequence[Tensor]) -> list[Tensor]:
    """The minibatches whose shares, `(n_r, *rest)` each, the ranks hold. Every rank holds equally many, some perhaps without rows."""
    if not shares:
        return []
    sizes = gather(torch.tensor([len(share) for share in shares], device=shares[0].device))
    wholes = gather(torch.cat(list(shares)))
    by_rank = [torch.split(whole, size.tolist()) for whole, size in zip(wholes, sizes, strict=True)]
    return [torch.cat(parts) for parts in zip(*by_rank, strict=True)]


def take_buffers_of_rank_0(module: nn.Module) -> None:
    """Moving statistics become those of rank 0, which are the ones that a checkpoint holds."""
    for buffer in module.buffers():
        dist.broadcast(buffer, src=0)
