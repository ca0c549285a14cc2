"""Batch normalization after training: an affine map per unit, which the weight layer beside it can take over.

In evaluation batch normalization is x ↦ s·x + t with s = γ / √(var + eps) and t = β − mean·s, per unit or channel. After a
layer W·x + b it folds into that layer: W ← diag(s)·W, b ← s·b + t. Before one it folds into that: b ← b + W·t, W ← W·diag(s).
Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
section 3.2, for the layer before (there for training, and without the offset); the layer after is the same algebra.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from dnnkit.network.flow import Call, UnknownFlow, calls, shapes, used_directly
from dnnkit.network.roles import part_of

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_PER_EXAMPLE = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm)
_DENSE = (nn.Linear,)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


@dataclass(frozen=True)
class Fold:
    """A batch normalization that became part of the weight layer `into`, which is before or after it."""

    normalization: str
    into: str
    side: Literal["before", "after"]


@dataclass(frozen=True)
class Refusal:
    """A normalization that stays, and why."""

    normalization: str
    reason: str


@dataclass(frozen=True, eq=False)
class Fused:
    """A copy of a network in evaluation mode that computes the same with fewer normalizations; what was done, and what was not."""

    network: nn.Module
    folds: tuple[Fold, ...]
    refusals: tuple[Refusal, ...]


class _Refused(Exception):
    """Why a normalization cannot be folded, in words."""


@dataclass(frozen=True, eq=False)
class _Affine:
    """x ↦ scale · x + shift over the units or channels of `(batch, units, …)`, in float64."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, norm: nn.Module) -> _Affine:
        """That of a batch normalization in evaluation."""
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, var = norm.running_mean.detach().double(), norm.running_var.detach().double()
        gamma = torch.ones_like(mean) if norm.weight is None else norm.weight.detach().double()
        beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().double()
        scale = gamma / (var + norm.eps).sqrt()
        return cls(scale, beta - mean * scale)

    def spread(self, times: int) -> _Affine:
        """The same after a flattening that makes `times` values of each channel."""
        return _Affine(self.scale.repeat_interleave(times), self.shift.repeat_interleave(times))


def fuse(network: nn.Module, inputs: tuple[int, ...]) -> Fused:
    """A copy in evaluation mode whose batch normalizations are folded into weight layers, where that changes no output.

    `inputs` is the shape of one example. The arithmetic is float64, rounded once to the type of the weights. Where a
    normalization was, an identity is. Between it and its layer there may be what commutes with an affine map per channel in
    evaluation: dropout, flattening, averages without padding and, before a layer, maxima if every s > 0.
    A normalization that stays has its reason in `refusals`. The copy is for evaluation: trained on, it is another network.
    """
    copied = copy.deepcopy(network).eval()
    norms = normalizations(copied)
    try:
        traced = calls(copied)
    except UnknownFlow as error:
        reason = f"the order of calls in this network is not known ({error})"
        return Fused(copied, (), tuple(Refusal(name, reason) for name in norms))
    return _Fusing(copied, traced, shapes(copied, inputs)).run(norms)


def apply_structure(network: nn.Module, folds: Mapping[str, str]) -> nn.Module:
    """Bring `network` into the shape of one that was fused: `folds` maps each folded normalization to its layer.

    Its weights are then to be loaded. Raises KeyError for a layer that is not there, or is of another kind.
    """
    modules = dict(network.named_modules())
    for normalization, layer in folds.items():
        if not isinstance(modules[normalization], _BATCH_NORMS) or type(modules[layer]) not in (*_DENSE, *_CONVOLUTIONS):
            raise KeyError(f"{normalization} or {layer}")
        _replace(network, modules[normalization], nn.Identity())
        _give_bias(modules[layer])
    return network


def normalizations(network: nn.Module) -> list[str]:
    """The names of all normalizations, torch's by their type and components by their group; of one inside another the outer one."""
    found: list[str] = []
    for name, module in network.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not inside and (part_of(module) == "normalization" or isinstance(module, (_NormBase, *_PER_EXAMPLE))):
            found.append(name)
    return found


class _Fusing:
    """One network being fused, in place."""

    def __init__(self, network: nn.Module, traced: list[Call], met: dict[str, tuple[int, ...]]) -> None:
        self.network, self.traced, self.shapes = network, traced, met
        self.modules = dict(network.named_modules())
        self.times = Counter(self.modules[call.layer] for call in traced if call.layer is not None)
        owners = Counter(parameter for _, parameter in network.named_parameters(remove_duplicate=False))
        self.tied = {tensor for tensor, count in owners.items() if count > 1} | used_directly(network, traced)
        self.calls = {call.layer: call for call in traced if call.layer is not None}
        self.folded: dict[str, Fold] = {}

    def run(self, norms: list[str]) -> Fused:
        """Fold into layers before, from the front; then into layers after, from the back, so that neighbours can follow each other."""
        reasons: dict[str, list[str]] = {name: [] for name in norms}
        for name in norms:
            self._attempt(self._check_norm, name, reasons)
        possible = [name for name in norms if not reasons[name]]
        for name in possible:
            self._attempt(self._into_before, name, reasons)
        for name in reversed([name for name in possible if name not in self.folded]):
            self._attempt(self._into_after, name, reasons)
        for name in self.folded:
            _replace(self.network, self.modules[name], nn.Identity())
        folds = tuple(self.folded[name] for name in norms if name in self.folded)
        return Fused(self.network, folds, tuple(Refusal(name, "; ".join(reasons[name])) for name in norms if name not in self.folded))

    @staticmethod
    def _attempt(step: Callable[[str], None], name: str, reasons: dict[str, list[str]]) -> None:
        try:
            step(name)
        except _Refused as error:
            reasons[name].append(str(error))

    def _check_norm(self, name: str) -> None:
        norm = self.modules[name]
        if isinstance(norm, _PER_EXAMPLE):
            raise _Refused(f"{type(norm).__name__} takes its statistics from each example, so it is no fixed map")
        if not isinstance(norm, _BATCH_NORMS):
            raise _Refused(f"{type(norm).__name__} is not torch's batch normalization, so what it computes is not known")
        if norm.running_mean is None or norm.running_var is None:
            raise _Refused("it keeps no moving statistics, and takes those of the batch at hand")
        self._check_own(name, "it")
        if not _computes_the_map(norm, self.shapes[name]):
            raise _Refused(f"{type(norm).__name__} does not compute in evaluation what torch's batch normalization does")

    def _check_own(self, name: str, who: str) -> None:
        """Called once, by one name, with weights that nothing else uses, and without hooks that could change what it computes."""
        module = self.modules[name]
        if self.times[module] != 1:
            raise _Refused(f"{who} is called {self.times[module]} times" if self.times[module] else f"{who} is not called in evaluation")
        if any(tensor in self.tied for tensor in (*module.parameters(), *module.buffers())):
            raise _Refused(f"{who} shares its weights with something else")
        if module._forward_hooks or module._forward_pre_hooks:
            raise _Refused(f"{who} has hooks, which may change what it computes")

    def _into_before(self, name: str) -> None:
        """Fold into the weight layer whose output this normalization gets."""
        here = call = self.calls[name]
        while True:
            if len(here.sources) != 1:
                raise _Refused(f"no weight layer is directly before it, but {here.what}")
            (here,) = here.sources
            if len(here.users) > 1:
                raise _Refused(f"what it normalizes, the output of {here.what}, also goes to {_others(here, call)}")
            if here.layer is None:
                raise _Refused(f"no weight layer is directly before it, but {here.what}")
            layer = self.modules[here.layer]
            if type(layer) in (*_DENSE, *_CONVOLUTIONS):
                break
            if not self._is_identity(here.layer) and not (type(layer) in _AVERAGES and self._unpadded(layer)):
                raise _Refused(f"no weight layer is directly before it, but {here.what} ({type(layer).__name__})")
            self._check_own(here.layer, here.what)
        self._check_own(here.layer, here.what)
        if type(layer) in _DENSE and len(self.shapes[name]) != 2:
            raise _Refused(f"{here.what} gives more than one value of each unit, over which it does not normalize")
        _fold_before(layer, _Affine.of(self.modules[name]))
        self.folded[name] = Fold(name, here.layer, "before")

    def _into_after(self, name: str) -> None:
        """Fold into the weight layer that gets the output of this normalization."""
        affine, here = _Affine.of(self.modules[name]), self.calls[name]
        while True:
            if len(here.users) != 1:
                raise _Refused(f"its output goes to {_others(here)}")
            (here,) = here.users
            if here.layer is None:
                raise _Refused(f"its output goes to {here.what}, which is no weight layer")
            layer = self.modules[here.layer]
            if type(layer) in (*_DENSE, *_CONVOLUTIONS):
                break
            affine = self._through(here.layer, affine)
        self._check_own(here.layer, here.what)
        if type(layer) in _DENSE and len(self.shapes[here.layer]) != 2:
            raise _Refused(f"{here.what} acts on another dimension than it normalizes")
        if type(layer) in _CONVOLUTIONS and _pads_zeros(layer):
            raise _Refused(f"{here.what} surrounds its input with zeros, which it does not normalize")
        _fold_after(layer, affine)
        self.folded[name] = Fold(name, here.layer, "after")

    def _through(self, name: str, affine: _Affine) -> _Affine:
        """The affine map behind this layer that equals `affine` before it. Raises _Refused."""
        layer, shape = self.modules[name], self.shapes[name]
        self._check_own(name, name)
        if self._is_identity(name):
            return affine
        if type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) in ((1, -1), (1, len(shape) - 1)):
            return affine.spread(math.prod(shape[2:]))
        if type(layer) in _AVERAGES and self._unpadded(layer):
            return affine
        if type(layer) in _MAXIMA and not layer.return_indices:
            wrong = int((affine.scale <= 0).sum())
            if wrong:
                raise _Refused(
                    f"{wrong} of its {len(affine.scale)} scales are not positive, so it cannot be moved behind the maximum {name}"
                )
            return affine
        why = " pads with zeros, which it does not normalize" if type(layer) in _AVERAGES or "Pad" in type(layer).__name__ else ""
        raise _Refused(f"its output goes to {name} ({type(layer).__name__}), {'which' + why if why else 'which is no weight layer'}")

    def _is_identity(self, name: str) -> bool:
        """Whether it gives back its input in evaluation; a normalization that was folded does by now."""
        layer = self.modules[name]
        torchs = type(layer).__module__.startswith("torch.nn.")
        return name in self.folded or type(layer) is nn.Identity or (isinstance(layer, _DropoutNd) and torchs)

    @staticmethod
    def _unpadded(layer: nn.Module) -> bool:
        """Whether every mean is over as many values as its divisor counts."""
        padding = layer.padding if isinstance(layer.padding, tuple) else (layer.padding,)
        return not any(padding) and not layer.ceil_mode and getattr(layer, "divisor_override", None) is None


def _computes_the_map(norm: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a subclass of torch's layer, which may have changed anything, still is the affine map: tried on small and large values."""
    affine, shape = _Affine.of(norm), (30, *shape[1:])
    probe = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probe = probe * torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64).repeat(10).reshape(-1, *[1] * (len(shape) - 1))
    scale, shift = (part.cpu().reshape(-1, *[1] * (len(shape) - 2)) for part in (affine.scale, affine.shift))
    with torch.no_grad():
        given = copy.deepcopy(norm).cpu().double()(probe)
    return isinstance(given, Tensor) and torch.allclose(given, scale * probe + shift, rtol=1e-9, atol=1e-9)


def _others(call: Call, but: Call | None = None) -> str:
    names = [user.what for user in call.users if user is not but]
    return " and ".join(names) or "nothing"


def _pads_zeros(layer: nn.Module) -> bool:
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    return any(size > 1 for size in layer.kernel_size) if layer.padding == "same" else any(int(each) for each in layer.padding)


def _fold_before(layer: nn.Module, affine: _Affine) -> None:
    """W ← diag(s)·W, b ← s·b + t."""
    weight, bias = _weights(layer)
    _put(layer, weight * affine.scale.reshape(-1, *[1] * (weight.ndim - 1)), affine.scale * bias + affine.shift)


def _fold_after(layer: nn.Module, affine: _Affine) -> None:
    """W ← W·diag(s), b ← b + W·t with the W of before; a convolution with groups has for each output the channels of its group."""
    weight, bias = _weights(layer)
    groups = int(getattr(layer, "groups", 1))
    scale, shift = (part.reshape(groups, -1).repeat_interleave(len(weight) // groups, 0) for part in (affine.scale, affine.shift))
    scale, shift = (part.reshape(*part.shape, *[1] * (weight.ndim - 2)) for part in (scale, shift))
    _put(layer, weight * scale, bias + (weight * shift).flatten(1).sum(1))


def _weights(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """W and b in float64, b zero where the layer has none."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    wide = weight.detach().double()
    return wide, bias.detach().double() if isinstance(bias, Tensor) else wide.new_zeros(len(wide))


def _put(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    _give_bias(layer)
    assert isinstance(layer.weight, Tensor)
    assert isinstance(layer.bias, Tensor)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)


def _give_bias(layer: nn.Module) -> None:
    if layer.bias is None:
        assert isinstance(layer.weight, Tensor)
        layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another, wherever it stands."""
    for parent in network.modules():
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)
