"""Clippings: they change gradients in place and return the norm from before, a scalar on the gradients' device."""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Gt
from torch import Tensor, linalg, nn

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

    Returns ‖g‖₂ before clipping. Keras's `global_clipnorm` is this without the 1e-6, which is torch's: a clipped gradient has
    the norm max_norm · ‖g‖ / (‖g‖ + 1e-6) here: less by a millionth at ‖g‖ = 1, by half at ‖g‖ = 1e-6. Keras's `clipnorm`
    is `per_parameter_norm`.
    Source: Pascanu, Mikolov & Bengio 2013, algorithm 1.
    """
    return nn.utils.clip_grad_norm_(parameters, max_norm)


@clippings.register("per_parameter_norm")
def per_parameter_norm(parameters: Sequence[nn.Parameter], max_norm: Annotated[float, Gt(0)] = 1.0) -> Tensor:
    """Clip each by its own norm: g ← g · min(1, max_norm / ‖g‖₂), for every parameter (a layer's weight, its bias, …) alone.

    Parameters with large gradients give way to the others, so the direction of the whole changes, unlike with `norm`.
    Returns the norm of all gradients together, before clipping.
    Source: Keras's `clipnorm`, exactly: without the 1e-6 of torch's clip_grad_norm_.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = nn.utils.get_total_norm(gradients)
    for gradient in gradients:
        gradient.mul_((max_norm / linalg.vector_norm(gradient)).clamp(max=1))
    return total
