"""Hydra's loader with a guard: every file that takes part in a composition is inspected before Hydra sees it.

Rests on Hydra's internal loader because the public `compose` executes callbacks from the config it composes.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import ConfigDefault, GroupDefault, InputDefault
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.core.utils import JobRuntime
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dnnkit import plugins
from dnnkit.config.doors import inspect_tree, leaves, refused_group, refused_text, without
from dnnkit.config.sections import GROUPS
from dnnkit.errors import ConfigError, Problem, nearest
from dnnkit.registry import KINDS, REGISTRIES
from dnnkit.schema import node

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped(folder: str) -> Path:
    """A folder of files that come with dnnkit: inside the package in a wheel, beside it in a checkout."""
    inside, beside = _PACKAGE / folder, _PACKAGE.parent / folder
    return inside if inside.is_dir() else beside


def sweep_files() -> dict[str, Path]:
    """The studies that `+sweeps=NAME` can choose: dnnkit's own, and those of `sweeps/` in the working folder, which win."""
    return {path.stem: path for folder in (shipped("sweeps"), Path("sweeps").resolve()) for path in sorted(folder.glob("*.yaml"))}


class Guard(ConfigRepository):
    """Hydra's repository, minus whatever a file may not contain; what was taken out is in `problems`."""

    def __init__(self, search_path: ConfigSearchPathImpl) -> None:
        super().__init__(search_path)
        self.problems: list[Problem] = []
        self.files: dict[str, list[str]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        """Hydra copies its repository for every composition; what is found there has to come back here."""
        other = copy.copy(self)
        other.sources = list(self.sources)
        return other

    def load_config(self, config_path: str) -> ConfigResult | None:
        """The file, inspected and cleaned; Hydra's own files and registered components pass as they are."""
        try:
            result = super().load_config(config_path)
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
            self.problems.append(Problem(config_path, f"cannot be read: {' '.join(str(error).split())}"))
            return ConfigResult("", "", OmegaConf.create({}), {}, [])
        if result is None or _trusted(result, config_path):
            return result
        if config_path.startswith("experiment/") and result.header.get("package") is None:
            result.header["package"] = "_global_"  # an experiment is always about the whole config
        origin = _origin(result, config_path)
        prefix = _package(result, config_path)
        if config_path.startswith("hydra/"):
            self.problems.append(Problem(config_path, "a file may not take a place in Hydra's own groups", origin=origin))
            return ConfigResult(result.provider, result.path, OmegaConf.create({}), result.header, [])
        tree = OmegaConf.to_container(result.config, resolve=False)
        if not isinstance(tree, dict):
            self.problems.append(Problem(config_path, "has to be a mapping of keys to values", origin=origin))
            tree = {}
        found = inspect_tree(tree, prefix, origin)
        tree = without(tree, prefix, found)
        self.problems += found
        self.files[origin] = [path for path, value in leaves(tree, prefix) if not isinstance(value, dict)]
        defaults = [default for default in result.defaults_list or [] if self._allowed(default, origin)]
        return ConfigResult(result.provider, result.path, OmegaConf.create(tree), result.header, defaults, result.is_schema_source)

    def _allowed(self, default: InputDefault, origin: str) -> bool:
        """Whether this line of a defaults list may stand and names something that exists."""
        if isinstance(default, ConfigDefault):
            text = f"{default.path}@{default.package or ''}"
            return not self._refuse(text, refused_text(text) or refused_group((default.path or "").lstrip("/")), origin)
        assert isinstance(default, GroupDefault)
        group = (default.group or "").lstrip("/")
        values = default.value if isinstance(default.value, list) else [default.value]
        reason = refused_group(group) or refused_group((default.package or "").replace(".", "/"))
        for value in [value for value in values if value is not None]:
            reason = reason or refused_text(value)
            options = self.get_group_options(group)
            if not reason and options and value not in options:
                self.problems.append(Problem(f"{group}: {value}", f"there is no {group} called {value!r}", nearest(value, options), origin))
                return False
        return not self._refuse(f"{group}: {default.value}", reason, origin)

    def _refuse(self, where: str, reason: str, origin: str) -> bool:
        if reason:
            self.problems.append(Problem(where, reason, origin=origin))
        return bool(reason)


def _trusted(result: ConfigResult, config_path: str) -> bool:
    """Installed code and dnnkit's own primary config; every other file is inspected."""
    if result.path.startswith("file://"):
        return config_path == "config" and result.provider == "main"
    return result.provider != _SWEEPS


def _origin(result: ConfigResult, config_path: str) -> str:
    if result.provider == _SWEEPS:
        return f"sweeps/{config_path.split('/')[-1]}.yaml"
    return str(Path(result.path.removeprefix("file://")) / f"{config_path}.yaml")


def _package(result: ConfigResult, config_path: str) -> str:
    """The config path at which a file's values are merged."""
    package = result.header.get("package")
    if package is None:
        return ".".join(config_path.split("/")[:-1])
    return "" if package == "_global_" else package.removeprefix("_global_.")


_SWEEPS = "sweeps"


def search_path(config_dir: Path | None) -> ConfigSearchPathImpl:
    """dnnkit's presets first, then the user's folder, then those of plugins, then the registered components."""
    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    path.append("main", f"file://{shipped('conf')}")
    if config_dir is not None:
        path.append("command-line", f"file://{config_dir}")
    for plugin in plugins.load():
        if plugin.conf is not None:
            path.append(plugin.package, f"file://{plugin.conf}")
    path.append("schema", "structured://")
    return path


def store_nodes() -> None:
    """Put a node for every registered component, every switch and every sweep file into Hydra's store."""
    store = ConfigStore.instance()
    for group in GROUPS:
        for name in [*REGISTRIES[group].names(), *KINDS[group].switches]:
            store.store(group=group, name=name, node=node(group, name), provider="dnnkit")
    for name, file in sweep_files().items():
        store.store(group="sweeps", name=name, node=_sweep_node(file), package="_global_", provider=_SWEEPS)


def _sweep_node(file: Path) -> Any:
    try:
        return OmegaConf.load(file)
    except (yaml.YAMLError, OmegaConfBaseException, OSError) as error:
        raise ConfigError([Problem(str(file), f"cannot be read: {' '.join(str(error).split())}")]) from error


def shadows(repository: ConfigRepository) -> list[Problem]:
    """Files that would silently take the place of a registered component because they carry its name."""
    problems = []
    for source in repository.get_sources():
        if source.scheme() != "file":
            continue
        for group in GROUPS:
            names = source.list(group, ObjectType.CONFIG) if source.is_group(group) else []
            taken = [name for name in names if name in REGISTRIES[group] or name in KINDS[group].switches]
            problems += [Problem(f"{source.path}/{group}/{name}.yaml", f"hides the registered {group}={name}; give the file another name") for name in taken]
    return problems


class Loader(ConfigLoaderImpl):
    """Composes configs; raises ConfigError for a folder that does not exist and for files that hide a component."""

    def __init__(self, config_dir: str | None = None) -> None:
        folder = Path(config_dir).resolve() if config_dir is not None else None
        if folder is not None and not folder.is_dir():
            raise ConfigError([Problem("--config-dir", f"there is no folder {str(folder)!r}")])
        version.setbase("1.3")
        Plugins.instance()
        JobRuntime.instance().set("name", "dnnkit")
        plugins.load()
        store_nodes()
        super().__init__(search_path(folder))
        self.guard = Guard(self.config_search_path)
        self.repository = self.guard
        hidden = shadows(self.guard)
        if hidden:
            raise ConfigError(hidden)

    def groups(self) -> list[str]:
        """Every config group of dnnkit's; Hydra's own are left out."""
        return [group for group in self.list_groups("") if group != "hydra"]

    def options(self, group: str) -> list[str]:
        """What can be chosen in a group."""
        return list(self.get_group_options(group, ObjectType.CONFIG))

    def found(self) -> list[Problem]:
        """What the guard took out since it was last asked."""
        found = list(dict.fromkeys(self.guard.problems))
        self.guard.problems.clear()
        return found
