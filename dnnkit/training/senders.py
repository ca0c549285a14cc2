"""The processes that tell MLflow of runs and draw their figures, and what became of a run there."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from dnnkit.record.draw import due
from dnnkit.sender import Outcome, Sender, Spare
from dnnkit.training.result import Result

log = logging.getLogger("dnnkit")

#: Seconds for a process that has drawn everything to end: whoever called `train` finds none that is still there.
_LAST_S = 5.0


class Senders:
    """The sender processes of this process, one to a tracking URI and one for runs without, and the runs that they have been told of."""

    def __init__(self) -> None:
        self._senders: dict[str | None, Sender] = {}
        self._runs: dict[Path, tuple[Sender, float]] = {}
        self._spare: Spare | None = None

    def warm(self) -> None:
        """Start a process that imports MLflow while this one imports PyTorch; the first sender is made of it.

        Where no run turns out to need one, `close` ends it, and it has made nothing.
        """
        if self._spare is None and not self._senders:
            self._spare = Spare.start()

    def start(self, uri: str | None) -> Sender:
        """The sender for this address, or the one that only draws; started at its first use."""
        if uri not in self._senders:
            self._senders[uri] = Sender.start(uri, spare=None if uri is None else self._take_spare())
        return self._senders[uri]

    def _take_spare(self) -> Spare | None:
        spare, self._spare = self._spare, None
        return spare

    def announce(self, sender: Sender, run_dir: Path, wait_s: float) -> None:
        """Have a run followed; its end will be waited for up to `wait_s` seconds."""
        self._runs[run_dir] = (sender, wait_s)
        sender.announce(run_dir)

    def settle(self, result: Result) -> Result:
        """The result with what became of it in MLflow and of its figures, waited for in bounded time."""
        if result.run_dir not in self._runs:
            return result
        sender, wait_s = self._runs.pop(result.run_dir)
        outcome = sender.wait(result.run_dir, wait_s)
        message = self._with_figures(_said(outcome, sender.uri, wait_s), outcome, result.run_dir, wait_s)
        if message:
            log.warning("%s", message)
        return replace(result, run_id=outcome.run_id, message=message)

    def _with_figures(self, said: str, outcome: Outcome, run_dir: Path, wait_s: float) -> str:
        """What was said of an outcome, and what is to be said of the figures, which another process draws where the sender could not.

        The sender may not even have started: MLflow is broken here, and figures do not depend on it.
        """
        if outcome.state != "failed" or not due(run_dir):
            return said
        drawer = self.start(None)
        drawer.announce(run_dir)
        return "; ".join(filter(None, (said, _said(drawer.wait(run_dir, wait_s), None, wait_s))))

    def close(self) -> None:
        """Let the senders go, which end by themselves once every run is in MLflow.

        Jobs of a sweep, and runs that ended in an error, are waited for.
        """
        for run_dir, (sender, wait_s) in self._runs.items():
            outcome = sender.wait(run_dir, wait_s)
            message = self._with_figures(outcome.message, outcome, run_dir, wait_s)
            if message:
                log.warning("%s: %s", run_dir.name, message)
        for sender in self._senders.values():
            sender.close(_LAST_S if sender.uri is None else 0.0)
        if self._spare is not None:
            self._spare.end()
        self._runs, self._senders, self._spare = {}, {}, None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _said(outcome: Outcome, uri: str | None, wait_s: float) -> str:
    """What is to be said of an outcome that was waited for; empty where all is well."""
    if outcome.state != "waiting":
        return outcome.message
    missing = "not all figures are drawn yet" if uri is None else "MLflow does not have everything yet"
    return f"{missing} after {wait_s:g} s; the sender goes on. {outcome.message}".strip()
