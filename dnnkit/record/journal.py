"""The journals of a run: every number, one JSON line each, in the order it was logged.

`metrics.jsonl` holds what two runs of one seed share byte for byte; `timing.jsonl` holds the wall-clock metrics
(`time/…`), which they do not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, SupportsFloat

from dnnkit.disk import disk, write_text

METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"

_encode = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would build one for every row


class Row(NamedTuple):
    """One number: the optimizer steps done so far, the metric's key, its value."""

    step: int
    key: str
    value: float


class Journal:
    """Appends numbers to the two journals of a run folder.

    Each call is one write of whole lines straight to the operating system, with nothing held back in this process:
    a killed run loses no call that returned. Call it once per flush of the device sums, not once per step.
    """

    def __init__(self, folder: Path) -> None:
        self._metrics = _Appender(folder / METRICS)
        self._timing = _Appender(folder / TIMING)

    def log(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Writes `values` at `step` (optimizer steps done so far) in the order given. Raises DiskError, ValueError for `time/…`."""
        for key in values:
            if key.startswith("time/"):
                raise ValueError(f"{key!r} is a wall-clock metric and would make metrics.jsonl differ between equal runs: use time()")
        self._metrics.append(step, values)

    def time(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Writes wall-clock metrics, keys `time/…`, at `step`. Raises DiskError, ValueError for other keys."""
        for key in values:
            if not key.startswith("time/"):
                raise ValueError(f"{key!r} is not a wall-clock metric (time/…): use log()")
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

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk(path):
            self._handle: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(self._handle, _whole_lines(path.read_bytes()))

    def append(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        if self._handle is None:
            raise ValueError(f"{self.path} is closed")
        rows = ({"step": int(step), "key": key, "value": float(value)} for key, value in values.items())
        left = memoryview("".join(_encode(row) + "\n" for row in rows).encode("utf-8"))
        with disk(self.path):
            while left:  # a disk that fills up takes a part first and refuses the rest
                left = left[os.write(self._handle, left) :]

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
            kept = [_encode(row._asdict()) + "\n" for row in read_journal(path) if row.step <= step]
            write_text(path, "".join(kept))


def read_journal(path: Path) -> list[Row]:
    """All rows of a journal, a torn last line left out; no rows where there is no file. Raises ValueError for a line that is no row."""
    return read_from(path, 0)[0]


def read_from(path: Path, offset: int) -> tuple[list[Row], int]:
    """The rows after byte `offset`, and the offset after the last whole line, from where to read on."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    whole = _whole_lines(data)
    return list(_rows(path, data[:whole].splitlines())), offset + whole


def _whole_lines(data: bytes) -> int:
    """The number of bytes up to and including the last line end."""
    return data.rfind(b"\n") + 1


def _rows(path: Path, lines: Iterable[bytes]) -> Iterable[Row]:
    for line in lines:
        try:
            held = json.loads(line)
            yield Row(int(held["step"]), str(held["key"]), float(held["value"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds a line that is no journal row: {line[:80]!r}") from error
