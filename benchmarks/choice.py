"""What `trainer.engine=auto` costs beside the better of graph and eager: `python -m benchmarks choice`.

Networks, optimizers and batch sizes, small; the run is told that more epochs are to come than it has here, or `auto` would not
find a graph worth making. It chooses in the first epochs, which are not counted; then the two ways take turns, in the same process.
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

SWITCHED = "switched"
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
    epochs: int = 16
    minibatches: int = 400
    rows: int | None = None

    def works(self, prepared: Prepared) -> dict[int, Work]:
        cells = [(net, opt, size) for net in self.networks for opt in self.optimizers for size in self.batch_sizes]
        return {place: self._work(prepared, *cell) for place, cell in enumerate(cells)}

    def warm_up(self, work: Work) -> int:
        """Epochs, an even number of them."""
        epochs = -(-self.minibatches // -(-work.rows // work.batch_size))
        return epochs + epochs % 2

    def _work(self, prepared: Prepared, network: str, optimizer: str, batch_size: int) -> Work:
        rows = self.rows or ROWS.get((network, batch_size), 10_000)
        work = Work(self.data, prepared.folder(rows), batch_size, 0, network, optimizer, rows=rows, planned=_PLANNED)
        return Work(**{**vars(work), "epochs": self.warm_up(work) + self.epochs})


def measure(plan: Plan, told: Callable[[str], None]) -> dict[str, Any]:
    """Each work by a process of its own."""
    play = Play([], [])
    with Prepared(plan.data) as prepared:
        works = plan.works(prepared)
        for place, work in works.items():
            played = play_round((SWITCHED,), {place: work}, 0, told)
            play.samples += [sample for sample in played.samples if sample.epoch >= plan.warm_up(work)]
            play.finishes += played.finishes
    return {"machine": document.describe_machine(), **Results(works, (SWITCHED,), play).to_json()}


def sections(found: Mapping[str, Any]) -> dict[str, str]:
    """For the document."""
    results = Results.from_json(found)
    headings = ["CPU ms of an epoch: fastest", "graph", "eager", "auto takes", "auto ÷ better: fastest", "median"]
    rows = [_row(results, place, work) for place, work in results.works.items()]
    return {"choice": f"{document.markdown_table(headings, rows)}\n\nOne thread; {document.machine_line(found['machine'])}."}


def _row(results: Results, place: int, work: Work) -> list[str]:
    samples = sorted(results.of(SWITCHED, place), key=lambda sample: sample.epoch)
    graph, eager = ([sample.cpu_s for sample in samples if sample.epoch % 2 == odd] for odd in (0, 1))
    took = "graph" if results.finishes(SWITCHED, place)[0].facts["as_graph"] else "eager"
    auto, other = (graph, eager) if took == "graph" else (eager, graph)
    turns = median(one / next_one for one, next_one in zip(auto, other, strict=True))
    costs = [max(1.0, cost) for cost in (min(auto) / min(other), turns)]
    return [work.title, *(f"{1000 * min(times):.0f}" for times in (graph, eager)), took, *(f"{cost:.2f}" for cost in costs)]
