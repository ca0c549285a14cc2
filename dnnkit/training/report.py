"""What a run says at its end."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from dnnkit.record import RunRecord, strip_credentials
from dnnkit.record.folder import read_files
from dnnkit.sender.address import resolve_uri
from dnnkit.sender.mark import MARK
from dnnkit.sender.page import experiment_page, run_page
from dnnkit.training.invocation import pasteable
from dnnkit.training.result import Result


def report(result: Result, console: Console) -> None:
    """The last lines of a run: its metrics, its id, its folder, and how to look at it."""
    shown = {key: value for key, value in result.metrics.items() if key.startswith("test/")}
    console.print()
    console.print("  ".join(f"{key} {value:.4g}" for key, value in sorted(shown.items())), style="bold", highlight=False, soft_wrap=True)
    rows = {"MLflow run": result.run_id or f"none yet; the run's UUID is {result.uuid}", "run folder": str(result.run_dir)}
    if result.tracking_uri is None:
        rows["MLflow run"] = f"none (tracking=none); the run's UUID is {result.uuid}"
    if result.message:
        rows["figures" if result.tracking_uri is None else "MLflow"] = result.message
    look = None if result.run_id is None else look_at(result.run_dir)
    if look is not None:
        # A cell of a notebook would be busy for as long as the command serves.
        rows["look at it"] = f"in a terminal: {look}" if console.is_jupyter and not look.startswith("http") else look
    for name, text in rows.items():
        console.print(f"{name:<11} {text}", highlight=False, markup=False, soft_wrap=True)


def look_at(run_dir: Path, *, all_runs: bool = False) -> str | None:
    """What opens MLflow on the page of a run, or of its whole experiment: a command for this shell, or the address of a server's page.

    None where the run is not in MLflow.
    """
    record, mark = RunRecord.read(run_dir), read_files(run_dir, MARK)
    if record.tracking_uri is None or mark.get("run_id") is None:
        return None
    if record.tracking_uri.startswith(("http://", "https://")) and mark.get("experiment_id") is not None:
        whole = experiment_page(record.tracking_uri, mark["experiment_id"])
        return whole if all_runs else run_page(record.tracking_uri, mark["experiment_id"], mark["run_id"])
    if not all_runs:
        return pasteable("ui", _short_name(run_dir))
    usual = strip_credentials(resolve_uri(None, Path.cwd(), os.environ))
    words = [] if record.tracking_uri == usual else [f"tracking.uri={record.tracking_uri}"]
    words += [] if record.experiment == "dnnkit" else [f"tracking.experiment={record.experiment}"]
    return pasteable("ui", *words)


def _short_name(run_dir: Path) -> str:
    """The 8 letters of a run folder where they are enough, else its path."""
    return run_dir.name[-8:] if run_dir.parent == Path("runs").absolute() else _path(run_dir)


def _path(run_dir: Path) -> str:
    return os.path.relpath(run_dir) if run_dir.is_relative_to(Path.cwd()) else str(run_dir)
