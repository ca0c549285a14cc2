"""The entries of `optimizer.groups`: which parameters they are about, and what is special about those."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

from annotated_types import Ge, Len

from dnnkit.errors import Problem, nearest
from dnnkit.registry import KINDS, REGISTRIES
from dnnkit.schema import Check, Role, Settings, choice_schema, component_settings

WHERE = "optimizer.groups"
#: What says which parameters an entry is about, and what says how they are treated.
SELECTS, SETS = ("match", "role", "depth"), ("lr_scale", "weight_decay", "clipping")

_EXAMPLE = "{match: output, lr_scale: 0.1}"


def _range_problems(depth: int | list[int] | None, where: str) -> list[Problem]:
    if not isinstance(depth, list) or (len(depth) == 2 and 0 <= depth[0] <= depth[1]):
        return []
    return [Problem(where, f"must be a depth from 0 on, or the first and the last of a range as [0, 3], got {depth!r}")]


def _scale_problems(scale: float | None, where: str) -> list[Problem]:
    if scale is None or scale > 0:
        return []
    hint = "; layers that are not to be trained are named in freeze=[…]" if scale == 0 else ""
    return [Problem(where, f"must be greater than 0, got {scale!r}{hint}")]


@dataclass(frozen=True)
class _Declared:
    """The settings of an entry, as they are written."""

    match: Annotated[str, Len(min_length=1)] | None = None
    role: Role | None = None
    depth: Annotated[Annotated[int, Ge(0)] | list[int] | None, Check(_range_problems)] = None
    lr_scale: Annotated[float | None, Check(_scale_problems)] = None
    weight_decay: Annotated[float, Ge(0)] | None = None
    clipping: str | dict[str, Any] | None = None


@dataclass(frozen=True)
class Entry:
    """An entry that is right by itself. `clipping` is a node, whose name may be `none`; None: as all others."""

    where: str
    match: str | None = None
    role: Role | None = None
    depth: int | tuple[int, int] | None = None
    lr_scale: float = 1.0
    weight_decay: float | None = None
    clipping: Mapping[str, Any] | None = None

    def names(self, role: Role) -> bool:
        """Whether it is expressly about parameters of this role."""
        return role in (self.match, self.role)

    def __str__(self) -> str:
        depth = self.depth if not isinstance(self.depth, tuple) else f"{self.depth[0]} to {self.depth[1]}"
        given = {"match": self.match, "role": self.role, "depth": depth}
        return ", ".join(f"{key} {value}" for key, value in given.items() if value is not None)


def entries(optimizer: Mapping[str, Any]) -> list[Entry]:
    """The entries of a validated optimizer node."""
    found = []
    for index, values in enumerate(optimizer.get("groups") or ()):
        depth = values.get("depth")
        given = {**values, "depth": (depth[0], depth[1]) if isinstance(depth, list) else depth}
        found.append(Entry(f"{WHERE}[{index}]", **given))
    return found


def group_problems(optimizer: Mapping[str, Any]) -> tuple[list[dict[str, Any]] | None, list[Problem]]:
    """The entries of an optimizer node as they are recorded, and everything wrong with them that can be told without a network."""
    groups = optimizer.get("groups")
    if not groups:
        return None, []
    valid, problems = [], []
    for index, values in enumerate(groups):
        entry, found = _entry(values, f"{WHERE}[{index}]")
        if "weight_decay" in entry and not has_decay(optimizer["name"]):
            found.append(_no_decay(optimizer["name"], f"{WHERE}[{index}].weight_decay"))
        valid.append(entry)
        problems += found
    return valid, problems


def has_decay(optimizer: str) -> bool:
    """Whether the optimizer of this name has a setting `weight_decay`."""
    return "weight_decay" in component_settings(REGISTRIES["optimizer"].get(optimizer))


def entry_schema(optimizer: str) -> dict[str, Any]:
    """The JSON Schema of an entry for the optimizer of this name; null stands for a setting that is not given."""
    schema = Settings.of(_Declared).json_schema()
    own = schema["properties"]
    own["depth"] = {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 0}, {"type": "array", "items": {"type": "integer"}}]}
    own["lr_scale"] = {"anyOf": [{"type": "null"}, {"type": "number", "exclusiveMinimum": 0}]}
    if not has_decay(optimizer):
        own["weight_decay"] = {"type": "null"}
    clippings: dict[str, dict[str, Any]] = {record.name: component_settings(record).json_schema() for record in REGISTRIES["clipping"]}
    clippings |= {switch: Settings([]).json_schema() for switch in KINDS["clipping"].switches}
    own["clipping"] = {"anyOf": [{"type": "null"}, {"enum": list(clippings)}, choice_schema(clippings)]}
    said = [{"anyOf": [{"required": [key], "properties": {key: {"not": {"type": "null"}}}} for key in keys]} for keys in (SELECTS, SETS)]
    return {**schema, "allOf": said}


def _no_decay(optimizer: str, where: str) -> Problem:
    having = [name for name in REGISTRIES["optimizer"].names() if has_decay(name)]
    there = f"those that have it: {', '.join(having)}" if having else "and no other optimizer here has it"
    return Problem(where, f"optimizer={optimizer} has no setting weight_decay; {there}")


def _entry(values: Any, where: str) -> tuple[dict[str, Any], list[Problem]]:
    """One entry: what it gives, and everything wrong with it."""
    if not isinstance(values, Mapping):
        return {}, [Problem(where, f"must be a mapping, such as {_EXAMPLE}, got {values!r}")]
    settings, problems = Settings.of(_Declared).validate(values, where)
    given = {key: value for key, value in settings.items() if value is not None}
    wrong = {problem.where for problem in problems}
    if "clipping" in given:
        given["clipping"], found = _clipping(given["clipping"], f"{where}.clipping")
        problems += found
    for keys, what in ((SELECTS, "says of no parameter that it is about it"), (SETS, "says nothing special about its parameters")):
        # A key that is misspelt has been told of; that its entry lacks something follows from it.
        if not any(key in given or f"{where}.{key}" in wrong for key in keys) and all(key in (*SELECTS, *SETS) for key in values):
            more = "" if keys is SELECTS else " (lr_scale: 1 only keeps them out of later entries)"
            problems.append(Problem(where, f"{what}: it needs {', '.join(keys[:-1])} or {keys[-1]}, as in {_EXAMPLE}{more}"))
    return given, problems


def _clipping(value: str | Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[Problem]]:
    """A clipping by name or as a node with its settings, the defaults filled in."""
    node: Mapping[str, Any] = {"name": value} if isinstance(value, str) else value
    name, at = node.get("name"), where if isinstance(value, str) else f"{where}.name"
    choices = [*REGISTRIES["clipping"].names(), *KINDS["clipping"].switches]
    if not isinstance(name, str):
        return {}, [Problem(where, f"must be the name of a clipping or {{name: norm, max_norm: 1.0}}, got {dict(node)!r}")]
    if name not in choices:
        return {}, [Problem(at, f"no clipping is called {name!r}; there are: {', '.join(choices)}", nearest(name, choices))]
    rest = {key: setting for key, setting in node.items() if key != "name"}
    if name in KINDS["clipping"].switches:
        return {"name": name}, [Problem(f"{where}.{key}", f"{name} has no settings") for key in rest]
    valid, problems = component_settings(REGISTRIES["clipping"].get(name)).validate(rest, where)
    return cast("dict[str, Any]", {"name": name, **valid}), problems
