"""The keys `init_from` and `freeze`: which weights a run begins with, and which of them it leaves alone.

What can be told from the config alone is judged here; what depends on the networks is judged when they are there.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from annotated_types import Ge, Len

from dnnkit.errors import Problem, nearest
from dnnkit.schema import Settings

Text = Annotated[str, Len(min_length=1)]


@dataclass(frozen=True)
class InitFrom:
    """The node of `init_from`.

    `run`: as every command takes it (its folder, the folder's name or the end of it, a UUID, an id of MLflow), or a
    checkpoint file. `experiment`: the name of an experiment, which is trained first unless that has been done; `overrides`
    are its own; `config` is what they come to, filled in. `data`: `own` leaves it the data that it names, `same` has it
    trained on the data of this run. `layers`: `auto`, or names and patterns of layers.
    `uuid` and `sha256`, of the run and of the checkpoint file, are written into the record of a run.
    """

    run: Text | None = None
    experiment: Text | None = None
    overrides: list[Text] | None = None
    data: Literal["own", "same"] = "own"
    checkpoint: Literal["best", "last"] = "best"
    layers: Literal["auto"] | list[Text] = "auto"
    uuid: Text | None = None
    sha256: Text | None = None
    config: dict[str, Any] | None = None


@dataclass(frozen=True)
class Freeze:
    """One entry of `freeze`: what it is about, and the epoch, counted from 1, from which on it is trained; null for never."""

    match: Text
    until: Annotated[int, Ge(2)] | None = None


_FORMS = "a run or a checkpoint file, {run: RUN, checkpoint: best|last, layers: [00_*]} or {experiment: NAME, overrides: []}"


def init_from(value: Any) -> tuple[dict[str, Any] | None, list[Problem]]:
    """The node, in full, that a value of `init_from` stands for, and everything wrong with it."""
    if value is None:
        return None, []
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # an id of digits alone
    if isinstance(value, str):
        value = {"run": value}
    if not isinstance(value, Mapping):
        cure = (f"init_from='\"{value}\"'",) if isinstance(value, float) else ()
        return None, [Problem("init_from", f"must be null, {_FORMS}, got {value!r}", cure)]
    node, problems = Settings.of(InitFrom).validate(value, "init_from")
    return node, problems or _init_problems(node)


def _init_problems(node: Mapping[str, Any]) -> list[Problem]:
    if (node["run"] is None) == (node["experiment"] is None):
        return [Problem("init_from", f"must name either a run or an experiment: {_FORMS}")]
    problems = []
    if node["experiment"] is None:
        problems += [Problem(f"init_from.{key}", "belongs to an experiment, not to a run") for key in ("overrides", "config") if node[key]]
        problems += [Problem("init_from.data", "belongs to an experiment, not to a run")] if node["data"] != "own" else []
    else:
        problems += [Problem(f"init_from.{key}", "belongs to a run, not to an experiment") for key in ("uuid", "sha256") if node[key]]
    if node["layers"] == []:
        problems.append(Problem("init_from.layers", "must name at least one layer, or be auto", ("init_from.layers=auto",)))
    return problems


def typed(node: Mapping[str, Any], **changed: Any) -> str:
    """A node of `init_from` as it is written on a shell, with what is not as by default, and what is `changed`."""
    told = {own.name: {**node, **changed}.get(own.name, own.default) for own in fields(InitFrom) if own.name not in ("config", "uuid")}
    given = {own.name: told[own.name] for own in fields(InitFrom) if own.name in told and told[own.name] != own.default}
    return shlex.quote(f"init_from={{{', '.join(f'{key}: {_written(value)}' for key, value in given.items())}}}")


def _written(value: Any) -> str:
    """Text, or a list of it, in Hydra's grammar: in quotes unless it can be mistaken for nothing else."""
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if re.fullmatch(r"[\w/.-]*[A-Za-z_][\w/.-]*", value, re.ASCII) and not _NO_TEXT.fullmatch(value):
        return str(value)
    return '"' + re.sub(r'(\\*)"', r'\1\1\\"', value) + '"'


#: What Hydra's grammar takes for a number, a truth value or null.
_NO_TEXT = re.compile(r"(?i:null|true|false|[+-]?(?:inf|nan|[\d_.]+(?:e[+-]?[\d_]+)?))")


def freeze(value: Any) -> tuple[list[dict[str, Any]] | None, list[Problem]]:
    """The entries, as nodes in full, that a value of `freeze` stands for, and everything wrong with it."""
    if value is None:
        return None, []
    if not isinstance(value, list):
        hint = (f"freeze=[{value}]",) if isinstance(value, str) else ()
        return None, [
            Problem("freeze", f"must be null or a list of layers, such as [00_*,{{match: 01_dense, until: 3}}], got {value!r}", hint)
        ]
    entries, problems = [], []
    for index, given in enumerate(value):
        where = f"freeze[{index}]"
        if not isinstance(given, str | Mapping):
            problems.append(Problem(where, f"must be a layer's name or pattern, or {{match: 01_dense, until: 3}}, got {given!r}"))
            continue
        node, found = Settings.of(Freeze).validate({"match": given} if isinstance(given, str) else given, where)
        problems += found
        entries.append(node)
    return entries, problems


def unknown(where: str, pattern: str, kind: str, known: list[str]) -> Problem:
    """The problem of a pattern that names nothing, with the nearest names; `kind` says what the names are of."""
    return Problem(where, f"{pattern!r} names no {kind}; there are: {', '.join(known)}", nearest(pattern.rstrip("*"), known))
