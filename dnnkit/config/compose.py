"""From overrides to a validated config, or to everything that is wrong with them.

Hydra stops at the first bad override. Here each override is judged by itself first; an offending one is recorded and
left out, and composition goes on, so that one answer holds every problem.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dnnkit import plugins
from dnnkit.config.doors import inspect_tree, leaves, refused_group, refused_key, refused_text
from dnnkit.config.loader import Loader
from dnnkit.config.sections import GROUPS, SECTIONS, top_level, validate
from dnnkit.errors import ConfigError, DnnkitError, PluginError, Problem, nearest
from dnnkit.registry import KINDS, REGISTRIES



@dataclass(frozen=True)
class Config:
    """A composed and validated config. Keys are read as attributes (`cfg.optimizer.lr`) or items.

    `values` is the whole config as plain data, every reference resolved and every default filled in; `overrides` are the
    words it was composed from.
    """

    values: Mapping[str, Any]
    overrides: tuple[str, ...] = ()
    _node: DictConfig = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        node = OmegaConf.create(dict(self.values))
        OmegaConf.set_readonly(node, True)
        object.__setattr__(self, "_node", node)

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_"):
            raise AttributeError(key)
        return getattr(self._node, key)

    def __getitem__(self, key: str) -> Any:
        return self._node[key]

    def to_yaml(self) -> str:
        """The config as YAML, as it is written to `config/config.yaml`."""
        return OmegaConf.to_yaml(self._node)


def compose(overrides: Sequence[str] = (), *, config_dir: str | None = None) -> Config:
    """Compose and validate a config; nothing is executed, created or started.

    `overrides` are Hydra's: `activation=relu`, `optimizer.lr=0.1`, `+experiment=selu_mnist`. `config_dir` is a folder of
    presets of one's own. Raises ConfigError with every problem, and PluginError where the config needs a component of a
    plugin that failed to load.
    """
    return Composer(config_dir).one(overrides)


class Composer:
    """Composes any number of configs from the same folders."""

    def __init__(self, config_dir: str | None = None) -> None:
        self.loader = Loader(config_dir)
        self._parser = OverridesParser.create()
        self._groups = set(self.loader.groups())

    def one(self, overrides: Sequence[str]) -> Config:
        """The config of one run; ConfigError with every problem."""
        parsed, problems = self.parse(overrides)
        sweeping = [override for override in parsed if override.is_sweep_override()]
        problems += [Problem(_line(override), "gives several values: add -m to run a sweep over them") for override in sweeping]
        tree, found = self._compose([override for override in parsed if override not in sweeping])
        problems += found
        values, found = validate(tree) if tree is not None else ({}, [])
        # A key that is already reported would be reported again by the validator, in other words.
        problems += [problem for problem in found if not any(known.where.endswith(problem.where) for known in problems)]
        if problems:
            raise self._error(problems, parsed)
        return Config(values, tuple(overrides))

    def parse(self, overrides: Sequence[str]) -> tuple[list[Override], list[Problem]]:
        """The overrides that may take part, and what is wrong with the others."""
        good: list[Override] = []
        problems: list[Problem] = []
        for text in overrides:
            try:
                override = self._parser.parse_override(text)
                override.input_line = text
            except (HydraException, OmegaConfBaseException):
                reason = refused_key(text.partition("=")[0].lstrip("+~"))
                problems.append(Problem(text, reason or "is not of the form KEY=VALUE in Hydra's grammar", origin=_CLI))
                continue
            found = _refused(override)
            problems += found
            if not found:
                good.append(override)
        return good, problems

    def sweep(self, parsed: Sequence[Override]) -> DictConfig:
        """What a sweep is run by: the config with Hydra's own node, its sweeper and launcher."""
        hydra = [override for override in parsed if override.is_hydra_override() or override.key_or_group == "sweeps"]
        try:
            return self.loader.load_configuration("config", [_line(override) for override in hydra], RunMode.MULTIRUN)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError([*self.loader.found(), Problem(" ".join(map(_line, hydra)), _first_line(error))]) from error

    def _compose(self, parsed: Sequence[Override]) -> tuple[dict[str, Any] | None, list[Problem]]:
        """The composed tree without Hydra's node, all references resolved; None where nothing could be composed."""
        choices = [override for override in parsed if self._is_choice(override)]
        problems = [problem for override in choices for problem in self._judge_choice(override)]
        good = [override for override in choices if not self._judge_choice(override)]
        base, found = self._load(good)
        problems += found
        if base is None:
            return None, problems
        rest = [override for override in parsed if override not in choices]
        found = [problem for override in rest for problem in _judge_value(override, base)]
        problems += found
        refused = {problem.where for problem in found}
        tree, found = self._load([override for override in parsed if override in good or (override in rest and _line(override) not in refused)])
        problems += found
        if tree is None:
            return None, problems
        with_hydra = OmegaConf.to_container(tree, resolve=False)
        assert isinstance(with_hydra, dict)
        del with_hydra["hydra"]
        resolved, found = _resolve(OmegaConf.create(with_hydra))
        return resolved, problems + found

    def _load(self, overrides: Sequence[Override]) -> tuple[DictConfig | None, list[Problem]]:
        """Hydra's composition; where it refuses, without the overrides that it refuses one by one."""
        lines = [_line(override) for override in overrides]
        tree, error = self._try(lines)
        problems = self.loader.found()
        if tree is not None:
            return tree, problems
        base, base_error = self._try([])
        if base is None:
            return None, [*problems, Problem("config", base_error)]
        kept: list[str] = []
        for line in lines:
            tree, why = self._try([*kept, line])
            if tree is None:
                problems.append(Problem(line, why, origin="command line"))
            else:
                kept.append(line)
        tree, _ = self._try(kept)
        problems += [problem for problem in self.loader.found() if problem not in problems]
        return tree, problems or [Problem("config", error)]

    def _try(self, lines: list[str]) -> tuple[DictConfig | None, str]:
        try:
            return self.loader.load_configuration("config", lines, RunMode.RUN, from_shell=False), ""
        except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:
            return None, _first_line(error)

    def _is_choice(self, override: Override) -> bool:
        """Whether this is `group=name`, as opposed to a value."""
        key = override.key_or_group
        return override.package is not None or "/" in key or (key in self._groups and not override.is_delete())

    def _judge_choice(self, override: Override) -> list[Problem]:
        """What is wrong with `group=name`."""
        group, value, line = override.key_or_group, override.value(), _line(override)
        if override.package is not None:
            return [Problem(line, f"{group} has one place in the config and is chosen without @", (f"{group}={value}",), _CLI)]
        if group not in self._groups and not group.startswith("hydra/"):
            return [Problem(line, f"there is no config group {group!r}; there are: {', '.join(sorted(self._groups))}", nearest(group, self._groups), _CLI)]
        plus = group not in top_level() and not group.startswith("hydra/")
        if plus and not override.is_add():
            return [Problem(line, f"{group} is added with a plus sign", (f"+{group}={value}",), _CLI)]
        if override.is_add() and not plus:
            return [Problem(line, f"{group} is chosen without a plus sign", (f"{group}={value}",), _CLI)]
        options = self.loader.options(group)
        if value in options:
            return []
        kind = KINDS[group].name if group in KINDS else group
        message = f"there is no {kind} called {value!r}; there are: {', '.join(options)}"
        return [Problem(line, message, nearest(str(value), options), _CLI)]

    def _error(self, problems: list[Problem], parsed: Sequence[Override]) -> DnnkitError:
        """What to raise: a plugin that failed is the cause if it would have brought a missing name."""
        for plugin in plugins.failed():
            missing = [p for p in problems if (name := re.search(r"(?:is called|called) '(\w+)'", p.message)) and plugin.might_register(name.group(1))]
            if missing:
                cure = f"mend or uninstall {plugin.package}, whose module {plugin.module} ended with {plugin.error}"
                return PluginError(f"{missing[0].where} needs the plugin {plugin.name!r}, which failed to load", cure)
        return ConfigError(list(dict.fromkeys(self._placed(problem, parsed) for problem in problems)))

    def _placed(self, problem: Problem, parsed: Sequence[Override]) -> Problem:
        """The problem with the place that set the value, if that is known."""
        if problem.origin:
            return problem
        key = problem.where.split("[")[0]
        lines = [_line(override) for override in parsed if _covers(override.key_or_group, key)]
        if lines:
            return replace(problem, origin=f"command line: {lines[-1]}")
        files = [file for file, keys in self.loader.guard.files.items() if any(_covers(known, key) for known in keys)]
        return replace(problem, origin=files[-1]) if files else problem


_CLI = "command line"


def _covers(setter: str, key: str) -> bool:
    return setter == key or key.startswith(f"{setter}.")


def _line(override: Override) -> str:
    return override.input_line or ""


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ if error.__cause__ is not None else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0] if lines else type(cause).__name__


def _refused(override: Override) -> list[Problem]:
    """What may not be set at all, whatever it is set to."""
    line, key = _line(override), override.key_or_group
    value = override.value()
    reason = refused_group(key) if "/" in key else refused_key(key)
    reason = reason or refused_group((override.package or "").replace(".", "/"))
    reason = reason or refused_text(line.partition("=")[2])
    if reason:
        return [Problem(line, reason, origin=_CLI)]
    return [replace(problem, where=line) for problem in inspect_tree(value, key, _CLI)][:1]


def _judge_value(override: Override, base: DictConfig) -> list[Problem]:
    """What is wrong with the place that `key=value` names; the value itself is judged later."""
    line, key = _line(override), override.key_or_group
    if override.is_hydra_override():
        return []
    head, _, rest = key.partition(".")
    if override.is_add():
        return [] if head in top_level() and not _exists(base, key) else [_misplaced(override, base)]
    if _exists(base, key):
        whole = (head in SECTIONS or head in GROUPS) and not rest and not override.is_delete()
        return [Problem(line, f"set its members one by one, as {head}.KEY=VALUE", origin=_CLI)] if whole else []
    return [_misplaced(override, base)]


def _exists(base: DictConfig, key: str) -> bool:
    node: Any = base
    for part in key.split("."):
        if not OmegaConf.is_dict(node) or part not in node:
            return False
        node = node._get_node(part)
    return True


def _misplaced(override: Override, base: DictConfig) -> Problem:
    """The problem of a key that is not there, with the nearest keys of the level where its path leaves the tree."""
    line, key, value = _line(override), override.key_or_group, _line(override).partition("=")[2]
    node: Any = base
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not OmegaConf.is_dict(node) or part not in node:
            break
        node = node._get_node(part)
    else:
        return Problem(line, f"{key} is there already and is set without a plus sign", (f"{key}={value}",), _CLI)
    at = ".".join(parts[:depth])
    known = [str(name) for name in node if name not in ("hydra", "name")] if OmegaConf.is_dict(node) else []
    if not at:
        known = [*top_level(), "+experiment", "+sweeps"]
        close = tuple(f"{name}={value}" for name in _nearest_key(parts[0], known))
        return Problem(line, f"there is no key {parts[0]!r}; there are: {', '.join(known)}", close, _CLI)
    close = tuple(f"{at}.{name}" for name in nearest(parts[depth], known)) or tuple(f"{at}={name}" for name in _owners(at, parts[depth]))
    chosen = f"{at}={node.name}" if at in GROUPS and "name" in node else at
    return Problem(line, f"{chosen} has no setting {parts[depth]!r}; it has: {', '.join(known) or 'none'}", close, _CLI)


def _owners(group: str, setting: str) -> list[str]:
    """The components of a group that have a setting of this name, or of a name close to it."""
    return [record.name for record in REGISTRIES.get(group, ()) if nearest(setting, [own.name for own in record.settings])]


def _nearest_key(name: str, known: Sequence[str]) -> Iterator[str]:
    """The nearest top-level keys, those that need a plus sign written with it."""
    plain = {key.lstrip("+"): key for key in known}
    return (plain[close] for close in nearest(name, plain))


def _resolve(tree: DictConfig) -> tuple[dict[str, Any], list[Problem]]:
    """The tree as plain data, and every reference that leads nowhere."""
    problems = []
    raw = OmegaConf.to_container(tree, resolve=False)
    assert isinstance(raw, dict)
    for path, value in leaves(raw):
        if isinstance(value, str) and "${" in value:
            try:
                resolved = OmegaConf.select(tree, path, throw_on_missing=True)
                OmegaConf.update(tree, path, resolved)
            except (OmegaConfBaseException, RecursionError):
                names = [name for name, member in leaves(raw) if not isinstance(member, dict)]
                inner = re.search(r"\$\{([^}]*)\}", value)
                close = tuple(f"${{{name}}}" for name in nearest(inner.group(1), names)) if inner else ()
                problems.append(Problem(path, f"the reference {value!r} leads nowhere", close))
                OmegaConf.update(tree, path, None)
    plain = OmegaConf.to_container(tree, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): member for key, member in plain.items()}, problems
