"""dnnkit as its users run it: `dnnkit.train`, with checkpoints, early stopping, bar, run folder, and MLflow through the sender."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl

import dnnkit
from benchmarks.jobs import Boundary, Facts, Job
from benchmarks.meter import EpochMeter


def train(job: Job, boundary: Boundary, *changes: str) -> Facts:
    meter = EpochMeter(boundary)
    with _metered(meter):
        dnnkit.train(dnnkit.compose([*job.overrides(), *changes]))
    return meter.facts


@contextmanager
def _metered(meter: EpochMeter) -> Iterator[None]:
    """Every trainer that fits has the meter as its first callback: dnnkit makes its trainer itself and offers no way in."""
    fit = pl.Trainer.fit

    def metered_fit(trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        trainer.callbacks.insert(0, meter)  # type: ignore[attr-defined]
        fit(trainer, *args, **kwargs)

    pl.Trainer.fit = metered_fit  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        pl.Trainer.fit = fit  # type: ignore[method-assign]
