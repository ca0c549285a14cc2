"""The components of this package: importing the module registers them."""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from dnnkit.registry import activations, optimizers
from dnnkit_example.ordinal import Ordinal, class_distance, cumulative_cross_entropy

__all__ = ["Lion", "Ordinal", "Squareplus", "class_distance", "cumulative_cross_entropy", "lion", "squareplus"]


class Squareplus(nn.Module):
    """(z + sqrt(z² + b))/2, elementwise on any shape."""

    def __init__(self, b: float) -> None:
        super().__init__()
        self.b = b

    def forward(self, z: Tensor) -> Tensor:
        # The formula as printed subtracts two equal numbers where z is very negative and returns 0 there. This is the
        # same function without the difference, and its gradient at 0 is 1/2 as it should be, because |z| has 0 there.
        size = z.abs()
        return (z + size + self.b / (size + (z * z + self.b).sqrt())) / 2

    def extra_repr(self) -> str:
        return f"b={self.b}"


@activations.register("squareplus", pairs_with="he_normal")
def squareplus(b: Annotated[float, Gt(0)] = 4.0) -> nn.Module:
    """(z + sqrt(z² + b))/2, elementwise on any shape: a smooth ReLU without exponentials.

    `b` sets the width of the bend: the value at 0 is sqrt(b)/2. With 4 the curvature at 0 is softplus's, 1/4; with
    4·ln(2)² ≈ 1.92 the value at 0 is softplus's, ln 2. Towards b = 0 it becomes ReLU.
    Computed in an equivalent form that loses no digits for very negative z.

    Source: Barron 2021, "Squareplus: A Softplus-Like Algebraic Rectifier", arXiv:2112.11687.
    """
    return Squareplus(b)


class Lion(Optimizer):
    """The update of `lion`, for each parameter with a gradient."""

    def __init__(self, params: ParamsT, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group["lr"], group["betas"], group["weight_decay"])
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"]
        direction = momentum.lerp(gradient, 1 - betas[0]).sign_()
        parameter.mul_(1 - lr * weight_decay).sub_(direction, alpha=lr)
        momentum.lerp_(gradient, 1 - betas[1])


@optimizers.register("lion")
def lion(
    params: ParamsT,
    lr: Annotated[float, Gt(0)] = 1e-4,
    beta1: Annotated[float, Interval(ge=0, lt=1)] = 0.9,
    beta2: Annotated[float, Interval(ge=0, lt=1)] = 0.99,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
) -> Optimizer:
    """θ ← θ − lr · (sign(beta1·m + (1 − beta1)·g) + weight_decay·θ), then m ← beta2·m + (1 − beta2)·g; m starts at 0.

    Every coordinate moves by lr, however small its gradient, so a good lr is 3 to 10 times smaller than Adam's, and a
    good weight decay, which is decoupled, as many times larger. One buffer per parameter, half of Adam's.

    Source: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2, arXiv:2302.06675.
    """
    return Lion(params, lr, (beta1, beta2), weight_decay)
