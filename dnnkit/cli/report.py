"""What a run and a sweep say at their end."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dnnkit.sweep import Outcome
from dnnkit.training.senders import Result


def report(result: Result, console: Console) -> None:
    """The last lines of a run: its metrics, its id, its folder, and how to look at it."""
    shown = {key: value for key, value in result.metrics.items() if key.startswith("test/")}
    console.print()
    console.print("  ".join(f"{key} {value:.4g}" for key, value in sorted(shown.items())), style="bold", highlight=False, soft_wrap=True)
    rows = {"MLflow run": result.run_id or f"none yet; the run's UUID is {result.uuid}", "run folder": str(result.run_dir)}
    if result.tracking_uri is None:
        rows["MLflow run"] = f"none (tracking=none); the run's UUID is {result.uuid}"
    if result.message:
        rows["MLflow"] = result.message
    if result.run_id is not None and result.tracking_uri is not None:
        rows["look at it"] = _ui_command(result.tracking_uri)
    for name, text in rows.items():
        console.print(f"{name:<11} {text}", highlight=False, markup=False, soft_wrap=True)


def _ui_command(uri: str) -> str:
    if uri.startswith(("http://", "https://")):
        return uri
    return f"mlflow ui --backend-store-uri {uri}"


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
