"""Rates in closed form, and update rules as plain functions of tensors, for torch.compile."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.jobs import ONE_CYCLE

_MOMENTA = (0.95, 0.85)


class Rates:
    """torch's OneCycleLR with `ONE_CYCLE`, written down for each of `steps` steps."""

    def __init__(self, peak: float, steps: int) -> None:
        start = peak / ONE_CYCLE["div_factor"]
        top, self._last = ONE_CYCLE["pct_start"] * steps - 1, steps - 1
        self._rates = ((0.0, start), (top, peak), (2 * top, start), (float(self._last), start / ONE_CYCLE["final_div_factor"]))
        self._momenta = ((0.0, _MOMENTA[0]), (top, _MOMENTA[1]), (2 * top, _MOMENTA[0]), (float(self._last), _MOMENTA[0]))

    def at(self, step: int) -> tuple[float, float]:
        """Rate and momentum of the update that follows `step` updates."""
        step = min(step, self._last)
        return _between(self._rates, step), _between(self._momenta, step)


def _between(points: Sequence[tuple[float, float]], step: int) -> float:
    """On the line between the two points around `step`."""
    for (left, low), (right, high) in pairwise(points):
        if step <= right:
            return low + (high - low) * (step - left) / (right - left)
    return points[-1][1]


class Momentum:
    """v ← μ · v + g, then w ← w − lr · v. `state` and `weights` are changed in place; `numbers` are lr and μ."""

    def __init__(self, weights: Sequence[Tensor], rates: Rates) -> None:
        self.weights = [weight.detach() for weight in weights]
        self.state = [[torch.zeros_like(weight) for weight in self.weights]]
        self._rates = rates

    def numbers(self, step: int) -> Tensor:
        return torch.tensor(self._rates.at(step))

    @staticmethod
    def change(weights: Sequence[Tensor], gradients: Sequence[Tensor], state: Sequence[Sequence[Tensor]], numbers: Tensor) -> None:
        rate, momentum = numbers[0], numbers[1]
        for weight, gradient, velocity in zip(weights, gradients, state[0], strict=True):
            velocity.mul_(momentum).add_(gradient)
            weight.sub_(rate * velocity)


class Nadam:
    """torch's NAdam. `numbers` are β₁, the weights of m and of g in the update, the rate among them, and 1 / √(1 − β₂ᵗ)."""

    def __init__(self, weights: Sequence[Tensor], rates: Rates) -> None:
        self.weights = [weight.detach() for weight in weights]
        self.state = [[torch.zeros_like(weight) for weight in self.weights] for _ in range(2)]
        self._rates, self._product = rates, 1.0

    def numbers(self, step: int) -> Tensor:
        """Once for each step, in their order."""
        rate, beta1 = self._rates.at(step)
        now, ahead = (beta1 * (1 - 0.5 * 0.96 ** (age * 0.004)) for age in (step + 1, step + 2))
        self._product = now if step == 0 else self._product * now
        of_mean, of_gradient = rate * ahead / (1 - self._product * ahead), rate * (1 - now) / (1 - self._product)
        return torch.tensor([beta1, of_mean, of_gradient, (1 - 0.999 ** (step + 1)) ** -0.5])

    @staticmethod
    def change(weights: Sequence[Tensor], gradients: Sequence[Tensor], state: Sequence[Sequence[Tensor]], numbers: Tensor) -> None:
        beta1, of_mean, of_gradient, correction = numbers[0], numbers[1], numbers[2], numbers[3]
        for weight, gradient, mean, square in zip(weights, gradients, *state, strict=True):
            mean.mul_(beta1).add_((1 - beta1) * gradient)
            square.mul_(0.999).add_(0.001 * gradient * gradient)
            weight.sub_((of_mean * mean + of_gradient * gradient) / (square.sqrt() * correction + 1e-8))


UPDATES = {"sgd": Momentum, "nadam": Nadam}
