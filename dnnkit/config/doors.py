"""What a config may never do: execute, instantiate, call a resolver, or steer Hydra beyond the choice of a sweep.

Everything here works on text and plain values, before anything is composed or acted on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from dnnkit.errors import Problem

#: Of Hydra's own node these may be set, from the command line or from a file.
HYDRA_KEYS = ("hydra.mode", "hydra.sweeper", "hydra.launcher")
HYDRA_GROUPS = ("hydra/sweeper", "hydra/launcher")

_PLAIN_REFERENCE = re.compile(r"\$\{\.*[A-Za-z_][\w-]*(\.[\w-]+|\[\w+\])*\}")
_INSTANTIATE_KEY = re.compile(r"_\w+_|\(\)|.*\(.*")

_ALLOWED = "of hydra.* only hydra.mode, hydra/launcher and hydra/sweeper with their settings may be set"
_NAMES = "a config chooses among installed components by name and cannot name code to run"
_REFERENCES = "a reference may name another key, as ${optimizer.lr}; resolver calls are not allowed"


def refused_key(path: str) -> str:
    """Why this config path may not be set, or an empty string."""
    if any(_INSTANTIATE_KEY.fullmatch(segment) for segment in path.split(".")):
        return _NAMES
    if path == "hydra" or path.startswith("hydra."):
        allowed = any(path == key or path.startswith(f"{key}.") for key in HYDRA_KEYS)
        return "" if allowed else _ALLOWED
    return ""


def refused_text(text: str) -> str:
    """Why this text may not stand in a config, or an empty string."""
    return _REFERENCES if "${" in _PLAIN_REFERENCE.sub("", text) else ""


def refused_group(group: str) -> str:
    """Why this group of Hydra's own may not be chosen, or an empty string."""
    return _ALLOWED if group.split("/")[0] == "hydra" and group not in HYDRA_GROUPS else ""


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key path in a nested value with what is there, containers before their members."""
    if isinstance(value, Mapping):
        for key, member in value.items():
            inner = f"{path}.{key}" if path else str(key)
            yield inner, member
            yield from leaves(member, inner)
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield f"{path}[{index}]", member
            yield from leaves(member, f"{path}[{index}]")


def inspect_tree(tree: Any, prefix: str, origin: str) -> list[Problem]:
    """Everything refused in a nested value that is about to be merged at `prefix`."""
    problems = []
    for path, value in leaves(tree, prefix):
        reason = refused_key(path) if not _only_opens(path, value) else ""
        reason = reason or (refused_text(value) if isinstance(value, str) else "")
        if reason and not any(path.startswith(f"{problem.where}.") for problem in problems):
            problems.append(Problem(path, reason, origin=origin))
    return problems


def _only_opens(path: str, value: Any) -> bool:
    """Whether this is the mapping `hydra:` itself, whose members are judged one by one."""
    return path == "hydra" and isinstance(value, Mapping)


def without(tree: dict[str, Any], prefix: str, problems: list[Problem]) -> dict[str, Any]:
    """A copy of the tree that lacks every member that a problem points at."""
    refused = {problem.where for problem in problems}

    def keep(value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            inner = {key: f"{path}.{key}" if path else str(key) for key in value}
            return {key: keep(member, inner[key]) for key, member in value.items() if inner[key] not in refused}
        if isinstance(value, list):
            return [keep(member, f"{path}[{index}]") for index, member in enumerate(value) if f"{path}[{index}]" not in refused]
        return value

    kept = keep(tree, prefix)
    assert isinstance(kept, dict)
    return kept
