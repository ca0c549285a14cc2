"""What a scheduler's node means: a function of the optimizer step, with its warm-up, and the metric that it may follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

from dnnkit.errors import ConfigError, Problem, nearest
from dnnkit.registry import REGISTRIES
from dnnkit.schema import Keyed, own_values

Factor = float | tuple[float, float]
"""What a schedule gives for a step: the factor of the peak rate, or that and the momentum."""

Schedule = Callable[[int, int], Factor]
"""(optimizer steps done, total optimizer steps) to the factor."""


class Watcher(Protocol):
    """A schedule that follows a metric, by its key: `val/loss`. Its attributes are plain values, which go into checkpoints."""

    monitor: str

    def factor(self, step: int) -> Factor:
        """What the rate is multiplied by after `step` optimizer steps, as far as is known now."""

    def observe(self, value: float) -> None:
        """Take a measurement of the metric."""


@dataclass(frozen=True)
class WarmUp:
    """A linear climb over the first `steps` optimizer steps, or that share of the run, rounded down, from `start_factor` on."""

    steps: int | float = 0
    start_factor: float = 0.0

    def length(self, total: int) -> int:
        """Its optimizer steps in a run of `total`. ConfigError where none are left after it."""
        # A share just below a whole number of steps is that number: 0.29 · 100 is 28.999….
        length = self.steps if isinstance(self.steps, int) else math.floor(self.steps * total + 1e-9)
        if length >= total:
            message = f"must be less than the {total} optimizer steps of the run, got {self.steps}"
            raise ConfigError([Problem("scheduler.warmup_steps", message, ("scheduler.warmup_steps=0.1",))])
        return length

    def at(self, step: int, total: int) -> float:
        """start_factor + (1 − start_factor) · step / length, and 1 from `length` on."""
        length = self.length(total)
        return 1.0 if step >= length else self.start_factor + (1 - self.start_factor) * step / length


def warmed_up(schedule: Schedule, warmup: WarmUp) -> Schedule:
    """The schedule over the steps that are left after a climb to its first value. Its momentum waits at its first value."""

    def warm(step: int, total: int) -> Factor:
        length = warmup.length(total)
        if step >= length:
            return schedule(step - length, total - length)
        return _times(schedule(0, total - length), warmup.at(step, total))

    return schedule if warmup.steps == 0 else warm


class Watching:
    """A watcher as a schedule; a warm-up multiplies its factor."""

    def __init__(self, watcher: Watcher, warmup: WarmUp = WarmUp()) -> None:
        self.watcher, self.warmup = watcher, warmup

    def __call__(self, step: int, total: int) -> Factor:
        """The factor after `step` of `total` optimizer steps."""
        return _times(self.watcher.factor(step), self.warmup.at(step, total))


def _times(factor: Factor, by: float) -> Factor:
    return (factor[0] * by, factor[1]) if isinstance(factor, tuple) else factor * by


def schedule_of(node: Mapping[str, Any]) -> Schedule:
    """The schedule that a valid node `{"name": …, settings}` names; one that watches a metric has observed nothing yet."""
    record, settings = REGISTRIES["scheduler"].get(node["name"]), own_values("scheduler", node)
    warmup = WarmUp(node["warmup_steps"], node["warmup_start_factor"])
    if not record.watches:
        return warmed_up(partial(record.function, **settings), warmup)
    offered = {"mode": direction(node["monitor"])} if "mode" in record.offered else {}
    return Watching(record.function(**settings, **offered), warmup)


def watched(node: Mapping[str, Any]) -> str | None:
    """The key of the metric that the scheduler of a valid node watches, if it watches one."""
    return str(node["monitor"]) if REGISTRIES["scheduler"].get(node["name"]).watches else None


def direction(key: str) -> Literal["min", "max"]:
    """Whether less or more is better of what is measured as `val/loss` or `train/acc`: a metric says so itself, losses are lower."""
    name = key.partition("/")[2]
    rises = name in REGISTRIES["metrics"] and REGISTRIES["metrics"].get(name).facts.get("better", "higher") == "higher"
    return "max" if rises else "min"


def to_measure(name: str, config: Keyed, metrics: Sequence[str], task: str) -> str:
    """What to say of a metric that a run does not measure beside `metrics`: how it would, or that it is for other tasks."""
    fitting = _tasks(name)
    if task != "auto" and task not in fitting:
        return f"{name} is for {' and '.join(sorted(fitting))}, the task is {task}"
    together = [] if task == "auto" and config["metrics"] == "auto" else [other for other in metrics if _tasks(other) & fitting]
    return f"name the metrics as metrics=[{','.join([*together, name])}]"


def _tasks(metric: str) -> frozenset[str]:
    return frozenset(REGISTRIES["metrics"].get(metric).facts.get("tasks", REGISTRIES["task"].names()))


def watch_problems(config: Keyed, metrics: Sequence[str], task: str) -> list[Problem]:
    """What is wrong with the metric that the scheduler watches, of a run that measures the loss and `metrics`."""
    key = watched(config["scheduler"])
    monitors = [f"{stage}/{name}" for stage in ("val", "train") for name in ("loss", *metrics)]
    monitors += ["train/penalty"] * (config["regularizer"]["name"] != "none")
    if key is None or key in monitors:
        return []
    stage, _, name = key.partition("/")
    sure = task != "auto" or config["metrics"] != "auto"
    message = f"must be one of {', '.join(monitors)}, which this run {'measures' if sure else 'may measure'}, got {key!r}"
    if stage == "test":
        message += "; the test split is kept for the end"
    if stage in ("val", "train") and name in REGISTRIES["metrics"]:
        return [Problem("scheduler.monitor", f"{message}; {to_measure(name, config, metrics, task)}")]
    close = tuple(other for other in monitors if other.partition("/")[2] in (name, key))
    return [Problem("scheduler.monitor", message, close or nearest(key, monitors))]
