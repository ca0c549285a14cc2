"""`python -m benchmarks.record`: what the record costs: a line of the journal, a point in MLflow, a million of them, a fresh database.

Everything is measured side by side, in many short blocks one after the other, in folders of its own that are removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

from rich.console import Console

Tell = Callable[[str], None]

_WRITER = """
import json, os, sys, time
from pathlib import Path
from dnnkit.record import new_run
from dnnkit.sender import Sender
uri, points, keys = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sender = Sender.start(uri)
run = new_run(Path("runs"), "bench", tracking_uri=uri)
sender.announce(run.path)
while sender.run_id(run.path) is None:
    time.sleep(0.1)
names = [f"signal/{number:02d}_dense/second_moment" for number in range(keys)]
print(json.dumps({"sender": sender._process.pid, "run": str(run.path)}), flush=True)
began, cpu = time.perf_counter(), time.process_time()
for step in range(points // keys):
    run.journal.log(step, {name: step / 7 + number for number, name in enumerate(names)})
print(json.dumps({"written_cpu_s": time.process_time() - cpu}), flush=True)
run.finish("FINISHED", "finished", 0)
outcome = sender.wait(run.path, 3600)
print(json.dumps({"state": outcome.state, "run_id": outcome.run_id, "wall_s": time.perf_counter() - began}), flush=True)
"""
_FRESH = """
import sys, time
from pathlib import Path
from dnnkit.sender.store import Store
import mlflow.store.tracking.sqlalchemy_store
began = time.perf_counter()
store = Store(f"sqlite:///{Path.cwd()}/mlflow.db", Path.cwd() / "mlruns")
assert store.client
print(time.perf_counter() - began)
"""


@dataclass(frozen=True)
class Plan:
    """How much is measured: points of the whole run, keys at each of its steps, blocks of the short measurements."""

    points: int = 1_000_000
    keys: int = 5
    blocks: int = 15
    databases: int = 3


class Cost(NamedTuple):
    """Seconds of one block."""

    cpu_s: float
    wall_s: float


def measure(plan: Plan, tell: Tell) -> dict[str, Any]:
    """All parts, as plain values."""
    found: dict[str, Any] = {}
    for name, part in (("journal", _journal), ("points", _points), ("fresh", _fresh), ("whole", _whole)):
        tell(name)
        found[name] = part(plan)
    return found


def sections(found: Mapping[str, Any]) -> dict[str, str]:
    """The tables, as Markdown."""
    lines = ["| | CPU, fastest | CPU, first tenth | CPU, median | wall, median |", "|---|---|---|---|---|"]
    for unit, part in (("µs a line", "journal"), ("ms a point", "points"), ("s a fresh database", "fresh")):
        for name, held in found[part].items():
            shown = (f"{held[which]:.3g}" for which in ("cpu_fastest", "cpu_q10", "cpu_median", "wall_median"))
            lines.append(f"| {name}, {unit} | {' | '.join(shown)} |")
    whole = found["whole"]
    lines += [
        "",
        f"One run of {whole['points']:,} points: {whole['arrived']:,} in MLflow, {whole['wall_ms_per_point']:.3f} ms each by the clock, "
        f"{whole['sender_cpu_ms_per_point']:.3f} ms of the sender's CPU; each {whole['writer_cpu_us_per_point']:.2f} µs of the trainer's.",
        f"Resident memory in MB at a tenth, a half and the end: {_memory(whole, 'sender')} (sender), {_memory(whole, 'writer')} (trainer).",
    ]
    return {"record": "\n".join(lines)}


def _memory(whole: Mapping[str, Any], which: str) -> str:
    return ", ".join(f"{whole['memory_mb'][which][share]:.0f}" for share in ("0.1", "0.5", "1.0"))


def _costs(works: Mapping[str, Callable[[int], int]], blocks: int, unit: float) -> dict[str, Any]:
    """Each work in turn, `blocks` times; it gives the number of things that it did. Figures for one thing, in seconds × `unit`."""
    seen: dict[str, list[Cost]] = {name: [] for name in works}
    for block in range(blocks + 1):
        for name, work in works.items():
            cpu, wall = time.process_time(), time.perf_counter()
            count = work(block)
            cost = Cost((time.process_time() - cpu) / count * unit, (time.perf_counter() - wall) / count * unit)
            if block:  # the first one warms up
                seen[name].append(cost)
    return {name: _summary(costs) for name, costs in seen.items()}


def _summary(costs: Sequence[Cost]) -> dict[str, float]:
    cpu = [cost.cpu_s for cost in costs]
    return {
        "cpu_fastest": min(cpu),
        "cpu_q10": quantiles(cpu, n=10, method="inclusive")[0] if len(cpu) > 1 else cpu[0],
        "cpu_median": median(cpu),
        "wall_median": median(cost.wall_s for cost in costs),
    }


# The training process


def _journal(plan: Plan) -> dict[str, Any]:
    from dnnkit.record import Journal

    with (
        tempfile.TemporaryDirectory() as folder,
        Journal(Path(folder)) as journal,
        open(Path(folder) / "plain", "ab", buffering=0) as plain,
    ):

        def ours(values: Mapping[str, float]) -> Callable[[int], int]:
            return lambda block: _each(lambda step: journal.log(step, values), values)

        def stock(values: Mapping[str, float]) -> Callable[[int], int]:
            def write(step: int) -> None:
                plain.write(
                    "".join(json.dumps({"step": step, "key": key, "value": value}) + "\n" for key, value in values.items()).encode()
                )

            return lambda block: _each(write, values)

        works = {}
        for keys in (1, 5, 100):
            values = {f"signal/{number:02d}_dense/second_moment": number / 7 for number in range(keys)}
            works[f"journal, {keys} keys a call"] = ours(values)
            works[f"json.dumps and a write, {keys} keys a call"] = stock(values)
        return _costs(works, plan.blocks, 1e6)


def _each(write: Callable[[int], None], values: Mapping[str, float], lines: int = 4000) -> int:
    calls = max(1, lines // len(values))
    for step in range(calls):
        write(step)
    return calls * len(values)


# The sender


def _points(plan: Plan) -> dict[str, Any]:
    """Points on their way into one database: by our sender from the journal, by `log_batch` and by MLflow's own calls."""
    from mlflow.entities import Metric

    from dnnkit.sender.store import Store

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = Store(f"sqlite:///{folder}/mlflow.db", folder / "mlruns")
        theirs = store.client.create_run(store.experiment("theirs")).info.run_id
        works: dict[str, Callable[[int], int]] = {}
        for keys in (5, 100):
            names = [f"signal/{number:02d}_dense/second_moment" for number in range(keys)]

            def batches(block: int, names: Any = names) -> int:
                now = int(time.time() * 1000)
                rows = [(name, block * 10_000 + step) for step in range(2000 // len(names)) for name in names]
                for start in (0, 1000):
                    store.client.log_batch(theirs, [Metric(name, step / 7, now, step) for name, step in rows[start : start + 1000]])
                return 2000

            works[f"journal to MLflow, {keys} keys"] = _sent_by_us(folder, store, names, 2000)
            works[f"log_batch of 1000, {keys} keys"] = batches

        def single(block: int) -> int:
            for step in range(50):
                store.client.log_metric(theirs, "single", step / 7, step=block * 50 + step)
            return 50

        return _costs({**works, "log_metric": single}, plan.blocks, 1e3)


def _sent_by_us(folder: Path, store: Any, names: Sequence[str], points: int) -> Callable[[int], int]:
    """What writes so many points to the journal of a run and has a follower send them."""
    from dnnkit.record import new_run
    from dnnkit.sender.follow import Follower

    run = new_run(folder, f"{len(names)} keys", tracking_uri=store.uri)
    follower = Follower(run.path, store, lambda event: None)
    follower.advance()

    def work(block: int) -> int:
        for step in range(points // len(names)):
            run.journal.log(block * 10_000 + step, dict.fromkeys(names, step / 7))
        follower._next_send = 0.0  # of a running run it gathers rows for some seconds before it sends
        follower.advance()
        while follower.behind:
            follower.advance()
        return points

    return work


def _fresh(plan: Plan) -> dict[str, Any]:
    """A database where there is none: migrated (an empty cache), and from the template."""
    seen: dict[str, list[Cost]] = {"migrated": [], "from the template": []}
    with tempfile.TemporaryDirectory() as kept:
        _fresh_once(Path(kept))
        for _ in range(plan.databases):
            with tempfile.TemporaryDirectory() as empty:
                seen["migrated"].append(_fresh_once(Path(empty)))
            seen["from the template"].append(_fresh_once(Path(kept)))
    return {name: _summary(costs) for name, costs in seen.items()}


def _fresh_once(cache: Path) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        before = os.times()
        answer = subprocess.run(
            [sys.executable, "-c", _FRESH],
            cwd=folder,
            env={**os.environ, "XDG_CACHE_HOME": str(cache)},
            capture_output=True,
            text=True,
            check=True,
        )
        after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(cpu, float(answer.stdout))


# The whole way


def _whole(plan: Plan) -> dict[str, Any]:
    """One run of so many points, by a process that writes and a sender that follows it, as in training."""
    points = plan.points // plan.keys * plan.keys
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        command = [sys.executable, "-c", _WRITER, uri, str(points), str(plan.keys)]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            begun = json.loads(writer.stdout.readline())
            written, memory, cpu, now = None, {}, 0.0, dict[str, float]()
            while writer.poll() is None:
                time.sleep(0.5)
                share = _sent(Path(begun["run"])) / points
                cpu = _cpu(begun["sender"]) or cpu
                # Of a process that has ended since the last look, what it had then.
                looks = {"sender": _resident_mb(begun["sender"]), "writer": _resident_mb(writer.pid)}
                now |= {who: held for who, held in looks.items() if held == held}
                for mark in (0.1, 0.5, 1.0):
                    if share >= mark and mark not in memory:
                        memory[mark] = dict(now)
            written, ended = (json.loads(line) for line in writer.stdout.read().splitlines())
        arrived = _arrived(uri, ended["run_id"])
    return {
        "points": points,
        "keys": plan.keys,
        "arrived": arrived,
        "state": ended["state"],
        "wall_ms_per_point": 1e3 * ended["wall_s"] / points,
        "sender_cpu_ms_per_point": 1e3 * cpu / points,
        "writer_cpu_us_per_point": 1e6 * written["written_cpu_s"] / points,
        "memory_mb": {who: {str(mark): held[who] for mark, held in memory.items()} for who in ("sender", "writer")},
    }


def _sent(run: Path) -> int:
    mark = run / "sender.json"
    return sum(json.loads(mark.read_text())["sent"].values()) if mark.exists() else 0


def _arrived(uri: str, run_id: str) -> int:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    return sum(len(client.get_metric_history(run_id, key)) for key in client.get_run(run_id).data.metrics)


def _resident_mb(pid: int) -> float:
    """NaN where it cannot be known: on macOS, or once the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), float("nan"))


def _cpu(pid: int) -> float:
    """CPU seconds of a process so far; 0 where that cannot be known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record", description=__doc__)
    parser.add_argument("--points", type=int, default=Plan.points, help="of the whole run (default %(default)s)")
    parser.add_argument("--keys", type=int, default=Plan.keys, help="at each of its steps (default %(default)s)")
    parser.add_argument("--blocks", type=int, default=Plan.blocks, help="of each short measurement (default %(default)s)")
    parser.add_argument("--databases", type=int, default=Plan.databases, help="made of each kind (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write everything that was measured to this file")
    options = parser.parse_args(arguments)
    console = Console()
    found = measure(Plan(options.points, options.keys, options.blocks, options.databases), lambda part: console.print(f"measuring: {part}"))
    for text in sections(found).values():
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
