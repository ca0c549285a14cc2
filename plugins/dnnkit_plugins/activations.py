"""Activations: shape-preserving modules, elementwise on any shape.

`pairs_with` names the initializer under which a deep stack of such units keeps the variance of its signal.
"""

from typing import Annotated, Literal

from annotated_types import Gt, Interval
from torch import nn

from dnnkit.registry import activations


@activations.register("identity", pairs_with="glorot_uniform")
def identity() -> nn.Module:
    """z: no activation, elementwise on any shape."""
    return nn.Identity()


@activations.register("relu", pairs_with="he_normal")
def relu() -> nn.Module:
    """Rectified linear: max(0, z), elementwise on any shape.

    A unit whose input is negative for every sample has no gradient and never recovers.
    Source: Nair & Hinton 2010; Glorot, Bordes & Bengio 2011.
    """
    return nn.ReLU()


@activations.register("leaky_relu", pairs_with="he_normal")
def leaky_relu(negative_slope: Annotated[float, Interval(ge=0, lt=1)] = 0.01) -> nn.Module:
    """max(negative_slope · z, z), elementwise on any shape.

    A unit whose input is negative for every sample still learns, so it cannot die.
    Source: Maas, Hannun & Ng 2013. 0.2 is a common "huge leak".
    """
    return nn.LeakyReLU(negative_slope)


@activations.register("elu", pairs_with="he_normal")
def elu(alpha: Annotated[float, Gt(0)] = 1.0) -> nn.Module:
    """Exponential linear: z for z > 0, alpha · (exp z − 1) otherwise, elementwise on any shape.

    Smooth at 0 for alpha = 1 only. This is not CELU, which is smooth for every alpha.
    Source: Clevert, Unterthiner & Hochreiter 2016.
    """
    return nn.ELU(alpha)


@activations.register("selu", pairs_with="lecun_normal")
def selu() -> nn.Module:
    """Scaled exponential linear: λz for z > 0, λα(exp z − 1) otherwise, elementwise on any shape.

    λ = 1.0507009873554805, α = 1.6732632423543772.
    Mean 0 and variance 1 are a stable fixed point in plain dense stacks on standardised inputs, with weights of variance
    1/fan_in. Dropout, normalization, weight penalties and skip connections break it; alpha dropout does not.
    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017, eq. 2.
    """
    return nn.SELU()


@activations.register("gelu", pairs_with="he_normal")
def gelu(approximate: Literal["none", "tanh"] = "none") -> nn.Module:
    """Gaussian error linear: z · Φ(z), with Φ the standard normal distribution function, elementwise on any shape.

    `tanh` computes z/2 · (1 + tanh(√(2/π) · (z + 0.044715 z³))) instead.
    Source: Hendrycks & Gimpel 2016.
    """
    return nn.GELU(approximate)


@activations.register("silu", pairs_with="he_normal")
def silu() -> nn.Module:
    """Sigmoid linear: z · σ(z), elementwise on any shape; also known as swish with β = 1.

    Source: Elfwing, Uchibe & Doya 2018; Ramachandran, Zoph & Le 2017.
    """
    return nn.SiLU()


@activations.register("tanh", pairs_with="glorot_uniform")
def tanh() -> nn.Module:
    """(exp z − exp −z) / (exp z + exp −z), elementwise on any shape, in (−1, 1).

    Source: LeCun, Bottou, Orr & Müller 1998, section 4.4, whose 1.7159 · tanh(2z/3) is left out here.
    """
    return nn.Tanh()


@activations.register("sigmoid", pairs_with="glorot_uniform")
def sigmoid() -> nn.Module:
    """1 / (1 + exp −z), elementwise on any shape, in (0, 1).

    Its slope is at most 1/4, so that gradients shrink from layer to layer.
    Source: Rumelhart, Hinton & Williams 1986.
    """
    return nn.Sigmoid()
