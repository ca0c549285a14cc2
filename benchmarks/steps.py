"""`python -m benchmarks.steps`: what the ways to run one training step cost by themselves, without epochs, records and Lightning."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmarks import document
from benchmarks.driver import environment
from benchmarks.jobs import OPTIMIZERS, Work
from benchmarks.rows import NAMES, Prepared

_ROWS = 11_000


@dataclass(frozen=True)
class Plan:
    """For each optimizer and batch size, `processes` of `blocks` blocks of `steps` steps of every way; one more, the first, is dropped."""

    data: str
    optimizers: Sequence[str] = tuple(OPTIMIZERS)
    batch_sizes: Sequence[int] = (32, 128)
    processes: int = 2
    blocks: int = 16
    steps: int = 50
    compiled: bool = True


def measure(plan: Plan, told: Callable[[str], None]) -> dict[str, Any]:
    from benchmarks.ways import COMPILED, WAYS

    ways = [way for way in WAYS if plan.compiled or way not in COMPILED]
    found: list[dict[str, Any]] = []
    with Prepared(plan.data) as prepared, tempfile.TemporaryDirectory(prefix="bench-compiled-") as cache:
        told("preparing rows")
        folder = prepared.folder(_ROWS)
        for number in range(plan.processes):
            for optimizer in plan.optimizers:
                for size in plan.batch_sizes:
                    told(f"process {number + 1}, {optimizer}, batch {size}")
                    work = Work(plan.data, folder, size, 1, optimizer=optimizer, rows=_ROWS)
                    job = {"work": asdict(work), "ways": ways, "blocks": plan.blocks, "steps": plan.steps}
                    found.append({"optimizer": optimizer, "batch_size": size, "process": number, "ways": _play(job, cache)})
    return {"machine": document.describe_machine(), "data": plan.data, "steps": plan.steps, "found": found}


def _play(job: Mapping[str, Any], cache: str) -> dict[str, Any]:
    """What one process says; the warm-up block is left out. RuntimeError where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ways", json.dumps(job)],
        env={**environment(), "TORCHINDUCTOR_CACHE_DIR": cache},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"benchmarks.ways ended with {done.returncode}:\n{done.stderr[-4000:]}")
    ways: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {way: {**said, "seconds": [round(seconds, 5) for seconds in said["seconds"][1:]]} for way, said in ways.items()}


def sections(found: Mapping[str, Any]) -> dict[str, str]:
    """For the document: ms of the hand-written step, and each way's ratio to it: median and range by block, then of the fastest."""
    from benchmarks.ways import HAND_WRITTEN

    columns = list(dict.fromkeys((one["optimizer"], one["batch_size"]) for one in found["found"]))
    rows = []
    for way in found["found"][0]["ways"]:
        cells, accuracies, setups = [], [], []
        for column in columns:
            ways = [one["ways"] for one in found["found"] if (one["optimizer"], one["batch_size"]) == column]
            base = [second for one in ways for second in one[HAND_WRITTEN]["seconds"]]
            mine = [second for one in ways for second in one[way]["seconds"]]
            cells.append(f"{min(base) / found['steps'] * 1000:.2f} ms" if way == HAND_WRITTEN else _cell(mine, base))
            accuracies.append(f"{median(one[way]['val_acc'] for one in ways):.3f}")
            setups.append(max(one[way]["setup_s"] for one in ways))
        rows.append([way, *cells, f"{max(setups):.1f}", " ".join(accuracies)])
    headings = ["", *(f"{OPTIMIZERS[optimizer]}, batch {size}" for optimizer, size in columns), "set-up s, at most", "val acc"]
    counts = len(found["found"]) // len(columns), len(found["found"][0]["ways"][HAND_WRITTEN]["seconds"])
    setting = f"{NAMES[found['data']]}; {counts[0]} processes of {counts[1]} blocks of {found['steps']} steps, one thread"
    return {"steps": f"{document.markdown_table(headings, rows)}\n\n{setting}; {document.machine_line(found['machine'])}."}


def _cell(mine: Sequence[float], base: Sequence[float]) -> str:
    """Ratios of blocks in the same turn: median and the middle half; then the fastest block over the fastest."""
    ratios = sorted(one / other for one, other in zip(mine, base, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[len(ratios) * 3 // 4]
    return f"{median(ratios):.2f} ({low:.2f}–{high:.2f}) · {min(mine) / min(base):.2f}"


if __name__ == "__main__":
    from benchmarks.__main__ import main

    main(["steps", *sys.argv[1:]])
