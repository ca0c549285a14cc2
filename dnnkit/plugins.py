"""Entry points: every plugin is imported once, in isolation, and whatever it registers is known to be its own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import threading
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

from dnnkit.errors import PluginError
from dnnkit.registry import REGISTRIES, registering_for

GROUP = "dnnkit.plugins"
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
        """Whether a failed plugin would have brought a component of this name: its source says so."""
        try:
            found = importlib.util.find_spec(self.module)
            text = Path(found.origin).read_text(encoding="utf-8") if found and found.origin else ""
        except (ImportError, OSError, ValueError):
            text = ""
        return bool(re.search(rf"""register\(\s*["']{re.escape(name)}["']""", text)) or any(name == known for _, known in self.components)


def load() -> tuple[Plugin, ...]:
    """Import every entry point of the group `dnnkit.plugins`, each once however often this is called.

    A plugin that fails, even by `sys.exit`, is reported in its record and leaves nothing registered.
    Raises PluginError when not even dnnkit's own components are installed.
    """
    with _lock:
        for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=_built_in_first):
            if entry.value not in _loaded:
                _loaded[entry.value] = _load(entry)
        if not any(plugin.package == "dnnkit" for plugin in _loaded.values()):
            raise PluginError("dnnkit's own components are not installed", "install the package: pip install -e . in the checkout, or pip install dnnkit")
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


def _conf(module: str) -> Path | None:
    """The folder `conf` beside a plugin's module."""
    found = importlib.util.find_spec(module)
    folder = Path(found.origin).parent / "conf" if found and found.origin else None
    return folder if folder and folder.is_dir() else None
