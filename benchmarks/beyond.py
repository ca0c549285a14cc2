"""`python -m benchmarks.beyond [--python OTHER …]`: what a job costs beyond its training steps and its evaluation.

The default network on digits, job after job in one process, as a sweep has them; with another checkout's Python beside it, in
turns. Processor seconds of the training process, and of the processes that it started, which draw and tell MLflow.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

if __name__ == "__main__":  # also as a file, by the Python of a checkout that may have no such benchmark
    sys.path.append(str(Path(__file__).parent.parent))
from benchmarks import document

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
_OVERRIDES = ("trainer=cpu", "trainer.threads=1", "trainer.progress_bar=false")
TRACKING = ("none", "mlflow")
#: Of a job's `jobs` entry: what the tables show.
QUANTITIES = {"beyond_s": "beyond steps and evaluation", "steps_s": "steps", "evaluation_s": "evaluation"}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.child:
        print(json.dumps(_jobs(options.child, options.jobs)))
        return
    pythons = {"here": sys.executable, **{name: name for name in options.python}}
    rounds = {name: {tracking: [] for tracking in options.tracking} for name in pythons}
    for number in range(options.rounds):
        for tracking in options.tracking:
            for name in list(pythons)[:: 1 if number % 2 == 0 else -1]:
                rounds[name][tracking].append(_measure(pythons[name], tracking, options.jobs))
    if options.json is not None:
        options.json.write_text(json.dumps(rounds, indent=1), encoding="utf-8")
    print(table(rounds))


def table(rounds: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> str:
    """A row for each Python and way of tracking: medians over jobs, the first of each process left out, but for the last column.

    The last but one column is a job's share of the other processes' time, the last all of the tree's time for all jobs, start and
    imports included.
    """
    rows = []
    for name, by_tracking in rounds.items():
        for tracking, runs in by_tracking.items():
            jobs = [job for run in runs for job in run["jobs"][1:]]
            own = [f"{median(job[quantity] for job in jobs):.3f}" for quantity in QUANTITIES]
            first = f"{median(run['jobs'][0]['beyond_s'] for run in runs):.3f}"
            others, tree = (f"{median(run[key] for run in runs):.2f}" for key in ("others_s", "tree_s"))
            rows.append([name, tracking, *own, first, others, tree])
    return document.markdown_table(["", "tracking", *QUANTITIES.values(), "the first job, beyond", "other processes", "whole tree"], rows)


def _measure(python: str, tracking: str, jobs: int) -> dict[str, Any]:
    """One process with so many jobs, in a fresh folder. RuntimeError where it fails."""
    with tempfile.TemporaryDirectory(prefix="bench-beyond-", ignore_cleanup_errors=True) as folder:
        words = [python, "-P", str(Path(__file__)), "--child", tracking, "--jobs", str(jobs)]
        # The other checkout's dnnkit, but this benchmark: it is a file, not a module of a package on the path.
        done = subprocess.run(words, cwd=folder, env={**os.environ, **_ONE_THREAD}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _jobs(tracking: str, count: int) -> dict[str, Any]:
    """`jobs`: seconds of each; `others_s` of all processes that were started, until the last of them has ended; `tree_s` of all."""
    import dnnkit
    from dnnkit.training import Senders

    jobs = []
    with Senders() as senders, _watched() as spent:
        for seed in range(count):
            before, began = dict(spent), time.process_time()
            dnnkit.train(dnnkit.compose([*_OVERRIDES, f"tracking={tracking}", f"seed={seed}"]), senders=senders)
            steps, evaluation = (spent[key] - before[key] for key in ("steps", "evaluation"))
            jobs.append({"steps_s": steps, "evaluation_s": evaluation, "beyond_s": time.process_time() - began - steps - evaluation})
    while True:  # the sender that goes on by itself
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    mine, theirs = (sum(os.times()[place : place + 2]) for place in (0, 2))
    return {"jobs": jobs, "others_s": theirs, "tree_s": mine + theirs}


@contextmanager
def _watched() -> Iterator[dict[str, float]]:
    """Processor seconds so far inside the epoch loop's `advance`, which makes the steps, and inside the evaluation loop."""
    import pytorch_lightning as pl
    from pytorch_lightning.loops.evaluation_loop import _EvaluationLoop

    spent = {"steps": 0.0, "evaluation": 0.0}

    def timed(key: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **named: Any) -> Any:
            began = time.process_time()
            try:
                return call(*args, **named)
            finally:
                spent[key] += time.process_time() - began

        return run

    fit, evaluate = pl.Trainer.fit, _EvaluationLoop.run

    def watched_fit(trainer: pl.Trainer, *args: Any, **named: Any) -> None:
        loop: Any = trainer.fit_loop.epoch_loop
        loop.advance = timed("steps", loop.advance)
        fit(trainer, *args, **named)

    pl.Trainer.fit, _EvaluationLoop.run = watched_fit, timed("evaluation", evaluate)  # type: ignore[method-assign, assignment]
    try:
        yield spent
    finally:
        pl.Trainer.fit, _EvaluationLoop.run = fit, evaluate  # type: ignore[method-assign]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beyond", description=__doc__)
    parser.add_argument("--python", nargs="*", default=[], metavar="OTHER", help="the interpreters of other checkouts")
    parser.add_argument("--tracking", nargs="+", choices=TRACKING, default=TRACKING, help="default: both")
    parser.add_argument("--jobs", type=int, default=6, help="in each process, of which the first is told apart (default 6)")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each kind (default 2)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write everything that was measured to this file")
    parser.add_argument("--child", choices=TRACKING, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
