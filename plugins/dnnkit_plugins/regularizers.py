"""Regularizers: scalars added to the loss, summed over the kernels of all dense and convolutional layers.

Biases, normalization parameters and learned slopes are left alone.
"""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from dnnkit.registry import regularizers
from dnnkit_plugins.kernels import kernels


@regularizers.register("l1")
def l1(module: nn.Module, factor: Annotated[float, Ge(0)] = 0.01) -> Tensor:
    """The lasso: factor · Σ|w| over kernels, a scalar. Keras's definition.

    Source: Tibshirani 1996.
    """
    return factor * sum((weight.abs().sum() for _, weight in kernels(module)), torch.zeros(()))


@regularizers.register("l2")
def l2(module: nn.Module, factor: Annotated[float, Ge(0)] = 0.01) -> Tensor:
    """Ridge: factor · Σw² over kernels, a scalar. Keras's definition.

    Its gradient is 2 · factor · w: with plain SGD it equals a weight decay of 2 · factor in torch's sense.
    Source: Krogh & Hertz 1992, eq. 1, whose λ/2 is written as factor.
    """
    return factor * sum((weight.square().sum() for _, weight in kernels(module)), torch.zeros(()))


@regularizers.register("l1_l2")
def l1_l2(module: nn.Module, l1: Annotated[float, Ge(0)] = 0.01, l2: Annotated[float, Ge(0)] = 0.01) -> Tensor:
    """The elastic net: l1 · Σ|w| + l2 · Σw² over kernels, a scalar. Keras's definition, where both are 0 by default.

    Source: Zou & Hastie 2005, section 2, the "naïve" elastic net.
    """
    weights = [weight for _, weight in kernels(module)]
    return sum((l1 * weight.abs().sum() + l2 * weight.square().sum() for weight in weights), torch.zeros(()))
