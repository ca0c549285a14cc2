"""The loaders of a run: over examples that live on the device, or over a stream of them."""

from __future__ import annotations

from torch import Tensor

from dnnkit.data.resident import Augment, Batches
from dnnkit.data.stored import StoredRows
from dnnkit.data.stream import StreamedBatches

Rows = Tensor | StoredRows

#: Examples of a minibatch of validation that a limit counts; how many are evaluated at a time elsewhere is in `dnnkit.data.sizing`.
EVALUATION_BATCH = 1000


def training_batches(
    x: Rows, y: Rows, batch_size: int, seed: int, *, rank: int = 0, world: int = 1, augment: Augment | None = None, workers: int = 0
) -> Batches:
    """Minibatches in the order of each epoch; see `Batches`."""
    if isinstance(x, StoredRows):
        return StreamedBatches(x, y, batch_size, seed, rank=rank, world=world, augment=augment, workers=workers)
    assert isinstance(y, Tensor)
    return Batches(x, y, batch_size, seed, rank=rank, world=world, augment=augment)


def evaluation_batches(x: Rows, y: Rows, batch_size: int = EVALUATION_BATCH, *, rank: int = 0, world: int = 1, workers: int = 0) -> Batches:
    """The examples in their stored order: for validation and test.

    Of each batch, several devices take their share, which may be none of a short last one.
    """
    if isinstance(x, StoredRows):
        return StreamedBatches(x, y, batch_size, seed=0, shuffle=False, rank=rank, world=world, workers=workers)
    assert isinstance(y, Tensor)
    return Batches(x, y, batch_size, seed=0, shuffle=False, rank=rank, world=world)
