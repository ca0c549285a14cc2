"""What torch's optimizers lack, in its own terms: groups, state, hooks, and the closure inside `step`.

Under Lightning's stock loop the closure, which takes the gradient, runs inside `step`; whatever changes a weight must
come after it.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def decoupled(optimizer: Optimizer) -> Optimizer:
    """Hand `optimizer` back with decoupled decay: w ← w − lr · weight_decay · w after the gradient is taken, before the update.

    In place of torch's, which adds weight_decay · w to the gradient. In its groups the amount is kept as `decay`.
    """
    _take_decay(optimizer)
    optimizer.register_step_pre_hook(_decay_after_the_gradient)
    return optimizer


def _take_decay(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        # A group that was added later still has it under torch's name.
        group["decay"] = group["weight_decay"] or group.get("decay", 0.0)
        group["weight_decay"] = 0.0


def _decay_after_the_gradient(optimizer: Optimizer, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
    closure = named.get("closure", arguments[1] if len(arguments) > 1 else None)

    def decayed() -> Any:
        loss = None if closure is None else closure()
        _take_decay(optimizer)
        with torch.no_grad():
            for group in optimizer.param_groups:
                weights = [weight for weight in group["params"] if weight.grad is not None]
                if group["decay"] and weights:
                    torch._foreach_mul_(weights, 1 - group["lr"] * group["decay"])
        return loss

    return (optimizer,), {"closure": decayed}


def epsilon_hat(optimizer: Optimizer) -> Optimizer:
    """Hand an Adam back whose eps is the paper's ε̂, added to √v before v is corrected: eps = ε̂ / √(1 − β₂ᵗ) at update t.

    t is that of the group: of its first parameter that has been updated.
    """
    optimizer.defaults["eps_hat"] = optimizer.defaults["eps"]
    for group in optimizer.param_groups:
        group["eps_hat"] = group["eps"]
    optimizer.register_step_pre_hook(_put_eps)
    return optimizer


def _put_eps(optimizer: Optimizer, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    for group in optimizer.param_groups:
        # Not the optimizer's own count: a group that was frozen at first begins with its own first update.
        done = next((float(optimizer.state[weight]["step"]) for weight in group["params"] if optimizer.state.get(weight)), 0.0)
        group["eps"] = group["eps_hat"] / math.sqrt(1 - group["betas"][1] ** (done + 1))


class NAdam(torch.optim.NAdam):
    """torch's NAdam with the product of μ in the precision of the parameter; torch begins it in float32 for float64 too."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with its state from the start."""
        super().add_param_group(param_group)
        for weight in self.param_groups[-1]["params"]:
            scalar = weight.dtype if weight.dtype == torch.float64 else torch.float32
            start = {"step": torch.tensor(0.0), "mu_product": torch.ones((), dtype=scalar)}
            self.state[weight] = start | {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}


class _Rule(Optimizer):
    """An update rule over lists of tensors, with torch's coupled `weight_decay`."""

    def __init__(self, params: Iterable[Any], **settings: Any) -> None:
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                gradients: list[Tensor] = [weight.grad for weight in weights]
                if group["weight_decay"]:
                    gradients = list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))
                self._update(group, weights, gradients)
        return loss

    def _update(self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        raise NotImplementedError

    def _kept(self, name: str, weights: list[Tensor]) -> list[Tensor]:
        """A running quantity of each weight, zero at first."""
        for weight in weights:
            if name not in self.state[weight]:
                self.state[weight][name] = torch.zeros_like(weight)
        return [self.state[weight][name] for weight in weights]


class VelocitySGD(_Rule):
    """v ← momentum · v − lr · g, then w ← w + v, or with `nesterov` w ← w + momentum · v − lr · g."""

    def _update(self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        lr, momentum, velocities = group["lr"], group["momentum"], self._kept("velocity", weights)
        torch._foreach_mul_(velocities, momentum)
        torch._foreach_add_(velocities, gradients, alpha=-lr)
        if group["nesterov"]:
            torch._foreach_add_(weights, gradients, alpha=-lr)
            torch._foreach_add_(weights, velocities, alpha=momentum)
        else:
            torch._foreach_add_(weights, velocities)


class InsideRMSprop(_Rule):
    """RMSProp with eps inside the root and, with a momentum, the rate inside the velocity.

    v ← alpha · v + (1 − alpha) · g², u = lr · g / √(v − ḡ² + eps), where ḡ, the running mean of g, is 0 unless `centered`;
    w ← w − u, or with a momentum b ← momentum · b + u, then w ← w − b.
    """

    def _update(self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        alpha, squares = group["alpha"], self._kept("square_avg", weights)
        torch._foreach_mul_(squares, alpha)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - alpha)
        roots = torch._foreach_add(squares, group["eps"])
        if group["centered"]:
            means = self._kept("grad_avg", weights)
            torch._foreach_mul_(means, alpha)
            torch._foreach_add_(means, gradients, alpha=1 - alpha)
            torch._foreach_addcmul_(roots, means, means, value=-1)
        torch._foreach_sqrt_(roots)
        if group["momentum"] == 0:
            torch._foreach_addcdiv_(weights, gradients, roots, value=-group["lr"])
            return
        velocities = self._kept("momentum_buffer", weights)
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_addcdiv_(velocities, gradients, roots, value=group["lr"])
        torch._foreach_add_(weights, velocities, alpha=-1)
