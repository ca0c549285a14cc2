"""The rates and momenta that a run will have, step by step, before it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dnnkit.config import Config
from dnnkit.config.groups import entries
from dnnkit.config.schedule import WarmUp, schedule_of, watched
from dnnkit.data.download import offline
from dnnkit.errors import DataError
from dnnkit.network import component
from dnnkit.record.curves import Curve
from dnnkit.training.assemble import load_data
from dnnkit.training.scheduling import check_steps, total_steps

#: Of a longer run every so many-th step is looked at, so that a figure never takes longer than seconds.
MOST_STEPS = 1_000_000


@dataclass
class Planned:
    """One number over the optimizer steps of a run; step t is that of the update which follows t others.

    `curve` holds every step of up to 2,400, of more what a figure can show. `peak` is the highest value, `peak_step` the first step
    that has it.
    """

    curve: Curve = field(default_factory=Curve)
    start: float = 0.0
    peak: float = -1.0
    peak_step: int = 0
    end: float = 0.0

    def add(self, step: int, value: float) -> None:
        """Append one step."""
        self.curve.add(step, value)
        self.start = value if step == 0 else self.start
        if value > self.peak:
            self.peak, self.peak_step = value, step
        self.end = value


@dataclass(frozen=True)
class Plan:
    """What a run's schedule and optimizer will do: `rate` is that of a parameter in no group, `scales` those of the others by group.

    `momentum` is None where the optimizer has none. `follows`: the metric that changes the rate in a way that nobody knows before; the
    rate is then drawn as if the metric got better every time.
    """

    scheduler: str
    total: int
    epochs: int
    warmup: int
    rate: Planned
    momentum: Planned | None
    scales: Mapping[str, float]
    follows: str | None


def training_rows(cfg: Config) -> int:
    """How many examples a run would be trained on. Nothing is downloaded: DataError where they would have to be."""
    with offline() as missing:
        try:
            return len(load_data(cfg).train.y)
        except DataError as error:
            if not missing:
                raise
            name = cfg.data.name
            cure = f"--steps N says how many optimizer steps the run has; dnnkit data={name} downloads the data and trains."
            raise DataError(f"data={name} is not on this machine, so the length of the run is not known", cure) from error


def plan(cfg: Config, total: int | None = None) -> Plan:
    """The plan of a run of `total` optimizer steps; None: as many as its data make.

    Raises DataError as `training_rows`, ConfigError and PluginError as the run would for its schedule.
    """
    total = total_steps(cfg, training_rows(cfg)) if total is None else total
    check_steps(cfg, total)
    schedule, node = schedule_of(cfg.scheduler), cfg.scheduler
    own = _momentum(cfg.optimizer)
    rate, momentum = Planned(), None if own is None else Planned()
    for step in _looked_at(total):
        found = schedule(step, total)
        factor, cycled = found if isinstance(found, tuple) else (found, None)
        rate.add(step, cfg.optimizer.lr * factor)
        if momentum is not None and own is not None:
            momentum.add(step, own if cycled is None else cycled)
    length = WarmUp(node.warmup_steps, node.warmup_start_factor).length(total) if node.warmup_steps else 0
    scales = {str(entry): entry.lr_scale for entry in entries(cfg.optimizer) if entry.lr_scale != 1}
    return Plan(node.name, total, cfg.trainer.max_epochs, length, rate, momentum, scales, watched(node))


def _looked_at(total: int) -> list[int]:
    """The steps to look at, the first and the last among them."""
    steps = list(range(0, total, -(-total // MOST_STEPS)))
    return steps if steps[-1] == total - 1 else [*steps, total - 1]


def _momentum(optimizer: Mapping[str, Any]) -> float | None:
    """The momentum that the optimizer begins with, or its first beta; None where it has neither, and then no schedule gives it one."""
    make = component("optimizer", optimizer)
    assert make is not None
    (group, *_) = make([torch.nn.Parameter(torch.zeros(2, 2))]).param_groups
    if "betas" in group:
        return float(group["betas"][0])
    return float(group["momentum"]) if group.get("momentum", 0) > 0 else None
