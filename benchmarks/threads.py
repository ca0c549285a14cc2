"""`python -m benchmarks.threads`: the default command as it is typed, alone and beside one and two busy processes.

Each variant is a process of its own, `python -m dnnkit …` in a fresh folder; an epoch's time is read from its `timing.jsonl`, the
first left out. Variants take turns, and each load begins with another one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import document
from benchmarks.driver import ROOT

_MNIST = ("data.val_size=5000", "trainer.limit_train_batches=300")
#: What is trained, and for how many epochs.
JOBS: dict[str, tuple[tuple[str, ...], int]] = {
    "digits": ((), 20),
    "selu_mnist": (("+experiment=selu_mnist", "trainer.limit_train_batches=300"), 4),
    "20 layers of 100": (("model.hidden=[100]", "model.repeat=20", "data=mnist", "data.batch_size=128", *_MNIST), 4),
    "cnn": (("model=cnn", "data=mnist", "data.batch_size=128", *_MNIST[:1], "trainer.limit_train_batches=40"), 3),
}
OURS, BEFORE, ONE = "trainer.threads=auto", "all cores, spinning", "one thread"
#: Overrides and variables. libgomp's own number of turns, set by hand, is how a user says that threads are to spin: then nobody watches.
VARIANTS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    OURS: ((), {}),
    BEFORE: (("trainer.threads=null",), {"GOMP_SPINCOUNT": "300000"}),
    ONE: (("trainer.threads=1",), {}),
}
_QUIET = ("tracking=none", "trainer.progress_bar=false", "trainer=cpu")


@dataclass(frozen=True)
class Plan:
    """`rounds` of every variant of every job beside each number of busy processes, and of a sweep of `sweep` digits jobs; 0: no sweep."""

    rounds: int = 2
    jobs: Sequence[str] = tuple(JOBS)
    loads: Sequence[int] = (0, 1, 2)
    sweep: int = 24


def measure(plan: Plan, told: Callable[[str], None]) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    for number in range(plan.rounds):
        for job in plan.jobs:
            for load in plan.loads:
                with busy(load):
                    for variant in _turns(number + load):
                        told(f"round {number + 1}: {job}, {variant}, {load} beside")
                        found.append({"job": job, "load": load, "variant": variant, "epoch_s": _epoch(job, variant)})
    sweeps = [{"variant": variant, **_sweep(plan.sweep, variant)} for variant in (VARIANTS if plan.sweep else ())]
    return {"machine": document.describe_machine(), "epochs": found, "sweep": {"jobs": plan.sweep, "found": sweeps}}


def _turns(first: int) -> list[str]:
    names = list(VARIANTS)
    return names[first % len(names) :] + names[: first % len(names)]


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that do nothing but take a core each."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _epoch(job: str, variant: str) -> float:
    """Seconds of an epoch, the median of all but the first."""
    words, epochs = JOBS[job]
    with tempfile.TemporaryDirectory(prefix="bench-threads-") as folder:
        _run([*words, f"trainer.max_epochs={epochs}"], variant, folder)
        (timing,) = Path(folder).glob("runs/*/timing.jsonl")
        rows = [json.loads(line) for line in timing.read_text(encoding="utf-8").splitlines()]
    return round(median([row["value"] for row in rows if row["key"] == "time/epoch_s"][1:]), 4)


def _sweep(jobs: int, variant: str) -> dict[str, float]:
    """Seconds and CPU seconds of a sweep over that many seeds, in one process."""
    seeds = ",".join(map(str, range(jobs)))
    with tempfile.TemporaryDirectory(prefix="bench-threads-") as folder:
        before, began = os.times(), time.monotonic()
        _run(["-m", f"seed={seeds}", "trainer.max_epochs=5"], variant, folder)
        wall, after = time.monotonic() - began, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall_s": round(wall, 1), "cpu_s": round(cpu, 1)}


def _run(words: Sequence[str], variant: str, folder: str) -> None:
    """RuntimeError where it fails."""
    overrides, variables = VARIANTS[variant]
    # The machine as a user has it: nothing pinned, all cores.
    environ = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, "-m", "dnnkit", *words, *_QUIET, *overrides]
    path = os.pathsep.join([str(ROOT), *filter(None, [environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, cwd=folder, env={**environ, "PYTHONPATH": path, **variables}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-4000:]}")


def sections(found: Mapping[str, Any]) -> dict[str, str]:
    """For the document: seconds of each variant, and ours over the better of the two others."""
    epochs: Sequence[Mapping[str, Any]] = found["epochs"]
    rows = []
    for job in dict.fromkeys(row["job"] for row in epochs):
        for load in dict.fromkeys(row["load"] for row in epochs):
            times = {
                variant: [row["epoch_s"] for row in epochs if (row["job"], row["load"], row["variant"]) == (job, load, variant)]
                for variant in VARIANTS
            }
            ratio = median(times[OURS]) / min(median(times[BEFORE]), median(times[ONE]))
            cells = [document.spread(times[variant], 3) for variant in VARIANTS]
            rows.append([f"{job}, {_BESIDE[load] if load < len(_BESIDE) else load}", *cells, f"{ratio:.2f}"])
    table = document.markdown_table(["seconds an epoch", *VARIANTS, "first ÷ the better other"], rows)
    text = f"{table}\n\n{document.machine_line(found['machine'])}."
    swept = found["sweep"]["found"]
    if swept:
        cells = [[row["variant"], f"{row['wall_s']:.0f}", f"{row['cpu_s']:.0f}"] for row in swept]
        headings = [f"a sweep of {found['sweep']['jobs']} jobs", "wall s", "CPU s"]
        text += f"\n\n{document.markdown_table(headings, cells)}"
    return {"threads": text}


_BESIDE = ("alone", "beside one busy process", "beside two")

if __name__ == "__main__":
    from benchmarks.__main__ import main

    main(["threads", *sys.argv[1:]])
