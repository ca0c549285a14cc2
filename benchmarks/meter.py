"""What an epoch costs: CPU time of this process, of the processes it started, and wall time."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl

from benchmarks.jobs import Boundary, Facts, parameters


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


def children_cpu() -> float | None:
    """CPU seconds of the processes that this one started, ended or alive, to the kernel's tick; None without Linux's /proc."""
    if not Path("/proc/self/stat").exists():
        return None
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    alive = sum(_cpu_of_child(stat) for stat in Path("/proc").glob("[0-9]*/stat"))
    return ended.ru_utime + ended.ru_stime + alive / os.sysconf("SC_CLK_TCK")


def _cpu_of_child(stat: Path) -> int:
    """Ticks of the process, 0 where it is not a child of this one."""
    try:
        # The fields after the command, which is in brackets and may hold anything: state, parent, …, user and system ticks.
        fields = stat.read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # it ended between the listing and the look
        return 0
    return int(fields[11]) + int(fields[12]) if int(fields[1]) == os.getpid() else 0


class Meter:
    """Measures from one boundary to the next and hands each epoch to `turn`, None at the first.

    Waiting in `turn` is not measured, but for the children: they go on working at what the epoch left them, so theirs is
    the time from the end of one epoch to the end of the next.
    """

    def __init__(self, turn: Callable[[Reading | None], None]) -> None:
        self._turn = turn
        self._began: Reading | None = None

    def boundary(self) -> None:
        """An epoch has ended, or begins, or both."""
        ended = Reading.now()
        self._turn(None if self._began is None else ended.since(self._began))
        self._began = Reading.now()._replace(children_s=ended.children_s)


class EpochMeter(pl.Callback):
    """Calls `boundary` as each epoch begins and after the last, validation, checkpoints and loggers' epoch-end work included.

    Only as a trainer's first callback: what the others do as an epoch begins then belongs to that epoch.
    """

    def __init__(self, boundary: Boundary) -> None:
        self._boundary = boundary
        self.facts: Facts = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._boundary()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._boundary()
        accuracy = float(trainer.callback_metrics["val/acc"])
        self.facts = {"parameters": parameters(pl_module), "steps": trainer.global_step, "val_acc": accuracy}
