"""The updates themselves: torch's kernels and lists of tensors, in torch's groups and state; what torch lacks, in its terms.

g is the gradient, w the parameter, t the update from 1. torch's coupled `weight_decay` adds weight_decay · w to g.
"""

from typing import Any

import torch
from torch import Tensor

from dnnkit_plugins.lean import EXACT, ONE, Lean, Lot


class SGD(Lean, torch.optim.SGD):
    """torch's SGD by its fused kernel."""

    kernels = ("_fused_sgd_",)

    def _states(self, group: dict[str, Any], weights: list[Tensor]) -> list[dict[str, Any]]:
        # Without a momentum torch keeps no state at all.
        return super()._states(group, weights) if group["momentum"] else []

    def _update(self, group: dict[str, Any], lot: Lot, gradients: list[Tensor]) -> None:
        buffers = [state.get("momentum_buffer") for state in lot.states]
        if not any(buffer is None for buffer in buffers):
            _fused_sgd(group, lot.weights, gradients, buffers, first=False)
            return
        # torch's own step fails where some have a velocity and some begin, as after a thaw.
        begins = [buffer is None for buffer in buffers]
        for first in set(begins):
            weights, some, kept = _where([lot.weights, gradients, buffers], [begin is first for begin in begins])
            if first:
                kept = [torch.empty_like(weight) for weight in weights]
            _fused_sgd(group, weights, some, kept, first=first)
            for weight, buffer in zip(weights, kept, strict=True):
                self.state[weight]["momentum_buffer"] = buffer


def _fused_sgd(group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], buffers: list[Any], first: bool) -> None:
    torch._fused_sgd_(
        weights,
        gradients,
        buffers,
        weight_decay=group["weight_decay"],
        momentum=group["momentum"],
        lr=group["lr"],
        dampening=group["dampening"],
        nesterov=group["nesterov"],
        maximize=False,
        is_first_step=first,
    )


class Adam(Lean, torch.optim.Adam):
    """torch's Adam, and with `decoupled_weight_decay` its AdamW, by the fused kernels."""

    kernels = ("_fused_adam_", "_fused_adamw_")

    def _begin(self, group: dict[str, Any], weight: Tensor) -> dict[str, Any]:
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")
        return {"step": torch.tensor(0.0)} | {name: torch.zeros_like(weight) for name in names}

    def _update(self, group: dict[str, Any], lot: Lot, gradients: list[Tensor]) -> None:
        count, steps = lot.flat("step")
        count.add_(ONE)
        beta1, beta2 = group["betas"]
        update = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
        update(
            lot.weights,
            gradients,
            lot.each("exp_avg"),
            lot.each("exp_avg_sq"),
            lot.each("max_exp_avg_sq") if group["amsgrad"] else [],
            steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=group["amsgrad"],
            maximize=False,
        )


class Adagrad(Lean, torch.optim.Adagrad):
    """torch's Adagrad by its fused kernel."""

    kernels = ("_fused_adagrad_",)

    def _begin(self, group: dict[str, Any], weight: Tensor) -> dict[str, Any]:
        return {"step": torch.tensor(0.0), "sum": torch.full_like(weight, self.defaults["initial_accumulator_value"])}

    def _update(self, group: dict[str, Any], lot: Lot, gradients: list[Tensor]) -> None:
        count, steps = lot.flat("step")
        count.add_(ONE)
        torch._fused_adagrad_(
            lot.weights,
            gradients,
            lot.each("sum"),
            steps,
            lr=group["lr"],
            lr_decay=group["lr_decay"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


class RMSprop(Lean, torch.optim.RMSprop):
    """torch's RMSprop in one pass by Adam's fused kernel: with β₁ = 0 and t = ∞ Adam is RMSprop.

    With a momentum b the kernel updates b in place of w: b ← momentum · b + g / (√s + eps), then w ← w − lr · b.
    """

    kernels = ("_fused_adam_",)
    dtypes = EXACT

    def _takes(self, group: dict[str, Any]) -> bool:
        return super()._takes(group) and not group["centered"]

    def _begin(self, group: dict[str, Any], weight: Tensor) -> dict[str, Any]:
        names = ("square_avg", "momentum_buffer") if group["momentum"] > 0 else ("square_avg",)
        return {"step": torch.tensor(0.0)} | {name: torch.zeros_like(weight) for name in names}

    def _update(self, group: dict[str, Any], lot: Lot, gradients: list[Tensor]) -> None:
        lot.flat("step")[0].add_(ONE)
        gradients = lot.decayed(gradients, group["weight_decay"])
        if group["momentum"] == 0:
            self._adam(group, lot, lot.weights, gradients, group["lr"])
            return
        velocities = lot.each("momentum_buffer")
        lot.scale(velocities, group["momentum"])
        self._adam(group, lot, velocities, gradients, -1.0)
        torch._foreach_add_(lot.weights, velocities, alpha=-group["lr"])

    def _adam(self, group: dict[str, Any], lot: Lot, moved: list[Tensor], gradients: list[Tensor], lr: float) -> None:
        if not lot.scratch:
            lot.scratch = {"means": [torch.zeros_like(weight) for weight in lot.weights], "ages": [torch.tensor(torch.inf)] * len(moved)}
        torch._fused_adam_(
            moved,
            gradients,
            lot.scratch["means"],
            lot.each("square_avg"),
            [],
            lot.scratch["ages"],
            lr=lr,
            beta1=0.0,
            beta2=group["alpha"],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


class Adamax(Lean, torch.optim.Adamax):
    """torch's Adamax over lists of tensors."""

    dtypes = EXACT

    def _begin(self, group: dict[str, Any], weight: Tensor) -> dict[str, Any]:
        return {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(weight), "exp_inf": torch.zeros_like(weight)}

    def _update(self, group: dict[str, Any], lot: Lot, gradients: list[Tensor]) -> None:
        count = lot.flat("step")[0].add_(ONE)
        gradients = lot.decayed(gradients, group["weight_decay"])
        (beta1, beta2), means, largest = group["betas"], lot.each("exp_avg"), lot.each("exp_inf")
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        lot.scale(largest, beta2)
        sizes = list(torch._foreach_abs(gradients))
        lot.shift(sizes, group["eps"])
        torch._foreach_maximum_(largest, sizes)
        factors = [(group["lr"] / (1 - beta1**step)) * -1 for step in count.tolist()]
        torch._foreach_addcdiv_(lot.weights, means, largest, factors)


class NAdam(Lean, torch.optim.NAdam):
    """torch's NAdam in two passes: its update of w is one of Adam's, with another β₁ and rate.

    With A = (1 − μₜ) / (1 − Πμ₁…ₜ) and B = μₜ₊₁ / (1 − Πμ₁…ₜ₊₁), it subtracts lr · (A · g + B · m) / (√v̂ + eps), m new. From the
    m before, A · g + B · m = (A + B) · (β · m + (1 − β) · g) with β = β₁ · B / (A + B): Adam's kernel does that, and leaves
    β · m + (1 − β) · g where m belongs. That is moved on to m: m ← lerp(·, g, −A / B).
    """

    kernels = ("_fused_adam_",)
    dtypes = EXACT

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with its state from the start."""
        super().add_param_group(param_group)
        for weight in self.param_groups[-1]["params"]:
            self.state[weight] = self._begin(self.param_groups[-1], weight)

    def _takes(self, group: dict[str, Any]) -> bool:
        # What moving on to m adds in rounding errors grows with A / B ≤ 2 / β₁.
        return super()._takes(group) and group["betas"][0] >= 0.2

    def _begin(self, group: dict[str, Any], weight: Tensor) -> dict[str, Any]:
        # torch begins the product of μ in float32 for float64 too.
        scalar = weight.dtype if weight.dtype == torch.float64 else torch.float32
        start = {"step": torch.tensor(0.0), "mu_product": torch.ones((), dtype=scalar)}
        return start | {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}

    def _update(self, group: dict[str, Any], lot: Lot, gradients: list[Tensor]) -> None:
        (count, steps), (product, _) = lot.flat("step"), lot.flat("mu_product")
        if group["weight_decay"] and group["decoupled_weight_decay"]:
            lot.scale(lot.weights, 1 - group["lr"] * group["weight_decay"])
        elif group["weight_decay"]:
            gradients = lot.decayed(gradients, group["weight_decay"])
        lists = [lot.weights, gradients, lot.each("exp_avg"), lot.each("exp_avg_sq"), steps]
        ages, products = count.add_(ONE).tolist(), product.tolist()
        if ages.count(ages[0]) == products.count(products[0]) == len(ages):
            _nadam(group, lists, ages[0], product)
            return
        places = list(zip(ages, products, strict=True))
        for place in set(places):
            # What was frozen for a while is behind the others.
            chosen = [other == place for other in places]
            mine = product[chosen]
            _nadam(group, _where(lists, chosen), place[0], mine)
            product[chosen] = mine


def _nadam(group: dict[str, Any], lists: list[list[Tensor]], age: float, product: Tensor) -> None:
    """Update parameters in the same place: `age` updates, this one included, and one `product` of μ, up to now, of each."""
    weights, gradients, means, squares, steps = lists
    (beta1, beta2), decay = group["betas"], group["momentum_decay"]
    mu, mu_next = beta1 * (1.0 - 0.5 * 0.96 ** (age * decay)), beta1 * (1.0 - 0.5 * 0.96 ** ((age + 1) * decay))
    done = product.mul_(torch.scalar_tensor(mu, dtype=product.dtype)).tolist()[0]
    now, ahead = (1.0 - mu) / (1.0 - done), mu_next / (1.0 - done * mu_next)
    beta = beta1 * ahead / (now + ahead)
    torch._fused_adam_(
        weights,
        gradients,
        means,
        squares,
        [],
        steps,
        lr=group["lr"] * (now + ahead) * (1 - beta**age),
        beta1=beta,
        beta2=beta2,
        weight_decay=0.0,
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )
    torch._foreach_lerp_(means, gradients, -now / ahead)


def _where(lists: list[list[Tensor]], chosen: list[bool]) -> list[list[Tensor]]:
    return [[value for value, wanted in zip(values, chosen, strict=True) if wanted] for values in lists]


class _Rule(Lean):
    """An update rule that torch has not, over lists of tensors, on any device."""

    torchs = False

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, settings)

    def _kept(self, name: str, lot: Lot) -> list[Tensor]:
        """A running quantity of each weight, zero at first."""
        for weight, state in zip(lot.weights, lot.states, strict=True):
            if name not in state:
                state[name] = torch.zeros_like(weight)
        return lot.each(name)


class VelocitySGD(_Rule):
    """v ← momentum · v − lr · g, then w ← w + v, or with `nesterov` w ← w + momentum · v − lr · g."""

    def _update(self, group: dict[str, Any], lot: Lot, gradients: list[Tensor]) -> None:
        gradients = lot.decayed(gradients, group["weight_decay"])
        lr, momentum, velocities = group["lr"], group["momentum"], self._kept("velocity", lot)
        lot.scale(velocities, momentum)
        torch._foreach_add_(velocities, gradients, alpha=-lr)
        if group["nesterov"]:
            torch._foreach_add_(lot.weights, gradients, alpha=-lr)
            torch._foreach_add_(lot.weights, velocities, alpha=momentum)
        else:
            torch._foreach_add_(lot.weights, velocities)


class InsideRMSprop(_Rule):
    """RMSProp with eps inside the root and, with a momentum, the rate inside the velocity.

    v ← alpha · v + (1 − alpha) · g², u = lr · g / √(v − ḡ² + eps), where ḡ, the running mean of g, is 0 unless `centered`;
    w ← w − u, or with a momentum b ← momentum · b + u, then w ← w − b.
    """

    def _update(self, group: dict[str, Any], lot: Lot, gradients: list[Tensor]) -> None:
        gradients = lot.decayed(gradients, group["weight_decay"])
        alpha, squares = group["alpha"], self._kept("square_avg", lot)
        lot.scale(squares, alpha)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - alpha)
        roots = [square + group["eps"] for square in squares]
        if group["centered"]:
            means = self._kept("grad_avg", lot)
            lot.scale(means, alpha)
            torch._foreach_add_(means, gradients, alpha=1 - alpha)
            torch._foreach_addcmul_(roots, means, means, value=-1)
        torch._foreach_sqrt_(roots)
        if group["momentum"] == 0:
            torch._foreach_addcdiv_(lot.weights, gradients, roots, value=-group["lr"])
            return
        velocities = self._kept("momentum_buffer", lot)
        lot.scale(velocities, group["momentum"])
        torch._foreach_addcdiv_(velocities, gradients, roots, value=group["lr"])
        torch._foreach_add_(lot.weights, velocities, alpha=-1)
