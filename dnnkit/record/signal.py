"""The signal probes of a run, as numbers and as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dnnkit.disk import disk, write_json
from dnnkit.record import figures

if TYPE_CHECKING:
    from dnnkit.diagnostics import Condition, LayerSignal, Verdict


def write_signal(run_dir: Path, probes: Mapping[str, Sequence[LayerSignal]]) -> None:
    """`diagnostics/signal.json`, for each probe by its name (`start`, `end`) its layers in forward order, and `diagnostics/signal.png`.

    The numbers are written whole or not at all. There is no figure where no probe met a layer. Raises DiskError.
    """
    path = run_dir / "diagnostics" / "signal.json"
    with disk(path):
        path.parent.mkdir(exist_ok=True)
    write_json(path, {name: [signal.to_dict() for signal in signals] for name, signals in probes.items()})
    figures.signal(run_dir, probes)


def write_verdicts(run_dir: Path, found: Mapping[str, Sequence[Verdict | Condition]]) -> None:
    """`diagnostics/verdicts.json`: under each name its verdicts or conditions; whole or not at all. Raises DiskError."""
    path = run_dir / "diagnostics" / "verdicts.json"
    with disk(path):
        path.parent.mkdir(exist_ok=True)
    write_json(path, {name: [one.to_dict() for one in found[name]] for name in found})
