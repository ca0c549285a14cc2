"""What an epoch costs: CPU time of this process, of the processes it started, and wall time; and what memory."""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")


class Reading(NamedTuple):
    """Seconds. `cpu_s`: this process, all its threads, user and system. `children_s`: the processes it started, None where unknown."""

    cpu_s: float
    children_s: float | None
    wall_s: float

    @classmethod
    def now(cls) -> Reading:
        return cls(time.process_time(), children_cpu(), time.perf_counter())

    def since(self, began: Reading) -> Reading:
        children = None if self.children_s is None or began.children_s is None else self.children_s - began.children_s
        return Reading(self.cpu_s - began.cpu_s, children, self.wall_s - began.wall_s)


class Peak(NamedTuple):
    """Resident memory at its largest so far, in MB: of this process, and of its living children together (None where unknown)."""

    own_mb: float
    children_mb: float | None

    @classmethod
    def now(cls) -> Peak:
        if _has_proc():
            # Not ru_maxrss, which on Linux begins with what the parent had when it made this process.
            return cls(_peak_mb(Path(_PROC, "self")), sum(map(_peak_mb, _children())))
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return cls(own / (1e6 if sys.platform == "darwin" else 1000), None)


def children_cpu() -> float | None:
    """CPU seconds of the processes that this one started, ended or alive, to the kernel's tick; None without Linux's /proc."""
    if not _has_proc():
        return None
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    # The fields from the state on: user and system ticks are the 12th and 13th.
    alive = sum(int(fields[11]) + int(fields[12]) for fields in map(_stat, _children()) if fields)
    return ended.ru_utime + ended.ru_stime + alive / os.sysconf("SC_CLK_TCK")


def _has_proc() -> bool:
    return Path(_PROC, "self", "stat").exists()


def _children() -> Iterator[Path]:
    """Their folders in /proc."""
    for process in _PROC.glob("[0-9]*"):
        fields = _stat(process)
        if fields and int(fields[1]) == os.getpid():
            yield process


def _stat(process: Path) -> list[str]:
    """State, parent, … of a process; empty where it has ended between the listing and the look."""
    # The command, before these, is in brackets and may hold anything.
    return _read(process / "stat").rpartition(")")[2].split()


def _peak_mb(process: Path) -> float:
    found = re.search(r"^VmHWM:\s+(\d+) kB", _read(process / "status"), re.MULTILINE)
    return int(found[1]) * 1.024e-3 if found else 0.0


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Meter:
    """Measures from one boundary to the next and hands each epoch to `turn`, None at the first.

    Waiting in `turn` is not measured, but for the children: they go on working at what the epoch left them, so theirs is
    the time from the end of one epoch to the end of the next.
    """

    def __init__(self, turn: Callable[[Reading | None], None]) -> None:
        self._turn = turn
        self._began: Reading | None = None
        self.peak = Peak(0, None)

    def boundary(self) -> None:
        """An epoch has ended, or begins, or both."""
        ended = Reading.now()
        self.peak = Peak.now()
        self._turn(None if self._began is None else ended.since(self._began))
        self._began = Reading.now()._replace(children_s=ended.children_s)
