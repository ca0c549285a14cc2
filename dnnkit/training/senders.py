"""The result of a run, and settling it with MLflow."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from dnnkit.sender import Sender, Spare

if TYPE_CHECKING:
    from dnnkit.module import Module

log = logging.getLogger("dnnkit")


@dataclass(frozen=True)
class Result:
    """What a run leaves in Python: final metrics by key, the MLflow run's id (None without one), its folder, its module.

    The module holds the best weights. `message` says why MLflow does not have everything, if it does not.
    """

    metrics: Mapping[str, float]
    run_id: str | None
    run_dir: Path
    module: Module
    uuid: str
    tracking_uri: str | None
    message: str = ""


class Senders:
    """The sender processes of this process, one to a tracking URI, and the runs that they have been told of."""

    def __init__(self) -> None:
        self._senders: dict[str, Sender] = {}
        self._runs: dict[Path, tuple[Sender, float]] = {}
        self._spare: Spare | None = None

    def warm(self) -> None:
        """Start a process that imports MLflow while this one imports PyTorch; the first sender is made of it.

        Where no run turns out to need one, `close` ends it, and it has made nothing.
        """
        if self._spare is None and not self._senders:
            self._spare = Spare.start()

    def start(self, uri: str) -> Sender:
        """The sender for this address; started at its first use."""
        if uri not in self._senders:
            spare, self._spare = self._spare, None
            self._senders[uri] = Sender.start(uri, spare=spare)
        return self._senders[uri]

    def announce(self, sender: Sender, run_dir: Path, wait_s: float) -> None:
        """Have a run followed; its end will be waited for up to `wait_s` seconds."""
        self._runs[run_dir] = (sender, wait_s)
        sender.announce(run_dir)

    def settle(self, result: Result) -> Result:
        """The result with what became of it in MLflow, waited for in bounded time."""
        if result.run_dir not in self._runs:
            return result
        sender, wait_s = self._runs.pop(result.run_dir)
        outcome = sender.wait(result.run_dir, wait_s)
        message = outcome.message
        if outcome.state == "waiting":
            message = f"MLflow does not have everything yet after {wait_s:g} s; the sender goes on. {message}".strip()
        if message:
            log.warning("%s", message)
        return replace(result, run_id=outcome.run_id, message=message)

    def close(self) -> None:
        """Let the senders go; they end by themselves once every run is in MLflow. Runs that ended in an error are waited for too."""
        for run_dir, (sender, wait_s) in self._runs.items():
            sender.wait(run_dir, wait_s)
        for sender in self._senders.values():
            sender.close()
        if self._spare is not None:
            self._spare.end()
        self._runs, self._senders, self._spare = {}, {}, None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
