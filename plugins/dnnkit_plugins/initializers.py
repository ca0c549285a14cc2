"""Initializers: they fill a weight in place, drawn from torch's default generator, and return it.

The weight has shape `(out, in)` or `(out, in, *kernel)`, of any floating dtype, on any device. Its fans are those of
`torch.nn.init`: fan_in = in · kernel area, fan_out = out · kernel area. Biases are zero, which the builder sees to.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from dnnkit.registry import initializers

#: Standard deviation of N(0, 1) cut at ±2.
TRUNCATED_STD = 0.87962566103423978

Normal = Literal["truncated_normal", "normal"]


@initializers.register("variance_scaling")
def variance_scaling(
    weight: Tensor,
    scale: Annotated[float, Gt(0)] = 1.0,
    mode: Literal["fan_in", "fan_out", "fan_avg"] = "fan_in",
    distribution: Literal["truncated_normal", "normal", "uniform"] = "truncated_normal",
) -> Tensor:
    """Zero mean and variance scale / n, where n is fan_in, fan_out or their mean.

    `normal` is N(0, scale/n). `truncated_normal` is the normal law of deviation s = √(scale/n) / 0.8796 cut at ±2s, which
    leaves variance scale/n. `uniform` is U(−r, r) with r = √(3 · scale/n).
    Source: He et al. 2015, eq. 10, and Glorot & Bengio 2010, eq. 16, are cases of it; defaults as in Keras.
    """
    std = math.sqrt(scale / _fan(weight, mode))
    if distribution == "uniform":
        return uniform(weight, math.sqrt(3) * std)
    if distribution == "normal":
        return normal(weight, std)
    wide = std / TRUNCATED_STD
    return _drawn(weight, lambda draft: torch.nn.init.trunc_normal_(draft, 0, wide, -2 * wide, 2 * wide))


@initializers.register("glorot_normal")
def glorot_normal(weight: Tensor, distribution: Normal = "truncated_normal") -> Tensor:
    """Zero mean and variance 2 / (fan_in + fan_out), by default truncated as in `variance_scaling`.

    Source: Glorot & Bengio 2010, eq. 12. Truncated as in Keras; `distribution=normal` is torch's `xavier_normal_`.
    """
    return variance_scaling(weight, 1.0, "fan_avg", distribution)


@initializers.register("glorot_uniform")
def glorot_uniform(weight: Tensor) -> Tensor:
    """U(−r, r) with r = √(6 / (fan_in + fan_out)).

    Source: Glorot & Bengio 2010, eq. 16.
    """
    return variance_scaling(weight, 1.0, "fan_avg", "uniform")


@initializers.register("he_normal")
def he_normal(weight: Tensor, distribution: Normal = "truncated_normal") -> Tensor:
    """Zero mean and variance 2 / fan_in, by default truncated as in `variance_scaling`.

    Source: He, Zhang, Ren & Sun 2015, eq. 10. Truncated as in Keras; `distribution=normal` is torch's `kaiming_normal_`.
    """
    return variance_scaling(weight, 2.0, "fan_in", distribution)


@initializers.register("he_uniform")
def he_uniform(weight: Tensor) -> Tensor:
    """U(−r, r) with r = √(6 / fan_in).

    Source: He, Zhang, Ren & Sun 2015, eq. 10, for the variance; the uniform law is Keras's and torch's.
    """
    return variance_scaling(weight, 2.0, "fan_in", "uniform")


@initializers.register("lecun_normal")
def lecun_normal(weight: Tensor, distribution: Normal = "truncated_normal") -> Tensor:
    """Zero mean and variance 1 / fan_in, by default truncated as in `variance_scaling`.

    What SELU's fixed point assumes; torch has no such initializer, and its gain of 3/4 for SELU is another thing.
    Source: LeCun, Bottou, Orr & Müller 1998, section 4.6; Klambauer et al. 2017. Truncated as in Keras.
    """
    return variance_scaling(weight, 1.0, "fan_in", distribution)


@initializers.register("lecun_uniform")
def lecun_uniform(weight: Tensor) -> Tensor:
    """U(−r, r) with r = √(3 / fan_in).

    Source: LeCun, Bottou, Orr & Müller 1998, section 4.6, for the variance; the uniform law is Keras's.
    """
    return variance_scaling(weight, 1.0, "fan_in", "uniform")


@initializers.register("normal")
def normal(weight: Tensor, std: Annotated[float, Ge(0)] = 1.0) -> Tensor:
    """N(0, std²), whatever the size of the layer.

    With the default, torch's, a unit's input has the variance of its fan_in, so sigmoid and tanh units saturate at once.
    Keras's RandomNormal has std=0.05.
    """
    return _drawn(weight, lambda draft: draft.normal_(0, std))


@initializers.register("uniform")
def uniform(weight: Tensor, limit: Annotated[float, Ge(0)] = 0.05) -> Tensor:
    """U(−limit, limit), of deviation limit / √3, whatever the size of the layer.

    The default is that of Keras's RandomUniform; torch's `uniform_` is U(0, 1) by default, which has a mean.
    """
    return _drawn(weight, lambda draft: draft.uniform_(-limit, limit))


@initializers.register("orthogonal")
def orthogonal(weight: Tensor, gain: Annotated[float, Gt(0)] = 1.0) -> Tensor:
    """A random matrix of orthonormal rows or columns, whichever are fewer, uniform over all such, times gain.

    A square layer keeps the length of every vector, times gain. A convolution is flattened to `(out, in · kernel area)`; Keras
    flattens to `(kernel area · in, out)`, which is the same law. The fans play no part: a weight has variance
    gain² / max(out, in · kernel area).
    Source: Saxe, McClelland & Ganguli 2014. torch's and Keras's default gain.
    """
    _fan(weight, "fan_in")
    return _drawn(weight, lambda draft: torch.nn.init.orthogonal_(draft, gain))


@initializers.register("zeros")
def zeros(weight: Tensor) -> Tensor:
    """Every weight 0: for a network of one layer, whose loss is convex.

    In a deeper one the units of a layer stay equal to each other, and behind an activation with f(0) = 0 no weight learns.
    """
    return constant(weight, 0.0)


@initializers.register("constant")
def constant(weight: Tensor, value: float = 0.0) -> Tensor:
    """Every weight `value`. The units of a layer stay equal to each other for ever, because their gradients are equal.

    The default is that of Keras's Constant; torch's `constant_` has none.
    """
    return _drawn(weight, lambda draft: draft.fill_(value))


def _drawn(weight: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
    """The weight, filled in place; in float32 first where it is of a 16-bit type, which has too few digits for a law."""
    draft = weight if weight.dtype in (torch.float32, torch.float64) else torch.empty_like(weight, dtype=torch.float32)
    with torch.no_grad():
        draw(draft)
        return weight if draft is weight else weight.copy_(draft)


def _fan(weight: Tensor, mode: str) -> float:
    if weight.ndim < 2:
        raise ValueError(f"a weight needs at least two dimensions to have fans, got shape {tuple(weight.shape)}")
    area = math.prod(weight.shape[2:])
    fan_in, fan_out = weight.shape[1] * area, weight.shape[0] * area
    return {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
