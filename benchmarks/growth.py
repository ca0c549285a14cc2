"""How the cost of an epoch grows with the network's width and depth, the rows, and the number of metrics.

One process for each contender and round, which has all points one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import document
from benchmarks.contenders import CONTENDERS, FLOOR
from benchmarks.driver import Play, play_round
from benchmarks.jobs import Work
from benchmarks.results import Results
from benchmarks.rows import NAMES, Prepared

LABELS = {
    "width": "units in each of 2 hidden layers",
    "depth": "hidden layers of 100 units",
    "rows": "rows to train on",
    "metrics": "metrics of training and validation",
}
_ROWS, _BATCH = 5000, 32
#: At the rate of the other parts 32 layers diverge.
_SLOWER = 8
#: From here on an epoch is long enough to be measured once in a round.
_LONG = 20_000


@dataclass(frozen=True)
class Plan:
    """The points on each axis; what an axis does not vary is 784-300-100-10, SGD, batch 32, 5,000 rows and one metric."""

    data: str
    contenders: Sequence[str] = ("floor", "captured", "template")
    width: Sequence[int] = (64, 128, 256, 512, 1024)
    depth: Sequence[int] = (1, 2, 4, 8, 16, 32)
    rows: Sequence[int] = (2000, 5000, 10_000, 20_000, 50_000)
    metrics: Sequence[int] = (1, 2, 5, 10)
    rounds: int = 1
    epochs: int = 2

    def points(self, prepared: Prepared) -> list[tuple[str, int, Work]]:
        """Axis, value, work."""
        return [
            *(("width", width, self._work(prepared, hidden=(width, width))) for width in self.width),
            *(("depth", depth, self._work(prepared, hidden=(100,) * depth)) for depth in self.depth),
            *(("rows", rows, self._work(prepared, rows)) for rows in self.rows),
            *(("metrics", metrics, self._work(prepared, metrics=metrics)) for metrics in self.metrics),
        ]

    def _work(self, prepared: Prepared, rows: int = _ROWS, hidden: tuple[int, ...] = (), metrics: int = 1) -> Work:
        epochs = 1 + (self.epochs if rows < _LONG else 1)
        return Work(self.data, prepared.folder(rows), _BATCH, epochs, hidden=hidden, metrics=metrics, rows=rows, slower=_SLOWER)


def measure(plan: Plan, told: Callable[[str], None]) -> dict[str, Any]:
    play = Play([], [])
    with Prepared(plan.data) as prepared:
        told("preparing rows")
        points = plan.points(prepared)
        works = {place: work for place, (_, _, work) in enumerate(points)}
        for number in range(plan.rounds):
            played = play_round(plan.contenders, works, number, told)
            play.samples += played.samples
            play.finishes += played.finishes
    found = Results(works, plan.contenders, play).to_json()
    axes = [[axis, value] for axis, value, _ in points]
    return {"machine": document.describe_machine(), "points": axes, **found}


def sections(found: Mapping[str, Any]) -> dict[str, str]:
    """For the document: the growth along each axis, and the metrics by themselves."""
    results = Results.from_json(found)
    headings = [
        "",
        "",
        f"{CONTENDERS[FLOOR].label}, CPU s",
        *(f"{CONTENDERS[name].label} ÷ floor" for name in results.contenders if name != FLOOR),
    ]
    rows = [
        [LABELS[axis], f"{value:,}", f"{results.fastest(FLOOR, place):.3f}", *_ratios(results, place)]
        for axis, points in _axes(found).items()
        for value, place in points
    ]
    first = results.works[0]
    setting = f"{NAMES[first.data]}, batch {first.batch_size}, fastest epochs; {document.machine_line(found['machine'])}."
    return {"growth": f"{document.markdown_table(headings, rows)}\n\n{setting}"}


def draw(found: Mapping[str, Any], folder: Path) -> None:
    from benchmarks.figure import draw_growth

    draw_growth(Results.from_json(found), _axes(found), LABELS, folder / "growth.png")


def _axes(found: Mapping[str, Any]) -> dict[str, list[tuple[int, int]]]:
    """Values and places of works by axis."""
    axes: dict[str, list[tuple[int, int]]] = {}
    for place, (axis, value) in enumerate(found["points"]):
        axes.setdefault(axis, []).append((value, place))
    return axes


def _ratios(results: Results, place: int) -> list[str]:
    return [f"{results.fastest_ratio(name, place):.2f}" for name in results.contenders if name != FLOOR]
