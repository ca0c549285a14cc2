"""What a sweep says at its end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dnnkit.sweep import Outcome
from dnnkit.training.report import look_at


def report_sweep(outcomes: Sequence[Outcome], console: Console) -> None:
    """The last lines of a sweep: its jobs, and how to look at them."""
    console.print()
    console.print(sweep_table(outcomes))
    # A folder may be gone by now: a long sweep's user tidies up.
    folders = [Path(outcome.run_dir) for outcome in outcomes if outcome.run_dir and Path(outcome.run_dir, "run.json").exists()]
    look = next((found for folder in folders if (found := look_at(folder, all_runs=True))), None)
    if look is not None:
        console.print(f"\nlook at them {look}", highlight=False, markup=False, soft_wrap=True)


def sweep_table(outcomes: Sequence[Outcome]) -> Table:
    """A line for each job: the overrides that are its own, its test metrics, its folder."""
    shared = set.intersection(*(set(outcome.overrides) for outcome in outcomes)) if len(outcomes) > 1 else set()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("job", "overrides", "test", "run folder"):
        table.add_column(heading, overflow="fold")
    for outcome in outcomes:
        tests = {key.removeprefix("test/"): value for key, value in sorted(outcome.metrics.items()) if key.startswith("test/")}
        tested = "  ".join(f"{key} {value:.4g}" for key, value in tests.items()) or f"failed, exit {outcome.exit_code}"
        own = " ".join(word for word in outcome.overrides if word not in shared)
        folder = os.path.relpath(outcome.run_dir) if outcome.run_dir else ""
        table.add_row(*map(Text, (str(outcome.job), own, tested, folder)))  # as plain text: [acc] is no markup
    return table
