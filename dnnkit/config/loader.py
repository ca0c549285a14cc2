"""Hydra's loader with a guard before every file, and a check behind every composition that Hydra will act on.

Rests on Hydra's internal loader because the public `compose` executes callbacks from the config it composes.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.core.utils import JobRuntime
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dnnkit import plugins
from dnnkit.config.guard import Guard
from dnnkit.config.sections import GROUPS, Top
from dnnkit.errors import ConfigError, Problem
from dnnkit.registry import KINDS, REGISTRIES
from dnnkit.schema import Settings, node

#: What `conf/config.yaml` begins with: a default for every key that holds one value.
KEYS = "dnnkit_keys"
_PACKAGE = Path(__file__).resolve().parent.parent
#: What may differ between one command and another in the node by which Hydra acts; the rest is always Hydra's own.
_FREE = ("mode", "sweeper", "launcher", "overrides", "runtime")
_FREE_OF_JOB = ("name", "override_dirname", "id", "num", "config_name")
#: What Hydra acts on by itself, by the folder of our main file; composed when a sweep asks for it.
_own: dict[Path, dict[str, Any]] = {}


def shipped(folder: str) -> Path:
    """A folder of files that come with dnnkit: inside the package in a wheel, beside it in a checkout."""
    inside, beside = _PACKAGE / folder, _PACKAGE.parent / folder
    return inside if inside.is_dir() else beside


def sweep_files() -> dict[str, Path]:
    """The studies that `+sweeps=NAME` can choose: dnnkit's own, and those of `sweeps/` in the working folder, which win."""
    return {path.stem: path for folder in (shipped("sweeps"), Path("sweeps").resolve()) for path in sorted(folder.glob("*.yaml"))}


def search_path(config_dir: Path | None, confs: Iterable[tuple[str, Path]]) -> ConfigSearchPathImpl:
    """Our own presets first, then the user's folder, then those of plugins, `confs` by package, then the registered components."""
    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    path.append("main", f"file://{shipped('conf')}")
    if config_dir is not None:
        path.append("command-line", f"file://{config_dir}")
    for package, conf in confs:
        path.append(package, f"file://{conf}")
    path.append("schema", "structured://")
    return path


def store_nodes() -> None:
    """Put a node for every registered component and every switch into Hydra's store, and the names of the studies."""
    store = ConfigStore.instance()
    for group in (*GROUPS, "sweeps"):
        store.repo.pop(group, None)  # what was there before may be gone by now
    for group in GROUPS:
        for name in [*REGISTRIES[group].names(), *KINDS[group].switches]:
            store.store(group=group, name=name, node=node(group, name), provider="dnnkit")
    store.store(name=KEYS, node=Settings.of(Top).defaults(), provider="dnnkit")
    for name in sweep_files():
        store.store(group="sweeps", name=name, node={}, package="_global_", provider="dnnkit")


def presets(confs: Iterable[tuple[str, Path]], components: Mapping[str, Container[str]]) -> Guard:
    """The files that can be chosen, without the components. ConfigError for a file that hides one of these, by group."""
    Plugins.instance()
    guard = Guard(search_path(None, confs), {f"sweeps/{name}": file for name, file in sweep_files().items()})
    hidden = shadows(guard, components)
    if hidden:
        raise ConfigError(hidden)
    return guard


def shadows(repository: ConfigRepository, components: Mapping[str, Container[str]]) -> list[Problem]:
    """Files that would silently take the place of a component because they carry its name."""
    problems = []
    for source in repository.get_sources():
        if source.scheme() != "file":
            continue
        for group in GROUPS:
            names = source.list(group, ObjectType.CONFIG) if source.is_group(group) else []
            taken = [name for name in names if name in components[group] or name in KINDS[group].switches]
            files = [f"{source.path}/{group}/{name}.yaml" for name in taken]
            message = "hides the registered {}; give the file another name"
            problems += [Problem(file, message.format(f"{group}={name}")) for file, name in zip(files, taken, strict=True)]
    return problems


class Loader(ConfigLoaderImpl):
    """Composes configs; raises ConfigError for a folder that does not exist and for files that hide a component."""

    def __init__(self, config_dir: str | None = None) -> None:
        folder = Path(config_dir).resolve() if config_dir is not None else None
        if folder is not None and (not config_dir or not folder.is_dir()):
            raise ConfigError([Problem("--config-dir", f"there is no folder {config_dir!r}")])
        version.setbase("1.3")
        Plugins.instance()
        JobRuntime.instance().set("name", "dnnkit")
        plugins.load()
        store_nodes()
        path = search_path(folder, [(plugin.package, plugin.conf) for plugin in plugins.load() if plugin.conf is not None])
        super().__init__(path)
        self.guard = Guard(path, {f"sweeps/{name}": file for name, file in sweep_files().items()})
        self.repository = self.guard
        self.merged: list[str] = []
        hidden = shadows(self.guard, REGISTRIES)
        if hidden:
            raise ConfigError(hidden)

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Hydra's composition. ConfigError where it would make Hydra do anything but run a sweep."""
        self.merged.clear()
        tree = super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        if run_mode == RunMode.MULTIRUN:
            self._refuse_steering(tree)
        return tree

    def load_plain(self, overrides: list[str]) -> DictConfig:
        """The composition without Hydra's own node, which takes twice as long and matters to sweeps alone.

        The same steps as Hydra's, with the same errors, for overrides that do not concern Hydra.
        """
        self.merged.clear()
        with self.guard.leaving_hydra_out():
            parsed, repo = self._parse_overrides_and_create_caching_repo("config", overrides)
            listed = create_defaults_list(repo, "config", parsed, prepend_hydra=False, skip_missing=False)
            tree = self._compose_config_from_defaults_list(listed.defaults, repo)
        OmegaConf.set_struct(tree, True)
        self._apply_overrides_to_config(listed.config_overrides, tree)
        return tree

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The config by which Hydra runs one job; ConfigError as above."""
        tree = super().load_sweep_config(master_config, sweep_overrides)
        self._refuse_steering(tree)
        return tree

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        self.merged.append(default.config_path or "")
        return super()._load_single_config(default, repo)

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

    def setters(self) -> list[tuple[str, list[str]]]:
        """The files of the last composition with the keys they set, in the order in which they were merged."""
        return [self.guard.files[path] for path in self.merged if path in self.guard.files]

    def _refuse_steering(self, tree: DictConfig) -> None:
        """The last door: whatever way a setting took, Hydra acts only on its own defaults and the choice of a sweep."""
        main = shipped("conf")
        if main not in _own:
            _own[main] = _acts(super().load_configuration("config", [], RunMode.RUN))
        own, acts = _own[main], _acts(tree)
        wrong = [key for key in {**own, **acts} if acts.get(key) != own.get(key)]
        if wrong:
            raise ConfigError([Problem(f"hydra.{key}", "may not be set") for key in wrong])


def _acts(tree: DictConfig) -> dict[str, Any]:
    """What Hydra would execute, configure or write by this tree."""
    whole = OmegaConf.to_container(tree.hydra, resolve=False)
    assert isinstance(whole, dict)
    acts = {str(key): value for key, value in whole.items() if key not in _FREE}
    acts["job"] = {key: value for key, value in acts["job"].items() if key not in _FREE_OF_JOB}
    acts["sweep"] = {key: value for key, value in acts["sweep"].items() if key != "dir"}
    return acts
