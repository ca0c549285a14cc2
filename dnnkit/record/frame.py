"""The journals of a run as a table for pandas, which is imported when one is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dnnkit.record.journal import METRICS, TIMING, stream_journal

if TYPE_CHECKING:
    from pandas import DataFrame


def journal_frame(run_dir: Path, wanted: Callable[[str], bool] = bool) -> DataFrame:
    """A float64 column for each key that is `wanted`, in the order in which keys are first met, a row for each step of any of them.

    The index, `step`, is the number of optimizer steps done, and rises. Where a key has no number at a step it is NaN; of two at one
    step the later counts. Raises ValueError for a line that is no row of a journal.
    """
    import pandas

    columns: dict[str, dict[int, float]] = {}
    for name in (METRICS, TIMING):
        for row in stream_journal(run_dir / name):
            if wanted(row.key):
                columns.setdefault(row.key, {})[row.step] = row.value
    steps = sorted({step for column in columns.values() for step in column})
    return pandas.DataFrame(columns, index=pandas.Index(steps, dtype="int64", name="step"), dtype="float64")
