"""What the rules of the linter have in common: how they look at a network, whom they blame, and what was measured of their mends."""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from dnnkit.lint import Fault
from dnnkit.network.blocks import Block, blocks
from dnnkit.registry import REGISTRIES

Config = Mapping[str, Any]

#: What was tried and did not help, by rule: written by `python -m benchmarks.rules` from benchmarks/rules.json, never by hand.
TRIALS = Path(__file__).with_name("rule_trials.json")


def hidden(network: nn.Module) -> list[Block]:
    """All blocks but the last, the output."""
    return blocks(network)[:-1]


def with_activation(network: nn.Module, *kinds: type[nn.Module]) -> list[Block]:
    """The hidden blocks that have an activation of one of these types."""
    return [block for block in hidden(network) if isinstance(block.activation, kinds)]


def more_than_a_sequence(module: nn.Module) -> bool:
    """Whether a module has parts, and does something else than to call them one after the other."""
    return type(module) is not nn.Sequential and any(True for _ in module.children())


def modules(network: nn.Module, wanted: Callable[[nn.Module], bool]) -> list[str]:
    """The names of those for which `wanted` holds; the network itself is the empty name."""
    return [name for name, module in network.named_modules() if wanted(module)]


def many(found: Sequence[Block]) -> str:
    """The one block by name, or how many there are."""
    return found[0].name if len(found) == 1 else f"{len(found)} layers from {found[0].name} on"


def chosen(config: Config, group: str) -> str:
    """What a config has of a group, as it is typed."""
    return f"{group}={config[group]['name']}"


def parts_in(config: Config) -> str | None:
    """The setting of the model in which it names parts of its own, by the fact `parts_in`; None where it takes those of the config."""
    setting = REGISTRIES["model"].get(config["model"]["name"]).facts.get("parts_in")
    return None if setting is None else f"model.{setting}"


def of_part(config: Config, group: str, found: str, *fix: str) -> Fault:
    """A fault of a part, mended by choosing another one, unless the model names it itself: then no override of the group does."""
    own = parts_in(config)
    if own is None or (group == "initializer" and config[group]["name"] != "auto"):
        return Fault((f"{group}.name",), f"{chosen(config, group)} {found}", fix)
    return Fault((own,), f"the {group} of {own} {found}")


def remark(fault: Fault, rule: str, about: str = "") -> Fault:
    """The fault without an override, since what was tried did not help, which it says instead.

    `about` is a word of what the trials of `rule` are about, where only some of them are about this fault.
    """
    return replace(fault, fix=(), measured=measured(rule, about), severity="remark")


def measured(rule: str, about: str = "") -> str:
    """What changing a config that breaks the rule was worth, in a sentence; empty where that was not measured."""
    said = [_trial(one) for one in _trials().get(rule, ()) if about in one["about"]]
    return f"test accuracy on Fashion-MNIST, medians of five seeds: {'; '.join(said)}" if said else ""


@cache
def _trials() -> Mapping[str, Sequence[Mapping[str, Any]]]:
    found: Mapping[str, Sequence[Mapping[str, Any]]] = json.loads(TRIALS.read_text(encoding="utf-8"))
    return found


def _trial(one: Mapping[str, Any]) -> str:
    worse = "worse with every seed" if one["reverse"] else "within the spread of seeds"
    return f"{one['about']} {one['given']:.3f}, with {shlex.join(one['instead'])} {one['changed']:.3f}, {worse}"
