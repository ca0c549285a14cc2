"""Every file that takes part in a composition is inspected, and cleaned of what it may not contain, before Hydra sees it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.default_element import ConfigDefault, GroupDefault, InputDefault
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dnnkit.config.doors import inspect_tree, leaves, refused_group, refused_path, refused_text, refused_yaml, without
from dnnkit.config.sections import GROUPS, top_level
from dnnkit.config.triage import no_such
from dnnkit.errors import Problem, nearest

#: Their files are always about the whole config, not about a key named like their folder.
WHOLE = ("experiment", "sweeps")
#: Experiments may be in folders within folders, so many deep: enough for anybody, and an end where a folder holds itself.
DEEPEST = 4
_STUDIES = "studies"


class Guard(ConfigRepository):
    """Hydra's repository, minus whatever a file may not contain.

    What was taken out is in `problems`; `files` are the keys that each file sets, by its path. `studies` are the files
    that `+sweeps=NAME` chooses among, by config path.
    """

    def __init__(self, search_path: ConfigSearchPathImpl, studies: dict[str, Path]) -> None:
        super().__init__(search_path)
        self.studies = studies
        self.problems: list[Problem] = []
        self.files: dict[str, tuple[str, list[str]]] = {}
        self._plain = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        """Hydra copies its repository for every composition; what is found there has to come back here."""
        other = copy.copy(self)
        other.sources = list(self.sources)
        return other

    def get_group_options(self, group_name: str, results_filter: ObjectType | None = ObjectType.CONFIG) -> list[str]:
        """The choices of a group; of experiments also those in folders, as `folder/name`."""
        found = super().get_group_options(group_name, results_filter)
        if whole(group_name) != "experiment" or results_filter != ObjectType.CONFIG or group_name.count("/") >= DEEPEST:
            return found
        folders = super().get_group_options(group_name, ObjectType.GROUP)
        return found + [f"{folder}/{name}" for folder in folders for name in self.get_group_options(f"{group_name}/{folder}")]

    @contextmanager
    def leaving_hydra_out(self) -> Iterator[None]:
        """Inside, the choices that files make in Hydra's own groups are inspected and then left out."""
        self._plain = True
        try:
            yield
        finally:
            self._plain = False

    def load_config(self, config_path: str) -> ConfigResult | None:
        """The file, inspected and cleaned; Hydra's own files and registered components pass as they are."""
        reason = refused_path(config_path)
        if reason:
            self.problems.append(Problem(config_path, reason))
            return _empty()
        try:
            result = self._read(config_path)
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError, RecursionError) as error:
            self.problems.append(Problem(config_path, f"cannot be read: {' '.join(str(error).split())}"))
            return _empty()
        if result is None:
            return None
        result = result if _trusted(result, config_path) else self._cleaned(result, config_path)
        return _without_hydra(result) if self._plain else result

    def _read(self, config_path: str) -> ConfigResult | None:
        name = config_path.removesuffix(".yaml")
        if name in self.studies:
            return self._study(name, self.studies[name])
        files = [path for source in self.sources if (path := _file(source, name)) is not None]
        if len(files) > 1:
            message = f"there are two of this name, {files[0]} and {files[1]}: give one of them another name"
            self.problems.append(Problem(config_path, message))
        if files and files[0] != self._main():
            _readable(files[0])
        return super().load_config(config_path)

    def _study(self, config_path: str, file: Path) -> ConfigResult:
        _readable(file)
        config = OmegaConf.load(file)
        defaults = self._create_defaults_list(config_path, self._extract_defaults_list(config_path, config))
        return ConfigResult(_STUDIES, f"file://{file.parent.parent}", config, {"package": "_global_"}, defaults, True)

    def _main(self) -> Path:
        return next(Path(source.path) / "config.yaml" for source in self.sources if source.provider == "main")

    def _cleaned(self, result: ConfigResult, config_path: str) -> ConfigResult:
        origin = str(Path(result.path.removeprefix("file://")) / f"{config_path.removesuffix('.yaml')}.yaml")
        group = "/".join(config_path.split("/")[:-1])
        about_all = whole(group) is not None
        if about_all and result.header.get("package") is None:
            result.header["package"] = "_global_"
        package = result.header.get("package")
        refused = "a file may not take a place in Hydra's own groups" if config_path.startswith("hydra/") else ""
        if package not in ((None, "_group_", group.replace("/", "."), "_global_") if not about_all else ("_global_",)):
            refused = f"a file's values belong to its own group or, with '# @package _global_', to the whole config, not to {package!r}"
        tree = OmegaConf.to_container(result.config, resolve=False)
        if refused or not isinstance(tree, dict):
            self.problems.append(Problem(config_path, refused or "has to be a mapping of keys to values", origin=origin))
            return _empty()
        prefix = "" if package == "_global_" else group.replace("/", ".")
        found = inspect_tree(tree, prefix, origin)
        self.problems += found
        clean = without(tree, prefix, found)
        self.files[config_path] = origin, [path for path, value in leaves(clean, prefix) if not isinstance(value, dict)]
        listed = [default for default in result.defaults_list or [] if not self._is_itself(default, group, config_path, origin)]
        defaults = [_from_top(default, group) if about_all else default for default in listed if self._allowed(default, group, origin)]
        return ConfigResult(result.provider, result.path, OmegaConf.create(clean), result.header, defaults, result.is_schema_source)

    def _is_itself(self, default: InputDefault, folder: str, config_path: str, origin: str) -> bool:
        if isinstance(default, GroupDefault):
            paths = [f"{_below(folder, default.group or '')}/{value}" for value in _values(default)]
        else:
            paths = [_below(folder, default.path or "")] if isinstance(default, ConfigDefault) else []
        if config_path in paths:
            self.problems.append(Problem(config_path, "has itself in its defaults list", origin=origin))
        return config_path in paths

    def _allowed(self, default: InputDefault, folder: str, origin: str) -> bool:
        """Whether this line of a defaults list may stand and names something that exists."""
        problem = next(self._wrong(default, folder), None)
        if problem is not None:
            self.problems.append(Problem(problem.where, problem.message, problem.nearest, origin))
        return problem is None

    def _wrong(self, default: InputDefault, folder: str) -> Iterator[Problem]:
        """What is wrong with a line of the defaults list of a file in `folder`."""
        if isinstance(default, ConfigDefault):
            if default.path != "_self_":
                path = default.path or ""
                yield from self._wrong_choice(path, default.package, _below(folder, path).rpartition("/")[0], path.rpartition("/")[2])
            return
        assert isinstance(default, GroupDefault)
        group, known = default.group or "", [*GROUPS, "trainer", "tracking"]
        full, given = _below(folder, group), "override " if default.override else ""
        if group in known and full not in known:
            right = f"override /{group}: {default.value}"
            yield Problem(f"{given}{group}: {default.value}", f"{group} is a group of the whole config", (right,))
        if full in known and not default.override:
            right = f"override /{full}: {default.value}"
            yield Problem(f"{group}: {default.value}", f"{full} has a choice already", (right,))
        for value in _values(default):
            yield from self._wrong_choice(f"{given}{group}: {value}", default.package, full, value)

    def _wrong_choice(self, where: str, package: str | None, group: str, value: Any) -> Iterator[Problem]:
        reason = refused_group(group) or refused_text(f"{where}") or refused_path(f"{group}/{value}".lstrip("/"))
        if package is not None:
            reason = reason or "a choice has one place in the config and is made without @"
        if reason:
            yield Problem(where, reason)
        options = self.get_group_options(group)
        if not options and group:
            known = [name for name in self.get_group_options("", None) if name in (*top_level(), *WHOLE)]
            yield Problem(where, f"there is no config group {group!r}; there are: {', '.join(known)}", nearest(group, known))
        if value is not None and value not in options:
            yield replace(no_such(group, str(value), options), where=where)


def whole(group: str) -> str | None:
    """`experiment` or `sweeps` for that group and the folders in it; None for any other."""
    top = group.partition("/")[0]
    return top if top in WHOLE else None


def _values(default: GroupDefault) -> list[Any]:
    return default.value if isinstance(default.value, list) else [default.value]


def _empty() -> ConfigResult:
    return ConfigResult("", "", OmegaConf.create({}), {"package": "_global_"}, [], True)


def _without_hydra(result: ConfigResult) -> ConfigResult:
    """The file without the choices it makes in Hydra's own groups."""
    listed = result.defaults_list or []
    groups = [(default.group or "").lstrip("/") if isinstance(default, GroupDefault) else "" for default in listed]
    kept = [default for default, group in zip(listed, groups, strict=True) if not group.startswith("hydra/")]
    return ConfigResult(result.provider, result.path, result.config, result.header, kept, result.is_schema_source)


def _file(source: ConfigSource, config_path: str) -> Path | None:
    """The file that a folder of presets has for this config path."""
    return Path(source.path) / f"{config_path}.yaml" if source.scheme() == "file" and source.is_config(config_path) else None


def _readable(file: Path) -> None:
    reason = refused_yaml(file.read_text(encoding="utf-8"))
    if reason:
        raise ValueError(f"{file} {reason}")


def _trusted(result: ConfigResult, config_path: str) -> bool:
    """Installed code and dnnkit's own primary config; every other file is inspected."""
    return not result.path.startswith("file://") or (config_path == "config" and result.provider == "main")


def _from_top(default: InputDefault, folder: str) -> InputDefault:
    """The line with its path from the top: Hydra looks for `base` in `experiment/` where `folder/name` was chosen, not in `folder`."""
    if isinstance(default, ConfigDefault) and default.path != "_self_":
        default.path = f"/{_below(folder, default.path or '')}"
    return default


def _below(folder: str, path: str) -> str:
    """The full path of a name in a defaults list: from the top with a slash, else below the file's own folder."""
    return path.lstrip("/") if path.startswith("/") or not folder else f"{folder}/{path}"
