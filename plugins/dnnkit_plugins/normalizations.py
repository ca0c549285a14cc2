"""Normalizations: modules over the `features` units of a dense layer or the channels of a convolution."""

from typing import Annotated, Literal

from annotated_types import Gt, Interval
from torch import nn

from dnnkit.registry import normalizations


@normalizations.register("batch_norm")
def batch_norm(
    features: int,
    layer: Literal["dense", "conv"],
    momentum: Annotated[float, Interval(gt=0, le=1)] = 0.1,
    eps: Annotated[float, Gt(0)] = 1e-5,
) -> nn.Module:
    """γ · (z − mean) / √(var + eps) + β over the minibatch, per unit of `(batch, features)` or channel of `(batch, features, h, w)`.

    γ and β are trained. Evaluation uses moving statistics: moving ← (1 − momentum) · moving + momentum · batch, with the
    unbiased variance. Keras has 1 − momentum (0.99 there is 0.01 here), eps 1e-3 and the biased variance.
    Source: Ioffe & Szegedy 2015, algorithm 1.
    """
    return (nn.BatchNorm1d if layer == "dense" else nn.BatchNorm2d)(features, eps, momentum)


@normalizations.register("layer_norm")
def layer_norm(features: int, layer: Literal["dense", "conv"], eps: Annotated[float, Gt(0)] = 1e-5) -> nn.Module:
    """γ · (z − mean) / √(var + eps) + β over the units of each sample, shape `(batch, features)`.

    γ and β are trained, one per unit. For a convolution, `(batch, features, h, w)`, mean and variance are over channels and
    pixels together, and γ and β are one per channel: a group normalization of one group. Keras has eps 1e-3.
    Source: Ba, Kiros & Hinton 2016, eq. 3.
    """
    return nn.LayerNorm(features, eps) if layer == "dense" else nn.GroupNorm(1, features, eps)
