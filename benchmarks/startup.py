"""`python -m benchmarks.startup`: from the start of a process to its first update and to its end, on digits in a fresh folder."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks import document
from benchmarks.driver import Screen, environment

_SUBREAPER, _PATIENCE_S = 36, 120
#: `python -m` these; the first is what is compared with the second.
RUNS = {
    "dnnkit": ("dnnkit", "trainer=cpu", "trainer.threads=1", "trainer.max_epochs=1", "data.val_size=300"),
    "stock Lightning with MLflow": ("benchmarks.contenders.start_template",),
}
COMMANDS = {
    "an empty program": ("-c", "pass"),
    "import torch": ("-c", "import torch"),
    "import dnnkit": ("-c", "import dnnkit"),
    "dnnkit --version": ("-m", "dnnkit", "--version"),
    "dnnkit list": ("-m", "dnnkit", "list"),
}


@dataclass(frozen=True)
class Plan:
    """`rounds` of every program, of which the first is dropped: it finds the files of the packages on disk."""

    rounds: int = 6


def measure(plan: Plan, told: Callable[[str], None]) -> dict[str, Any]:
    """Programs take turns, and who is first changes."""
    _adopt_orphans()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in [*RUNS, *COMMANDS]}
    for number in range(plan.rounds):
        names = list(runs)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            told(f"round {number + 1}: {name}")
            found = _run(["-m", "benchmarks.watch", *_watched(name)]) if name in RUNS else _run(COMMANDS[name])
            if number > 0:
                runs[name].append(found)
    return {"machine": document.describe_machine(), "runs": runs}


def _watched(name: str) -> list[str]:
    module, *arguments = RUNS[name]
    return [module, "REPORT", *arguments]


def _run(arguments: Sequence[str]) -> dict[str, float]:
    """Seconds from the start of `python …`: `first_wall_s first_cpu_s` (where it is watched) and `wall_s cpu_s`.

    CPU time is that of the process and of all that it started, also of those that outlived it, which are waited for.
    RuntimeError where it fails.
    """
    report, report_end = os.pipe()
    with tempfile.TemporaryDirectory(prefix="bench-start-", ignore_cleanup_errors=True) as folder, os.fdopen(report) as said:
        screen, before, began = Screen(), _cpu_of_children(), time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *(str(report_end) if word == "REPORT" else word for word in arguments)],
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=screen.end,
            stderr=screen.end,
            pass_fds=(report_end,),
        )
        screen.close_end()
        os.close(report_end)
        code = process.wait()
        wall = time.monotonic() - began
        _wait_for_orphans()
        if code != 0:
            raise RuntimeError(f"python {' '.join(arguments)} ended with {code}:\n{screen.words()}")
        found = {"wall_s": wall, "cpu_s": _cpu_of_children() - before}
        if "REPORT" in arguments:
            line = said.readline()
            if not line:
                raise RuntimeError(f"python {' '.join(arguments)}: no optimizer's step was seen")
            first = json.loads(line)
            found = {"first_wall_s": first["at"] - began, "first_cpu_s": first["cpu_s"], **found}
    return {name: round(value, 4) for name, value in found.items()}


def _adopt_orphans() -> None:
    """On Linux, whose parent ends becomes this process's child, so that its CPU time is known."""
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _wait_for_orphans() -> None:
    """RuntimeError where one is still there two minutes later."""
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.02)
        except ChildProcessError:
            return
    raise RuntimeError(f"a process that a program started was still there {_PATIENCE_S} s after the program's end")


def _cpu_of_children() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def sections(found: Mapping[str, Any]) -> dict[str, str]:
    """For the document."""
    runs: Mapping[str, list[dict[str, float]]] = found["runs"]
    quantities = {"first_wall_s": "first step, wall s", "first_cpu_s": "CPU s", "wall_s": "end, wall s", "cpu_s": "CPU s"}
    rows = [[name, *(_cell(runs[name], quantity) for quantity in quantities)] for name in runs]
    ours, stock = list(RUNS)
    rows.insert(len(RUNS), [f"{ours} ÷ {stock}", *(_ratio(runs[ours], runs[stock], quantity) for quantity in quantities)])
    table = document.markdown_table(["", *quantities.values()], rows)
    times = len(next(iter(runs.values())))
    return {"startup": f"{table}\n\nMedian and range of {times}; digits, one epoch; {document.machine_line(found['machine'])}."}


def _cell(runs: Sequence[Mapping[str, float]], quantity: str) -> str:
    return document.spread([run[quantity] for run in runs]) if quantity in runs[0] else ""


def _ratio(ours: Sequence[Mapping[str, float]], stock: Sequence[Mapping[str, float]], quantity: str) -> str:
    """Of medians, and of the fastest."""
    mine, theirs = [run[quantity] for run in ours], [run[quantity] for run in stock]
    return f"{median(mine) / median(theirs):.2f} · {min(mine) / min(theirs):.2f}"


if __name__ == "__main__":
    from benchmarks.__main__ import main

    main(["startup", *sys.argv[1:]])
