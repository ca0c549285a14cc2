"""Rounds of contenders, each in a process of its own, taking turns epoch by epoch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.jobs import Facts, Job

ROOT = Path(__file__).parent.parent
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
#: A terminal like any other, so that every bar draws; nothing of the user's own MLflow is touched.
_TERMINAL = {"TERM": "xterm-256color", "COLUMNS": "120"}
_NOT_PASSED_ON = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")


@dataclass(frozen=True)
class Sample:
    """One epoch; `round` and `epoch` count from 0, and epoch 0, the warm-up, is never among the samples that are kept."""

    contender: str
    batch_size: int
    round: int
    epoch: int
    cpu_s: float
    children_s: float | None
    wall_s: float


@dataclass(frozen=True)
class Finish:
    """What a contender said at its end: `facts` as in `jobs.Facts`."""

    contender: str
    batch_size: int
    round: int
    facts: Facts


class Worker:
    """A contender's process, on a pseudo-terminal, in a folder of its own."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job = job
        terminal, screen = os.openpty()
        report, report_end = os.pipe()
        environment = {key: value for key, value in os.environ.items() if key not in _NOT_PASSED_ON}
        # dnnkit looks for data in the working folder too, which is another one here.
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(asdict(job)), str(report_end)],
            cwd=folder,
            env={**environment, **_ONE_THREAD, **_TERMINAL, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=screen,
            stderr=screen,
            pass_fds=(report_end,),
            text=True,
        )
        os.close(screen)
        os.close(report_end)
        self._report = os.fdopen(report)
        self._screen = b""
        self._reader = threading.Thread(target=self._read_screen, args=(terminal,), daemon=True)
        self._reader.start()

    def hear(self) -> dict[str, Any]:
        """The process's next report; RuntimeError with its last words where it has died."""
        line = self._report.readline()
        if not line:
            self._process.wait()
            self._reader.join(timeout=5)
            raise RuntimeError(
                f"{self.job.contender} ended early (exit {self._process.returncode}):\n{self._screen.decode(errors='replace')}"
            )
        report: dict[str, Any] = json.loads(line)
        return report

    def go(self) -> None:
        """Let it run to its next boundary."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def _read_screen(self, terminal: int) -> None:
        while True:
            try:
                written = os.read(terminal, 65536)
            except OSError:  # Linux's way of saying that nobody has the other end open
                written = b""
            if not written:
                os.close(terminal)
                return
            self._screen = (self._screen + written)[-4000:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self._process.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._report.close()


def play_round(jobs: Sequence[Job], number: int, told: Callable[[str], None] = lambda line: None) -> tuple[list[Sample], list[Finish]]:
    """Train all jobs of one batch size side by side: while one has an epoch, the others wait. The warm-up epoch is left out.

    Who comes first changes from epoch to epoch. RuntimeError where a contender fails.
    """
    samples = []
    with ExitStack() as stack:
        workers = []
        for job in jobs:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"bench-{job.contender}-", ignore_cleanup_errors=True)))
            workers.append(stack.enter_context(Worker(job, folder)))
        for worker in workers:
            worker.hear()
        for epoch in range(jobs[0].epochs):
            first = (number + epoch) % len(workers)
            for worker in [*workers[first:], *workers[:first]]:
                worker.go()
                sample = Sample(worker.job.contender, worker.job.batch_size, number, epoch, **worker.hear()["epoch"])
                samples.append(sample)
                told(f"batch {sample.batch_size}, round {number + 1}, epoch {epoch + 1}: {sample.contender} {sample.cpu_s:.2f} s")
        for worker in workers:
            worker.go()
        finishes = [Finish(worker.job.contender, worker.job.batch_size, number, worker.hear()["facts"]) for worker in workers]
    return [sample for sample in samples if sample.epoch > 0], finishes
