"""What a minibatch weighs where gradients are added up over a group of them before an update.

Lightning divides every minibatch's total by `accumulate_grad_batches`, also in an epoch's last group, which may have fewer
minibatches, and whatever sizes they have. The weights here make of that sum the gradient of the mean over the group's examples.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Portion(NamedTuple):
    """One minibatch of a group: `loss` is the factor of its data loss, `total` that of loss and penalty together."""

    loss: float = 1.0
    total: float = 1.0


WHOLE = Portion()


def portion(size: int, examples: int, minibatches: int, accumulate: int) -> Portion:
    """Of a minibatch of `size` in a group of so many `examples` and `minibatches`, which is whole with `accumulate`.

    With n = size, N = examples, G = minibatches, A = accumulate: (G · n / N, A / G), so that the sum over the group of
    total · (loss · (mean loss) + penalty) / A is the mean loss over its N examples + penalty. In a whole group of equal
    minibatches both are exactly 1.
    """
    return Portion(minibatches * size / examples, accumulate / minibatches)


def portion_of_epoch(index: int, length: int, accumulate: int, sizes: tuple[int, int] | None) -> Portion:
    """Of minibatch `index` in an epoch of `length` minibatches. `sizes`: how many examples a minibatch has, and how many there are.

    Where the sizes are not known, minibatches count alike.
    """
    first = index // accumulate * accumulate
    stop = min(first + accumulate, length)
    if sizes is None:
        return portion(1, stop - first, stop - first, accumulate)
    size, examples = sizes
    of_group = min(stop * size, examples) - first * size
    return portion(min((index + 1) * size, examples) - index * size, of_group, stop - first, accumulate)


def sizes_of(loader: Any) -> tuple[int, int] | None:
    """How many examples a loader has in a minibatch, and in all; None where it does not say, as with minibatches of its own making."""
    size, examples = getattr(loader, "batch_size", None), getattr(loader, "x", getattr(loader, "sampler", None))
    try:
        return None if size is None or examples is None else (int(size), len(examples))
    except TypeError:
        return None
