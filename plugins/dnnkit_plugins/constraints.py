"""Constraints: they act in place on a module's weights after each optimizer step."""

from typing import Annotated

import torch
from annotated_types import Gt
from torch import nn

from dnnkit.registry import constraints
from dnnkit_plugins.kernels import kernels


@constraints.register("max_norm")
def max_norm(module: nn.Module, c: Annotated[float, Gt(0)] = 3.0) -> None:
    """Bound the norm of every unit: w ← w · min(1, c / ‖w‖₂) for the incoming weights w of every unit or channel, in place.

    Kernels of dense and convolutional layers only; biases are not part of the norm.
    Source: Srivastava et al. 2014, where c is 3 to 4; Keras's default is 2. torch and Keras divide by ‖w‖₂ + 1e-7.
    """
    with torch.no_grad():
        for layer, weight in kernels(module):
            # Transposed convolutions keep their units in the second dimension.
            weight.renorm_(2, 1 if getattr(layer, "transposed", False) else 0, c)
