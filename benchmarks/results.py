"""The figures of a benchmark: kept as JSON, summed up, shown as a table."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.contenders import CONTENDERS, FLOOR
from benchmarks.driver import Finish, Sample

BEGIN, END = "<!-- bench: begin, written by python -m benchmarks --write -->", "<!-- bench: end -->"
_PACKAGES = ("torch", "pytorch-lightning", "torchmetrics", "mlflow")
_HEADINGS = ("batch", "", "CPU s", "÷ floor (range)", "fastest", "children", "wall s", "val acc")


@dataclass(frozen=True)
class Results:
    """Everything that a benchmark measured, and where. `epochs` are those measured in a round."""

    machine: dict[str, Any]
    data: str
    rounds: int
    epochs: int
    samples: list[Sample]
    finishes: list[Finish]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @property
    def batch_sizes(self) -> list[int]:
        return sorted({sample.batch_size for sample in self.samples})

    def of(self, contender: str, batch_size: int) -> list[Sample]:
        return [sample for sample in self.samples if (sample.contender, sample.batch_size) == (contender, batch_size)]

    def ratios(self, contender: str, batch_size: int) -> list[float]:
        """CPU time over the floor's in the same turn, one for each epoch; none without a floor."""
        floor = {(sample.round, sample.epoch): sample.cpu_s for sample in self.of(FLOOR, batch_size)}
        turns = ((sample.cpu_s, floor.get((sample.round, sample.epoch))) for sample in self.of(contender, batch_size))
        return [cpu / base for cpu, base in turns if base]

    def fastest_ratio(self, contender: str, batch_size: int) -> float | None:
        """The contender's fastest epoch over the floor's: what is left when the neighbours' noise, which only adds, is smallest."""
        floor = [sample.cpu_s for sample in self.of(FLOOR, batch_size)]
        return min(sample.cpu_s for sample in self.of(contender, batch_size)) / min(floor) if floor else None

    def rows(self) -> list[tuple[str, ...]]:
        """The table's rows, under `_HEADINGS`."""
        return [
            self._row(contender, batch_size)
            for batch_size in self.batch_sizes
            for contender in CONTENDERS
            if self.of(contender, batch_size)
        ]

    def _row(self, contender: str, batch_size: int) -> tuple[str, ...]:
        samples, ratios, fastest = (
            self.of(contender, batch_size),
            self.ratios(contender, batch_size),
            self.fastest_ratio(contender, batch_size),
        )
        children = [sample.children_s for sample in samples if sample.children_s is not None]
        accuracy = median(
            found.facts["val_acc"] for found in self.finishes if (found.contender, found.batch_size) == (contender, batch_size)
        )
        return (
            str(batch_size),
            CONTENDERS[contender],
            f"{median(sample.cpu_s for sample in samples):.2f}",
            f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})" if ratios else "–",
            f"{fastest:.2f}" if fastest is not None else "–",
            f"{median(children):.2f}" if children else "–",
            f"{median(sample.wall_s for sample in samples):.2f}",
            f"{accuracy:.4f}",
        )

    def setting(self) -> str:
        """In one line: what on, how often."""
        machine = self.machine
        packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
        where = f"{machine['cores']} cores, {machine['cpu']}, {machine['system']}, Python {machine['python']}, {packages}"
        return f"{self.data}; {self.rounds} rounds of {self.epochs} epochs each, one thread; {where}"


def table(results: Results) -> Table:
    """For a terminal."""
    shown = Table(title="an epoch with its validation", caption=results.setting(), header_style="bold")
    for number, heading in enumerate(_HEADINGS):
        shown.add_column(heading, justify="left" if number == 1 else "right")
    for row in results.rows():
        shown.add_row(*row, end_section=row[1] == list(CONTENDERS.values())[-1])
    return shown


def markdown(results: Results) -> str:
    """For a document."""
    lines = [_line(_HEADINGS), _line("---" if number == 1 else "---:" for number, _ in enumerate(_HEADINGS))]
    return "\n".join([*lines, *map(_line, results.rows()), "", f"{results.setting()}."])


def put_between_markers(document: str, content: str) -> str:
    """The document with `content` in the place of what stood between its two markers. ValueError without exactly one pair."""
    pattern = re.compile(f"({re.escape(BEGIN)}\n).*?({re.escape(END)})", re.DOTALL)
    if len(pattern.findall(document)) != 1:
        raise ValueError(f"the document must hold {BEGIN!r} and {END!r} once, in this order")
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", document)


def describe_machine() -> dict[str, Any]:
    """What the figures depend on, and nothing that identifies the machine."""
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
    }


def _cpu_model() -> str:
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
