"""The learning rate as a closed form of the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Factor = float | tuple[float, float]
"""What a schedule gives for a step: the factor of the peak rate, or that and the momentum."""


class ScheduleLR(LRScheduler):
    """rate(t) = peak · factor(t), t = optimizer steps done, so the rate depends on t and nothing else.

    Where `factor` also gives a momentum, it becomes `momentum` in a group that began with one above 0, `betas[0]` in a
    group that has betas; other optimizers keep what they have (plain SGD stays plain). From the last step on, t stays
    at `total_steps` − 1. `factor` is asked afresh at each step, so it may also be a method of an object that watches a metric.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], Factor], total_steps: int) -> None:
        self._factor = factor
        self._last_step = total_steps - 1
        self._peak = float(optimizer.defaults["lr"])
        self._momentum_keys = [
            "betas" if "betas" in group else "momentum" if group.get("momentum", 0) > 0 else None for group in optimizer.param_groups
        ]
        self.rate = self._peak  # of the next update, before any scale that a parameter group has
        super().__init__(optimizer)

    def put(self, step: int) -> None:
        """Give the optimizer the rate, and the momentum, of the update that follows `step` updates; the schedule stays where it is."""
        factor, momentum = self._at(step)
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
        return [base * self._at(self.last_epoch)[0] for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """The number of updates done: all else follows from it."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Move to a saved place."""
        self.seek(state_dict["last_epoch"])

    def _at(self, step: int) -> tuple[float, float | None]:
        factor = self._factor(min(step, self._last_step))
        return factor if isinstance(factor, tuple) else (factor, None)

    def _put_momentum(self, momentum: float) -> None:
        for group, key in zip(self.optimizer.param_groups, self._momentum_keys, strict=True):
            if key == "betas":
                group["betas"] = (momentum, *group["betas"][1:])
            elif key == "momentum":
                group["momentum"] = momentum
