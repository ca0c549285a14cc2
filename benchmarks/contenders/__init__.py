"""Who takes part: functions `(job, boundary) -> facts` that set themselves up and train.

Each calls `boundary` as an epoch begins and after the last.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from benchmarks.jobs import Boundary, Facts, Job

#: In the order in which they are shown; the first is what the others are divided by.
CONTENDERS = {
    "floor": "hand-written loop",
    "ours": "dnnkit",
    "streamed": "dnnkit, streamed",
    "ranks": "dnnkit, 2 processes",
    "template": "stock Lightning",
}
FLOOR = "floor"


def contender(name: str) -> Callable[[Job, Boundary], Facts]:
    """The contender of that name; only its own dependencies are imported."""
    function: Callable[[Job, Boundary], Facts] = import_module(f"benchmarks.contenders.{name}").train
    return function
