"""Normalizations: modules over the `features` units of a dense layer or the channels of a convolution."""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dnnkit.errors import ConfigError, Problem
from dnnkit.registry import normalizations


@normalizations.register("batch_norm")
def batch_norm(
    features: int,
    layer: Literal["dense", "conv"],
    momentum: Annotated[float, Interval(gt=0, le=1)] = 0.1,
    eps: Annotated[float, Gt(0)] = 1e-5,
    unbiased: bool = True,
) -> nn.Module:
    """γ · (z − mean) / √(var + eps) + β over the minibatch, per unit of `(batch, features)` or channel of `(batch, features, h, w)`.

    γ and β are trained. In training var is the biased variance of the minibatch. Evaluation uses moving statistics: moving ←
    (1 − momentum) · moving + momentum · batch, from 0 and 1, where the moving variance takes the unbiased one.
    Keras's layer is momentum=0.01 (it has the 0.99 of 1 − momentum; 0.9 is 0.1 here, 0.999 is 0.001), eps=0.001,
    unbiased=false. Unbiased, what each minibatch of n values per unit adds to the moving variance is n / (n − 1) times as much.
    Source: Ioffe & Szegedy 2015, algorithms 1 and 2.
    """
    if unbiased:
        return (nn.BatchNorm1d if layer == "dense" else nn.BatchNorm2d)(features, eps, momentum)
    return (BiasedNorm1d if layer == "dense" else BiasedNorm2d)(features, eps, momentum)


class _Biased(_BatchNorm):
    """torch's layer, but its moving variance takes the biased variance of each minibatch."""

    unbiased = False  # for who synchronises it over devices

    def forward(self, input: Tensor) -> Tensor:
        """As torch's, then what the last minibatch added to the moving variance is shrunk by (n − 1) / n."""
        moving = self.running_var
        if not self.training or moving is None or self.momentum is None:
            return super().forward(input)
        n = input.numel() // input.shape[1]
        # Autograd keeps what the layer moves and refuses that it is moved again, so that is a copy.
        self.running_var = moving.clone()
        try:
            normalized = super().forward(input)
            with torch.no_grad():
                moving.mul_((1 - self.momentum) / n).add_(self.running_var, alpha=1 - 1 / n)
        finally:
            self.running_var = moving
        return normalized


class BiasedNorm1d(_Biased, nn.BatchNorm1d):
    """For `(batch, features)`."""


class BiasedNorm2d(_Biased, nn.BatchNorm2d):
    """For `(batch, features, h, w)`."""


@normalizations.register("layer_norm")
def layer_norm(features: int, layer: Literal["dense", "conv"], eps: Annotated[float, Gt(0)] = 1e-5) -> nn.Module:
    """γ · (z − mean) / √(var + eps) + β over the units of each sample, shape `(batch, features)`.

    γ and β are trained, one per unit. For a convolution, `(batch, features, h, w)`, mean and variance are over channels and
    pixels together, and γ and β are one per channel: a group normalization of one group. Keras has eps 1e-3.
    Source: Ba, Kiros & Hinton 2016, eq. 3.
    """
    return nn.LayerNorm(features, eps) if layer == "dense" else nn.GroupNorm(1, features, eps)


@normalizations.register("rms_norm")
def rms_norm(features: int, layer: Literal["dense", "conv"], eps: Annotated[float, Gt(0)] | None = None) -> nn.Module:
    """γ · z / √(mean(z²) + eps) over the units of each sample, shape `(batch, features)`: layer norm without mean and offset.

    γ is trained, one per unit. It has no offset, so the layer before it keeps its bias. For a convolution, `(batch, features,
    h, w)`, the mean of the squares is over channels and pixels together, as in `layer_norm`, and γ is one per channel.
    eps=null is the machine epsilon, as in torch: 1.2e-7, in float64 2.2e-16. Keras has eps 1e-6.
    Source: Zhang & Sennrich 2019, eq. 4, without eps.
    """
    return (nn.RMSNorm if layer == "dense" else ImageRMSNorm)(features, eps)


class ImageRMSNorm(nn.RMSNorm):
    """γ · z / √(mean(z²) + eps), the mean over all but the first axis of `(batch, features, h, w)`, γ per channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each sample; in float32 where x is of a 16-bit type, whose squares overflow."""
        z = x.float() if x.element_size() < 4 else x
        eps = torch.finfo(z.dtype).eps if self.eps is None else self.eps
        scale = (z.square().mean(tuple(range(1, x.ndim)), keepdim=True) + eps).rsqrt()
        weight: Tensor = self.weight
        return (z * scale * weight.view(-1, *[1] * (x.ndim - 2))).to(x.dtype)


@normalizations.register("group_norm")
def group_norm(
    features: int, layer: Literal["dense", "conv"], num_groups: Annotated[int, Ge(1)] = 4, eps: Annotated[float, Gt(0)] = 1e-5
) -> nn.Module:
    """γ · (z − mean) / √(var + eps) + β over each of `num_groups` groups of neighbouring channels of `(batch, features, h, w)`.

    Mean and variance are per sample and group, over its channels and their pixels; of `(batch, features)` over its units. γ and
    β are trained, one per unit or channel. One group is `layer_norm`, as many as channels is instance normalization.
    ConfigError where num_groups does not divide the features, or leaves one unit of a dense layer in each group, whose
    normalized value is 0 whatever it was.
    Source: Wu & He 2018, eq. 7. The paper and Keras have 32 groups, which do not divide layers of 300 and 100; Keras's eps is 1e-3.
    """
    divisors = [count for count in range(1, features + 1) if features % count == 0]
    if layer == "dense":
        divisors = divisors[:-1]
    if num_groups not in divisors:
        raise ConfigError([_no_groups(features, layer, num_groups, divisors)])
    return nn.GroupNorm(num_groups, features, eps)


def _no_groups(features: int, layer: str, num_groups: int, divisors: list[int]) -> Problem:
    if not divisors:
        return Problem("normalization", "group_norm needs groups of two units or more, and a layer has a single one", ("none",))
    least = " into groups of two or more" if layer == "dense" else ""
    message = f"must divide the {features} {'units' if layer == 'dense' else 'channels'}{least}: {', '.join(map(str, divisors))}"
    close = sorted(divisors, key=lambda count: abs(count - num_groups))[:2]
    return Problem("normalization.num_groups", f"{message}; got {num_groups}", tuple(map(str, close)))
