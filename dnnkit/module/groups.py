"""From groups of names to what an optimizer and a clipping take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from dnnkit.network import component
from dnnkit.network.groups import Grouping

Clip = Callable[[list[Parameter]], Tensor]
"""Parameters to the norm of their gradients before clipping; clips those in place."""


@dataclass(frozen=True)
class Groups:
    """How a recipe divides the parameters of its network; `lr` is the peak rate, of which each group has its part."""

    grouping: Grouping
    lr: float

    def parameters(self, network: nn.Module) -> list[Parameter] | list[dict[str, Any]]:
        """What the optimizer takes: groups with their rate and weight decay, or the parameters themselves where all are alike.

        Those with `requires_grad` alone, and those that the grouping keeps apart.
        """
        groups, named = self.grouping.groups(network), dict(network.named_parameters())
        if not groups or self.grouping.plain(groups):
            return trained(network)
        made: list[dict[str, Any]] = []
        for group in groups:
            settings = {} if group.weight_decay is None else {"weight_decay": group.weight_decay}
            made.append({"params": [named[name] for name in group.names], "lr": self.lr * group.lr_scale, **settings})
        return made

    def clips(self, network: nn.Module, common: Clip | None) -> list[tuple[Clip, list[Parameter]]] | None:
        """Every clipping with the parameters that it clips together, `common` with all that have none of their own.

        None where no entry has one: then `common` clips all parameters.
        """
        parts, named = self.grouping.clipped(network), dict(network.named_parameters())
        if not parts:
            return None
        made = [(common if part.clipping is None else component("clipping", part.clipping), part.names) for part in parts]
        return [(clip, [named[name] for name in names]) for clip, names in made if clip is not None]


def trained(network: nn.Module) -> list[Parameter]:
    """The parameters that require a gradient."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def clip_apart(clips: Sequence[tuple[Clip, list[Parameter]]]) -> None:
    """Clip each part by itself. A part without a gradient is left alone."""
    for clip, parameters in clips:
        if any(parameter.grad is not None for parameter in parameters):
            clip(parameters)


def gradient_norm(parameters: Sequence[Parameter]) -> Tensor:
    """The norm of all gradients together, a scalar on their device."""
    return torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
