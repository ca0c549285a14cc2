"""Points on their way into MLflow: what a way is, and the one that every store has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from dnnkit.record import Row


class Way(Protocol):
    """Brings rows to MLflow; rows that it holds already, with the same time and value, are left alone."""

    most: int  # rows that are best sent at once

    def send(self, run_id: str, timestamp: int, rows: Sequence[Row]) -> None:
        """Returns once MLflow has all `rows`, with `timestamp` (ms since 1970). Raises MlflowException."""


class Plain:
    """By `log_batch`, to any store."""

    most = 1000  # MLflow's own limit; it divides what is more

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def send(self, run_id: str, timestamp: int, rows: Sequence[Row]) -> None:
        """As `Way` says."""
        metrics = [Metric(row.key, row.value, timestamp, row.step) for row in rows]
        # Whatever MLFLOW_ENABLE_ASYNC_LOGGING says: rows are noted as arrived when this returns.
        self._client.log_batch(run_id, metrics=metrics, synchronous=True)
