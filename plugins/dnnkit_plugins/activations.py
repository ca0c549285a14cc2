"""Activations: shape-preserving modules, elementwise on any shape.

`pairs_with` names the initializer under which a deep stack of such units keeps the variance of its signal.
"""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn

from dnnkit.errors import ConfigError, Problem
from dnnkit.registry import activations

Slope = Annotated[float, Interval(ge=0, lt=1)]


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
def leaky_relu(negative_slope: Slope = 0.01) -> nn.Module:
    """max(negative_slope · z, z), elementwise on any shape.

    A unit whose input is negative for every sample still learns, so it cannot die.
    Source: Maas, Hannun & Ng 2013. 0.2 is a common "huge leak"; Keras's default is 0.3.
    """
    return nn.LeakyReLU(negative_slope)


@activations.register("rrelu", pairs_with="he_normal")
def rrelu(lower: Slope = 1 / 8, upper: Slope = 1 / 3) -> nn.Module:
    """Randomized leaky: z for z ≥ 0, a · z below, with a ~ U(lower, upper) for every element anew; elementwise on any shape.

    That is in training; evaluation has a = (lower + upper) / 2, by default 0.22917. The noise regularizes. ConfigError where
    lower is greater than upper.
    Source: Xu, Wang, Chen & Li 2015, who divide instead: by a ~ U(3, 8) in training and by 5.5 in evaluation, a slope of
    0.18182. Drawing the slope itself is torch's way; lower and upper at 0.18182 are theirs in evaluation.
    """
    if lower > upper:
        raise ConfigError([Problem("activation.lower", f"must be at most activation.upper={upper}, got {lower}")])
    return nn.RReLU(lower, upper)


@activations.register("prelu", pairs_with="he_normal")
def prelu(features: int | None = None, init: float = 0.25, per_unit: bool = False) -> nn.Module:
    """Parametric: max(z, 0) + a · min(z, 0), with a trained slope a that begins at `init`; elementwise.

    By default one a for the layer, on any shape. With per_unit, one for each unit of `(batch, units)` or channel of
    `(batch, channels, h, w)`; ConfigError where the model does not say how many those are. A slope is no weight: weight decay
    pulls it towards ReLU and is off for it.
    Keras has one per unit with init=0; after a convolution one per pixel and channel, with shared_axes=[1, 2] one per channel.
    Source: He, Zhang, Ren & Sun 2015, eq. 1, one per channel with init=0.25; torch has one.
    """
    if per_unit and features is None:
        message = "true needs the number of units, which the model does not tell its activations"
        raise ConfigError([Problem("activation.per_unit", message, ("false",))])
    return nn.PReLU(features if per_unit and features is not None else 1, init)


@activations.register("elu", pairs_with="he_normal")
def elu(alpha: Annotated[float, Gt(0)] = 1.0) -> nn.Module:
    """Exponential linear: z for z > 0, alpha · (exp z − 1) otherwise, elementwise on any shape.

    Smooth at 0 for alpha = 1 only. This is not CELU, which is smooth for every alpha.
    Source: Clevert, Unterthiner & Hochreiter 2016.
    """
    return nn.ELU(alpha)


@activations.register("celu", pairs_with="he_normal")
def celu(alpha: Annotated[float, Gt(0)] = 1.0) -> nn.Module:
    """Continuously differentiable exponential linear: z for z > 0, alpha · (exp(z / alpha) − 1) otherwise, elementwise on any shape.

    Its slope at 0 is 1 for every alpha; for alpha = 1 it is ELU.
    Source: Barron 2017, "Continuously Differentiable Exponential Linear Units".
    """
    return nn.CELU(alpha)


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


@activations.register("swish", pairs_with="he_normal")
def swish(beta: Annotated[float, Ge(0)] = 1.0) -> nn.Module:
    """Swish: z · σ(beta · z), elementwise on any shape; silu for beta = 1, z/2 for 0, and nearly ReLU for a large beta.

    Source: Ramachandran, Zoph & Le 2017, where β may also be trained; here it is a constant. Keras's swish has β = 1.
    """
    return nn.SiLU() if beta == 1 else Swish(beta)


class Swish(nn.Module):
    """z · σ(beta · z), elementwise on any shape."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, z: Tensor) -> Tensor:
        """Gives z · σ(beta · z)."""
        return z * torch.sigmoid(self.beta * z)

    def extra_repr(self) -> str:
        """What is between the brackets when it is printed."""
        return f"beta={self.beta}"


@activations.register("hard_swish", pairs_with="he_normal")
def hard_swish() -> nn.Module:
    """Swish from straight pieces: z · min(max(z + 3, 0), 6) / 6, elementwise on any shape, without an exponential.

    0 below −3, where it has no gradient, and z above 3. Keras calls it hard_silu too.
    Source: Howard et al. 2019, "Searching for MobileNetV3", section 5.2.
    """
    return nn.Hardswish()


@activations.register("mish", pairs_with="he_normal")
def mish() -> nn.Module:
    """Mish: z · tanh(log(1 + exp z)), elementwise on any shape.

    Source: Misra 2020, "Mish: A Self Regularized Non-Monotonic Activation Function".
    """
    return nn.Mish()


@activations.register("softplus", pairs_with="glorot_uniform")
def softplus() -> nn.Module:
    """log(1 + exp z), a smooth ReLU, elementwise on any shape; never 0.

    Its mean square exceeds that of ReLU by far, so weights of variance 2/fan_in would let the signal grow from layer to
    layer: it pairs with Glorot. torch returns z itself from 20 on, which is 2e-9 short; here it is exact.
    Source: Dugas, Bengio, Bélisle, Nadeau & Garcia 2001, "Incorporating Second-Order Functional Knowledge".
    """
    return nn.Softplus(threshold=_EXACT)


#: From here on log(1 + exp z) is z in float64.
_EXACT = 40.0


@activations.register("softsign", pairs_with="glorot_uniform")
def softsign() -> nn.Module:
    """Softsign: z / (1 + |z|), elementwise on any shape, in (−1, 1); like tanh, but it saturates as 1/|z|, not exponentially.

    Source: Bergstra, Desjardins, Lamblin & Bengio 2009, "Quadratic Polynomials Learn Better Image Features".
    """
    return nn.Softsign()


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
