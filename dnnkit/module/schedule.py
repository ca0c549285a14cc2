"""The learning rate as a closed form of the step, and of what a watched metric was."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dnnkit.config.schedule import Factor, Schedule, Watcher, Watching

log = logging.getLogger("dnnkit")


class ScheduleLR(LRScheduler):
    """rate(t) = peak · factor(t), t = optimizer steps done, so the rate depends on t and nothing else.

    Where `factor` also gives a momentum, it becomes `momentum` in a group that began with one above 0, `betas[0]` in a
    group that has betas; other optimizers keep what they have (plain SGD stays plain). From the last step on, t stays
    at `total_steps` − 1. With a `watcher` `factor` depends on what it observed too, and its attributes are saved.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], Factor], total_steps: int, watcher: Watcher | None = None) -> None:
        self._factor, self._watcher = factor, watcher
        self._last_step = total_steps - 1
        self._peak = float(optimizer.defaults["lr"])
        self._momentum_keys = [
            "betas" if "betas" in group else "momentum" if group.get("momentum", 0) > 0 else None for group in optimizer.param_groups
        ]
        self.rate = self._peak  # of the next update, before any scale that a parameter group has
        self.momentum: float | None = None  # of the next update; None where the schedule gives none, or no group has one
        super().__init__(optimizer)

    @classmethod
    def of(cls, optimizer: Optimizer, schedule: Schedule, total_steps: int) -> ScheduleLR:
        """A schedule at its beginning; a watcher has observed nothing yet, whatever run it was in before."""
        begun = copy.deepcopy(schedule) if isinstance(schedule, Watching) else schedule
        watcher = begun.watcher if isinstance(begun, Watching) else None
        return cls(optimizer, lambda step: begun(step, total_steps), total_steps, watcher)

    @property
    def monitor(self) -> str | None:
        """The key of the metric that it follows, if it follows one."""
        return None if self._watcher is None else self._watcher.monitor

    def observe(self, value: float, step: int) -> None:
        """Tell the watcher of a measurement after `step` optimizer steps; the next update has the rate that follows."""
        assert self._watcher is not None
        before = self._watcher.factor(step)
        self._watcher.observe(value)
        after = self._watcher.factor(step)
        if after != before:
            was, now = (factor[0] if isinstance(factor, tuple) else factor for factor in (before, after))
            log.info("%s is %g at step %d: the rate goes from %g to %g times its peak", self.monitor, value, step, was, now)
            self.seek(self.last_epoch)

    def put(self, step: int) -> None:
        """Give the optimizer the rate, and the momentum, of the update that follows `step` updates; the schedule stays where it is."""
        self.give(*self.at(step))

    def at(self, step: int) -> tuple[float, float | None]:
        """The factor of the update that follows `step` updates, and the momentum where the schedule has one, as far as is known now."""
        factor = self._factor(min(step, self._last_step))
        return factor if isinstance(factor, tuple) else (factor, None)

    def give(self, factor: float, momentum: float | None) -> None:
        """Give the optimizer the rate that `factor` makes, and the momentum; the schedule stays where it is."""
        self.rate = self._peak * factor
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor
        if momentum is not None:
            self._put_momentum(momentum)

    def seek(self, step: int) -> None:
        """Move to `step` updates done, as that many calls of `step()` would."""
        self.last_epoch, self._step_count = step, step + 1
        self.put(step)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def step(self, epoch: int | None = None) -> None:
        """One update more; `epoch` is torch's name for the place to move to."""
        self.seek(self.last_epoch + 1 if epoch is None else epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The rate of each parameter group."""
        return [base * self.at(self.last_epoch)[0] for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """The number of updates done, from which all else follows, and what a watcher knows."""
        place: dict[str, Any] = {"last_epoch": self.last_epoch}
        return place if self._watcher is None else {**place, "watcher": dict(vars(self._watcher))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Move to a saved place."""
        if self._watcher is not None:
            vars(self._watcher).update(state_dict["watcher"])
        self.seek(state_dict["last_epoch"])

    def _put_momentum(self, momentum: float) -> None:
        for group, key in zip(self.optimizer.param_groups, self._momentum_keys, strict=True):
            if key == "betas":
                group["betas"] = (momentum, *group["betas"][1:])
            elif key == "momentum":
                group["momentum"] = momentum
            else:
                continue
            self.momentum = momentum
