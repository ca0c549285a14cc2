"""Rounds of contenders, each in a process of its own, taking turns epoch by epoch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.jobs import Facts, Work

ROOT = Path(__file__).parent.parent
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
#: A terminal like any other, so that every bar draws; nothing of the user's own MLflow is touched.
_TERMINAL = {"TERM": "xterm-256color", "COLUMNS": "120"}
_NOT_PASSED_ON = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")


@dataclass(frozen=True)
class Sample:
    """One epoch; `round` and `epoch` count from 0, and epoch 0, the warm-up, is never among the samples that are kept.

    `work` is the place of the work in the list of those that were done.
    """

    contender: str
    work: int
    round: int
    epoch: int
    cpu_s: float
    children_s: float | None
    wall_s: float


@dataclass(frozen=True)
class Finish:
    """What a contender said at a work's end: `facts` as in `jobs.Facts`, memory as in `meter.Peak`, that of its process until then."""

    contender: str
    work: int
    round: int
    facts: Facts
    peak_mb: float
    children_mb: float | None


@dataclass
class Play:
    """All samples of some works, and how each contender ended."""

    samples: list[Sample]
    finishes: list[Finish]


class Screen:
    """The reading end of a pseudo-terminal: `end` is for the process that writes, `words` is what it wrote last."""

    def __init__(self) -> None:
        terminal, self.end = os.openpty()
        self._written = b""
        self._reader = threading.Thread(target=self._read, args=(terminal,), daemon=True)
        self._reader.start()

    def close_end(self) -> None:
        """Once the process has it."""
        os.close(self.end)

    def words(self) -> str:
        """When all who write have ended, or five seconds later."""
        self._reader.join(timeout=5)
        return self._written.decode(errors="replace")

    def _read(self, terminal: int) -> None:
        while True:
            try:
                written = os.read(terminal, 65536)
            except OSError:  # Linux's way of saying that nobody has the other end open
                written = b""
            if not written:
                os.close(terminal)
                return
            self._written = (self._written + written)[-4000:]


def environment() -> dict[str, str]:
    """One thread, a terminal, and this repository's packages, wherever the process works."""
    passed_on = {key: value for key, value in os.environ.items() if key not in _NOT_PASSED_ON}
    # dnnkit looks for data in the working folder too, which is another one here.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**passed_on, **_ONE_THREAD, **_TERMINAL, "PYTHONPATH": path}


class Worker:
    """A contender's process, on a pseudo-terminal, in a folder of its own."""

    def __init__(self, contender: str, works: Sequence[Work], folder: Path) -> None:
        self.contender = contender
        self._screen = Screen()
        report, report_end = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", contender, json.dumps([asdict(work) for work in works]), str(report_end)],
            cwd=folder,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=self._screen.end,
            stderr=self._screen.end,
            pass_fds=(report_end,),
            text=True,
        )
        self._screen.close_end()
        os.close(report_end)
        self._report = os.fdopen(report)

    def hear(self) -> dict[str, Any]:
        """The process's next report; RuntimeError with its last words where it has died."""
        line = self._report.readline()
        if not line:
            self._process.wait()
            raise RuntimeError(f"{self.contender} ended early (exit {self._process.returncode}):\n{self._screen.words()}")
        report: dict[str, Any] = json.loads(line)
        return report

    def go(self) -> None:
        """Let it run to its next boundary."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self._process.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._report.close()


def play_round(contenders: Sequence[str], works: Mapping[int, Work], number: int, told: Callable[[str], None] = lambda line: None) -> Play:
    """All contenders do the works, one after the other and side by side: while one has an epoch, the others wait.

    Who comes first changes from epoch to epoch. The warm-up epoch of each work is left out. RuntimeError where a contender fails.
    """
    play = Play([], [])
    with ExitStack() as stack:
        workers = []
        for name in contenders:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"bench-{name}-", ignore_cleanup_errors=True)))
            workers.append(stack.enter_context(Worker(name, list(works.values()), folder)))
        for place, work in works.items():
            for worker in workers:
                worker.hear()
            _play_work(workers, place, work, number, play, told)
            # The next work is set up, side by side, before its first turn.
            for worker in workers:
                worker.go()
    return play


def _play_work(workers: Sequence[Worker], place: int, work: Work, number: int, play: Play, told: Callable[[str], None]) -> None:
    for epoch in range(work.epochs):
        first = (number + epoch) % len(workers)
        for worker in [*workers[first:], *workers[:first]]:
            worker.go()
            sample = Sample(worker.contender, place, number, epoch, **worker.hear()["epoch"])
            if epoch > 0:
                play.samples.append(sample)
            told(f"round {number + 1}, {work.title}, epoch {epoch + 1}: {sample.contender} {sample.cpu_s:.2f} s")
    for worker in workers:
        worker.go()
    for worker in workers:
        said = worker.hear()
        peak = said["peak"]
        play.finishes.append(Finish(worker.contender, place, number, said["facts"], peak["own_mb"], peak["children_mb"]))
