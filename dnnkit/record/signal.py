"""What is known of a run besides its metrics: the signal probes, as numbers and as a figure, verdicts, findings, confused classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnnkit.disk import disk, read_json, write_json
from dnnkit.record import figures

if TYPE_CHECKING:
    from dnnkit.diagnostics import Condition, Divergence, Event, LayerSignal, Verdict
    from dnnkit.diagnostics.ramp import Ramp
    from dnnkit.lint import Finding


SIGNAL, VERDICTS, LINT, RATES, CONFUSION = "signal.json", "verdicts.json", "lint.json", "lr.json", "confusion_matrix.json"


def write_signal(run_dir: Path, probes: Mapping[str, Sequence[LayerSignal]]) -> None:
    """`diagnostics/signal.json`, for each probe by its name (`start`, `end`) its layers in forward order, and `diagnostics/signal.png`.

    The numbers are written whole or not at all. There is no figure where no probe met a layer. Raises DiskError.
    """
    write_numbers(run_dir, probes)
    figures.signal(run_dir, probes)


def write_numbers(run_dir: Path, probes: Mapping[str, Sequence[LayerSignal]]) -> None:
    """The file of `write_signal` alone."""
    _write(run_dir / "diagnostics" / SIGNAL, {name: [signal.to_dict() for signal in signals] for name, signals in probes.items()})


def write_verdicts(run_dir: Path, found: Mapping[str, Sequence[Verdict | Event | Divergence | Condition]]) -> None:
    """`diagnostics/verdicts.json`: under each name its verdicts, events or conditions; whole or not at all. Raises DiskError."""
    _write(run_dir / "diagnostics" / VERDICTS, {name: [one.to_dict() for one in found[name]] for name in found})


def write_confusion(run_dir: Path, counts: Sequence[Sequence[int]], classes: Sequence[str] | None) -> None:
    """`diagnostics/confusion_matrix.json`: `counts` of (true class, predicted class), and the classes by name or null. Raises DiskError."""
    _write(run_dir / "diagnostics" / CONFUSION, {"classes": None if classes is None else list(classes), "counts": counts})


def write_panels(run_dir: Path, panels: Mapping[str, tuple[str, bool]]) -> None:
    """`diagnostics/curves.json`: of metrics that the learning curves do not know, the label of their axis and whether more is better.

    Written only where there are such and the learning curves know none of the run's. Raises DiskError.
    """
    if panels and not set(panels) & set(figures.PANELS):
        _write(run_dir / "diagnostics" / figures.CURVES, {name: list(panel) for name, panel in panels.items()})


def write_findings(run_dir: Path, findings: Sequence[Finding]) -> None:
    """`diagnostics/lint.json`: what the linter found before the run, errors first. Raises DiskError."""
    _write(run_dir / "diagnostics" / LINT, {"findings": [finding.to_dict() for finding in findings]})


def write_activations(run_dir: Path, signals: Sequence[LayerSignal]) -> None:
    """`diagnostics/activations.png`, where the signals hold quantiles. Raises DiskError."""
    figures.activations(run_dir, signals)


def write_ramp(run_dir: Path, ramp: Ramp) -> None:
    """`diagnostics/lr.json` and, where there are two losses or more, `diagnostics/lr.png`. Raises DiskError."""
    _write(run_dir / "diagnostics" / RATES, ramp.to_dict())
    figures.ramp(run_dir, ramp)


def read_diagnostics(run_dir: Path, file: str, name: str) -> list[dict[str, Any]]:
    """What `SIGNAL` or `VERDICTS` holds under a name; nothing where there is no such file or name. Raises DiskError."""
    path = run_dir / "diagnostics" / file
    return list(read_json(path).get(name, [])) if path.exists() else []


def _write(path: Path, held: Mapping[str, Any]) -> None:
    with disk(path):
        path.parent.mkdir(exist_ok=True)
    write_json(path, held)
