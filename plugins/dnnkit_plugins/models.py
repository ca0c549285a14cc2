"""Models: networks from an example's shape to logits or values, their layers made by `parts` from the chosen names."""

import math
from collections import OrderedDict
from typing import Annotated

from annotated_types import Ge
from torch import nn

from dnnkit.network import Parts
from dnnkit.registry import models


@models.register("mlp")
def mlp(
    inputs: tuple[int, ...],
    outputs: int,
    parts: Parts,
    hidden: list[Annotated[int, Ge(1)]] = [300, 100],  # noqa: B006 (a config node holds lists; never written to)
) -> nn.Module:
    """Dense layers of the widths `hidden`, then one of `outputs` units: `(batch, *inputs)` to `(batch, outputs)`.

    Every hidden layer has the chosen normalization, activation and dropout; the last has none of them. An empty list is
    linear (softmax) regression.
    Source: Rumelhart, Hinton & Williams 1986.
    """
    width = math.prod(inputs)
    layers = parts.input(width)
    for index, units in enumerate(hidden):
        layers |= parts.dense(index, width, units)
        width = units
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), **layers, **parts.output(len(hidden), width, outputs)))
