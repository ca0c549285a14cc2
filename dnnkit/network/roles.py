"""What each parameter of a network is for: its role, its layer and its depth; and how a config names some of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import get_args

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import is_parametrized

from dnnkit.registry import KINDS
from dnnkit.schema import Role

ROLES: tuple[Role, ...] = get_args(Role)
#: The last layer that has weights.
OUTPUT = "output"

_NORMALIZATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Place:
    """Where a parameter is: its dotted name, that of the layer that owns it, its role, and how many weight layers come before its own.

    A normalization or a slope has the depth of the weight layer before it, the normalization of the input depth 0. Before means
    in the order in which the network holds its layers.
    """

    name: str
    layer: str
    role: Role
    depth: int


def places(network: nn.Module) -> list[Place]:
    """Every parameter once, a shared one where it is met first, in the order of `network.named_parameters()`.

    The role is told by the type of the module, not by a name: `norm` for all that a normalization owns, `slope` for all that
    an activation owns, whoever wrote it; of other modules, what has two dimensions or more is `weight`, the rest `bias`.
    A parametrization (`torch.nn.utils.parametrizations`) belongs to its layer: what it makes a weight of is `weight`.
    """
    return [found[0] for found in _sightings(network).values()]


def roles(network: nn.Module) -> dict[str, Role]:
    """Parameter name to role."""
    return {place.name: place.role for place in places(network)}


def layer_names(network: nn.Module) -> list[str]:
    """The layers that own parameters, in order."""
    return list(dict.fromkeys(place.layer for place in places(network)))


def part_of(module: nn.Module) -> str | None:
    """The config group of the component that made this module, such as `activation`; None for other modules."""
    group = module.__dict__.get("dnnkit_part")
    return group if isinstance(group, str) and group in KINDS else None  # a model's own module may have an attribute of that name


def matching(
    network: nn.Module, match: str | None = None, role: Role | None = None, depth: int | tuple[int, int] | None = None
) -> list[str]:
    """The names of the parameters that fit all that is given.

    `match`: a role; `output`, the last layer with weights; or the name of a layer, of a block of layers or of a parameter, with
    the wildcards * ? [abc], such as `00_*`. `depth`: of the layer, from 0, or the first and the last of a range.
    A parameter that several layers share fits where one of them does, and goes by its first name.
    """
    found = _sightings(network)
    last = max((place.depth for seen in found.values() for place in seen), default=0)
    low, high = depth if isinstance(depth, tuple) else (depth, depth)

    def fits(place: Place) -> bool:
        return (
            (match is None or _matches(place, match, last))
            and (role is None or place.role == role)
            and (low is None or high is None or low <= place.depth <= high)
        )

    return [seen[0].name for seen in found.values() if any(map(fits, seen))]


def named(path: str, pattern: str) -> bool:
    """Whether a pattern names this dotted path, or a block that holds it."""
    parts = path.split(".")
    return any(fnmatchcase(".".join(parts[:length]), pattern) for length in range(1, len(parts) + 1))


def _matches(place: Place, match: str, last: int) -> bool:
    if match in ROLES:
        return place.role == match
    if match == OUTPUT:
        return place.depth == last and place.role in ("weight", "bias")
    return named(place.name, match)


def _sightings(network: nn.Module) -> dict[Tensor, list[Place]]:
    """Every parameter with all its places, of which a shared one has several, in the order in which they are met."""
    found: dict[Tensor, list[Place]] = {}
    depth = -1
    for name, module, part in _walk(network, "", None):
        own = [(key, parameter, _role(role_of, module, part)) for key, parameter, role_of in _own(module)]
        depth += any(role == "weight" for _, _, role in own)
        for key, parameter, role in own:
            found.setdefault(parameter, []).append(Place(f"{name}.{key}".lstrip("."), name, role, max(depth, 0)))
    return found


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor, int]]:
    """The parameters of this module alone, by name, and the dimensions of the tensor that each is or is made into."""
    for key, parameter in module._parameters.items():
        if parameter is not None:
            yield key, parameter, parameter.ndim
    if not is_parametrized(module):
        return
    parametrized = module.parametrizations
    assert isinstance(parametrized, nn.ModuleDict)
    for tensor, how in parametrized.items():
        # The tensor itself is not asked for: computing it may change buffers, as those of a spectral norm.
        dimensions = max((original.ndim for key, original in how._parameters.items() if original is not None), default=0)
        yield from ((f"parametrizations.{tensor}.{key}", parameter, dimensions) for key, parameter in how.named_parameters())


def _walk(
    module: nn.Module, name: str, part: str | None, seen: set[nn.Module] | None = None
) -> Iterator[tuple[str, nn.Module, str | None]]:
    """Every module once, with its dotted name and the group of the innermost component around it."""
    seen = set() if seen is None else seen
    if module in seen:
        return
    seen.add(module)
    part = part_of(module) or part
    yield name, module, part
    for key, child in module.named_children():
        if not (key == "parametrizations" and is_parametrized(module)):
            yield from _walk(child, f"{name}.{key}".lstrip("."), part, seen)


def _role(dimensions: int, module: nn.Module, part: str | None) -> Role:
    if part == "normalization" or isinstance(module, _NORMALIZATIONS):
        return "norm"
    if part == "activation" or isinstance(module, nn.PReLU):
        return "slope"
    return "weight" if dimensions >= 2 else "bias"
