"""What is wrong with one override, judged by itself: refused, misspelt, or in a place that there is not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dnnkit.config.doors import inspect_tree, refused_group, refused_key, refused_value
from dnnkit.config.sections import GROUPS, SECTIONS, top_level
from dnnkit.config.synonyms import choosing, meant_by, with_number
from dnnkit.config.transfer import InitFrom
from dnnkit.errors import Problem, nearest
from dnnkit.registry import KINDS, REGISTRIES
from dnnkit.schema import Settings

CLI = "command line"

#: Of a folder's files, so many are named to someone who chose the folder.
MOST_SHOWN = 12

#: `KEY=VALUE` whose value is meant as text: it has no commas, quotes, brackets around it, references or escapes.
_TEXT = re.compile(r"""((?:\+\+?)?(?!hydra\b)[A-Za-z_]\w*(?:\.\w+)*)=(?![\[{(])((?:(?!\$\{)[^,'"\\\r\n])+)(?<![\]})])""")
_CALL = re.compile(r"\w+\(.*\)")


def line(override: Override) -> str:
    """The override as it was typed."""
    return override.input_line or ""


def parse(texts: Sequence[str]) -> tuple[list[Override], list[Problem]]:
    """The overrides that may take part in a composition, and what is wrong with the others."""
    parser = OverridesParser.create()
    good: list[Override] = []
    problems: list[Problem] = []
    for text in texts:
        try:
            override = parser.parse_override(quoted(text, parser))
            found = _refused(override)
        except (HydraException, OmegaConfBaseException, ValueError, RecursionError):
            reason = refused_key(text.partition("=")[0].lstrip("+~"))
            found = [Problem(text, reason or _ungrammatical(text), () if reason else choosing(text), CLI)]
        problems += found
        if not found:
            good += [parser.parse_override("init_from=null"), override] if _is_source(override) else [override]
    return good, problems


def _is_source(override: Override) -> bool:
    """Whether this names what a run begins with, whole: Hydra would add it to what an experiment begins with."""
    if override.key_or_group != "init_from" or override.is_sweep_override() or override.is_add() or override.is_force_add():
        return False
    value = override.value()
    return isinstance(value, dict) and not {"run", "experiment"}.isdisjoint(map(str, value))


def quoted(text: str, parser: OverridesParser | None = None) -> str:
    """The override with its value in quotes where Hydra's grammar takes it only so: `data.path=d/été.csv`, `data.delimiter=;`."""
    try:
        (parser or OverridesParser.create()).parse_override(text)
    except (HydraException, ValueError, RecursionError) as error:
        plain = _TEXT.fullmatch(text) if isinstance(error, HydraException) else None
        return f"{plain[1]}='{plain[2]}'" if plain and not _CALL.fullmatch(plain[2]) else text
    return text


def _ungrammatical(text: str) -> str:
    """What is wrong with an override that cannot be read, with the quotes that a shell passes on where they would help."""
    message, (key, _, value) = "is not of the form KEY=VALUE in Hydra's grammar", text.partition("=")
    if value[:1] in ("[", "{") and not set(value) & set("'\"\\$\r\n"):
        return f'{message}; in a list or mapping, text with special characters is written in quotes, such as {{match: "0[0-2]_*"}}'
    if not value or len(text) > 200 or set(value) & set("[]{}()'\"\\$\r\n"):
        return message
    return f"{message}; text with special characters is written in quotes inside quotes: \"{key}='{value}'\""


def misses(problem: Problem, known: Problem) -> bool:
    """Whether a problem of the composed config only says what is known: the override that sets its key is wrong."""
    if problem.where == known.where or "=" not in known.where:
        return problem.where == known.where
    key = known.where.partition("=")[0].lstrip("+~")
    return problem.where == key or problem.where.startswith((f"{key}[", f"{key}." if "." in key else f"{key}["))


def _refused(override: Override) -> list[Problem]:
    """What may not be set at all, whatever it is set to."""
    text, key = line(override), override.key_or_group
    value = override.value()
    reason = refused_group(key) if "/" in key else refused_key(key)
    reason = reason or refused_value(key, value) or refused_value(f"{key}.", text.partition("=")[2])
    if reason:
        return [Problem(text, reason, origin=CLI)]
    return [replace(problem, where=text) for problem in inspect_tree(value, key, CLI)][:1]


def is_choice(override: Override, groups: Collection[str]) -> bool:
    """Whether this is `group=name`, as opposed to a value."""
    key = override.key_or_group
    return override.package is not None or "/" in key or (key in groups and not override.is_delete())


def is_plain(override: Override) -> bool:
    """Whether Hydra by itself finds out all that may be wrong with the place that this value is for."""
    changes = override.is_add() or override.is_force_add() or override.is_delete()
    return not changes and not _is_whole(override.key_or_group)


def judge_choice(override: Override, groups: Collection[str], options: Sequence[str]) -> list[Problem]:
    """What is wrong with `group=name`, where `options` are the names that the group has."""
    group, value, text = override.key_or_group, override.value(), line(override)
    if override.package is not None:
        return [Problem(text, f"{group} has one place in the config and is chosen without @", (f"{group}={value}",), CLI)]
    if group not in groups and not group.startswith("hydra/"):
        folder = group.removeprefix("experiment/")
        if folder != group:
            return [Problem(text, "a folder is part of the experiment's name", (f"+experiment={folder}/{value}",), CLI)]
        return [Problem(text, f"there is no config group {group!r}; there are: {', '.join(sorted(groups))}", nearest(group, groups), CLI)]
    plus = group not in top_level() and not group.startswith("hydra/")
    if plus and not override.is_add():
        return [Problem(text, f"{group} is added with a plus sign", (f"+{group}={value}",), CLI)]
    if override.is_add() and not plus:
        return [Problem(text, f"{group} is chosen without a plus sign", (f"{group}={value}",), CLI)]
    if override.is_delete():
        return [Problem(text, f"{group} cannot be taken out of the config", origin=CLI)]
    if value in options:
        return []
    if isinstance(value, dict):
        return [Problem(text, f"{group} is chosen by its name; set its members one by one, as {group}.KEY=VALUE", origin=CLI)]
    problem = no_such(group, "null" if value is None else str(value), options)
    return [replace(problem, where=text, origin=CLI, nearest=with_number(group, value) or problem.nearest)]


def no_such(group: str, value: str, options: Sequence[str]) -> Problem:
    """That a group has no choice of this name, or that the name is a folder's; what there is."""
    inside = [name for name in options if name.startswith(f"{value.rstrip('/')}/")]
    if inside:
        more = f" and {len(inside) - MOST_SHOWN} more (dnnkit list {group})" if len(inside) > MOST_SHOWN else ""
        message = f"{value} is a folder of {group.rstrip('s')}s, of which one is chosen: {', '.join(inside[:MOST_SHOWN])}{more}"
        return Problem(group, message)
    kind = KINDS[group].name if group in KINDS else group or "file"
    return Problem(group, f"there is no {kind} called {value!r}; there are: {', '.join(offered(value, options))}", nearest(value, options))


def offered(value: str, options: Sequence[str]) -> list[str]:
    """The names to tell someone who asked for `value`: those in the folder that it names, else those in none, and the folders."""
    folder = f"{value.rpartition('/')[0] or value}/"
    inside = [name for name in options if name.startswith(folder)]
    return inside or list(dict.fromkeys("/".join((name.partition("/")[0], "…")) if "/" in name else name for name in options))


def judge_value(override: Override, base: DictConfig) -> list[Problem]:
    """What is wrong with the place that `key=value` names; the value itself is judged later."""
    text, key = line(override), override.key_or_group
    if key.startswith("metrics."):
        message = "metrics is a list, and a metric with settings is one of its members: metrics=[acc,{name: top_k, k: 3}]"
        return [Problem(text, message, origin=CLI)]
    if key.startswith("init_from.") and key.count(".") == 1 and not _exists(base, key):
        return _source_setting(override, base)
    if override.is_delete():
        return [Problem(text, "every key has its place: set it to another value, or choose none", origin=CLI)]
    if override.is_add():
        return [] if key.partition(".")[0] in top_level() and not _exists(base, key) else [_misplaced(override, base)]
    if not _exists(base, key):
        return [_misplaced(override, base)]
    if isinstance(override.value(), dict) and OmegaConf.is_list(OmegaConf.select(base, key)):
        right = text.partition("=")[2]
        return [Problem(text, "must be a list, in square brackets, got a mapping", (f"{key}=[{right}]",), CLI)]
    return [Problem(text, f"set its members one by one, as {key}.KEY=VALUE", origin=CLI)] if _is_whole(key) else []


def _source_setting(override: Override, base: DictConfig) -> list[Problem]:
    """What is wrong with a setting of `init_from` that is not in the tree: those of a run are given with it, in one word."""
    setting, value = override.key_or_group.split(".")[1], line(override).partition("=")[2]
    known = [name for name in Settings.of(InitFrom).names() if name != "config"]
    if setting not in known:
        return [Problem(line(override), f"init_from has no setting {setting!r}; it has: {', '.join(known)}", nearest(setting, known), CLI)]
    if not OmegaConf.is_dict(OmegaConf.select(base, "init_from")):
        whole = shlex.quote(f"init_from={{run: RUN, {setting}: {value}}}")
        return [Problem(line(override), f"settings of init_from are given together with what it names: {whole}", origin=CLI)]
    added = (f"+init_from.{setting}={value}",)
    return [] if override.is_add() else [Problem(line(override), "is not set in this experiment and is added with a plus sign", added, CLI)]


def _is_whole(key: str) -> bool:
    """Whether this key holds a whole node, whose members are set one by one."""
    return key in SECTIONS or key in GROUPS


def _exists(base: DictConfig, key: str) -> bool:
    return _depth(base, key.split(".")) == len(key.split("."))


def _depth(base: DictConfig, parts: Sequence[str]) -> int:
    """How many parts of a path are there."""
    node: Any = base
    for depth, part in enumerate(parts):
        if not OmegaConf.is_dict(node) or part not in node.keys():  # noqa: SIM118 (`in` denies a value that has to be given)
            return depth
        node = node._get_node(part)
    return len(parts)


def _misplaced(override: Override, base: DictConfig) -> Problem:
    """The problem of a key that is not there, with the nearest keys of the level where its path leaves the tree."""
    text, key, value = line(override), override.key_or_group, line(override).partition("=")[2]
    parts = key.split(".")
    depth = _depth(base, parts)
    if depth == len(parts):
        return Problem(text, f"{key} is there already and is set without a plus sign", (f"{key}={value}",), CLI)
    at = ".".join(parts[:depth])
    if not at:
        known = [*top_level(), "+experiment", "+sweeps"]
        close = meant_by(key, value, base) if len(parts) == 1 else ()
        close = close or tuple(f"{'.'.join((name, *parts[1:]))}={value}" for name in _nearest_key(parts[0], known))
        return Problem(text, f"there is no key {parts[0]!r}; there are: {', '.join(known)}", close, CLI)
    node = OmegaConf.select(base, at)
    known = [str(name) for name in node if name not in ("hydra", "name")] if OmegaConf.is_dict(node) else []
    close = tuple(f"{at}.{name}" for name in nearest(parts[depth], known)) or tuple(f"{at}={name}" for name in _owners(at, parts[depth]))
    chosen = f"{at}={node.name}" if at in GROUPS and "name" in node else at
    return Problem(text, f"{chosen} has no setting {parts[depth]!r}; it has: {', '.join(known) or 'none'}", close, CLI)


def _owners(group: str, setting: str) -> list[str]:
    """The components of a group that have a setting of this name, or of a name close to it."""
    return [record.name for record in REGISTRIES.get(group, ()) if nearest(setting, [own.name for own in record.settings])]


def _nearest_key(name: str, known: Sequence[str]) -> Iterator[str]:
    """The nearest top-level keys, those that need a plus sign written with it."""
    plain = {key.lstrip("+"): key for key in known}
    return (plain[close] for close in nearest(name, plain))
