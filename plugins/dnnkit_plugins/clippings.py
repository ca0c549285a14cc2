"""Clippings: they change gradients in place and return the norm from before, a scalar on the gradients' device."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, linalg, nn

from dnnkit.registry import clippings


@clippings.register("value")
def value(parameters: Sequence[nn.Parameter], threshold: Annotated[float, Gt(0)] = 1.0) -> Tensor:
    """Clip by component: g ← min(max(g, −threshold), threshold): [.9, 100] becomes [.9, 1], another direction.

    Returns the norm of all gradients together, before clipping.
    Source: Mikolov 2012, "Statistical Language Models Based on Neural Networks".
    """
    gradients = _gradients(parameters)
    total = nn.utils.get_total_norm(gradients) if (norms := _norms(gradients)) is None else linalg.vector_norm(norms)
    for gradient in gradients:
        torch.clamp_(gradient, -threshold, threshold)
    return total


@clippings.register("norm")
def norm(parameters: Sequence[nn.Parameter], max_norm: Annotated[float, Gt(0)] = 1.0) -> Tensor:
    """Clip by norm: g ← g · min(1, max_norm / (‖g‖₂ + 1e-6)), with one norm for all parameters: [.9, 100] becomes [.009, .99996].

    Returns ‖g‖₂ before clipping. Keras's `global_clipnorm` is this without the 1e-6, which is torch's: a clipped gradient has
    the norm max_norm · ‖g‖ / (‖g‖ + 1e-6) here: less by a millionth at ‖g‖ = 1, by half at ‖g‖ = 1e-6. Keras's `clipnorm`
    is `per_parameter_norm`.
    Source: Pascanu, Mikolov & Bengio 2013, algorithm 1.
    """
    gradients = _gradients(parameters)
    norms = _norms(gradients)
    if norms is None:
        return nn.utils.clip_grad_norm_(parameters, max_norm)
    total = linalg.vector_norm(norms)
    # torch multiplies by 1 where nothing is to be clipped. Near the bound its own rounding decides; NaN is not below it.
    if not total.item() < 0.99 * max_norm - 1e-6:
        with torch.no_grad():
            torch._foreach_mul_(gradients, (max_norm / (total + 1e-6)).clamp(max=1.0))
    return total


@clippings.register("per_parameter_norm")
def per_parameter_norm(parameters: Sequence[nn.Parameter], max_norm: Annotated[float, Gt(0)] = 1.0) -> Tensor:
    """Clip each by its own norm: g ← g · min(1, max_norm / ‖g‖₂), for every parameter (a layer's weight, its bias, …) alone.

    Parameters with large gradients give way to the others, so the direction of the whole changes, unlike with `norm`.
    Returns the norm of all gradients together, before clipping.
    Source: Keras's `clipnorm`, exactly: without the 1e-6 of torch's clip_grad_norm_.
    """
    gradients = _gradients(parameters)
    norms = _norms(gradients)
    if norms is None:
        total = nn.utils.get_total_norm(gradients)
        for gradient in gradients:
            gradient.mul_((max_norm / linalg.vector_norm(gradient)).clamp(max=1))
        return total
    if not norms.max().item() < 0.99 * max_norm:
        torch._foreach_mul_(gradients, (max_norm / norms).clamp(max=1).unbind())
    return linalg.vector_norm(norms)


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [gradient for parameter in parameters if (gradient := parameter.grad) is not None]


def _norms(gradients: list[Tensor]) -> Tensor | None:
    """‖g‖₂ of every gradient, shape `(gradients,)`, by torch's own kernel; None where they are not all dense, of one type, on the CPU.

    There torch sorts them by device first, and a look at a number would wait for the device. Half types round too much to
    say from the norm alone whether there is anything to clip.
    """
    if not gradients:
        return None
    kind = gradients[0].dtype
    if kind in (torch.float32, torch.float64) and all(
        gradient.is_cpu and gradient.dtype is kind and gradient.layout is torch.strided for gradient in gradients
    ):
        return torch.stack(torch._foreach_norm(gradients, 2.0))
    return None
