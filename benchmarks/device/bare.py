"""The checkout as it is, for an interpreter in which dnnkit was not installed, such as one that comes with a GPU's torch."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from dnnkit.cli.installed import NEEDED

#: The checkout.
ROOT = Path(__file__).parents[2]
_METADATA = "Metadata-Version: 2.1\nName: dnnkit\nVersion: 0+checkout\n"
_ENTRY_POINTS = "[dnnkit.plugins]\ndnnkit = dnnkit_plugins\n"


def missing() -> list[str]:
    """Modules that dnnkit needs and this interpreter does not have. MLflow is none of them: no check records there."""
    return [name for name in NEEDED if name != "mlflow" and find_spec(name) is None]


def environment(scratch: Path) -> dict[str, str]:
    """For the checks' processes: the checkout's packages and, where dnnkit is not installed, the metadata that name its plugins."""
    paths = [str(ROOT), str(ROOT / "plugins")]
    if not any(entry.value == "dnnkit_plugins" for entry in entry_points(group="dnnkit.plugins")):
        paths.append(str(_metadata(scratch)))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])}


def _metadata(scratch: Path) -> Path:
    """What an editable install would leave, without one: nothing is written into the interpreter's own folders."""
    folder = scratch / "metadata" / "dnnkit-0+checkout.dist-info"
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(_METADATA, encoding="utf-8")
        (folder / "entry_points.txt").write_text(_ENTRY_POINTS, encoding="utf-8")
    return folder.parent
