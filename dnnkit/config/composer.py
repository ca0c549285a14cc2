"""From overrides to a validated config, or to everything that is wrong with them.

Hydra stops at the first bad override. Where it refuses, each override is judged by itself; an offending one is recorded
and left out, and composition goes on, so that one answer holds every problem.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dnnkit import plugins
from dnnkit.config.config import Config
from dnnkit.config.loader import Loader
from dnnkit.config.pretraining import with_pretraining
from dnnkit.config.references import resolve
from dnnkit.config.sections import validate
from dnnkit.config.triage import CLI, is_choice, is_plain, judge_choice, judge_value, line, misses, parse
from dnnkit.errors import ConfigError, DnnkitError, PluginError, Problem
from dnnkit.registry import KINDS
from dnnkit.schema import kind_settings


def compose(overrides: Sequence[str] = (), *, config_dir: str | None = None) -> Config:
    """Compose and validate a config; nothing is executed, created or started.

    `overrides` are Hydra's: `activation=relu`, `optimizer.lr=0.1`, `+experiment=selu_mnist`. `config_dir` is a folder of
    presets of one's own. Raises ConfigError with every problem, and PluginError where the config needs a component of a
    plugin that failed to load.
    """
    return Composer(config_dir).one(overrides)


class Composer:
    """Composes any number of configs from the same folders.

    `asks_for_sweep` says whether the config composed last wants to be a sweep, by `hydra.mode` in one of its files.
    """

    def __init__(self, config_dir: str | None = None) -> None:
        self.loader = Loader(config_dir)
        self._config_dir = config_dir
        self.asks_for_sweep = False
        self._groups = set(self.loader.groups())

    def one(self, overrides: Sequence[str]) -> Config:
        """The config of one run; ConfigError with every problem."""
        values = self._valid(overrides)
        asked = self.asks_for_sweep
        values = with_pretraining(values, self._valid)
        self.asks_for_sweep = asked
        return Config(values, overrides, self._config_dir)

    def _valid(self, overrides: Sequence[str], adapt: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        """The values of one config, whose tree `adapt` may change before its references are resolved; ConfigError with every problem."""
        parsed, problems = parse(overrides)
        sweeping = [override for override in parsed if override.is_sweep_override()]
        problems += [Problem(line(override), "gives several values: add -m to run a sweep over them") for override in sweeping]
        hydras = [override for override in parsed if override.is_hydra_override() and override not in sweeping]
        problems += self._judge_hydras(hydras)
        tree, found = self._compose([override for override in parsed if override not in (*sweeping, *hydras)], adapt)
        problems += found
        values, found = validate(tree) if tree is not None else ({}, [])
        # A key that is already reported would be reported again by the validator, in other words.
        problems += [problem for problem in found if not any(misses(problem, known) for known in problems)]
        if problems:
            raise self._error(problems, parsed)
        return values

    def sweep(self, overrides: Sequence[str]) -> DictConfig:
        """What a sweep is run by: the config with Hydra's own node, its sweeper and launcher.

        The settings of the runs play no part in it; they are judged job by job. ConfigError with every problem.
        """
        parsed, problems = parse(overrides)
        choices = [override for override in parsed if is_choice(override, self._groups) and not override.is_sweep_override()]
        problems += [problem for override in choices for problem in self._judge(override)]
        good = [override for override in parsed if override.is_hydra_override() or (override in choices and not self._judge(override))]
        try:
            tree = self.loader.load_configuration("config", [line(override) for override in good], RunMode.MULTIRUN)
        except _REFUSALS as error:
            raise ConfigError([*problems, *self.loader.found(), Problem(" ".join(map(line, good)), _first_line(error))]) from error
        problems += self.loader.found()
        if problems:
            raise self._error(problems, parsed)
        return tree

    def _compose(
        self, parsed: Sequence[Override], adapt: Callable[[dict[str, Any]], None] | None
    ) -> tuple[dict[str, Any] | None, list[Problem]]:
        """The composed tree without Hydra's node, all references resolved; None where nothing could be composed."""
        choices = [override for override in parsed if is_choice(override, self._groups)]
        rest = [override for override in parsed if override not in choices]
        wrong = {line(override): found for override in choices if (found := self._judge(override))}
        tree, problems = None, []
        if not wrong and all(is_plain(override) for override in rest):
            tree, _ = self._try([line(override) for override in parsed])
            problems = self.loader.found()
        if tree is None:
            tree, problems = self._triage(parsed, choices, rest, wrong)
        if tree is None:
            return None, problems
        self.asks_for_sweep = str(OmegaConf.select(tree, "hydra.mode")).endswith("MULTIRUN")
        whole = OmegaConf.to_container(tree, resolve=False)
        assert isinstance(whole, dict)
        plain = {str(key): value for key, value in whole.items() if key != "hydra"}
        if adapt is not None:
            adapt(plain)
        resolved, found = resolve(plain)
        return resolved, problems + found

    def _triage(
        self, parsed: Sequence[Override], choices: Sequence[Override], rest: Sequence[Override], wrong: Mapping[str, list[Problem]]
    ) -> tuple[DictConfig | None, list[Problem]]:
        """What can be composed without the overrides that have something wrong with them, and what that is."""
        problems = [problem for found in wrong.values() for problem in found]
        base, found = self._load([override for override in choices if line(override) not in wrong])
        problems += found
        if base is None:
            return None, problems
        # What else there is to set is not known of a choice that is not known itself.
        unknown = {override.key_or_group for override in choices if line(override) in wrong}
        unjudged = [line(override) for override in rest if _of_unknown(override.key_or_group, unknown)]
        judged = [override for override in rest if line(override) not in unjudged]
        misplaced = {line(override): found for override in judged if (found := judge_value(override, base))}
        gone = {line(override) for override in judged if line(override) in misplaced and self._went_with_a_choice(override, parsed)}
        problems += [problem for text, found in misplaced.items() if text not in gone for problem in found]
        tree, found = self._load([override for override in parsed if line(override) not in (*wrong, *misplaced, *unjudged)])
        return tree, problems + found

    def _went_with_a_choice(self, setting: Override, parsed: Sequence[Override]) -> bool:
        """Whether it set something of a choice that a later word replaces, as words do that are pasted behind others."""
        group, at = setting.key_or_group.partition(".")[0], parsed.index(setting)
        if not any(is_choice(override, self._groups) and override.key_or_group == group for override in parsed[at:]):
            return False
        before, _ = self._load([override for override in parsed[:at] if is_choice(override, self._groups)])
        return before is not None and not judge_value(setting, before)

    def _judge_hydras(self, overrides: Sequence[Override]) -> list[Problem]:
        """What is wrong with settings of a sweep in the config of one run, to which they mean nothing."""
        problems = [problem for override in overrides if is_choice(override, self._groups) for problem in self._judge(override)]
        rest = [override for override in overrides if override.key_or_group != "hydra.mode"]
        return problems or [Problem(line(override), "matters to a sweep alone: add -m to run one", origin=CLI) for override in rest]

    def _judge(self, override: Override) -> list[Problem]:
        return judge_choice(override, self._groups, self.loader.options(override.key_or_group))

    def _load(self, overrides: Sequence[Override]) -> tuple[DictConfig | None, list[Problem]]:
        """Hydra's composition; where it refuses, without the overrides that it refuses one by one."""
        lines = [line(override) for override in overrides]
        tree, error = self._try(lines)
        problems = self.loader.found()
        if tree is not None:
            return tree, problems
        base, base_error = self._try([])
        if base is None:
            return None, [*problems, Problem("config", base_error)]
        kept: list[str] = []
        for text in lines:
            tree, why = self._try([*kept, text])
            if tree is None:
                problems.append(Problem(text, why, origin=CLI))
            else:
                kept.append(text)
        tree, _ = self._try(kept)
        problems += [problem for problem in self.loader.found() if problem not in problems]
        return tree, problems or [Problem("config", error)]

    def _try(self, lines: list[str]) -> tuple[DictConfig | None, str]:
        try:
            return self.loader.load_plain(lines), ""
        except _REFUSALS as error:
            return None, _first_line(error)

    def _error(self, problems: list[Problem], parsed: Sequence[Override]) -> DnnkitError:
        """What to raise: a plugin that failed is the cause if it would have brought a missing name."""
        for plugin in plugins.failed():
            names = {problem.where: re.search(r"\bcalled '(\w+)'", problem.message) for problem in problems}
            missing = [where for where, name in names.items() if name and plugin.might_register(name.group(1))]
            if missing:
                cure = f"mend or uninstall {plugin.package}, whose module {plugin.module} ended with {plugin.error}"
                return PluginError(f"{missing[0]} needs the plugin {plugin.name!r}, which failed to load", cure)
        return ConfigError(list(dict.fromkeys(self._placed(problem, parsed) for problem in problems)))

    def _placed(self, problem: Problem, parsed: Sequence[Override]) -> Problem:
        """The problem with the place that set the value, if that is known."""
        if problem.origin:
            return problem
        key = problem.where.split("[")[0]
        values = [override for override in parsed if not is_choice(override, self._groups)]
        lines = [line(override) for override in values if _covers(override.key_or_group, key)]
        if lines:
            return replace(problem, origin=f"{CLI}: {lines[-1]}")
        files = [file for file, keys in self.loader.setters() if any(_covers(known, key) or _covers(key, known) for known in keys)]
        return replace(problem, origin=files[-1]) if files else problem


def _of_unknown(key: str, groups: Collection[str]) -> bool:
    """Whether a key is a setting of a choice in one of these groups, and not one that every choice there has."""
    group, _, setting = key.partition(".")
    return group in groups and group in KINDS and setting not in (*kind_settings(group).names(), *KINDS[group].required)


def _covers(setter: str, key: str) -> bool:
    return setter == key or key.startswith((f"{setter}.", f"{setter}["))


#: How Hydra and OmegaConf say that something cannot be composed.
_REFUSALS = (HydraException, OmegaConfBaseException, ValueError, TypeError, RecursionError)


def _first_line(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "files whose defaults lists lead back to themselves cannot be composed"
    cause = error.__cause__ if error.__cause__ is not None else error
    lines = [text.strip() for text in str(cause).splitlines() if text.strip()]
    return lines[0] if lines else type(cause).__name__
