"""The training process's side of the sender: starts it, announces run folders, hears what became of them.

Imports no MLflow. Nothing here waits unless it is given a time to wait, and nothing that happens to the sender ends a run.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, Self

from dnnkit.record.identity import scrub
from dnnkit.sender.address import artifact_root
from dnnkit.sender.lines import LineReader, LineWriter

log = logging.getLogger(__name__)

# For the sender alone, unless the user has set them: a server that is down is known in seconds, not in minutes.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True)
class Outcome:
    """What the sender has said of one run.

    `state`: `closed` (MLflow has everything; without MLflow, the figures are drawn), `failed` (given up; the folder can be synced
    later), `waiting` (not done yet). `message`: why it failed, or a warning such as a figure that could not be drawn.
    """

    state: Literal["closed", "failed", "waiting"] = "waiting"
    run_id: str | None = None
    message: str = ""


def after(event: Mapping[str, Any], known: Outcome) -> Outcome:
    """What is known of a run after one of the sender's events."""
    match event["event"]:
        case "created":
            return replace(known, run_id=event["run_id"], message="")
        case "closed":
            return replace(known, run_id=event["run_id"], state="closed")
        case "drawn":
            return replace(known, state="closed")
        case "failed":
            return replace(known, message=event["message"], state="failed" if event["final"] else "waiting")
        case _:
            return replace(known, message=event["message"])


class Spare:
    """A sender process that imports MLflow and has been told nothing yet: it makes nothing, and `end` leaves no trace of it."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self.process, self.errors = process, errors

    @classmethod
    def start(cls) -> Self | None:
        """Starts it in the working folder, with this process's environment, and returns at once; None where it cannot start.

        A sender that cannot start is no news yet: whoever needs one will try again, and say so.
        """
        try:
            return cls(*_spawn(Path.cwd(), os.environ))
        except OSError:
            return None

    def end(self) -> None:
        """Nobody needs it."""
        self.process.kill()  # it holds nothing that could be torn
        self.process.communicate()
        self.errors.close()


class Sender:
    """A running sender process. Start one with `Sender.start`; one serves any number of runs."""

    def __init__(self, uri: str | None, process: subprocess.Popen[bytes] | None, errors: IO[bytes] | None, problem: str = "") -> None:
        self.uri = uri
        self._process = process
        self._errors = errors
        self._problem = problem
        self._out = LineWriter(process.stdin.fileno() if process is not None and process.stdin is not None else None)
        self._in = LineReader(process.stdout.fileno() if process is not None and process.stdout is not None else None)
        self._outcomes: dict[str, Outcome] = {}

    @classmethod
    def start(
        cls,
        uri: str | None,
        *,
        artifacts: Path | None = None,
        cwd: Path | None = None,
        environ: Mapping[str, str] = os.environ,
        spare: Spare | None = None,
    ) -> Self:
        """Starts the process, in a session of its own so that Ctrl-C does not reach it, and returns at once.

        `uri`: as `resolve_uri` gives it, credentials included; it travels through the pipe, where no process list shows it. None:
        there is no MLflow, which is not imported; the process draws the figures.
        `artifacts`: where they lie; default `artifact_root(uri, cwd)`. A sender that cannot start is reported by `wait`.
        `spare`: a process that has been started already; it belongs to this sender from now on.
        """
        folder = Path.cwd() if cwd is None else cwd
        try:
            sender = cls(uri, *(_spawn(folder, environ, uri is None) if spare is None else (spare.process, spare.errors)))
        except OSError as error:
            return cls(uri, None, None, f"the sender could not be started: {error}")
        if uri is None:
            return sender
        root = artifact_root(uri, folder) if artifacts is None else artifacts
        sender._out.write({"uri": uri, "artifacts": None if root is None else str(root)})
        return sender

    def announce(self, run_dir: Path) -> None:
        """Names a run folder to follow from now on; its config, environment, tags and data set are written by then."""
        self._outcomes[_key(run_dir)] = Outcome()
        self._out.write({"run": _key(run_dir)})

    def run_id(self, run_dir: Path) -> str | None:
        """The MLflow run's id, or None as long as the run has not been created there."""
        return self.outcome(run_dir).run_id

    def outcome(self, run_dir: Path) -> Outcome:
        """What is known now, without waiting."""
        self._hear(0)
        return self._outcomes.get(_key(run_dir), Outcome())

    def wait(self, run_dir: Path, timeout: float) -> Outcome:
        """Waits, at most `timeout` seconds, until the run is closed in MLflow or given up. Call it after `RunFolder.finish`."""
        deadline = time.monotonic() + timeout
        self._out.write({"wake": True})
        while (outcome := self.outcome(run_dir)).state == "waiting":
            left = deadline - time.monotonic()
            if left <= 0:
                return outcome
            if not self._in.open:
                return replace(outcome, state="failed", message=self._last_words(left))
            self._hear(min(left, 1.0))
        return outcome

    def close(self, timeout: float = 0.0) -> None:
        """Lets go of the sender, which ends by itself once all its runs are closed; waits for that up to `timeout` seconds."""
        self._hear(0)
        self._out.open = self._in.open = False
        if self._process is None or self._process.stdin is None or self._process.stdout is None or self._errors is None:
            return
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            log.info("the sender (process %d) goes on by itself", self._process.pid)
        self._errors.close()

    def _hear(self, timeout: float) -> None:
        """Takes in the events that have arrived."""
        self._out.flush()
        for event in self._in.read(timeout):
            self._outcomes[event["run"]] = after(event, self._outcomes.get(event["run"], Outcome()))

    def _last_words(self, timeout: float) -> str:
        """Why there is no sender any more: what it left on its standard error."""
        if self._process is None or self._errors is None:
            return self._problem
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return "the sender has closed its pipe"
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return scrub(f"the sender ended with code {code}" + (f": {lines[-1]}" if lines else ""), self.uri or "")


def _spawn(folder: Path, environ: Mapping[str, str], figures_alone: bool = False) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """The process and the file without a name that takes its standard error. Raises OSError."""
    # The sender finds dnnkit where this process did: from the working folder only if this process looks there too.
    safe_path = [] if {"", str(folder)} & set(sys.path) else ["-P"]
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - the process writes into it as long as it lives
    try:
        process = subprocess.Popen(
            [sys.executable, *safe_path, "-m", "dnnkit.sender", "--follow", *(["--figures"] if figures_alone else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=folder,
            env={**PATIENCE, **environ},
            start_new_session=True,
        )
    except OSError:
        errors.close()
        raise
    return process, errors


def _key(run_dir: Path) -> str:
    return str(Path(run_dir).absolute())
