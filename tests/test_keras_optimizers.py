"""Optimizers against Keras's on its torch backend: 30 float64 steps on an objective that is no bowl."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dnnkit import plugins
from dnnkit.registry import optimizers

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")

plugins.load()

# Keras's NAdam asks NumPy for its own arrays in a way that NumPy 2 calls old.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

STEPS = 30
KERAS = keras.optimizers


@pytest.fixture(autouse=True, scope="module")
def doubles() -> Iterator[None]:
    """Keras computes in float64 here, and as before afterwards."""
    assert keras.backend.backend() == "torch"
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx(before)


def starts() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.normal(size=shape) for shape in ((5, 3), (5,), (2, 3, 2, 2))]


def gradient(w: Any, t: int) -> Any:
    """Of Σ(w² − w⁴/40 + w · sin t): not linear in w, another one at every step."""
    return 2 * w - w**3 / 10 + float(np.sin(t))


def constant(t: int) -> float:
    return 1.0


def falling(t: int) -> float:
    return 1 - t / STEPS


def by_keras(optimizer: Any, factor: Any = constant, l2: float = 0.0) -> list[np.ndarray]:
    weights = [keras.Variable(start, dtype="float64") for start in starts()]
    optimizer.build(weights)
    peak = float(optimizer.learning_rate)
    for t in range(STEPS):
        optimizer.learning_rate = peak * factor(t)
        values = [weight.value.detach().clone() for weight in weights]
        # The loss term of keras.regularizers.L2(l2) is l2 · Σw².
        optimizer.apply([gradient(value, t) + 2 * l2 * value for value in values], weights)
    return [weight.value.detach().numpy() for weight in weights]


def by_name(name: str, settings: dict[str, Any], factor: Any = constant) -> list[np.ndarray]:
    weights = [nn.Parameter(torch.from_numpy(start)) for start in starts()]
    optimizer = optimizers.get(name).function(weights, **settings)
    for t in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * factor(t)
        for weight in weights:
            weight.grad = gradient(weight.detach(), t)
        optimizer.step()
    return [weight.detach().numpy() for weight in weights]


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    return max(float(np.abs(one - other).max()) for one, other in zip(ours, theirs, strict=True))


RMS = {"lr": 0.001, "alpha": 0.9, "eps": 1e-7}
ADAM = {"lr": 0.001, "eps": 1e-7}
NADAM = {"lr": 0.001, "eps": 1e-7, "momentum_decay": 1.0}

#: name, settings, Keras's optimizer with its own defaults, and how close the two end.
SAME: list[tuple[str, dict[str, Any], Any, float]] = [
    ("sgd", {}, lambda: KERAS.SGD(0.01), 1e-15),
    ("momentum", {"lr": 0.05}, lambda: KERAS.SGD(0.05, momentum=0.9), 2e-14),
    ("nesterov", {"lr": 0.05}, lambda: KERAS.SGD(0.05, momentum=0.9, nesterov=True), 2e-14),
    ("adagrad", {"lr": 0.001, "initial_accumulator_value": 0.1, "eps": 1e-7}, lambda: KERAS.Adagrad(), 4e-10),
    ("rmsprop", RMS, lambda: KERAS.RMSprop(), 1.5e-6),
    ("rmsprop", RMS | {"eps_inside": True}, lambda: KERAS.RMSprop(), 1e-14),
    ("rmsprop", RMS | {"eps_inside": True, "momentum": 0.5}, lambda: KERAS.RMSprop(momentum=0.5), 1e-14),
    (
        "rmsprop",
        RMS | {"eps_inside": True, "momentum": 0.5, "centered": True, "eps": 1e-3},
        lambda: KERAS.RMSprop(momentum=0.5, centered=True, epsilon=1e-3),
        1e-14,
    ),
    ("adam", ADAM, lambda: KERAS.Adam(), 5e-7),
    ("adam", ADAM | {"eps_hat": True}, lambda: KERAS.Adam(), 1e-14),
    ("adam", {"lr": 0.01, "eps": 0.01, "eps_hat": True, "amsgrad": True}, lambda: KERAS.Adam(0.01, epsilon=0.01, amsgrad=True), 1e-14),
    ("adamax", {"lr": 0.001, "eps": 1e-7}, lambda: KERAS.Adamax(), 1e-10),
    ("nadam", NADAM, lambda: KERAS.Nadam(), 1e-15),
    ("adamw", ADAM | {"weight_decay": 0.004, "eps_hat": True}, lambda: KERAS.AdamW(), 1e-14),
    ("adamw", {"lr": 0.01, "eps": 1e-7, "weight_decay": 0.1}, lambda: KERAS.AdamW(0.01, weight_decay=0.1), 5e-7),
]


@pytest.mark.parametrize(("name", "settings", "theirs", "tolerance"), SAME)
def test_thirty_steps_end_where_keras_s_do(name: str, settings: dict[str, Any], theirs: Any, tolerance: float) -> None:
    assert difference(by_name(name, settings), by_keras(theirs())) <= tolerance


def test_every_built_in_optimizer_is_compared_with_keras_s() -> None:
    assert {name for name, *_ in SAME} == {component.name for component in optimizers if component.origin.package == "dnnkit"}


#: With Keras's settings, and a rate that falls to nearly nothing.
FALLING = [case for case in SAME if case[0] not in ("momentum", "nesterov", "rmsprop") or case[1].get("eps_inside")] + [
    ("momentum", {"lr": 0.05, "keras_momentum": True}, lambda: KERAS.SGD(0.05, momentum=0.9), 1e-14),
    ("nesterov", {"lr": 0.05, "keras_momentum": True}, lambda: KERAS.SGD(0.05, momentum=0.9, nesterov=True), 1e-14),
]


@pytest.mark.parametrize(("name", "settings", "theirs", "tolerance"), FALLING)
def test_they_still_do_when_the_rate_changes_at_every_step(name: str, settings: dict[str, Any], theirs: Any, tolerance: float) -> None:
    assert difference(by_name(name, settings, falling), by_keras(theirs(), falling)) <= max(tolerance, 1e-14)


@pytest.mark.parametrize("name", ["momentum", "nesterov"])
def test_with_torch_s_momentum_a_changing_rate_leads_elsewhere_than_keras_s(name: str) -> None:
    theirs = by_keras(KERAS.SGD(0.05, momentum=0.9, nesterov=name == "nesterov"), falling)
    assert 1e-3 < difference(by_name(name, {"lr": 0.05}, falling), theirs) < 1


def test_torch_s_momentum_decay_of_nadam_is_not_keras_s() -> None:
    found = difference(by_name("nadam", NADAM | {"momentum_decay": 0.004}), by_keras(KERAS.Nadam()))
    assert 1e-4 < found < 1e-2


DECAYED: list[tuple[str, dict[str, Any], Any]] = [
    ("sgd", {"lr": 0.01}, lambda wd: KERAS.SGD(0.01, weight_decay=wd)),
    ("momentum", {"lr": 0.05, "decoupled": True}, lambda wd: KERAS.SGD(0.05, momentum=0.9, weight_decay=wd)),
    ("momentum", {"lr": 0.05, "decoupled": True, "keras_momentum": True}, lambda wd: KERAS.SGD(0.05, momentum=0.9, weight_decay=wd)),
    ("nesterov", {"lr": 0.05, "decoupled": True}, lambda wd: KERAS.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=wd)),
    (
        "adagrad",
        {"lr": 0.01, "initial_accumulator_value": 0.1, "eps": 1e-7, "decoupled": True},
        lambda wd: KERAS.Adagrad(0.01, weight_decay=wd),
    ),
    ("rmsprop", RMS | {"eps_inside": True, "decoupled": True}, lambda wd: KERAS.RMSprop(weight_decay=wd)),
    ("adam", ADAM | {"eps_hat": True, "decoupled": True}, lambda wd: KERAS.Adam(weight_decay=wd)),
    ("adamw", ADAM | {"eps_hat": True}, lambda wd: KERAS.AdamW(weight_decay=wd)),
    ("adamax", {"lr": 0.001, "eps": 1e-7, "decoupled": True}, lambda wd: KERAS.Adamax(weight_decay=wd)),
    ("nadam", NADAM | {"decoupled": True}, lambda wd: KERAS.Nadam(weight_decay=wd)),
]


@pytest.mark.parametrize(("name", "settings", "theirs"), DECAYED)
def test_decoupled_weight_decay_is_keras_s(name: str, settings: dict[str, Any], theirs: Any) -> None:
    tolerance = {"adagrad": 2e-8, "adamax": 1e-10}.get(name, 2e-14)
    assert difference(by_name(name, settings | {"weight_decay": 0.1}), by_keras(theirs(0.1))) <= tolerance
    assert difference(by_name(name, settings), by_keras(theirs(0.1))) > 1e-4


def test_every_optimizer_with_a_weight_decay_is_compared() -> None:
    decaying = {c.name for c in optimizers if c.origin.package == "dnnkit" and "weight_decay" in {s.name for s in c.settings}}
    assert decaying == {name for name, *_ in DECAYED} == {c.name for c in optimizers if c.origin.package == "dnnkit"}


@pytest.mark.parametrize(
    ("name", "settings", "theirs", "tolerance"),
    [
        ("sgd", {"lr": 0.01}, lambda: KERAS.SGD(0.01), 1e-15),
        ("momentum", {"lr": 0.05}, lambda: KERAS.SGD(0.05, momentum=0.9), 2e-14),
        ("nesterov", {"lr": 0.05}, lambda: KERAS.SGD(0.05, momentum=0.9, nesterov=True), 2e-14),
        ("momentum", {"lr": 0.05, "keras_momentum": True}, lambda: KERAS.SGD(0.05, momentum=0.9), 1e-14),
        ("adam", ADAM | {"eps_hat": True}, lambda: KERAS.Adam(), 1e-14),
        ("rmsprop", RMS | {"eps_inside": True}, lambda: KERAS.RMSprop(), 1e-14),
    ],
)
def test_keras_s_l2_of_c_is_coupled_weight_decay_of_2c(name: str, settings: dict[str, Any], theirs: Any, tolerance: float) -> None:
    assert difference(by_name(name, settings | {"weight_decay": 0.02}), by_keras(theirs(), l2=0.01)) <= tolerance
    assert difference(by_name(name, settings | {"weight_decay": 0.01}), by_keras(theirs(), l2=0.01)) > 1e-5
