"""One run folder gets its figures at the end of its run, where MLflow is not told of it: nothing here imports MLflow."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dnnkit.errors import DnnkitError
from dnnkit.record import RunRecord
from dnnkit.record.draw import draw


class Drawer:
    """Waits for the end of the run in `run_dir`, one look at a time, draws, and tells `emit`; it stands in for a `Follower`."""

    behind = False  # there is never more to do at once

    def __init__(self, run_dir: Path, emit: Callable[[dict[str, Any]], None]) -> None:
        self._run_dir, self._emit = run_dir, emit
        self.record = RunRecord.read(run_dir)
        self.orphaned = False  # whether the process that announced the run is known to be gone

    def advance(self) -> bool:
        """True once the run has ended, or lost its process, and its figures are drawn, or its folder is gone."""
        try:
            self.record = RunRecord.read(self._run_dir)
        except DnnkitError as error:
            self._tell("failed", message=str(error), final=True)
            return True
        if self.record.status == "RUNNING" and not self.orphaned and not self.record.process_is_gone():
            return False
        said = draw_or_say(self._run_dir)
        if said:
            self._tell("warning", message=said)
        self._tell("drawn")
        return True

    def _tell(self, event: str, **facts: Any) -> None:
        self._emit({"event": event, "run": str(self._run_dir), **facts})


def draw_or_say(run_dir: Path, log: logging.Logger | None = None) -> str:
    """Bring a run's figures up to date; what could not be drawn, and how to try again, in one line, empty where all is well.

    `log` gets the whole story.
    """
    failed = draw(run_dir)
    if log is not None:
        for figure, error in failed:
            log.error("no %s", figure, exc_info=error)
    told = [f"{figure} could not be drawn: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}" for figure, error in failed]
    return "; ".join([*told, f"to try again: python -m dnnkit.sender --figures {run_dir}"] if told else [])
