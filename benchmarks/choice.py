"""What `trainer.engine=auto` costs beside the better of graph and eager: `python -m benchmarks choice`.

Networks, optimizers and batch sizes, small; the run is told that more epochs are to come than it has here, or `auto` would not
find a graph worth making. It chooses in the first epochs, which are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks import document
from benchmarks.driver import Play, play_round
from benchmarks.jobs import NETWORKS, OPTIMIZERS, Work
from benchmarks.results import Results
from benchmarks.rows import Prepared

AUTO, ENGINES = "ours", ("captured", "eager")
#: An epoch's rows: about a third of a second on one core, and at least four minibatches.
ROWS = {("mlp", 32): 6400, ("mlp", 512): 20_480, ("deep", 32): 3200, ("deep", 512): 10_240, ("cnn", 32): 1600, ("cnn", 512): 2048}
_PLANNED = 2000


@dataclass(frozen=True)
class Plan:
    """`epochs` are those that count; before them come as many as `minibatches` take, in which `auto` chooses."""

    data: str
    networks: Sequence[str] = tuple(NETWORKS)
    optimizers: Sequence[str] = tuple(OPTIMIZERS)
    batch_sizes: Sequence[int] = (32, 512)
    epochs: int = 8
    minibatches: int = 200
    rows: int | None = None

    def works(self, prepared: Prepared) -> dict[int, Work]:
        cells = [(net, opt, size) for net in self.networks for opt in self.optimizers for size in self.batch_sizes]
        return {place: self._work(prepared, *cell) for place, cell in enumerate(cells)}

    def warm_up(self, work: Work) -> int:
        """Epochs."""
        return -(-self.minibatches // -(-work.rows // work.batch_size))

    def _work(self, prepared: Prepared, network: str, optimizer: str, batch_size: int) -> Work:
        rows = self.rows or ROWS.get((network, batch_size), 10_000)
        work = Work(self.data, prepared.folder(rows), batch_size, 0, network, optimizer, rows=rows, planned=_PLANNED)
        return Work(**{**vars(work), "epochs": self.warm_up(work) + self.epochs})


def measure(plan: Plan, told: Callable[[str], None]) -> dict[str, Any]:
    """Each work by three processes, which take turns epoch by epoch."""
    play = Play([], [])
    with Prepared(plan.data) as prepared:
        works = plan.works(prepared)
        for place, work in works.items():
            played = play_round((AUTO, *ENGINES), {place: work}, 0, told)
            play.samples += [sample for sample in played.samples if sample.epoch >= plan.warm_up(work)]
            play.finishes += played.finishes
    return {"machine": document.describe_machine(), **Results(works, (AUTO, *ENGINES), play).to_json()}


def sections(found: Mapping[str, Any]) -> dict[str, str]:
    """For the document."""
    results = Results.from_json(found)
    headings = ["CPU ms of an epoch: fastest", "captured", "eager", "auto", "auto took", "auto ÷ better: fastest", "median"]
    rows = [_row(results, place, work) for place, work in results.works.items()]
    return {"choice": f"{document.markdown_table(headings, rows)}\n\nOne thread; {document.machine_line(found['machine'])}."}


def _row(results: Results, place: int, work: Work) -> list[str]:
    fastest = {name: results.fastest(name, place) for name in (*ENGINES, AUTO)}
    better = min(ENGINES, key=fastest.__getitem__)
    others = {sample.epoch: sample.cpu_s for sample in results.of(better, place)}
    turns = median(sample.cpu_s / others[sample.epoch] for sample in results.of(AUTO, place))
    took = "graph" if results.finishes(AUTO, place)[0].facts["as_graph"] else "eager"
    milliseconds = [f"{1000 * seconds:.0f}" for seconds in fastest.values()]
    return [work.title, *milliseconds, took, f"{fastest[AUTO] / fastest[better]:.2f}", f"{turns:.2f}"]
