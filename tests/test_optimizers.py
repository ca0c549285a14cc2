"""Optimizers against their update rules written out in float64 NumPy, 30 steps, with the rate changing on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dnnkit import plugins
from dnnkit.registry import optimizers

plugins.load()

Rule = Callable[[np.ndarray, float], np.ndarray]
STEPS = 30


def sgd() -> Rule:
    return lambda g, lr: lr * g


def momentum(mu: float = 0.9) -> Rule:
    v = 0.0

    def update(g: np.ndarray, lr: float) -> np.ndarray:
        nonlocal v
        v = mu * v + g
        return lr * v

    return update


def nesterov(mu: float = 0.9) -> Rule:
    v = 0.0

    def update(g: np.ndarray, lr: float) -> np.ndarray:
        nonlocal v
        v = mu * v + g
        return lr * (g + mu * v)

    return update


def adam(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Rule:
    m, v, t = 0.0, 0.0, 0

    def update(g: np.ndarray, lr: float) -> np.ndarray:
        nonlocal m, v, t
        m, v, t = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2, t + 1
        return lr * m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)

    return update


def nadam(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, psi: float = 0.004) -> Rule:
    m, v, t, product = 0.0, 0.0, 0, 1.0

    def mu(t: int) -> float:
        return beta1 * (1 - 0.5 * 0.96 ** (t * psi))

    def update(g: np.ndarray, lr: float) -> np.ndarray:
        nonlocal m, v, t, product
        m, v, t = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2, t + 1
        product *= mu(t)
        m_hat = mu(t + 1) * m / (1 - product * mu(t + 1)) + (1 - mu(t)) * g / (1 - product)
        return lr * m_hat / (np.sqrt(v / (1 - beta2**t)) + eps)

    return update


#: name, settings, rule, and how close the float64 runs are: torch keeps NAdam's product of μ in float32.
RULES: list[tuple[str, dict[str, float], Callable[[], Rule], float]] = [
    ("sgd", {"lr": 0.01}, sgd, 1e-14),
    ("momentum", {"lr": 0.05}, momentum, 1e-13),
    ("momentum", {"lr": 0.02, "momentum": 0.5}, lambda: momentum(0.5), 1e-13),
    ("momentum", {"lr": 0.02, "momentum": 0.0}, sgd, 1e-14),
    ("nesterov", {"lr": 0.05}, nesterov, 1e-13),
    ("nesterov", {"lr": 0.02, "momentum": 0.5}, lambda: nesterov(0.5), 1e-13),
    ("adam", {"lr": 0.05}, adam, 1e-13),
    ("adam", {"lr": 0.05, "beta1": 0.8, "beta2": 0.9, "eps": 0.1}, lambda: adam(0.8, 0.9, 0.1), 1e-13),
    ("nadam", {"lr": 0.05}, nadam, 1e-6),
    ("nadam", {"lr": 0.05, "beta1": 0.8, "beta2": 0.9, "eps": 0.1, "momentum_decay": 1.0}, lambda: nadam(0.8, 0.9, 0.1, 1.0), 1e-6),
]
DEFAULT_RATES = {"sgd": 0.01, "momentum": 0.05, "nesterov": 0.05, "adam": 1e-3, "nadam": 1e-3}


def starts() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.normal(size=shape) for shape in ((5, 3), (5,), (2, 3, 2, 2))]


def gradient(w: Any, t: int) -> Any:
    """Of Σ(w² − w⁴/40 + w · sin t): not linear in w, another one at every step. For NumPy and torch alike."""
    return 2 * w - w**3 / 10 + float(np.sin(t))


def rates(lr: float) -> Iterator[tuple[int, float]]:
    return ((t, lr * (1 - t / STEPS) if t > 10 else lr) for t in range(STEPS))


def by_rule(make: Callable[[], Rule], lr: float) -> list[np.ndarray]:
    weights, rules = starts(), [make() for _ in starts()]
    for t, rate in rates(lr):
        weights = [w - rule(gradient(w, t), rate) for w, rule in zip(weights, rules, strict=True)]
    return weights


def by_torch(name: str, settings: dict[str, float], dtype: torch.dtype) -> list[nn.Parameter]:
    weights = [nn.Parameter(torch.from_numpy(start).to(dtype)) for start in starts()]
    optimizer = optimizers.get(name).function(weights, **settings)
    for t, rate in rates(settings["lr"]):
        optimizer.param_groups[0]["lr"] = rate
        for weight in weights:
            weight.grad = gradient(weight.detach(), t)
        optimizer.step()
    return weights


@pytest.mark.parametrize(("name", "settings", "make", "tolerance"), RULES)
def test_thirty_steps_follow_the_update_rule(name: str, settings: dict[str, float], make: Callable[[], Rule], tolerance: float) -> None:
    for ours, oracle in zip(by_torch(name, settings, torch.float64), by_rule(make, settings["lr"]), strict=True):
        np.testing.assert_allclose(ours.detach(), oracle, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("name", "settings", "make", "tolerance"), RULES)
def test_thirty_steps_in_float32_follow_it_to_float32(
    name: str, settings: dict[str, float], make: Callable[[], Rule], tolerance: float
) -> None:
    for ours, oracle in zip(by_torch(name, settings, torch.float32), by_rule(make, settings["lr"]), strict=True):
        np.testing.assert_allclose(ours.detach(), oracle, rtol=0, atol=1e-5)


def test_every_built_in_optimizer_has_an_oracle_here_and_the_documented_rate() -> None:
    built_in = [component for component in optimizers if component.origin.package == "dnnkit"]
    assert {component.name for component in built_in} == {name for name, *_ in RULES}
    for component in built_in:
        [lr] = [setting for setting in component.settings if setting.name == "lr"]
        assert lr.default == DEFAULT_RATES[component.name]


@pytest.mark.parametrize("name", [component.name for component in optimizers])
def test_every_optimizer_steps_downhill_with_its_defaults_and_takes_groups(name: str) -> None:
    weights = [nn.Parameter(torch.full((4,), 2.0)), nn.Parameter(torch.full((4,), 2.0))]
    groups = [{"params": [weights[0]]}, {"params": [weights[1]], "lr": 1e-9}]
    optimizer = optimizers.get(name).function(groups)
    for _ in range(5):
        optimizer.zero_grad()
        sum((weight**2).sum() for weight in weights).backward()
        optimizer.step()
    assert (weights[0] < 2 - 1e-4).all()
    assert (weights[1] > 2 - 1e-6).all()


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam"])
def test_the_update_is_one_fused_call_on_the_cpu(name: str) -> None:
    assert optimizers.get(name).function([nn.Parameter(torch.ones(2))]).defaults["fused"] is True


def test_parameters_that_no_fused_kernel_takes_are_updated_all_the_same() -> None:
    assert optimizers.get("sgd").function([nn.Parameter(torch.ones(2, device="meta"))]).defaults["fused"] is None
