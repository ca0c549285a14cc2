"""Entry points: every plugin is imported once, in isolation, and whatever it registers is known to be its own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

from pydantic import PydanticUserError

from dnnkit.errors import PluginError
from dnnkit.registry import ENTRY_POINTS, REGISTRIES, registering_for
from dnnkit.schema import MISSING, component_settings

GROUP = ENTRY_POINTS
_lock = threading.RLock()
_loaded: dict[str, Plugin] = {}


@dataclass(frozen=True)
class Plugin:
    """What became of one entry point; `error` is empty where it loaded, `conf` its folder of presets if it has one."""

    name: str
    package: str
    version: str
    module: str
    components: tuple[tuple[str, str], ...] = ()
    conf: Path | None = None
    error: str = ""

    def might_register(self, name: str) -> bool:
        """Whether a failed plugin would have brought a component of this name: it did before it failed, or its source says so."""
        if any(name == known for _, known in self.components):
            return True
        wanted = re.compile(rf"""register\(\s*["']{re.escape(name)}["']""")
        return any(wanted.search(path.read_text(encoding="utf-8", errors="replace")) for path in _sources(self.module))


def load() -> tuple[Plugin, ...]:
    """Import every entry point of the group `dnnkit.plugins`, each once however often this is called.

    A plugin that fails, even by `sys.exit`, is reported in its record and leaves nothing registered.
    Raises PluginError when not even dnnkit's own components are installed and sound.
    """
    with _lock:
        for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=_built_in_first):
            if entry.value not in _loaded:
                _loaded[entry.value] = _load(entry)
        own = [plugin for plugin in _loaded.values() if plugin.package == "dnnkit"]
        if not own:
            cure = "install the package: pip install -e . in the checkout, or pip install dnnkit"
            raise PluginError("dnnkit's own components are not installed", cure)
        if own[0].error:
            raise PluginError(f"dnnkit's own components cannot be imported: {own[0].error}", "install dnnkit and what it needs anew")
        return tuple(_loaded.values())


def failed() -> tuple[Plugin, ...]:
    """The plugins that could not be loaded."""
    return tuple(plugin for plugin in load() if plugin.error)


def _built_in_first(entry: EntryPoint) -> tuple[bool, str]:
    return (entry.dist is None or entry.dist.name != "dnnkit", entry.name)


def _names() -> set[tuple[str, str]]:
    return {(group, name) for group, registry in REGISTRIES.items() for name in registry.names()}


def _load(entry: EntryPoint) -> Plugin:
    package, version = (entry.dist.name, entry.dist.version) if entry.dist else (entry.module, "")
    before, error, conf = _names(), "", None
    try:
        with registering_for(package, version):
            entry.load()
        if package != "dnnkit":  # its own are held by tests, and checking them here costs every start
            check(_names() - before)
    except KeyboardInterrupt:
        raise
    except BaseException as caught:  # a plugin may even call sys.exit: that must not end us
        error = str(caught) if isinstance(caught, PluginError) else f"{type(caught).__name__}: {caught}"
    new = tuple(sorted(_names() - before))
    if error:
        for group, name in new:
            REGISTRIES[group].remove(name)
    else:
        conf = _conf(entry.module)
    return Plugin(entry.name, package, version, entry.module, new, conf, error)


def check(names: Iterable[tuple[str, str]]) -> None:
    """PluginError for a component that no config could use: its settings clash, have no rule, or a default breaks its own."""
    for group, name in sorted(names):
        record = REGISTRIES[group].get(name)
        where = f"{group}={name} ({record.origin})"
        settings = component_settings(record)
        try:
            problems = settings.validate({}, group)[1]
        except PydanticUserError as error:
            raise PluginError(f"{where}: {error.message.splitlines()[0]}", "give every setting a type that a config can hold") from error
        wrong = [problem for problem in problems if settings.defaults()[problem.where.partition(".")[2]] != MISSING]
        if wrong:
            raise PluginError(f"{where}: its default breaks its own rule: {wrong[0]}")


def _sources(module: str) -> list[Path]:
    """The Python files of the package that holds a module, found without importing anything."""
    try:
        found = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return []
    if found is None:
        return []
    folders = [path for folder in found.submodule_search_locations or () for path in Path(folder).rglob("*.py")]
    return folders or ([Path(found.origin)] if found.origin and found.origin.endswith(".py") else [])


def _conf(module: str) -> Path | None:
    """The folder `conf` beside a plugin's module."""
    found = importlib.util.find_spec(module)
    folder = Path(found.origin).parent / "conf" if found and found.origin else None
    return folder if folder and folder.is_dir() else None
