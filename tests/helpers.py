"""What several test files need, and no fixture has to set up."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

PATIENT = 120.0  # seconds that a loaded machine may take for what takes five


def ask(folder: Path, question: str) -> list[tuple[Any, ...]]:
    """The rows with which the database `mlflow.db` in a folder answers, read without MLflow."""
    connection = sqlite3.connect(folder / "mlflow.db", timeout=30)
    try:
        return connection.execute(question).fetchall()
    finally:
        connection.close()


def eventually(condition: Callable[[], Any], timeout: float = PATIENT) -> Any:
    """What `condition` gives, as soon as that is true; the test fails where it does not come to that in time."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return value


def as_rank(find: Callable[[int], dict[str, Any]], rank: int, folder: Path) -> None:
    """One of two processes with a process group between them: what it has found is `<rank>.pt` in the folder; the process ends."""
    import torch
    import torch.distributed as dist

    from dnnkit import worker

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    torch.save(find(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()
    worker.leave(0)
