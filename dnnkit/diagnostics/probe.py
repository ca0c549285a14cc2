"""How the signal travels through a network: what each layer puts out, and the gradient that comes back to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from dnnkit.diagnostics.measures import NOT_ZERO_AT_ZERO, by_unit, cosine, effective_rank, quantiles, saturated, wide
from dnnkit.diagnostics.watch import Block, fit, some_parameter, undisturbed, watching
from dnnkit.network.blocks import is_dropout

#: A probe reads at most so many examples.
MOST_SAMPLES = 1000
#: What `as_metrics` gives of a layer, by the names of its fields.
MEASURES = ("mean", "variance", "second_moment", "dead", "saturated", "cosine", "delta_norm", "gradient_ratio")

_NORMALIZATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d)


@dataclass(frozen=True)
class LayerSignal:
    """One weight layer, measured on `samples` examples; L is their mean loss, without the penalty.

    z is what the weight layer itself gives, W·x + b. The output y is what its block gives: that of the last module before
    the next weight layer that keeps the shape of z, so that activation, normalization and dropout are in it and pooling
    is not; z itself where nothing follows. A unit is a feature of a dense layer or a channel of a convolution, whose
    pixels count as samples. An activation that is called as a function, not as a module, is not seen.

    `mean` is that of y over everything, `variance` the variance over samples (biased) of each unit's y, averaged over units,
    `second_moment` the mean of y² over everything.
    `dead` is the fraction of units that are ≤ 0 on all samples, after the activation but before a normalization that follows
    it; None where there is no activation, or it gives negative values too, whose units still learn.
    `delta_norm` is ‖∂L/∂z‖, over all samples and units (Frobenius); 0 where L does not depend on z.
    `gradient_ratio` is ‖∂L/∂W‖ / ‖W‖; None where W is frozen or zero.
    `saturated` is the fraction of y where its activation is flat: below .05 or above .95 of a sigmoid, beyond ±.97 of a tanh; None
    where it is neither.
    `cosine` is the mean cosine between y of two samples, 1 where all point the same way; None where fewer than two are not zero, and
    after activations that are not 0 at 0, whose offset is all that it would see.
    Only where they are asked for, `effective_rank` is exp of the entropy of the normalised singular values of y, samples by
    units (Roy & Vetterli 2007), and `quantiles` are those of y at .05, .25, .5, .75 and .95.
    """

    layer: str
    samples: int
    units: int
    mean: float
    variance: float
    second_moment: float
    dead: float | None
    delta_norm: float
    gradient_ratio: float | None
    saturated: float | None = None
    cosine: float | None = None
    effective_rank: float | None = None
    quantiles: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, in JSON values."""
        return asdict(self)


def probe(network: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor], whole: bool = False) -> list[LayerSignal]:
    """The signal of every dense and convolution layer that a forward pass meets, in the order of their first calls.

    One forward and one backward pass on at most 1000 examples, evenly spaced in x `(n, *shape)`, standardised, and y
    `(n, …)`; they are moved to the device and the precision of the network. `loss` maps (prediction, target) to a scalar,
    the mean over the samples. Layers are named as in the network; one that is itself the network by its type, in lower case.
    `whole` asks for what takes longer, effective ranks and quantiles.

    Everything is in evaluation mode, so that dropout is off and equal weights give equal numbers, with one exception: batch
    normalization keeps its mode. In a network that trains it takes the statistics of these examples, as it does of a
    minibatch, because before training its moving ones describe nothing; in evaluation mode it takes the moving ones.

    Weights, their gradients, buffers (moving statistics), modes, hooks and the random states of CPU and device are
    afterwards what they were, bit for bit, also where the pass raises. Raises ValueError for x without examples.
    """
    if len(x) == 0:
        raise ValueError("a probe needs at least one example, got none")
    rows = evenly_spaced(len(x), MOST_SAMPLES).to(x.device)
    like, seen = some_parameter(network), _Seen(whole)
    with undisturbed(network, like.device), watching(network, seen) as watch, parametrize.cached(), torch.enable_grad():
        value = loss(network(fit(x[rows], like)), fit(y[rows.to(y.device)], like))
        watch.close()
        return _signals(list(watch.blocks.values()), seen.layers, value, len(rows))


def as_metrics(signals: Sequence[LayerSignal]) -> dict[str, float]:
    """The measures by journal key, `signal/<layer>/<measure>`; those that are None are left out.

    `delta_ratio` is the layer's `delta_norm` over that of the last layer, which does not depend on the number of samples; left out
    where nothing comes back to the last one.
    """
    measured = [(signal.layer, name, getattr(signal, name)) for signal in signals for name in MEASURES]
    last = signals[-1].delta_norm if signals else 0.0
    measured += [(signal.layer, "delta_ratio", signal.delta_norm / last) for signal in signals if last > 0]
    return {f"signal/{layer}/{name}": value for layer, name, value in measured if value is not None}


def evenly_spaced(n: int, most: int) -> Tensor:
    """At most `most` of the indices 0 … n − 1, ascending, as far apart as can be: all classes, even of sorted data."""
    count = min(n, most)
    return torch.arange(count) * n // count


class _Seen:
    """What the layers put out, by name and by the fields of a LayerSignal."""

    def __init__(self, whole: bool) -> None:
        self.layers: dict[str, dict[str, Any]] = {}
        self._whole = whole
        self._offset: set[str] = set()  # the layers whose output is not centred, because of their activation

    def __call__(self, block: Block, module: nn.Module | None, output: Tensor) -> None:
        """Take this for the block's output."""
        units = by_unit(output, block.axis)
        found = self.layers.setdefault(block.name, {})
        found["mean"], found["variance"], found["second_moment"] = _moments(units).tolist()
        if activates(module):
            found["dead"], found["saturated"] = _dead(units), saturated(module, output)
        if isinstance(module, NOT_ZERO_AT_ZERO):
            self._offset.add(block.name)
        elif isinstance(module, _NORMALIZATIONS):
            self._offset.discard(block.name)
        found["cosine"] = None if block.name in self._offset else cosine(output)
        if self._whole:
            found["effective_rank"], found["quantiles"] = effective_rank(units), quantiles(units)


def activates(module: nn.Module | None) -> TypeGuard[nn.Module]:
    """Whether a module after a weight layer is its activation: what neither normalizes nor drops, nor leaves everything as it is."""
    return module is not None and not isinstance(module, (*_NORMALIZATIONS, nn.Identity)) and not is_dropout(module)


def _signals(blocks: Sequence[Block], seen: Mapping[str, Mapping[str, Any]], value: Tensor, samples: int) -> list[LayerSignal]:
    if not blocks:
        return []
    trained = [block.weight for block in blocks if block.weight.requires_grad]
    gradients = torch.autograd.grad(value, [*(block.z for block in blocks), *trained], materialize_grads=True)
    deltas, of_weights = gradients[: len(blocks)], iter(gradients[len(blocks) :])
    signals = []
    for block, delta in zip(blocks, deltas, strict=True):
        size = _norm(block.weight)
        change = _norm(next(of_weights)) if block.weight.requires_grad else None
        ratio = None if change is None or size == 0 else change / size
        units = block.z.shape[block.axis]
        found = {"dead": None, **seen[block.name]}
        signals.append(LayerSignal(block.name, samples, units, delta_norm=_norm(delta), gradient_ratio=ratio, **found))
    return signals


def _moments(units: Tensor) -> Tensor:
    units = wide(units)
    mean = units.mean(0)
    variance = (units - mean).square_().mean(0)  # a third of the time of torch.var_mean
    return torch.stack([mean.mean(), variance.mean(), (variance + mean.square()).mean()])


def _dead(units: Tensor) -> float | None:
    return int((units.amax(0) <= 0).sum()) / units.shape[1] if units.amin() >= 0 else None


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(wide(values)))
