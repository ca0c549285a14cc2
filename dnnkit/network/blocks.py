"""A network as blocks: a weight layer and what follows it before the next one."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from dnnkit.network.roles import part_of

_NORMALIZATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_NOT_ACTIVATIONS = (nn.Flatten, nn.Unflatten, nn.Identity, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.ZeroPad2d)


@dataclass(frozen=True)
class Block:
    """A dense or convolution layer by its dotted name, and the modules after it by theirs, in the order in which the network holds them."""

    name: str
    layer: nn.Linear | _ConvNd
    followers: dict[str, nn.Module] = field(default_factory=dict)

    @property
    def initializer(self) -> str | None:
        """The name of the initializer that filled its weight; None for a layer that a model made by itself."""
        name = self.layer.__dict__.get("initializer")
        return name if isinstance(name, str) else None

    @property
    def activation(self) -> nn.Module | None:
        """The first of its activations."""
        return next((module for module in self.followers.values() if _is_activation(module)), None)


def blocks(network: nn.Module) -> list[Block]:
    """All blocks, in the order in which the network holds its layers; the last one is the output."""
    found: list[Block] = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | _ConvNd):
            found.append(Block(name, module))
        elif found and (part_of(module) not in (None, "model") or not any(True for _ in module.children())):
            found[-1].followers[name] = module
    return found


def is_normalization(module: nn.Module) -> bool:
    """Whether it is one of torch's, or was made by a component of that kind."""
    return isinstance(module, _NORMALIZATIONS) or part_of(module) == "normalization"


def is_dropout(module: nn.Module) -> bool:
    """Whether it is one of torch's, or was made by a component of that kind."""
    return isinstance(module, _DropoutNd) or part_of(module) == "dropout"


def _is_activation(module: nn.Module) -> bool:
    if part_of(module) == "activation":
        return True
    return part_of(module) is None and not (is_normalization(module) or is_dropout(module) or isinstance(module, _NOT_ACTIVATIONS))
