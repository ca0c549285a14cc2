"""Network, optimizer and schedule by hand in torch, for the peers that are written in it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.jobs import CHANNELS, ONE_CYCLE, Rows, Work


def tensors(rows: Rows) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and validation, each x and y."""
    x, y, x_val, y_val = map(torch.from_numpy, rows)
    return (x, y), (x_val, y_val)


def network(work: Work, rows: Rows) -> nn.Module:
    """Dense layers, or convolutions and dense layers, with SELU between them; LeCun normal weights, biases 0."""
    layers: list[nn.Module] = []
    width = rows.x[0].size
    if work.network == "cnn":
        channels, height, _ = rows.x.shape[1:]
        for fan_in, fan_out in pairwise((channels, *CHANNELS)):
            layers += [nn.Conv2d(fan_in, fan_out, 3, padding="same"), nn.SELU(), nn.MaxPool2d(2)]
            height //= 2
        layers.append(nn.Flatten())
        width = CHANNELS[-1] * height * height
    for fan_in, fan_out in pairwise((width, *work.layers, rows.classes)):
        layers += [nn.Linear(fan_in, fan_out), nn.SELU()]
    net = nn.Sequential(*layers[:-1])
    for weight in net.parameters():
        if weight.ndim == 1:
            nn.init.zeros_(weight)
        else:
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return net


def optimizer(work: Work, net: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    """torch's own; `settings` go to SGD, which has more than one way to run."""
    if work.optimizer == "nadam":
        return torch.optim.NAdam(net.parameters(), lr=work.rate)
    return torch.optim.SGD(net.parameters(), lr=work.rate, momentum=0.9, **settings)


def schedule(work: Work, made: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.OneCycleLR:
    return torch.optim.lr_scheduler.OneCycleLR(made, work.rate, steps, **ONE_CYCLE)


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())
