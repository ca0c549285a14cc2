"""Optimizers against their update rules written out in float64 NumPy, 30 steps, with the rate changing on the way."""

from __future__ import annotations

import copy
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


def adagrad(start: float = 0.0, eps: float = 1e-10) -> Rule:
    s = start

    def update(g: np.ndarray, lr: float) -> np.ndarray:
        nonlocal s
        s = s + g**2
        return lr * g / (np.sqrt(s) + eps)

    return update


def rmsprop(alpha: float = 0.99, eps: float = 1e-8, mu: float = 0.0, centered: bool = False, inside: bool = False) -> Rule:
    s, mean, b, u = 0.0, 0.0, 0.0, 0.0

    def update(g: np.ndarray, lr: float) -> np.ndarray:
        nonlocal s, mean, b, u
        s, mean = alpha * s + (1 - alpha) * g**2, alpha * mean + (1 - alpha) * g
        variance = s - mean**2 if centered else s
        if inside:
            u = mu * u + lr * g / np.sqrt(variance + eps)
            return u
        b = mu * b + g / (np.sqrt(variance) + eps)
        return lr * b

    return update


def velocity(mu: float = 0.9, nesterov: bool = False) -> Rule:
    v = 0.0

    def update(g: np.ndarray, lr: float) -> np.ndarray:
        nonlocal v
        v = mu * v - lr * g
        return lr * g - mu * v if nesterov else -v

    return update


def adam(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, amsgrad: bool = False, hat: bool = False) -> Rule:
    m, v, most, t = 0.0, 0.0, 0.0, 0

    def update(g: np.ndarray, lr: float) -> np.ndarray:
        nonlocal m, v, most, t
        m, v, t = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2, t + 1
        most = np.maximum(most, v) if amsgrad else v
        if hat:
            return lr * np.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (np.sqrt(most) + eps)
        return lr * m / (1 - beta1**t) / (np.sqrt(most / (1 - beta2**t)) + eps)

    return update


def adamax(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Rule:
    m, u, t = 0.0, 0.0, 0

    def update(g: np.ndarray, lr: float) -> np.ndarray:
        nonlocal m, u, t
        m, u, t = beta1 * m + (1 - beta1) * g, np.maximum(beta2 * u, np.abs(g) + eps), t + 1
        return lr * m / (1 - beta1**t) / u

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


#: name, settings, rule, and how close the float64 runs are.
RULES: list[tuple[str, dict[str, float], Callable[[], Rule], float]] = [
    ("sgd", {"lr": 0.01}, sgd, 1e-14),
    ("momentum", {"lr": 0.05}, momentum, 1e-13),
    ("momentum", {"lr": 0.02, "momentum": 0.5}, lambda: momentum(0.5), 1e-13),
    ("momentum", {"lr": 0.02, "momentum": 0.0}, sgd, 1e-14),
    ("momentum", {"lr": 0.05, "keras_momentum": True}, velocity, 1e-13),
    ("nesterov", {"lr": 0.05}, nesterov, 1e-13),
    ("nesterov", {"lr": 0.02, "momentum": 0.5}, lambda: nesterov(0.5), 1e-13),
    ("nesterov", {"lr": 0.05, "keras_momentum": True}, lambda: velocity(nesterov=True), 1e-13),
    ("adagrad", {"lr": 0.05}, adagrad, 1e-13),
    ("adagrad", {"lr": 0.05, "initial_accumulator_value": 0.1, "eps": 0.1}, lambda: adagrad(0.1, 0.1), 1e-13),
    ("rmsprop", {"lr": 0.01}, rmsprop, 1e-13),
    ("rmsprop", {"lr": 0.01, "alpha": 0.9, "eps": 0.1, "momentum": 0.5}, lambda: rmsprop(0.9, 0.1, 0.5), 1e-13),
    ("rmsprop", {"lr": 0.01, "eps": 0.1, "centered": True}, lambda: rmsprop(eps=0.1, centered=True), 1e-13),
    ("rmsprop", {"lr": 0.01, "eps_inside": True}, lambda: rmsprop(inside=True), 1e-13),
    (
        "rmsprop",
        {"lr": 0.01, "eps": 0.1, "centered": True, "momentum": 0.5, "eps_inside": True},
        lambda: rmsprop(eps=0.1, mu=0.5, centered=True, inside=True),
        1e-13,
    ),
    ("adam", {"lr": 0.05}, adam, 1e-13),
    ("adam", {"lr": 0.05, "beta1": 0.8, "beta2": 0.9, "eps": 0.1}, lambda: adam(0.8, 0.9, 0.1), 1e-13),
    ("adam", {"lr": 0.05, "beta2": 0.9, "eps": 0.1, "amsgrad": True}, lambda: adam(0.9, 0.9, 0.1, True), 1e-13),
    ("adam", {"lr": 0.05, "beta2": 0.9, "eps": 0.1, "eps_hat": True}, lambda: adam(0.9, 0.9, 0.1, hat=True), 1e-13),
    ("adamw", {"lr": 0.05, "weight_decay": 0.0}, adam, 1e-13),
    ("adamax", {"lr": 0.05}, adamax, 1e-13),
    ("adamax", {"lr": 0.05, "beta1": 0.8, "beta2": 0.9, "eps": 0.1}, lambda: adamax(0.8, 0.9, 0.1), 1e-13),
    ("nadam", {"lr": 0.05}, nadam, 1e-13),
    ("nadam", {"lr": 0.05, "beta1": 0.8, "beta2": 0.9, "eps": 0.1, "momentum_decay": 1.0}, lambda: nadam(0.8, 0.9, 0.1, 1.0), 1e-13),
]
DEFAULT_RATES = {
    "sgd": 0.01,
    "momentum": 0.05,
    "nesterov": 0.05,
    "adagrad": 0.01,
    "rmsprop": 0.01,
    "adam": 1e-3,
    "adamw": 1e-3,
    "adamax": 2e-3,
    "nadam": 2e-3,
}


def starts() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.normal(size=shape) for shape in ((5, 3), (5,), (2, 3, 2, 2))]


def gradient(w: Any, t: int) -> Any:
    """Of Σ(w² − w⁴/40 + w · sin t): not linear in w, another one at every step. For NumPy and torch alike."""
    return 2 * w - w**3 / 10 + float(np.sin(t))


def rates(lr: float) -> Iterator[tuple[int, float]]:
    return ((t, lr * (1 - t / STEPS) if t > 10 else lr) for t in range(STEPS))


def by_rule(make: Callable[[], Rule], lr: float, coupled: float = 0.0, decoupled: float = 0.0) -> list[np.ndarray]:
    weights, rules = starts(), [make() for _ in starts()]
    for t, rate in rates(lr):
        gradients = [gradient(w, t) + coupled * w for w in weights]
        weights = [w - rate * decoupled * w for w in weights]
        weights = [w - rule(g, rate) for w, g, rule in zip(weights, gradients, rules, strict=True)]
    return weights


def by_torch(name: str, settings: dict[str, Any], dtype: torch.dtype, in_closure: bool = False) -> list[nn.Parameter]:
    weights = [nn.Parameter(torch.from_numpy(start).to(dtype)) for start in starts()]
    optimizer = optimizers.get(name).function(weights, **settings)
    for t, rate in rates(settings["lr"]):
        optimizer.param_groups[0]["lr"] = rate

        def take_gradients(t: int = t) -> int:
            assert torch.is_grad_enabled()
            for weight in weights:
                weight.grad = gradient(weight.detach(), t)
            return 7

        if in_closure:
            assert optimizer.step(closure=take_gradients) == 7
        else:
            take_gradients()
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


WITH_DECAY = [(name, settings, make, tolerance) for name, settings, make, tolerance in RULES if name != "adamw"]


@pytest.mark.parametrize(("name", "settings", "make", "tolerance"), WITH_DECAY)
def test_weight_decay_is_added_to_the_gradient(name: str, settings: dict[str, Any], make: Callable[[], Rule], tolerance: float) -> None:
    ours = by_torch(name, settings | {"weight_decay": 0.3}, torch.float64)
    for one, oracle in zip(ours, by_rule(make, settings["lr"], coupled=0.3), strict=True):
        np.testing.assert_allclose(one.detach(), oracle, rtol=0, atol=tolerance)


@pytest.mark.parametrize("in_closure", [False, True])
@pytest.mark.parametrize(("name", "settings", "make", "tolerance"), RULES)
def test_decoupled_weight_decay_shrinks_the_weight_after_the_gradient_and_before_the_update(
    name: str, settings: dict[str, Any], make: Callable[[], Rule], tolerance: float, in_closure: bool
) -> None:
    flag = {} if name in ("sgd", "adamw") else {"decoupled": True}  # for sgd both are the same
    ours = by_torch(name, settings | {"weight_decay": 0.3} | flag, torch.float64, in_closure)
    for one, oracle in zip(ours, by_rule(make, settings["lr"], decoupled=0.3), strict=True):
        np.testing.assert_allclose(one.detach(), oracle, rtol=0, atol=tolerance)


def test_only_adamw_decays_weights_unless_it_is_told_to() -> None:
    for component in optimizers:
        [decay] = [setting for setting in component.settings if setting.name == "weight_decay"] or [None]
        if component.origin.package == "dnnkit":
            assert decay is not None
            assert decay.default == (0.01 if component.name == "adamw" else 0)


DECOUPLED = sorted({name for name, *_ in RULES} - {"sgd"})


@pytest.mark.parametrize("name", DECOUPLED)
def test_each_group_has_a_weight_decay_of_its_own_also_one_that_is_added_later(name: str) -> None:
    flag = {} if name == "adamw" else {"decoupled": True}
    weights = [nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(3)]
    groups = [{"params": [weights[0]], "weight_decay": 0.0}, {"params": [weights[1]]}]
    optimizer = optimizers.get(name).function(groups, lr=0.1, weight_decay=0.5, **flag)
    optimizer.add_param_group({"params": [weights[2]], "weight_decay": 0.25})
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.zeros(1, dtype=torch.float64)
        optimizer.step()
    # Without a gradient decay is all that happens.
    assert [weight.detach().item() for weight in weights] == pytest.approx([1, 0.95**2, 0.975**2], rel=1e-12)


@pytest.mark.parametrize(("name", "settings", "make", "tolerance"), RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_that_is_saved_and_loaded_goes_on_bit_for_bit(
    name: str, settings: dict[str, Any], make: Callable[[], Rule], tolerance: float, dtype: torch.dtype
) -> None:
    settings = settings | {"weight_decay": 0.3} | ({} if name in ("sgd", "adamw") else {"decoupled": True})

    def update(weights: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
        for t in steps:
            for weight in weights:
                weight.grad = gradient(weight.detach(), t)
            optimizer.step()

    whole, parts = ([nn.Parameter(torch.from_numpy(start).to(dtype)) for start in starts()] for _ in range(2))
    update(whole, optimizers.get(name).function(whole, **settings), range(10))
    first, second = (optimizers.get(name).function(parts, **settings) for _ in range(2))
    update(parts, first, range(5))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    update(parts, second, range(5, 10))
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adagrad", "adam", "adamw"])
def test_the_update_is_one_fused_call_on_the_cpu(name: str) -> None:
    assert optimizers.get(name).function([nn.Parameter(torch.ones(2))]).defaults["fused"] is True


@pytest.mark.parametrize("name", ["rmsprop", "adamax", "nadam"])
def test_without_a_fused_kernel_the_update_goes_over_lists_of_tensors(name: str) -> None:
    assert optimizers.get(name).function([nn.Parameter(torch.ones(2))]).defaults["foreach"] is True


def test_a_hook_on_the_update_runs_once() -> None:
    calls: list[int] = []
    for settings in ({}, {"decoupled": True}, {"keras_momentum": True, "decoupled": True}):
        weight = nn.Parameter(torch.ones(2))
        weight.grad = torch.ones(2)
        optimizer = optimizers.get("momentum").function([weight], **settings)
        optimizer.register_step_post_hook(lambda *_: calls.append(1))
        optimizer.step()
    assert len(calls) == 3


def test_parameters_that_no_fused_kernel_takes_are_updated_all_the_same() -> None:
    assert optimizers.get("sgd").function([nn.Parameter(torch.ones(2, device="meta"))]).defaults["fused"] is None
