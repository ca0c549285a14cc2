"""How the signal travels through a network: what each layer puts out, and the gradient that comes back to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from dnnkit.data.resident import default_generator
from dnnkit.diagnostics.measures import NOT_ZERO_AT_ZERO, by_unit, cosine, effective_rank, quantiles, saturated, wide

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
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    with _undisturbed(network, like.device), _watching(network, whole) as watch, parametrize.cached(), torch.enable_grad():
        value = loss(network(_fit(x[rows], like)), _fit(y[rows.to(y.device)], like))
        return _signals(list(watch.layers.values()), value, len(rows))


def as_metrics(signals: Sequence[LayerSignal]) -> dict[str, float]:
    """The measures by journal key, `signal/<layer>/<measure>`; those that are None are left out."""
    measured = ((signal.layer, name, getattr(signal, name)) for signal in signals for name in MEASURES)
    return {f"signal/{layer}/{name}": value for layer, name, value in measured if value is not None}


def evenly_spaced(n: int, most: int) -> Tensor:
    """At most `most` of the indices 0 … n − 1, ascending, as far apart as can be: all classes, even of sorted data."""
    count = min(n, most)
    return torch.arange(count) * n // count


def _fit(tensor: Tensor, like: Tensor) -> Tensor:
    """On the device of `like`; in its precision too, unless it holds integers."""
    return tensor.to(like) if tensor.is_floating_point() else tensor.to(like.device)


@dataclass
class _Layer:
    """A weight layer as the forward pass finds it."""

    name: str
    axis: int  # the one that counts units
    weight: Tensor
    z: Tensor
    moments: Tensor  # mean, variance, second moment
    dead: float | None = None
    saturated: float | None = None
    cosine: float | None = None
    effective_rank: float | None = None
    quantiles: tuple[float, ...] | None = None

    def look_at(self, output: Tensor, whole: bool) -> None:
        """Take this for the block's output."""
        units = by_unit(output, self.axis)
        self.moments = _moments(units)
        self.cosine = cosine(output)
        if whole:
            self.effective_rank, self.quantiles = effective_rank(units), quantiles(units)


class _Watch:
    """Hooks that follow a forward pass, and what they found."""

    def __init__(self, whole: bool) -> None:
        self.layers: dict[str, _Layer] = {}
        self._whole = whole
        self._open: _Layer | None = None  # the block at hand; None before the first weight layer

    def weighted(self, name: str) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        """The hook of a weight layer: it opens a block."""

        def note(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
            self._open = None
            if name in self.layers:
                return None
            axis = 1 if isinstance(module, _ConvNd) else output.ndim - 1
            z = output if output.requires_grad else output.detach().requires_grad_()
            weight = module.weight
            assert isinstance(weight, Tensor)
            self._open = self.layers[name] = _Layer(name, axis, weight, z, torch.empty(3))
            self._open.look_at(output, self._whole)
            return z.clone()  # an activation that works in place would turn ∂L/∂z into ∂L/∂y

        return note

    def other(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        """The hook of every other module without children: part of the block, if it keeps the shape."""
        block = self._open
        if block is None or not isinstance(output, Tensor) or output.shape != block.z.shape:
            return
        block.look_at(output, self._whole)
        if not isinstance(module, (*_NORMALIZATIONS, nn.Identity)):
            block.dead = _dead(by_unit(output, block.axis))
            block.saturated = saturated(module, output)
        if isinstance(module, NOT_ZERO_AT_ZERO):
            block.cosine = None


@contextmanager
def _watching(network: nn.Module, whole: bool) -> Iterator[_Watch]:
    watch = _Watch(whole)
    weighted = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear | _ConvNd)}
    inside = {part for layer in weighted.values() for part in layer.modules()}  # parametrizations act on weights, not on signals
    with ExitStack() as hooks:
        for name, layer in weighted.items():
            hooks.callback(layer.register_forward_hook(watch.weighted(name or type(layer).__name__.lower())).remove)
        for module in network.modules():
            if module not in inside and not any(True for _ in module.children()):
                hooks.callback(module.register_forward_hook(watch.other).remove)
        yield watch


def _signals(layers: Sequence[_Layer], value: Tensor, samples: int) -> list[LayerSignal]:
    if not layers:
        return []
    trained = [layer.weight for layer in layers if layer.weight.requires_grad]
    gradients = torch.autograd.grad(value, [*(layer.z for layer in layers), *trained], materialize_grads=True)
    deltas, of_weights = gradients[: len(layers)], iter(gradients[len(layers) :])
    signals = []
    for layer, delta in zip(layers, deltas, strict=True):
        mean, variance, second_moment = layer.moments.tolist()
        size = _norm(layer.weight)
        change = _norm(next(of_weights)) if layer.weight.requires_grad else None
        ratio = None if change is None or size == 0 else change / size
        units = layer.z.shape[layer.axis]
        of_units = (layer.saturated, layer.cosine, layer.effective_rank, layer.quantiles)
        signals.append(LayerSignal(layer.name, samples, units, mean, variance, second_moment, layer.dead, _norm(delta), ratio, *of_units))
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


@contextmanager
def _undisturbed(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode but for batch normalization, one fixed seed; everything as before at the end."""
    generators = {default_generator(torch.device("cpu")), default_generator(device)}
    random = {generator: generator.get_state() for generator in generators}
    modes = {module: module.training for module in network.modules()}
    buffers = {module: dict(module._buffers) for module in network.modules()}
    # The memory itself, not the tensors: that also puts expanded buffers back, and counts as no change to autograd.
    memory = [(storage, storage.clone()) for storage in _storages(buffers)]  # type: ignore[no-untyped-call]
    try:
        for generator in generators:
            generator.manual_seed(0)
        for module in modes:
            module.training = module.training and isinstance(module, _BatchNorm)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
            module._buffers.clear()
            module._buffers.update(buffers[module])
        for storage, saved in memory:
            storage.copy_(saved)
        for generator, state in random.items():
            generator.set_state(state)


def _storages(buffers: Mapping[nn.Module, Mapping[str, Tensor | None]]) -> list[torch.UntypedStorage]:
    return [buffer.untyped_storage() for named in buffers.values() for buffer in named.values() if buffer is not None]
