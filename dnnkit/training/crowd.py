"""What a run's CPU threads do on a machine that others use too.

OpenMP's threads wait for one another by spinning, for some milliseconds: the fastest way where each has a core, and ruinous
where two share one, because a spinning thread takes the core from the one that it waits for. So while a run computes, a
thread looks ten times a second at what the kernel counts. Where other programs leave fewer cores than the run has threads,
graphs run with one thread what then gives the same bits (`dnnkit.loop.team`), and the threads of everything else sleep
while they wait. No number depends on it.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from dnnkit.data.cores import CROWD

#: How the user may have said by himself how OpenMP's threads wait.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_EVERY_S = 0.1
#: In cores. The kernel counts whole ticks of its clock, of which few are in a tenth of a second.
_MISSING, _BACK = 0.4, 0.25
#: So many looks in a row have to find the cores free: giving them back too early costs more than too late.
_CALM = 3


@dataclass(frozen=True)
class Look:
    """Seconds that the cores which this process may use have idled, that it has computed itself, and by the clock."""

    idle: float
    own: float
    at: float

    @classmethod
    def now(cls) -> Look:
        """OSError or ValueError where the kernel does not say."""
        return cls(idle_seconds(Path("/proc/stat").read_text(), os.sched_getaffinity(0)), time.process_time(), time.monotonic())

    def free_since(self, before: Look) -> float:
        """How many cores were left to this process between two looks: those that idled, and those that it had."""
        passed = max(self.at - before.at, 1e-3)
        return (self.idle - before.idle + self.own - before.own) / passed


def idle_seconds(stat: str, cores: set[int]) -> float:
    """The idle time of `cores`, waiting for the disk included, from the text of /proc/stat. ValueError where a core is missing."""
    lines = {int(name): fields for name, fields in re.findall(r"^cpu(\d+) (.*)$", stat, re.MULTILINE)}
    if not cores <= lines.keys():
        raise ValueError(f"/proc/stat lists the cores {sorted(lines)}, not all of {sorted(cores)}")
    ticks = sum(sum(map(int, lines[core].split()[3:5])) for core in cores)
    return ticks / os.sysconf("SC_CLK_TCK")


class Judge:
    """Whether there is a crowd, from how many cores were free, look by look."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._calm = 0
        self.crowded = False

    def see(self, free: float) -> bool:
        """Whether there is one now."""
        if free < self._threads - _MISSING:
            self._calm, self.crowded = 0, True
        elif self.crowded:
            self._calm = self._calm + 1 if free > self._threads - _BACK else 0
            self.crowded = self._calm < _CALM
        return self.crowded


@contextmanager
def sharing(threads: int, environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Give way to other programs while the body computes with `threads` CPU threads.

    Nothing is done for one thread, where the kernel does not say what is free, and where the user has said how threads wait.
    """
    if threads == 1 or any(name in environ for name in WAITING) or not _can_look():
        yield
        return
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(threads, over), name="dnnkit-crowd", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        CROWD.here = False


def _can_look() -> bool:
    try:
        Look.now()
    except (OSError, ValueError, AttributeError):
        return False
    return True


def _watch(threads: int, over: threading.Event) -> None:
    judge, sleepy, before = Judge(threads), Sleepy(), Look.now()
    try:
        while not over.wait(_EVERY_S):
            try:
                look = Look.now()
            except (OSError, ValueError):  # the kernel has stopped telling, or the process may use other cores
                CROWD.here = False
                return
            CROWD.here = judge.see(look.free_since(before))
            before = look
            sleepy.be(CROWD.here)
    finally:
        sleepy.be(False)


class Sleepy:
    """Has libgomp's threads sleep after a hundred turns of waiting, not 300,000, and undoes that again.

    It is what libgomp does by itself where it manages more threads than there are cores. So a thread of ours starts a team
    as large as the machine, which does nothing; when that thread ends, its team is gone. Without libgomp nothing happens.
    """

    def __init__(self) -> None:
        self._library, self._leave = _libgomp(), threading.Event()
        self._holder: threading.Thread | None = None

    def be(self, wanted: bool) -> None:
        """Begin or end; nothing where it is so already."""
        if self._library is None or wanted == (self._holder is not None):
            return
        if self._holder is not None:
            self._leave.set()
            self._holder.join()
            self._holder = None
            return
        self._leave.clear()
        self._holder = threading.Thread(target=self._hold, name="dnnkit-idle-team", daemon=True)
        self._holder.start()

    def _hold(self) -> None:
        assert self._library is not None
        nothing = ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p)
        self._library.GOMP_parallel(nothing, None, ctypes.c_uint(os.cpu_count() or 1), ctypes.c_uint(0))
        self._leave.wait()


def _libgomp() -> ctypes.CDLL | None:
    """The one that PyTorch computes with, None where it has none."""
    try:
        path = torchs(Path("/proc/self/maps").read_text())
        library = None if path is None else ctypes.CDLL(path)
    except OSError:
        return None
    return library if hasattr(library, "GOMP_parallel") else None


def torchs(maps: str, torch_home: Path = Path(torch.__file__).parent) -> str | None:
    """PyTorch's libgomp among the files of /proc/self/maps: that of its wheel, else the system's, never another package's own."""
    found = dict.fromkeys(re.findall(r"/\S*libgomp\S*\.so\S*", maps))
    ours = [path for path in found if path.startswith((f"{torch_home}/", f"{torch_home}.libs/"))]
    others = [path for path in found if not re.search(r"-packages/", path)]
    return next(iter([*ours, *others]), None)
