"""Where a network that diverged is first no longer finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dnnkit.diagnostics.glance import glance
from dnnkit.diagnostics.watch import fit, some_parameter, undisturbed


@dataclass(frozen=True)
class Divergence:
    """`layer` is the first that is not finite, None where that is none of them; `text` says what of it, or what else, in words."""

    layer: str | None
    text: str

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, in JSON values."""
        return asdict(self)


def find_divergence(network: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Divergence:
    """Looked for on the minibatch that diverged: x `(n, *shape)`, y `(n, …)`.

    In the order in which one causes the next: the examples, the weights in the order of the layers, what the layers put out, the
    loss, and the gradient on its way back. Nothing of the network is changed.
    """
    like = some_parameter(network)
    x, y = fit(x, like), fit(y, like)
    if x.is_floating_point() and not torch.isfinite(x).all():
        return Divergence(None, "an example of that minibatch holds values that are not finite")
    for name, parameter in network.named_parameters():
        if not torch.isfinite(parameter).all():
            layer = name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]
            return Divergence(layer, f"weights of {layer} were no longer finite")
    glances = glance(network, x, y, loss)
    for one in glances:
        if not math.isfinite(one.second_moment):
            return Divergence(one.layer, f"{one.layer} was the first layer to put out values that are not finite")
    with undisturbed(network, x.device), torch.no_grad():
        output = network(x)
    if not torch.isfinite(loss(output, y)):
        return Divergence(None, f"every layer was finite, the last one up to {float(output.abs().max()):.2g}, and the loss of that was not")
    for one in reversed(glances):
        if not (math.isfinite(one.delta_norm) and math.isfinite(one.gradient_ratio or 0.0)):
            return Divergence(one.layer, f"on its way back the gradient was first not finite at {one.layer}")
    return Divergence(None, "layers and loss were finite in evaluation mode: it is the penalty or what is random in training")
