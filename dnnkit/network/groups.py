"""Parameter groups: which parameters are updated alike and which are clipped together, as `optimizer.groups` says."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dnnkit.config.groups import Entry
from dnnkit.errors import Problem, nearest
from dnnkit.network.roles import OUTPUT, ROLES, Place, layer_names, matching, places
from dnnkit.schema import Role


@dataclass(frozen=True)
class Group:
    """Parameters that are updated alike, by name. `lr_scale` multiplies the peak rate.

    `weight_decay` is None where the optimizer has no such setting; `apart` is the key that keeps them by themselves.
    """

    names: tuple[str, ...]
    lr_scale: float = 1.0
    weight_decay: float | None = None
    apart: Hashable = None


@dataclass(frozen=True)
class Clipped:
    """Parameters that are clipped together, by name; `clipping` is a node, None for that of the config."""

    names: tuple[str, ...]
    clipping: Mapping[str, Any] | None


@dataclass(frozen=True)
class Grouping:
    """How the parameters of any network are divided: every one that is trained is in exactly one group, shared ones too.

    `entries`: those of `optimizer.groups`, of which the first that fits a parameter counts.
    `weight_decay`: the optimizer's setting, which is for weights alone, never for biases, normalizations and slopes; None
    where it has none. An entry's own is for the weights that it fits, and for others only if it names their role.
    `apart`: parameter name to a key; parameters of different keys are never in one group. It may hold parameters that do not
    require a gradient yet: they are in a group from the start. Others that do not are in none.
    """

    entries: Sequence[Entry] = ()
    weight_decay: float | None = None
    apart: Mapping[str, Hashable] = field(default_factory=dict)

    def groups(self, network: nn.Module) -> list[Group]:
        """The groups, in the order in which their first parameters are met; those of equal settings are one."""
        found: dict[tuple[float, float | None, Hashable], list[str]] = {}
        for place, entry in self._placed(network):
            scale = 1.0 if entry is None else entry.lr_scale
            found.setdefault((scale, self._decay(place, entry), self.apart.get(place.name)), []).append(place.name)
        return [Group(tuple(names), *settings) for settings, names in found.items()]

    def clipped(self, network: nn.Module) -> list[Clipped]:
        """What is clipped by itself, entry by entry, and all the others together; empty where no entry clips."""
        if all(entry.clipping is None for entry in self.entries):
            return []
        own = {entry.where: entry.clipping for entry in self.entries if entry.clipping is not None}
        found: dict[str | None, list[str]] = {}
        for place, entry in self._placed(network):
            found.setdefault(entry.where if entry is not None and entry.where in own else None, []).append(place.name)
        return [Clipped(tuple(names), None if where is None else own[where]) for where, names in found.items()]

    def plain(self, groups: Sequence[Group]) -> bool:
        """Whether these groups are one that has the optimizer's own settings."""
        return len(groups) == 1 and groups[0] == Group(groups[0].names, weight_decay=self.weight_decay)

    def problems(self, network: nn.Module) -> list[Problem]:
        """Every entry that would do nothing, or not all that it says."""
        owner: dict[str, Entry] = {}
        found = []
        roles = {place.name: place.role for place in places(network)}
        trained = self._trained(network)
        for entry in self.entries:
            fitting = _fitting(network, entry)
            mine = [name for name in fitting if name in trained and name not in owner]
            owner |= {name: entry for name in fitting if name not in owner}
            if not fitting:
                found.append(_fits_nothing(network, entry))
            elif trained.isdisjoint(fitting):
                found.append(Problem(entry.where, f"{entry} fits only frozen parameters (freeze), to which it does nothing"))
            elif not mine:
                taken = {owner[name].where for name in fitting if name in trained}
                earlier = " and ".join(other.where for other in self.entries if other.where in taken)
                found.append(Problem(entry.where, f"{entry} fits only parameters that {earlier} took, and the first that fits counts"))
            elif entry.weight_decay is not None and not any(_decays(roles[name], entry) for name in mine):
                there = sorted({roles[name] for name in mine})
                message = f"decays weights, and {entry} fits none: name what else is to decay, as role: {there[0]}"
                found.append(Problem(f"{entry.where}.weight_decay", message))
        return found

    def _placed(self, network: nn.Module) -> list[tuple[Place, Entry | None]]:
        """Every parameter that is trained, now or later, with the entry that counts for it."""
        owner: dict[str, Entry] = {}
        for entry in self.entries:
            for name in _fitting(network, entry):
                owner.setdefault(name, entry)
        trained = self._trained(network)
        return [(place, owner.get(place.name)) for place in places(network) if place.name in trained]

    def _trained(self, network: nn.Module) -> set[str]:
        """The names of the parameters that are trained, now or later."""
        return {name for name, parameter in network.named_parameters() if parameter.requires_grad or name in self.apart}

    def _decay(self, place: Place, entry: Entry | None) -> float | None:
        if self.weight_decay is None:
            return None
        if entry is not None and entry.weight_decay is not None and _decays(place.role, entry):
            return entry.weight_decay
        return self.weight_decay if place.role == "weight" else 0.0


def _fitting(network: nn.Module, entry: Entry) -> list[str]:
    return matching(network, entry.match, entry.role, entry.depth)


def _decays(role: Role, entry: Entry) -> bool:
    """Whether an entry's own weight decay is for parameters of this role."""
    return role == "weight" or entry.names(role)


#: So many names are told of a large network.
MOST_NAMES = 20


def _fits_nothing(network: nn.Module, entry: Entry) -> Problem:
    """The problem of an entry that fits no parameter, with what there is to fit."""
    found = places(network)
    there = [role for role in ROLES if any(place.role == role for place in found)]
    match = entry.match
    if match is not None and match not in ROLES and not matching(network, match):
        bare = re.sub(r"[*?]|\[[^]]*\]", "", match)
        layers = layer_names(network)
        close = nearest(bare, [*layers, *there, OUTPUT, *(place.name for place in found)])
        ranked = [*nearest(bare, layers, len(layers)), *layers]
        return Problem(f"{entry.where}.match", f"{match!r} fits no parameter; the layers are: {_listed(dict.fromkeys(ranked))}", close)
    for key, role in (("match", match), ("role", entry.role)):
        if role in ROLES and role not in there:
            return Problem(f"{entry.where}.{key}", f"the network has no {role}; it has: {', '.join(there)}", ())
    if entry.depth is not None and not matching(network, depth=entry.depth):
        last = max((place.depth for place in found), default=0)
        return Problem(f"{entry.where}.depth", f"the weight layers have the depths 0 to {last}, got {_spelt(entry.depth)}", ())
    alone = _listed(dict.fromkeys(place.name for place in found if place.name in matching(network, match, None, entry.depth)))
    return Problem(entry.where, f"{entry} fits no parameter: each by itself does, not all together; without role: {alone or 'none'}", ())


def _spelt(depth: int | tuple[int, int]) -> str:
    return str(list(depth)) if isinstance(depth, tuple) else str(depth)


def _listed(names: Mapping[str, object]) -> str:
    kept = list(names)[:MOST_NAMES]
    more = len(names) - len(kept)
    return ", ".join(kept) + (f", … ({more} more)" if more > 0 else "")


# Telling


_PLURALS = {"weight": "weights", "bias": "biases", "norm": "norm parameters", "slope": "slopes"}
_SINGULAR = {"norm": "norm parameter"}


def group_lines(grouping: Grouping, network: nn.Module, clips: bool = True) -> list[str]:
    """What is not as for all parameters, a line for each group and each clipping; none where all are treated alike.

    `clips`: whether the config clips what no entry clips by itself.
    """
    groups, clipped = grouping.groups(network), grouping.clipped(network)
    found = {place.name: place for place in places(network)}
    decays = any(group.weight_decay != grouping.weight_decay for group in groups)
    told = [] if grouping.plain(groups) else groups
    lines = [f"{_how(group, decays)}: {_what([found[name] for name in group.names])}" for group in told]
    return lines + [f"{_clip(part.clipping, clips)}: {_what([found[name] for name in part.names])}" for part in clipped]


def _how(group: Group, decays: bool) -> str:
    said = [] if group.lr_scale == 1 else [f"rate × {group.lr_scale:g}"]
    if decays:
        said.append(f"weight decay {group.weight_decay:g}" if group.weight_decay else "no weight decay")
    if group.apart is not None:
        said.append(str(group.apart))
    return ", ".join(said) or "as configured"


def _clip(node: Mapping[str, Any] | None, clips: bool) -> str:
    if node is None:
        return "clipped as configured, together" if clips else "not clipped"
    settings = ", ".join(f"{key} {value}" for key, value in node.items() if key != "name")
    return "not clipped" if node["name"] == "none" else f"clipped by themselves by {node['name']}{f' ({settings})' if settings else ''}"


def _what(found: Sequence[Place]) -> str:
    counts = {role: sum(place.role == role for place in found) for role in ROLES}
    said = [f"{count} {_PLURALS[role] if count > 1 else _SINGULAR.get(role, role)}" for role, count in counts.items() if count]
    layers = list(dict.fromkeys(place.layer or "the network itself" for place in found))
    return f"{', '.join(said)} ({', '.join(layers) if len(layers) <= 3 else f'{layers[0]} … {layers[-1]}'})"
