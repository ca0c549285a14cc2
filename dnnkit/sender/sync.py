"""Bringing one existing run folder up to date in MLflow, in this process."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from dnnkit.record import RunRecord
from dnnkit.sender.address import artifact_root, resolve_uri, uri_of
from dnnkit.sender.client import Outcome, after


def sync(run_dir: Path, uri: str | None = None) -> Outcome:
    """Sends what MLflow does not have yet of the run in `run_dir`; imports MLflow.

    `uri`: default the address that the run was recorded to. A run that is still going is sent as far as it is and stays
    open (`waiting`); one whose process is gone is closed as KILLED. Raises DiskError where `run_dir` is no run folder.
    """
    from dnnkit.sender.follow import Follower
    from dnnkit.sender.store import Store

    folder, cwd = Path(run_dir).absolute(), Path.cwd()
    record = RunRecord.read(folder)
    address = uri_of(record, cwd, os.environ) if uri is None else resolve_uri(uri, cwd, os.environ)
    outcome = Outcome()

    def hear(event: dict[str, Any]) -> None:
        nonlocal outcome
        outcome = after(event, outcome)

    follower = Follower(folder, Store(address, artifact_root(address, cwd)), hear)
    try:
        while not follower.advance() and (follower.behind or follower.record.status != "RUNNING"):
            time.sleep(0.0 if follower.behind else 0.1)
    finally:
        follower.release()
    return outcome
