"""From the scheduler's node to the schedule of a run, whose length is known now."""

from __future__ import annotations

import logging
import math

from dnnkit.config import Config
from dnnkit.config.lengths import minibatches
from dnnkit.config.schedule import Factor, Schedule, WarmUp, schedule_of
from dnnkit.data import DataSet
from dnnkit.errors import PluginError
from dnnkit.registry import REGISTRIES
from dnnkit.schema import Keyed

log = logging.getLogger("dnnkit")


def total_steps(config: Keyed, rows: int) -> int:
    """The optimizer steps of a run on so many training examples: updates, of which an epoch's end makes one for what is left."""
    trainer = config["trainer"]
    return int(trainer["max_epochs"] * math.ceil(minibatches(config, rows) / trainer["accumulate_grad_batches"]))


def make_schedule(cfg: Config, rows: int) -> Schedule:
    """The schedule of a run on so many training examples; a warm-up is logged."""
    node, total = cfg.scheduler, total_steps(cfg, rows)
    if node.warmup_steps:
        length = WarmUp(node.warmup_steps, node.warmup_start_factor).length(total)
        log.info("warm-up: %d of %d optimizer steps, then %s over the others", length, total, node.name)
    return schedule_of(node)


def check_schedule(cfg: Config, data: DataSet) -> None:
    """What `check_steps` raises for a run on these data."""
    check_steps(cfg, total_steps(cfg, len(data.train.y)))


def check_steps(cfg: Config, total: int) -> None:
    """Whatever the schedule raises for a run of `total` optimizer steps, such as ConfigError for a warm-up that is as long.

    Raises PluginError for one that gives anything but a factor, or a factor and a momentum.
    """
    node = cfg.scheduler
    schedule = schedule_of(node)
    for step in sorted({0, total - 1}):
        value = schedule(step, total)
        if not _is_factor(value):
            record = REGISTRIES["scheduler"].get(node.name)
            rule = "has to give a finite factor of at least 0, or that and a momentum in [0, 1)"
            raise PluginError(f"scheduler={record.name} ({record.origin}) {rule}, at step {step} of {total} it gave {value!r}")


def _is_factor(value: Factor) -> bool:
    factor, momentum = value if isinstance(value, tuple) and len(value) == 2 else (value, 0.0)
    numbers = all(isinstance(number, int | float) and math.isfinite(number) for number in (factor, momentum))
    return numbers and factor >= 0 and 0 <= momentum < 1
