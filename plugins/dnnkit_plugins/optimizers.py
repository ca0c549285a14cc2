"""Optimizers: torch's own, in their fastest exact form. g is the gradient, t the step from 1, w the parameter.

`lr` is the peak rate, which a scheduler's factor multiplies.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor
from torch.optim import Optimizer

from dnnkit.registry import optimizers

#: Parameters, or groups of them: `{"params": [...], ...settings of their own}`.
Params = Sequence[Tensor] | Sequence[dict[str, Any]]
Rate = Annotated[float, Gt(0)]
Decay = Annotated[float, Interval(ge=0, lt=1)]


@optimizers.register("sgd")
def sgd(params: Params, lr: Rate = 0.01) -> Optimizer:
    """Stochastic gradient descent: w ← w − lr · g.

    Source: Robbins & Monro 1951.
    """
    return _fused(torch.optim.SGD, params, lr=lr)


@optimizers.register("momentum")
def momentum(params: Params, lr: Rate = 0.05, momentum: Decay = 0.9) -> Optimizer:
    """Gradient descent with momentum: v ← momentum · v + g, then w ← w − lr · v.

    When the rate changes this differs from the paper and Keras, which have it inside the velocity: v ← momentum · v − lr · g.
    Source: Polyak 1964.
    """
    return _fused(torch.optim.SGD, params, lr=lr, momentum=momentum)


@optimizers.register("nesterov")
def nesterov(params: Params, lr: Rate = 0.05, momentum: Annotated[float, Interval(gt=0, lt=1)] = 0.9) -> Optimizer:
    """Nesterov's accelerated gradient: v ← momentum · v + g, then w ← w − lr · (g + momentum · v).

    When the rate changes this differs from the paper and Keras, which have it inside the velocity.
    Source: Nesterov 1983, in the form of Sutskever, Martens, Dahl & Hinton 2013 with the parameters kept at the point where
    the gradient is taken.
    """
    return _fused(torch.optim.SGD, params, lr=lr, momentum=momentum, nesterov=True)


@optimizers.register("adam")
def adam(params: Params, lr: Rate = 1e-3, beta1: Decay = 0.9, beta2: Decay = 0.999, eps: Annotated[float, Gt(0)] = 1e-8) -> Optimizer:
    """Adaptive moments: w ← w − lr · m̂ / (√v̂ + eps).

    m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)g², m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ).
    Keras has eps 1e-7, added before v is corrected.
    Source: Kingma & Ba 2015, algorithm 1.
    """
    return _fused(torch.optim.Adam, params, lr=lr, betas=(beta1, beta2), eps=eps)


@optimizers.register("nadam")
def nadam(
    params: Params,
    lr: Rate = 1e-3,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: Annotated[float, Gt(0)] = 1e-8,
    momentum_decay: Annotated[float, Ge(0)] = 0.004,
) -> Optimizer:
    """Adam with Nesterov's momentum: w ← w − lr · (μₜ₊₁ · m / (1 − Πμ₁…ₜ₊₁) + (1 − μₜ) · g / (1 − Πμ₁…ₜ)) / (√v̂ + eps).

    m, v and v̂ are as in `adam`; μₜ = β₁ · (1 − 0.96^(t · momentum_decay) / 2) rises from β₁/2 to β₁.
    Keras is reproduced by momentum_decay = 1.
    Source: Dozat 2016, whose decay is 0.004.
    """
    return torch.optim.NAdam(params, lr=lr, betas=(beta1, beta2), eps=eps, momentum_decay=momentum_decay, foreach=True)


#: Where torch has a kernel that makes the whole update in one call.
_FUSED = ("cpu", "cuda")


def _fused(optimizer: Callable[..., Optimizer], params: Params, **settings: Any) -> Optimizer:
    tensors: list[Tensor] = [tensor for item in params for tensor in (item["params"] if isinstance(item, dict) else [item])]
    fused = all(tensor.device.type in _FUSED and tensor.is_floating_point() for tensor in tensors)
    return optimizer(params, **settings, fused=fused or None)
