"""What an epoch costs: every network, optimizer and batch size, all contenders side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks import document
from benchmarks.contenders import CONTENDERS, DEFAULT, FLOOR
from benchmarks.driver import Play, play_round
from benchmarks.jobs import NETWORKS, OPTIMIZERS, Work
from benchmarks.results import Results
from benchmarks.rows import NAMES, Prepared

#: Rows to train on, at most: an epoch is cut at so many steps, or the slow peers at batch 32 would take most of the time.
ROWS = {"mlp": 55_000, "deep": 10_000, "cnn": 5000}
STEPS = 800


@dataclass(frozen=True)
class Plan:
    """`rounds` are of the first network; the others have one less, but at least one. `epochs` are those measured in a round."""

    data: str
    contenders: Sequence[str] = DEFAULT
    networks: Sequence[str] = tuple(NETWORKS)
    optimizers: Sequence[str] = tuple(OPTIMIZERS)
    batch_sizes: Sequence[int] = (32, 128, 512)
    rounds: int = 2
    epochs: int = 2
    rows: int | None = None

    def works(self, prepared: Prepared) -> dict[int, Work]:
        combinations = ((net, opt, size) for net in self.networks for opt in self.optimizers for size in sorted(self.batch_sizes))
        return {place: self._work(prepared, *combination) for place, combination in enumerate(combinations)}

    def _work(self, prepared: Prepared, network: str, optimizer: str, batch_size: int) -> Work:
        rows = self.rows or min(ROWS[network], STEPS * batch_size)
        return Work(self.data, prepared.folder(rows), batch_size, self.epochs + 1, network, optimizer, rows=rows)


def measure(plan: Plan, told: Callable[[str], None]) -> dict[str, Any]:
    """All rounds; in a round, a process for each contender, network and optimizer, which has the batch sizes one after the other."""
    play = Play([], [])
    with Prepared(plan.data) as prepared:
        told("preparing rows")
        works = plan.works(prepared)
        for number in range(plan.rounds):
            for (network, _), chain in groupby(works.items(), lambda item: (item[1].network, item[1].optimizer)):
                if number < max(1, plan.rounds - (network != plan.networks[0])):
                    played = play_round(plan.contenders, dict(chain), number, told)
                    play.samples += played.samples
                    play.finishes += played.finishes
    return {"machine": document.describe_machine(), **Results(works, plan.contenders, play).to_json()}


def sections(found: Mapping[str, Any]) -> dict[str, str]:
    """For the document."""
    results = Results.from_json(found)
    tables = [
        f"**{NETWORKS[network]}, {OPTIMIZERS[optimizer]}**\n\n{_table(results, dict(chain))}"
        for (network, optimizer), chain in groupby(results.works.items(), lambda item: (item[1].network, item[1].optimizer))
    ]
    return {"epochs": "\n\n".join([*tables, f"{_setting(results)}; {document.machine_line(found['machine'])}."]), "costs": _costs(results)}


def draw(found: Mapping[str, Any], folder: Path) -> None:
    from benchmarks.figure import draw_ratios

    draw_ratios(Results.from_json(found), folder / "performance.png")


def _table(results: Results, works: Mapping[int, Work]) -> str:
    """Of one network and optimizer: a row for each contender, columns for each batch size."""
    headings = ["÷ floor (range) · fastest", *(f"batch {work.batch_size}" for work in works.values()), "val acc"]
    rows = []
    for name in results.contenders:
        cells = [_cell(results, name, place) for place in works]
        accuracies = " ".join(f"{results.accuracy(name, place):.3f}" for place in works)
        rows.append([CONTENDERS[name].label, *cells, accuracies])
    return document.markdown_table(headings, rows)


def _cell(results: Results, name: str, place: int) -> str:
    ratios, fastest = results.ratios(name, place), results.fastest_ratio(name, place)
    if name == FLOOR or not ratios or fastest is None:
        return f"{results.median_of(name, place, 'cpu_s'):.2f} s"
    return f"{document.spread(ratios)} · {fastest:.2f}"


def _costs(results: Results) -> str:
    """Of the first work of each process: CPU and wall time, what other processes do for it, and memory."""
    place, work = next(iter(results.works.items()))
    headings = ["", "CPU s", "wall s", "children CPU s", "memory MB", "children MB"]
    rows = []
    for name in results.contenders:
        seconds = [_figure(results.median_of(name, place, quantity), 2) for quantity in ("cpu_s", "wall_s", "children_s")]
        finishes = results.finishes(name, place)
        children = [finish.children_mb for finish in finishes if finish.children_mb is not None]
        memory = [_figure(max(finish.peak_mb for finish in finishes), 0), _figure(max(children) if children else None, 0)]
        rows.append([CONTENDERS[name].label, *seconds, *memory])
    return f"{NETWORKS[work.network]}, {OPTIMIZERS[work.optimizer]}, batch {work.batch_size}, {work.rows:,} rows:\n\n" + (
        document.markdown_table(headings, rows)
    )


def _figure(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _setting(results: Results) -> str:
    rows = {NETWORKS[work.network]: [] for work in results.works.values()}  # type: dict[str, list[str]]
    for work in results.works.values():
        if (text := f"{work.rows:,}") not in rows[NETWORKS[work.network]]:
            rows[NETWORKS[work.network]].append(text)
    first, epochs = next(iter(results.works)), next(iter(results.works.values())).epochs - 1
    rounds = len({sample.round for sample in results.of(results.contenders[0], first)})
    of = ", ".join(f"{network}: {' / '.join(counts)}" for network, counts in rows.items())
    return f"{NAMES[results.works[first].data]}, rows by batch size: {of}; at most {rounds} × {epochs} epochs; one thread"
