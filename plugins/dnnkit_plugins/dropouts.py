"""Dropouts: modules that are stochastic in training and the identity in evaluation."""

from typing import Annotated

from annotated_types import Interval
from torch import nn

from dnnkit.registry import dropouts

Rate = Annotated[float, Interval(ge=0, lt=1)]


@dropouts.register("dropout")
def dropout(p: Rate = 0.2) -> nn.Module:
    """Inverted dropout: 0 with probability p, else z / (1 − p), independently for every element of any shape, in training only.

    Source: Srivastava et al. 2014, who scale in evaluation instead.
    """
    return nn.Dropout(p)


@dropouts.register("alpha_dropout")
def alpha_dropout(p: Rate = 0.2) -> nn.Module:
    """The dropout for SELU: a · d + b, where d is −λα with probability p, else z; elementwise on any shape, in training only.

    λα = 1.7580993408473766 is SELU's lowest value, a = ((1 − p)(1 + p · (λα)²))^−½ and b = a · p · λα, which leaves mean 0
    and variance 1 as they are.
    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017, section "New Dropout Technique".
    """
    return nn.AlphaDropout(p)
