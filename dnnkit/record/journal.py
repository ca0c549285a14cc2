"""The journals of a run: every number, one JSON line each, in the order it was logged.

`metrics.jsonl` holds what two runs of one seed share byte for byte; `timing.jsonl` holds the wall-clock metrics
(`time/…`), which they do not.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, SupportsFloat

from dnnkit.disk import disk, replacing

METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"

WALL_CLOCK = "time/"
ROWS_AT_ONCE = 1000  # of a journal that is read as a stream
_BLOCK = 1 << 16

_encode = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would build one for every row


class Row(NamedTuple):
    """One number: the optimizer steps done so far, the metric's key, its value."""

    step: int
    key: str
    value: float


class Journal:
    """Appends numbers to the two journals of a run folder.

    Each call is one write of whole lines straight to the operating system, with nothing held back in this process:
    a killed run loses no call that returned. That write is the smaller part of a call (about 1 µs; a line is made in
    about 1 µs), so that a buffer or a thread would save less than the promise is worth; only `close` waits for the disk.
    Call it once per flush of the device sums, not once per step.
    """

    def __init__(self, folder: Path) -> None:
        self._metrics = _Appender(folder / METRICS, wall_clock=False)
        self._timing = _Appender(folder / TIMING, wall_clock=True)

    def log(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Writes `values` at `step` (optimizer steps done so far) in the order given. Raises DiskError, ValueError for `time/…`."""
        self._metrics.append(step, values)

    def time(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Writes wall-clock metrics, keys `time/…`, at `step`. Raises DiskError, ValueError for other keys."""
        self._timing.append(step, values)

    def close(self) -> None:
        """Puts both journals on the disk for good and closes them; once is enough, twice does no harm."""
        self._metrics.close()
        self._timing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Appender:
    """One journal file, open for appending; a line that a kill or a full disk tore is removed when it is opened."""

    def __init__(self, path: Path, wall_clock: bool) -> None:
        self.path = path
        self._wall_clock = wall_clock
        self._heads: dict[str, str] = {}
        with disk(path):
            self._handle: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(self._handle, _whole_size(self._handle))

    def append(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        if self._handle is None:
            raise ValueError(f"{self.path} is closed")
        begin, lines = f'{{"step":{int(step)}', []
        for key, value in values.items():
            number = float(value)
            # Of a finite float, repr is what JSON holds.
            written = repr(number) if math.isfinite(number) else _encode(number)
            lines.append(f"{begin}{self._heads.get(key) or self._head(key)}{written}}}\n")
        left = memoryview("".join(lines).encode("ascii"))
        with disk(self.path):
            while left:  # a disk that fills up takes a part first and refuses the rest
                left = left[os.write(self._handle, left) :]

    def _head(self, key: str) -> str:
        """What stands between the step and the value of every row of `key`, which is checked here, once."""
        if key.startswith(WALL_CLOCK) != self._wall_clock:
            raise ValueError(
                f"{key!r} is not a wall-clock metric ({WALL_CLOCK}…): use log()"
                if self._wall_clock
                else f"{key!r} is a wall-clock metric and would make {METRICS} differ between equal runs: use time()"
            )
        return self._heads.setdefault(key, f',"key":{_encode(key)},"value":')

    def close(self) -> None:
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        with disk(self.path):
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def cut_journals(folder: Path, step: int) -> None:
    """Leaves in both journals of a run folder the rows up to `step`, each file replaced in one step. Raises DiskError, ValueError."""
    for name in (METRICS, TIMING):
        path = folder / name
        if path.exists():
            with replacing(path) as file:
                file.writelines(f"{_encode(row._asdict())}\n".encode() for row in stream_journal(path) if row.step <= step)


def read_journal(path: Path) -> list[Row]:
    """All rows of a journal, a torn last line left out; no rows where there is no file. Raises ValueError for a line that is no row."""
    return list(stream_journal(path))


def stream_journal(path: Path) -> Iterator[Row]:
    """The rows of `read_journal` one by one; of a journal of any length only a piece is in memory."""
    rows, offset = read_from(path, 0, ROWS_AT_ONCE)
    while rows:
        yield from rows
        rows, offset = read_from(path, offset, ROWS_AT_ONCE)


def last_values(path: Path) -> dict[str, float]:
    """The last value of every key of a journal, keys in the order in which they first appear. Raises ValueError as `read_journal`."""
    return {row.key: row.value for row in stream_journal(path)}


def read_from(path: Path, offset: int, most: int | None = None) -> tuple[list[Row], int]:
    """The rows after byte `offset`, at most `most`, and the offset after the last of them, from where to read on."""
    try:
        with open(path, "rb", buffering=_BLOCK) as file:
            file.seek(offset)
            lines = list(islice(file, most))
    except FileNotFoundError:
        return [], offset
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    return _rows(path, lines), offset + sum(map(len, lines))


def _whole_size(handle: int) -> int:
    """The number of bytes up to and including the last line end, sought from the end of the file."""
    end = os.fstat(handle).st_size
    while end > 0:
        start = max(0, end - _BLOCK)
        whole = os.pread(handle, end - start, start).rfind(b"\n") + 1
        if whole:
            return start + whole
        end = start
    return 0


def _rows(path: Path, lines: Sequence[bytes]) -> list[Row]:
    """A row for each line. Many lines are decoded as one JSON list, which takes a third of the time."""
    try:
        held = json.loads(b"[" + b",".join(lines) + b"]")
        if len(held) == len(lines):
            return [Row(int(one["step"]), str(one["key"]), float(one["value"])) for one in held]
    except (ValueError, KeyError, TypeError):
        pass  # the loop below finds the line and names it
    return [_row(path, line) for line in lines]


def _row(path: Path, line: bytes) -> Row:
    try:
        held = json.loads(line)
        return Row(int(held["step"]), str(held["key"]), float(held["value"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds a line that is no journal row: {line[:80]!r}") from error
