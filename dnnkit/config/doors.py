"""What a config may never do: execute, instantiate, call a resolver, or steer Hydra beyond the choice of a sweep.

Everything here works on text and plain values, before anything is composed or acted on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from dnnkit.errors import Problem

#: Of Hydra's own node these may be set, from the command line or from a file.
HYDRA_KEYS = ("hydra.mode", "hydra.sweeper", "hydra.launcher")
HYDRA_GROUPS = ("hydra/sweeper", "hydra/launcher")
_NODES = ("hydra.sweeper", "hydra.launcher")
#: A file of presets that is larger than this, counted with every alias written out, is not one that a person wrote.
MOST_NODES, MOST_LEVELS, MOST_BYTES = 10_000, 20, 1_000_000

#: `${a.b}`, `${a.b[0]}`, and `${.b}` or `${..b}` from where it stands.
REFERENCE = re.compile(r"\$\{(\.*)([A-Za-z_][\w-]*(?:\.[\w-]+|\[\w+\])*)\}")
_INSTANTIATE_KEY = re.compile(r"_\w+_|\(\)|.*\(.*")
_NAME = re.compile(r"\w[\w.\- ]*")

_ALLOWED = "of hydra.* only hydra.mode, hydra/launcher and hydra/sweeper with their settings may be set"
_NAMES = "a config chooses among installed components by name and cannot name code to run"
_REFERENCES = "a reference may name another key, as ${optimizer.lr}; resolver calls are not allowed"
_NO_REFERENCES = "a setting of Hydra's may not hold a reference"
_FOLDERS = "a config is chosen by its group and name; other paths are not allowed"


def refused_key(path: str) -> str:
    """Why this config path may not be set, or an empty string."""
    if any(_INSTANTIATE_KEY.fullmatch(segment.strip()) for segment in path.split(".")):
        return _NAMES
    if path == "hydra" or path.startswith("hydra."):
        allowed = any(path == key or path.startswith(f"{key}.") for key in HYDRA_KEYS)
        return "" if allowed else _ALLOWED
    return ""


def refused_text(text: str) -> str:
    """Why this text may not stand in a config, or an empty string."""
    return _REFERENCES if "${" in REFERENCE.sub("", text) or "\\$" in text else ""


def refused_value(path: str, value: Any) -> str:
    """Why this value may not stand at that config path, or an empty string; members of a container are judged by themselves."""
    if path in _NODES and not isinstance(value, Mapping):
        return f"{path} holds settings, which are set as {path}.KEY; it is chosen as {path.replace('.', '/')}=NAME"
    if not isinstance(value, str):
        return ""
    return _NO_REFERENCES if path.startswith("hydra.") and "${" in value else refused_text(value)


def refused_group(group: str) -> str:
    """Why this group of Hydra's own may not be chosen, or an empty string."""
    return _ALLOWED if group.split("/")[0] == "hydra" and group not in HYDRA_GROUPS else ""


def refused_path(path: str) -> str:
    """Why this path of a file below the folders of presets may not be read, or an empty string."""
    return "" if all(_NAME.fullmatch(part) for part in path.split("/")) else _FOLDERS


def refused_yaml(text: str) -> str:
    """Why this file may not be read, or an empty string: it is huge, or its aliases would make it so."""
    if len(text) > MOST_BYTES:
        return f"has more than {MOST_BYTES} letters"
    anchors: dict[str, int] = {}
    stack: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        size = 1
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append((event.anchor, 1))
            if len(stack) > MOST_LEVELS:
                return f"is nested deeper than {MOST_LEVELS} levels"
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = stack.pop()
            anchors |= {anchor: size} if anchor else {}
        elif isinstance(event, yaml.ScalarEvent):
            anchors |= {event.anchor: 1} if event.anchor else {}
        elif isinstance(event, yaml.AliasEvent):
            # An anchor that is not closed yet holds itself.
            size = anchors.get(event.anchor, MOST_NODES)
        stack[-1] = (stack[-1][0], stack[-1][1] + size)
        if stack[-1][1] >= MOST_NODES:
            return f"holds more than {MOST_NODES} values, aliases written out"
    return ""


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
    problems: list[Problem] = []
    for path, value in leaves(tree, prefix):
        reason = refused_key(path) if not _only_opens(path, value) else ""
        reason = reason or refused_value(path, value)
        if reason and not any(path.startswith((f"{problem.where}.", f"{problem.where}[")) for problem in problems):
            problems.append(Problem(path, reason, origin=origin))
    return problems


def _only_opens(path: str, value: Any) -> bool:
    """Whether this is the mapping `hydra:` itself, whose members are judged one by one."""
    return path == "hydra" and isinstance(value, Mapping)


def without(tree: Mapping[Any, Any], prefix: str, problems: list[Problem]) -> dict[str, Any]:
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
