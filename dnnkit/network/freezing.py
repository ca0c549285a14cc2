"""Which parameters and normalizations of a network are frozen in an epoch, as `freeze` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from dnnkit.config.transfer import unknown
from dnnkit.errors import ConfigError, Problem
from dnnkit.network.roles import OUTPUT, ROLES, layer_names, matching, named, part_of, places

#: The epoch from which on something is trained, counted from 1 as the terminal does; None: never.
Until = int | None


@dataclass(frozen=True)
class Freezing:
    """What is frozen, and until which epoch begins: parameters by name, and normalizations that stay in evaluation mode.

    A normalization is frozen while all of its parameters are; one without parameters where its name or `norm` is given.
    """

    parameters: Mapping[str, Until] = field(default_factory=dict)
    normalizations: Mapping[str, Until] = field(default_factory=dict)

    def frozen(self, epoch: int) -> list[str]:
        """The parameters that are frozen in an epoch, counted from 1."""
        return [name for name, until in self.parameters.items() if not _over(until, epoch)]

    def still(self, epoch: int) -> list[str]:
        """The normalizations that stay in evaluation mode in an epoch, counted from 1."""
        return [name for name, until in self.normalizations.items() if not _over(until, epoch)]

    def later(self) -> dict[str, str]:
        """The parameters that are frozen for a while only, each with the words for its time: those of one time go together."""
        return {name: f"trained from epoch {until} on" for name, until in self.parameters.items() if until is not None}

    def apply(self, network: nn.Module, epoch: int) -> None:
        """Set what requires a gradient in an epoch, counted from 1, and which normalizations train; all else stays as it is."""
        frozen, still = set(self.frozen(epoch)), set(self.still(epoch))
        for name, parameter in network.named_parameters():
            if name in self.parameters:
                parameter.requires_grad_(name not in frozen)
        for name in self.normalizations:
            network.get_submodule(name).train(network.training and name not in still)

    def lines(self, epochs: int) -> list[str]:
        """What is frozen, in lines for the terminal; `epochs`: how many there will be."""
        by_time: dict[Until, list[str]] = {}
        for name, until in self.parameters.items():
            by_time.setdefault(until, []).append(name.rpartition(".")[0] or name)
        lines = []
        for until, names in by_time.items():
            time = "" if until is None else f" until epoch {until}" + (f", which is after the last of {epochs}" if until > epochs else "")
            lines.append(f"frozen{time}: {', '.join(dict.fromkeys(names))}")
        return lines


def freezing(network: nn.Module, entries: Sequence[Mapping[str, Any]] | None) -> Freezing:
    """What the entries `{match, until}` of `freeze` come to in this network; of those that match a parameter the first counts.

    `match` is what `optimizer.groups` takes: a role, `output`, or the name of a layer, a block or a parameter, with wildcards.
    Raises ConfigError for an entry that matches nothing, or nothing that an earlier one does not, and where nothing would be
    trained in the first epoch.
    """
    parameters: dict[str, Until] = {}
    bare: dict[str, Until] = {}
    problems = []
    for index, entry in enumerate(entries or ()):
        found = matching(network, entry["match"])
        alone = [name for name in _normalizations(network) if not _owned(network, name) and _names(name, entry["match"])]
        if not found and not alone:
            problems.append(_fits_nothing(network, f"freeze[{index}]", entry["match"]))
        elif not {*found, *alone} - {*parameters, *bare}:
            problems.append(
                Problem(f"freeze[{index}]", f"{entry['match']!r} matches only what an earlier entry freezes, and the first counts")
            )
        parameters = {**dict.fromkeys(found, entry["until"]), **parameters}
        bare = {**dict.fromkeys(alone, entry["until"]), **bare}
    if not problems and entries and not any(parameters.get(place.name, 1) == 1 for place in places(network)):
        problems.append(Problem("freeze", "freezes every parameter: nothing would be trained in the first epoch"))
    if problems:
        raise ConfigError(problems)
    ordered = {place.name: parameters[place.name] for place in places(network) if place.name in parameters}
    return Freezing(ordered, {**_still(network, parameters), **bare})


def _still(network: nn.Module, parameters: Mapping[str, Until]) -> dict[str, Until]:
    """The normalizations all of whose parameters are frozen, until the first of them is not."""
    found: dict[str, Until] = {}
    for name in _normalizations(network):
        owned = _owned(network, name)
        if owned and all(key in parameters for key in owned):
            times = [until for key in owned if (until := parameters[key]) is not None]
            found[name] = min(times) if times else None
    return found


def _normalizations(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if part_of(module) == "normalization" or isinstance(module, _NormBase)]


def _owned(network: nn.Module, name: str) -> list[str]:
    return [f"{name}.{key}" for key, _ in network.get_submodule(name).named_parameters()]


def _names(layer: str, match: str) -> bool:
    return match == "norm" or (match not in ROLES and named(layer, match))


def _over(until: Until, epoch: int) -> bool:
    return until is not None and epoch >= until


def _fits_nothing(network: nn.Module, where: str, match: str) -> Problem:
    there = [role for role in ROLES if any(place.role == role for place in places(network))]
    return unknown(where, match, "layer or role of this network", [*layer_names(network), *there, OUTPUT])
