"""Noticing at once that a loss or a gradient is no longer finite."""

from __future__ import annotations

import cmath

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import Parameter

from dnnkit.errors import DivergedError
from dnnkit.module.gather import several
from dnnkit.module.groups import gradient_norm
from dnnkit.module.task import Outcome

_CURE = "lower optimizer.lr or use clipping=norm"


class Guard:
    """Ends a run at the minibatch whose loss, or at the update whose gradient, is not finite, before anything is updated with it.

    On a CPU, that is. A GPU would have to be waited for, and of a minibatch that several devices share each sees a part of the
    loss: there it is noticed where a window ends, at the latest. Of a gradient whose norm nobody asks for, a small part that every
    other part of it runs through is looked at, the first trained vector's; the rest shows in the next minibatch's loss.
    """

    def __init__(self) -> None:
        self.broke_off = False  # before the update at hand was made
        self._losses = self._gradients = False
        self.telltale: Parameter | None = None  # whose gradient stands for all
        self._parameters: list[Parameter] = []

    def begin(self, module: pl.LightningModule) -> None:
        """A fit begins, with the module where it will be trained."""
        scaled = getattr(module.trainer.precision_plugin, "scaler", None) is not None  # it has updates left out where they are not finite
        self.broke_off = False
        self._gradients = costs_nothing(module.device) and not scaled
        self._losses = self._gradients and not several()
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        vectors = [parameter for parameter in self._parameters if parameter.ndim == 1]
        self.telltale = next(iter([*vectors, *self._parameters]), None) if self._gradients else None

    def see_loss(self, outcome: Outcome, step: int) -> None:
        """The loss of a minibatch of the update that makes `step`. Raises DivergedError."""
        if self._losses and not cmath.isfinite(outcome.total.item()):
            key, value = ("train/loss", outcome.loss) if not torch.isfinite(outcome.loss) else ("train/penalty", outcome.penalty)
            raise self._broken_off(key, outcome.total if value is None else value, step)

    def see_gradient(self, norm: Tensor | None, step: int) -> None:
        """The gradient of the update that makes `step`, by its norm where that is known. Raises DivergedError."""
        if not self._gradients:
            return
        if norm is None:
            telltale = self.telltale
            if telltale is None or telltale.grad is None or sound(telltale.grad):
                return
            norm = gradient_norm(self._parameters)
        if not cmath.isfinite(norm.item()):
            raise self._broken_off("grad_norm", norm, step)

    def _broken_off(self, key: str, value: Tensor, step: int) -> DivergedError:
        self.broke_off = True
        return diverged(key, value.detach().item(), step)


def sound(gradient: Tensor) -> bool:
    """Whether its sum is finite: then all of it is."""
    return cmath.isfinite(gradient.sum().item())


def costs_nothing(device: torch.device) -> bool:
    """Whether a number on the device can be looked at without waiting for what is under way there."""
    return device.type == "cpu"


def check_finite(key: str, value: float, step: int) -> None:
    """Raises DivergedError."""
    if not cmath.isfinite(value):
        raise diverged(key, value, step)


def diverged(key: str, value: float, step: int) -> DivergedError:
    """What is raised where `key` is `value` at `step`."""
    return DivergedError(f"training diverged: {key} is {value} at step {step}", _CURE)
