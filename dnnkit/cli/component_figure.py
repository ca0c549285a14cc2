"""`dnnkit describe GROUP NAME [OVERRIDES] --figure`: what a component does, drawn with the settings that are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnnkit.errors import ConfigError, Problem, nearest

#: The groups that can be drawn; `record.component_figures` draws them and imports PyTorch.
DRAWN = ("activation", "initializer", "scheduler")


def asks_figure(words: Sequence[str]) -> bool:
    """Whether `--figure` is among the words."""
    return any(word.partition("=")[0] == "--figure" for word in words)


def draw_component(group: str, name: str, overrides: Sequence[str], path: Path) -> Path:
    """Write the figure of a component. Raises ConfigError for a group without one and for wrong settings, DiskError."""
    if group not in DRAWN:
        there = ", ".join(f"dnnkit describe {one} NAME --figure" for one in (*DRAWN, "data"))
        raise ConfigError([Problem("--figure", f"there is none of {group}={name}; there are: {there}", nearest(group, (*DRAWN, "data")))])
    from dnnkit.cli.catalogue import switches

    if name in switches(group, {}):
        message = f"{name} is {switches(group, {})[name]}: name one, dnnkit describe {group} NAME --figure"
        raise ConfigError([Problem(f"{group}={name}", message)])
    foreign = [word for word in overrides if not word.startswith(f"{group}.")]
    if foreign:
        message = f"the figure of {group}={name} takes settings of that alone: {group}.SETTING=VALUE"
        raise ConfigError([Problem(word, message) for word in foreign])
    from dnnkit.config import compose
    from dnnkit.disk import disk
    from dnnkit.record.component_figures import component_figure

    node: Mapping[str, Any] = compose([f"{group}={name}", *overrides])[group]
    figure = component_figure(group, node, " ".join([f"{group}={name}", *overrides]))
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})  # without the stamp equal curves give equal bytes
    return path
