"""Losses: the closed forms in float64 NumPy, their gradients, and shapes that do not match."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dnnkit import plugins
from dnnkit.config import Composer
from dnnkit.errors import PluginError
from dnnkit.network import build_network
from dnnkit.registry import REGISTRIES

plugins.load()
VALUES = ["mse", "mae", "huber"]


def loss(name: str) -> Any:
    return REGISTRIES["loss"].get(name).function


def pair(shape: tuple[int, ...] = (50, 3), scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(shape, dtype=torch.float64, generator=generator) * scale for _ in range(2))
    return prediction, target


def test_mse_and_mae_are_means_over_samples_and_outputs() -> None:
    prediction, target = pair()
    error = prediction.numpy() - target.numpy()
    assert float(loss("mse")(prediction, target)) == pytest.approx((error**2).sum() / 150, rel=1e-12)
    assert float(loss("mae")(prediction, target)) == pytest.approx(np.abs(error).sum() / 150, rel=1e-12)


@pytest.mark.parametrize("delta", [0.1, 1.0, 7.5])
def test_huber_is_a_parabola_within_delta_and_its_tangent_outside(delta: float) -> None:
    prediction, target = pair()
    error = np.abs(prediction.numpy() - target.numpy())
    assert (error < delta).any()
    assert (error > delta).any()
    expected = np.where(error <= delta, error**2 / 2, delta * (error - delta / 2)).mean()
    assert float(loss("huber")(prediction, target, delta)) == pytest.approx(expected, rel=1e-12)


def test_huber_is_half_of_mse_for_small_errors_and_its_slope_is_delta_for_large_ones() -> None:
    prediction, target = pair(scale=0.01)
    assert float(loss("huber")(prediction, target)) == pytest.approx(float(loss("mse")(prediction, target)) / 2, rel=1e-12)
    far = torch.tensor([[100.0], [-100.0]], requires_grad=True)
    loss("huber")(far, torch.zeros(2, 1), delta=3.0).backward()
    assert far.grad is not None
    assert far.grad.flatten().tolist() == [1.5, -1.5]


#: Name, settings.
EVERY: list[tuple[str, dict[str, float]]] = [
    ("cross_entropy", {}),
    ("cross_entropy", {"label_smoothing": 0.1}),
    ("mse", {}),
    ("mae", {}),
    ("huber", {}),
    ("huber", {"delta": 3.0}),
    ("binary_cross_entropy", {}),
]


@pytest.mark.parametrize(("name", "settings"), EVERY)
def test_the_gradient_is_the_one_of_finite_differences(name: str, settings: dict[str, float]) -> None:
    prediction, target = pair((6, 2))
    errors = (prediction - target).abs()
    assert all((errors - kink).abs().min() > 1e-3 for kink in (0, *settings.values()))
    if name == "cross_entropy":
        target = torch.tensor([0, 1, 1, 0, 1, 0])
    if name == "binary_cross_entropy":
        target = (target > 0).double()
    assert torch.autograd.gradcheck(lambda p: loss(name)(p, target, **settings), prediction.requires_grad_())


def test_every_built_in_loss_is_checked_against_finite_differences() -> None:
    built_in = {component.name for component in REGISTRIES["loss"] if component.origin.package == "dnnkit"}
    assert {name for name, _ in EVERY} == built_in


@pytest.mark.parametrize("model", [component.name for component in REGISTRIES["model"] if component.facts.get("task") != "reconstruction"])
def test_no_model_ends_in_the_softmax_that_the_loss_contains(model: str) -> None:
    """With a softmax in front the loss could not fall below log(1 + (k − 1)/e), 1.46 for ten classes."""
    net = build_network(Composer().one([f"model={model}"]).values, (1, 8, 8), 10, 0).eval()
    logits = net(pair((50, 1, 8, 8))[0].float()).detach()
    assert logits.min() < 0
    labels = logits.argmax(1)
    sharp = [float(loss("cross_entropy")(given, labels)) for given in (1000 * logits, (1000 * logits).softmax(1))]
    assert sharp[0] < 0.1
    assert sharp[1] > np.log(1 + 9 / np.e) - 1e-4


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("target", [(8,), (8, 2), (1, 1), (8, 1, 1)])
def test_shapes_that_would_be_spread_against_each_other_are_refused(name: str, target: tuple[int, ...]) -> None:
    with pytest.raises(PluginError, match=rf"loss={name} needs prediction and target of one shape, got \(8, 1\) and"):
        loss(name)(torch.zeros(8, 1), torch.zeros(target))


def test_a_loss_says_which_tasks_it_is_for() -> None:
    for name in VALUES:
        assert REGISTRIES["loss"].get(name).facts["tasks"] == ["regression", "reconstruction"]
    assert REGISTRIES["loss"].get("cross_entropy").facts["tasks"] == ["classification"]
