"""The components that the catalogue is about: the built-in ones, whatever else is installed here."""

from __future__ import annotations

from functools import cache

from dnnkit import plugins
from dnnkit.registry import REGISTRIES, Component

_load_once = cache(plugins.load)  # which looks at every installed package each time


def builtin(group: str) -> list[Component]:
    """The components of a group that come with dnnkit, by name."""
    _load_once()
    return [record for record in REGISTRIES[group] if record.origin.module.partition(".")[0] == "dnnkit_plugins"]
