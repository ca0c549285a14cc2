"""dnnkit as its users run it: `dnnkit.train`, with checkpoints, early stopping, bar, run folder, and MLflow through the sender."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

import dnnkit
from benchmarks.contenders.of_lightning import EpochMeter
from benchmarks.jobs import Boundary, Facts, Work
from dnnkit import plugins
from dnnkit.registry import REGISTRIES, metrics


def train(work: Work, boundary: Boundary, *changes: str) -> Facts:
    meter = EpochMeter(boundary, work.epochs)
    with _metered(meter):
        run = dnnkit.train(dnnkit.compose([*work.overrides(), *_metrics(work.metrics), *changes])).run_dir
    engine = json.loads((run / "environment" / "engine.json").read_text("utf-8"))
    return {**meter.facts, "as_graph": float(engine["used"] != "eager")}


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


def _metrics(wanted: int) -> list[str]:
    """`acc`, then accuracies among the k likeliest: a name is measured once, so each k is a component of its own."""
    if wanted == 1:
        return []
    plugins.load()
    names = [f"among_{k}" for k in range(2, wanted + 1)]
    for k, name in enumerate(names, 2):
        if name not in REGISTRIES["metrics"]:
            _register(name, k)
    return [f"metrics=[{','.join(['acc', *names])}]"]


def _register(name: str, k: int) -> None:
    def among(prediction: Tensor, target: Tensor) -> Tensor:
        """The share of samples whose target is among the k largest logits."""
        return (prediction.topk(k, 1).indices == target[:, None]).any(1).float().mean()

    metrics.register(name, tasks=["classification"], better="higher", mean=True)(among)
