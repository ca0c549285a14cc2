"""What a bound on gradients does to those of a network with its initial weights: nothing, something, or the same to all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dnnkit.diagnostics.measures import wide

#: How far gradients go from their initial size while a network learns. In ten runs (MLPs, a CNN, tables, digits; momentum and Adam)
#: the largest were up to 2.0 times those of the beginning; the median norm fell to between a fifth and a seventeenth, on iris farther.
RISE, FALL = 3.0, 10.0
#: The share that has to be over a bound for it to be one that always bites.
ALWAYS = 0.9
#: torch sorts for quantiles: of more elements of a minibatch an even choice is as good.
_MOST_VALUES = 100_000


@dataclass(frozen=True)
class Clipped:
    """A clipping of a run: `where` the config has it, its `node` there, and the `gradients` that it clips together, by minibatch."""

    where: str
    node: Mapping[str, Any]
    gradients: Sequence[Sequence[Tensor]]


@dataclass(frozen=True)
class Kind:
    """A clipping: the `setting` that is its bound, `what` is compared with it, and the `quantile` of those at which a bound is offered."""

    setting: str
    what: str
    quantile: float
    sizes: Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Bite:
    """The sizes of gradients beside the bound of their clipping, over so many `minibatches`: `share` of them is over it."""

    kind: Kind
    bound: float
    minibatches: int
    share: float
    never: bool
    always: bool
    smallest: float
    largest: float
    offered: float

    @property
    def text(self) -> str:
        """What was measured."""
        sizes = f"from {self.smallest:.2g} to {self.largest:.2g}, with {self.offered:g} at the {self.kind.quantile:g} quantile"
        return f"{self.share:.0%} of the {self.kind.what} in {self.minibatches} first minibatches are over it, which are {sizes}"


def bite(kind: Kind, bound: float, gradients: Iterable[Sequence[Tensor]]) -> Bite | None:
    """What a bound does to these gradients, each item those of one minibatch; None where one is not finite, or all are 0.

    `never`: all sizes, were they three times as large, would be below it. `always`: of all sizes, were they a tenth as large, nine
    tenths would be over it. `offered` is a bound at the quantile of the kind, in two digits.
    """
    found = [kind.sizes(one) for one in gradients]
    sizes = torch.cat(found) if found else torch.empty(0)
    if not len(sizes) or not torch.isfinite(sizes).all() or not sizes.any():
        return None
    smallest, largest = sizes.aminmax()
    return Bite(
        kind,
        bound,
        len(found),
        _share(sizes > bound),
        never=float(largest) * RISE < bound,
        always=_share(sizes / FALL > bound) > ALWAYS,
        smallest=float(smallest),
        largest=float(largest),
        offered=float(f"{float(torch.quantile(sizes, kind.quantile)):.2g}"),
    )


def _share(found: Tensor) -> float:
    return int(found.sum()) / len(found)


def _elements(gradients: Sequence[Tensor]) -> Tensor:
    """Those that are not 0: a pixel that never changes has no gradient, whatever the bound."""
    values = torch.cat([wide(gradient).abs().flatten().cpu() for gradient in gradients])
    values = values[values != 0]
    return values[:: max(1, -(-len(values) // _MOST_VALUES))]


def _norms(gradients: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(wide(gradient)).cpu() for gradient in gradients])


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    return _norms(gradients).square().sum(0, keepdim=True).sqrt()


#: By the names of clippings; what others compare with which setting is not known.
KINDS: Mapping[str, Kind] = {
    "value": Kind("threshold", "elements of the gradient", 0.99, _elements),
    "norm": Kind("max_norm", "norms of the gradient", 0.9, _norm),
    "per_parameter_norm": Kind("max_norm", "norms of single parameters' gradients", 0.9, _norms),
}
