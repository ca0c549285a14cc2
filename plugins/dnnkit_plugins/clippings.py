"""Clippings: they change gradients in place and return the norm from before, a scalar on the gradients' device."""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Gt
from torch import Tensor, nn

from dnnkit.registry import clippings


@clippings.register("value")
def value(parameters: Sequence[nn.Parameter], threshold: Annotated[float, Gt(0)] = 1.0) -> Tensor:
    """Clip by component: g ← min(max(g, −threshold), threshold): [.9, 100] becomes [.9, 1], another direction.

    Returns the norm of all gradients together, before clipping.
    Source: Mikolov 2012, "Statistical Language Models Based on Neural Networks".
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = nn.utils.get_total_norm(gradients)
    for gradient in gradients:
        gradient.clamp_(-threshold, threshold)
    return total


@clippings.register("norm")
def norm(parameters: Sequence[nn.Parameter], max_norm: Annotated[float, Gt(0)] = 1.0) -> Tensor:
    """Clip by norm: g ← g · min(1, max_norm / (‖g‖₂ + 1e-6)), with one norm for all parameters: [.9, 100] becomes [.009, .99996].

    Returns ‖g‖₂ before clipping. Keras's `clipnorm` has a norm per variable; its `global_clipnorm` is this one.
    Source: Pascanu, Mikolov & Bengio 2013, algorithm 1; the 1e-6 is torch's.
    """
    return nn.utils.clip_grad_norm_(parameters, max_norm)
