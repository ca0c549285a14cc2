"""The high-water mark: what of a run folder MLflow has, kept in `sender.json` so that no row is lost or sent twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from dnnkit.disk import read_json, write_text
from dnnkit.record.identity import Signal
from dnnkit.record.journal import METRICS, TIMING, Row, read_from
from dnnkit.sender.summaries import Shown

MARK = "sender.json"


@dataclass
class Batch:
    """Rows on their way to MLflow and the time that they carry, in milliseconds since 1970. It holds `known` ones already."""

    timestamp: int
    rows: list[Row]
    known: list[Row] = field(default_factory=list)

    @property
    def all(self) -> list[Row]:
        """All rows of the journals that the batch accounts for."""
        return [*self.rows, *self.known]


@dataclass
class Mark:
    """`sent`: number of rows of each key that MLflow holds; `batch`: rows that it may or may not hold; `latest`: the latest time sent;
    `notes`: the descriptions that were given to the run. Rows are those that MLflow is given (`Shown`), not all of the journals.

    `beyond`: rows that MLflow holds although the journals were cut back to before them, when the run was resumed. Where the
    journals grow back to such a row, it is counted and not sent again.

    A batch is written here before it is sent. MLflow ignores a row that it holds already with the same time and value,
    so that sending the batch once more, as it stands here, brings each row there exactly once. Rows are counted by key
    because a journal that was cut back for a resume grows back to the same rows, but not to the same bytes.
    """

    tracking_uri: str
    creating: bool = False
    run_id: str | None = None
    experiment_id: str | None = None
    notes: list[str] = field(default_factory=list)
    described: bool = False
    closed: bool = False
    latest: int = 0
    sent: dict[str, int] = field(default_factory=dict)
    beyond: list[Row] = field(default_factory=list)
    batch: Batch | None = None

    @classmethod
    def read(cls, folder: Path, tracking_uri: str) -> Self:
        """The mark in `folder`; a blank one where there is none yet or where it belongs to another store."""
        path = folder / MARK
        held = read_json(path) if path.exists() else {}
        if held.get("tracking_uri") != tracking_uri:
            return cls(tracking_uri)
        batch, beyond = held.pop("batch"), _rows(held.pop("beyond", []))
        if batch is not None:
            batch = Batch(batch["timestamp"], _rows(batch["rows"]), _rows(batch.get("known", [])))
        return cls(**held, beyond=beyond, batch=batch)

    def write(self, folder: Path) -> None:
        """Replaces `sender.json` in one step. Raises DiskError."""
        # One line: this is written for every batch, and indented JSON takes ten times as long.
        write_text(folder / MARK, json.dumps({**vars(self), "batch": self.batch and vars(self.batch)}) + "\n")

    def begin(self, folder: Path, batch: Batch) -> None:
        """Notes that `batch` is about to be sent."""
        self.batch = batch
        self.write(folder)

    def arrived(self) -> None:
        """Takes in that MLflow has the batch; to be written with the next one, or by `write`.

        A sender that is killed before that sends the batch once more, as it stands in the file.
        """
        for row in self.batch.all if self.batch is not None else ():
            self.sent[row.key] = self.sent.get(row.key, 0) + 1
        self.batch = None

    def done(self, folder: Path) -> None:
        """Notes that MLflow has the batch."""
        self.arrived()
        self.write(folder)

    def cut_back(self, rows: Iterable[Row], step: int) -> None:
        """The journals, which hold `rows`, are about to be cut back to the rows up to `step`."""
        on_the_way = Counter(row.key for row in self.batch.all) if self.batch is not None else Counter()
        kept: Counter[str] = Counter()
        read: Counter[str] = Counter()
        beyond = [row for row in self.beyond if row.step > step]
        for row in rows:
            read[row.key] += 1
            if row.step <= step:
                kept[row.key] += 1
            elif read[row.key] <= self.sent.get(row.key, 0) + on_the_way[row.key]:
                beyond.append(row)
        # A batch on its way will be sent again as it stands, and counted then: what is cut of it is taken off before.
        for key, count in self.sent.items() | {(key, 0) for key in on_the_way if key not in self.sent}:
            self.sent[key] = min(count + on_the_way[key], kept[key]) - on_the_way[key]
        self.beyond, self.closed = list(dict.fromkeys(beyond)), False


def _rows(held: Iterable[Sequence[Any]]) -> list[Row]:
    return [Row(*row) for row in held]


class Tail:
    """Reads both journals of a folder as they grow and hands out the rows that are not yet in MLflow. It holds a batch at most.

    `signal`: what MLflow is given of the signal. `tests` are the last values of `test/…` that it has read.
    """

    def __init__(self, folder: Path, mark: Mark, signal: Signal = "layers") -> None:
        self._folder = folder
        self._mark = mark
        self._signal: Signal = signal
        self._ready: list[Row] = []
        self._start_over()

    def next_batch(self, limit: int, *, ended: bool = False) -> list[Row]:
        """At most `limit` rows in the order of the journals, each handed out once; call it when no batch is on its way.

        `ended`: the run writes no more, so that a look at the signal at the end of its journal is whole.
        """
        for name, offset in self._offsets.items():
            path = self._folder / name
            if path.exists() and path.stat().st_size < offset:  # cut back for a resume
                self._start_over()
        try:
            for name in self._offsets:
                while len(self._ready) < limit and self._read_on(name, limit):
                    pass
            if ended and len(self._ready) < limit:  # or there may be more to read
                self._ready += filter(self._is_new, self._shown[METRICS].rest())
        except BaseException:
            self._start_over()  # or the rows that were read before it would count as handed out
            raise
        batch, self._ready = self._ready[:limit], self._ready[limit:]
        return batch

    def _read_on(self, name: str, most: int) -> bool:
        """Makes ready what is new among the next rows of a journal; false at its end."""
        rows, self._offsets[name] = read_from(self._folder / name, self._offsets[name], most)
        self.tests.update((row.key, row.value) for row in rows if row.key.startswith("test/"))
        self._ready += filter(self._is_new, self._shown[name].rows(rows))
        return bool(rows)

    def _is_new(self, row: Row) -> bool:
        """Counts the row among those of its key; true where MLflow has no more than the ones before it."""
        self._read[row.key] = count = self._read.get(row.key, 0) + 1
        return count > self._mark.sent.get(row.key, 0)

    def _start_over(self) -> None:
        self._offsets = {METRICS: 0, TIMING: 0}
        self._shown = {METRICS: Shown(self._signal), TIMING: Shown("layers")}
        self._read: dict[str, int] = {}
        self._ready = []
        self.tests: dict[str, float] = {}
