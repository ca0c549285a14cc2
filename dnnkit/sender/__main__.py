"""`python -m dnnkit.sender --follow` serves a training process; `python -m dnnkit.sender RUN_DIR` syncs one folder and exits.

With `--figures` there is no MLflow: figures are drawn, and that is all.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dnnkit.errors import DnnkitError
from dnnkit.record import RunRecord
from dnnkit.record.draw import prepare
from dnnkit.record.identity import scrub
from dnnkit.sender.address import artifact_root, resolve_uri
from dnnkit.sender.client import PATIENCE, Outcome
from dnnkit.sender.drawer import Drawer, draw_or_say
from dnnkit.sender.lines import LineReader, LineWriter
from dnnkit.sender.sync import sync

POLL = 1.0


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 when everything is in MLflow, 1 when it is not, a DnnkitError's own otherwise."""
    parser = argparse.ArgumentParser(prog="python -m dnnkit.sender", description="Bring run folders into MLflow.")
    parser.add_argument("run_dir", nargs="?", type=Path, help="a run folder to bring up to date in MLflow")
    parser.add_argument("--uri", help="tracking URI (default: the one that the run was recorded to)")
    parser.add_argument("--follow", action="store_true", help="serve a training process over standard input and output")
    parser.add_argument("--figures", action="store_true", help="draw the figures and leave MLflow alone")
    options = parser.parse_args(arguments)
    if options.follow == (options.run_dir is not None):
        parser.error("give either a run folder or --follow")
    os.environ.update({key: value for key, value in PATIENCE.items() if key not in os.environ})
    if options.follow:
        return serve(LineReader(0), LineWriter(_own_output()), options.figures)
    try:
        if options.figures:
            return _draw(options.run_dir)
        outcome = sync(options.run_dir, options.uri)
    except DnnkitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return _report(outcome)


def serve(announcements: LineReader, events: LineWriter, figures_alone: bool = False) -> int:
    """Follows the folders announced on `announcements` until the other end is gone and every run is closed.

    MLflow is imported before anything has been heard, because the other end may be importing PyTorch meanwhile, and nothing
    is made. The first line names the store. It is opened at once, so that the first run need not wait for the tables.
    `figures_alone`: there is neither; the first line is a run.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    trainer = os.getppid()
    if not figures_alone:
        _import_mlflow()
    lines = _first_lines(announcements)
    if not lines:
        return 0
    follow = (lambda run_dir: Drawer(run_dir, events.write)) if figures_alone else _following(lines.pop(0), events)
    active: dict[str, Any] = {}
    while announcements.open or active or lines:
        for line in lines:
            if "run" in line:
                _announced(line["run"], active, follow, events)
        active = {path: follower for path, follower in active.items() if not follower.advance()}
        events.flush()
        if active:
            prepare()  # while they train: at their end somebody may be waiting for the figures
        wait = 0.0 if any(follower.behind for follower in active.values()) else POLL
        if not announcements.open and active:
            if os.getppid() != trainer:  # gone for certain, even if its number has been given to another process
                for follower in active.values():
                    follower.orphaned = True
            time.sleep(wait)
        lines = announcements.read(wait)
    return 0


def _first_lines(announcements: LineReader) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    while not lines and announcements.open:
        lines = announcements.read(POLL)
    return lines


def _import_mlflow() -> None:
    """What following will need; also of a database, which MLflow imports at its first use, unless a server is likely."""
    from dnnkit.sender import follow, store  # noqa: F401

    if artifact_root(resolve_uri(None, Path.cwd(), os.environ), Path.cwd()) is not None:
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def _following(settings: dict[str, Any], events: LineWriter) -> Callable[[Path], Any]:
    """Opens the store; what makes a Follower of a run folder."""
    from dnnkit.sender.follow import Follower
    from dnnkit.sender.store import Store

    store = Store(settings["uri"], None if settings["artifacts"] is None else Path(settings["artifacts"]))
    try:
        _ = store.client
    except Exception as error:  # each run will meet it again and tell its own training process
        print(scrub(f"{store.uri} did not open: {error}", store.uri), file=sys.stderr)
    return lambda run_dir: Follower(run_dir, store, events.write)


def _announced(path: str, active: dict[str, Any], follower: Callable[[Path], Any], events: LineWriter) -> None:
    if path in active:
        return
    try:
        active[path] = follower(Path(path))
    except (DnnkitError, OSError, ValueError) as error:
        events.write({"event": "failed", "run": path, "message": str(error), "final": True})


def _own_output() -> int:
    """The pipe of events, moved away from standard output so that a chatty library cannot write into it."""
    pipe = os.dup(1)
    os.dup2(2, 1)
    return pipe


def _draw(run_dir: Path) -> int:
    RunRecord.read(run_dir)  # or it is no run folder
    said = draw_or_say(run_dir)
    print(said or f"the figures of {run_dir} are up to date")
    return 1 if said else 0


def _report(outcome: Outcome) -> int:
    print(f"{outcome.state}: MLflow run {outcome.run_id}" + (f" ({outcome.message})" if outcome.message else ""))
    return 0 if outcome.state != "failed" else 1


if __name__ == "__main__":
    sys.exit(main())
