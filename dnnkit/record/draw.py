"""The figures of a run, drawn from what its folder holds, by whichever process has the time.

The training process writes numbers and draws nothing. What is missing here, or older than its numbers, is drawn, so that a
run that was killed, or went on later, has the figures of what is on record.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from dnnkit.disk import read_json
from dnnkit.record import figures
from dnnkit.record.journal import METRICS
from dnnkit.record.signal import CONFUSION, SIGNAL, read_diagnostics


class Drawn(NamedTuple):
    """A figure, the file with its numbers, both relative to the run folder, and what draws it; None means that it has nothing to show."""

    figure: str
    numbers: str
    draw: Callable[[Path], Path | None]


def _signal(run_dir: Path) -> Path | None:
    """The figure compares two probes: a run that has not come to its end has one, and no figure."""
    probes: dict[str, list[Any]] = {
        name: [SimpleNamespace(**layer) for layer in read_diagnostics(run_dir, SIGNAL, name)] for name in ("start", "end")
    }
    return figures.signal(run_dir, probes) if probes["end"] else None


def _confusion(run_dir: Path) -> Path:
    held: Mapping[str, Any] = read_json(run_dir / "diagnostics" / CONFUSION)
    return figures.confusion_matrix(run_dir, held["counts"], held["classes"])


FIGURES = (
    Drawn("diagnostics/signal.png", f"diagnostics/{SIGNAL}", _signal),
    Drawn("figures/learning_curves.png", METRICS, figures.learning_curves),
    Drawn("figures/learning_rate.png", METRICS, figures.learning_rate),
    Drawn("figures/confusion_matrix.png", f"diagnostics/{CONFUSION}", _confusion),
)


def due(run_dir: Path) -> list[Drawn]:
    """The figures that are not there or are older than their numbers."""
    return [one for one in FIGURES if _is_due(run_dir / one.figure, run_dir / one.numbers)]


def draw(run_dir: Path) -> list[tuple[str, Exception]]:
    """Draws the figures that are due; those that could not be drawn, each with the reason.

    Nothing is raised: a run is whole without its pictures, which can be drawn later.
    """
    failed: list[tuple[str, Exception]] = []
    for one in due(run_dir):
        try:
            with _without_collecting():
                one.draw(run_dir)
        except Exception as error:  # a font, a line that is no JSON, a full disk: whatever it is, the others are drawn
            failed.append((one.figure, error))
    return failed


def prepare() -> None:
    """Imports what drawing needs, which takes longer than to draw; where that fails, drawing will say so."""
    with suppress(Exception):
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401


def _is_due(figure: Path, numbers: Path) -> bool:
    if not numbers.exists():
        return False
    return not figure.exists() or figure.stat().st_mtime_ns < numbers.stat().st_mtime_ns


@contextmanager
def _without_collecting() -> Iterator[None]:
    """A figure is many thousand objects, and each look for garbage among them would walk all that was imported too."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
