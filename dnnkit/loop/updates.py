"""From the gradients that a captured step gives to an update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from dnnkit.loop.program import Unrecorded
from dnnkit.module import Module
from dnnkit.module.gather import several
from dnnkit.module.guard import sound

Direct = Callable[[Sequence[Tensor]], None]
"""An update as a function of the gradients, to be called without recording any."""


class Updates:
    """Leaves gradients in `grad`, as backward would, and has them clipped and the optimizer step.

    Where nobody could see it, within a chunk, that way is cut short: an optimizer that offers
    `direct(weights) -> (gradients) -> None` is handed the gradients themselves. A chunk's first update goes the whole way, so
    that whatever has changed between chunks is noticed, and so does its last, which leaves everything as it would be.
    """

    def __init__(self, trainer: pl.Trainer, module: Module) -> None:
        self._trainer, self._module = trainer, module
        self.begin_chunk()

    def begin_chunk(self) -> None:
        """Somebody may have changed the optimizer, or anything else."""
        self._optimizer = self._trainer.optimizers[0]
        self._parameters: list[Parameter] = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        self._direct: Direct | None = None
        self._open = True  # whether it is yet to be found out if the way can be cut short
        self._telltale: int | None = None

    @property
    def cut_short(self) -> bool:
        """Whether nothing but the optimizer's kernels has touched a weight since the last minibatch."""
        return self._direct is not None

    def clear(self) -> None:
        """Before the gradient of a group of minibatches is computed."""
        if self._direct is None:
            self._forget()

    def take(self, weights: list[Parameter], gradients: list[Tensor], closes: bool) -> None:
        """The gradients of `weights` by one minibatch, the last of its group if it `closes`."""
        window = self._module.window
        if self._direct is not None and not window.last and (self._telltale is None or sound(gradients[self._telltale])):
            with Unrecorded():
                self._direct(gradients)
            return
        if self._direct is not None:
            self._forget()
        _add(weights, gradients)
        if not closes:
            return
        if several():
            _average(weights, self._trainer.world_size)
        trainer, optimizer = self._trainer, self._optimizer
        self._module.configure_gradient_clipping(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
        optimizer.step()
        if self._open and not window.last:
            self._open = False
            self._cut_short(weights)

    def _cut_short(self, weights: list[Parameter]) -> None:
        offered: Any = getattr(self._optimizer, "direct", None)
        if offered is None or not self._unseen():
            return
        telltale = self._module.guard.telltale
        self._telltale = next((place for place, weight in enumerate(weights) if weight is telltale), None)
        self._direct = offered(weights)
        if self._direct is not None:
            self._forget()

    def _forget(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _unseen(self) -> bool:
        """Whether nobody else has anything to do with a gradient or a weight before the chunk's last update."""
        module, trainer = self._module, self._trainer
        return (
            trainer.accumulate_grad_batches == 1
            and not several()
            and module.clips_nothing
            and not trainer.gradient_clip_val
            and module.recipe.constrain is None
            and as_defined(module, "configure_gradient_clipping")
        )


def as_defined(module: Module, *names: str) -> bool:
    """Whether neither its class nor itself has another method of these names than `Module`."""
    return all(getattr(getattr(module, name), "__func__", None) is getattr(Module, name) for name in names)


def _add(parameters: list[Parameter], gradients: list[Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if parameter.grad is None:
            parameter.grad = gradient
        else:
            with torch.no_grad():
                parameter.grad.add_(gradient)


def _average(parameters: list[Parameter], world: int) -> None:
    """The mean of the gradients over all ranks, in one exchange for each type of number."""
    for dtype in sorted({parameter.dtype for parameter in parameters}, key=str):
        gradients = [parameter.grad for parameter in parameters if parameter.dtype == dtype and parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients]).mul_(1 / world)
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, torch.split(flat, [gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
