"""Activations against closed forms in float64 NumPy, and the Gaussian moments known from the literature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import special
from torch import nn

from dnnkit import plugins
from dnnkit.registry import activations

plugins.load()

LAMBDA, ALPHA = 1.0507009873554805, 1.6732632423543772

#: name, settings, torch's class, closed form
FORMS: list[tuple[str, dict[str, object], type[nn.Module], Callable[[np.ndarray], np.ndarray]]] = [
    ("identity", {}, nn.Identity, lambda z: z),
    ("relu", {}, nn.ReLU, lambda z: np.maximum(z, 0)),
    ("leaky_relu", {}, nn.LeakyReLU, lambda z: np.maximum(z, 0.01 * z)),
    ("leaky_relu", {"negative_slope": 0.2}, nn.LeakyReLU, lambda z: np.maximum(z, 0.2 * z)),
    ("elu", {}, nn.ELU, lambda z: np.where(z > 0, z, np.exp(z) - 1)),
    ("elu", {"alpha": 0.1}, nn.ELU, lambda z: np.where(z > 0, z, 0.1 * (np.exp(z) - 1))),
    ("selu", {}, nn.SELU, lambda z: LAMBDA * np.where(z > 0, z, ALPHA * (np.exp(z) - 1))),
    ("gelu", {}, nn.GELU, lambda z: z * special.ndtr(z)),
    ("gelu", {"approximate": "tanh"}, nn.GELU, lambda z: z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))),
    ("silu", {}, nn.SiLU, lambda z: z / (1 + np.exp(-z))),
    ("tanh", {}, nn.Tanh, lambda z: (np.exp(z) - np.exp(-z)) / (np.exp(z) + np.exp(-z))),
    ("sigmoid", {}, nn.Sigmoid, lambda z: 1 / (1 + np.exp(-z))),
]
#: E[f²] and E[f′²] for a standard normal input.
MOMENTS = {
    "identity": ({}, 1, 1),
    "relu": ({}, 0.5, 0.5),
    "leaky_relu": ({"negative_slope": 0.2}, 0.52, 0.52),
    "elu": ({}, 0.6449, 0.6681),
    "selu": ({}, 1, 1.0716),
    "gelu": ({}, 0.4252, 0.4559),
    "silu": ({}, 0.3558, 0.3795),
    "tanh": ({}, 0.3943, 0.4644),
}
PAIRS = {
    "glorot_uniform": {"identity", "tanh", "sigmoid"},
    "he_normal": {"relu", "leaky_relu", "elu", "gelu", "silu"},
    "lecun_normal": {"selu"},
}


def made(name: str, **settings: object) -> nn.Module:
    return activations.get(name).function(**settings)


def gaussian_mean(values: torch.Tensor, z: torch.Tensor) -> float:
    """E[values(z)] for z ~ N(0, 1), by the trapezoidal rule."""
    return float(torch.trapezoid(values * torch.exp(-z * z / 2), z)) / float(np.sqrt(2 * np.pi))


@pytest.mark.parametrize(("name", "settings", "module", "form"), FORMS)
def test_an_activation_is_its_closed_form_and_torch_s_own_class(
    name: str, settings: dict[str, object], module: type[nn.Module], form: Callable[[np.ndarray], np.ndarray]
) -> None:
    z = np.linspace(-8, 8, 2001)
    activation = made(name, **settings)
    assert type(activation) is module
    np.testing.assert_allclose(activation(torch.from_numpy(z)), form(z), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "settings", "module", "form"), FORMS)
def test_the_gradient_is_that_of_the_closed_form_away_from_the_kink(
    name: str, settings: dict[str, object], module: type[nn.Module], form: object
) -> None:
    z = torch.tensor([-3.0, -1.1, -0.2, 0.3, 0.9, 2.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(made(name, **settings), (z,))


@pytest.mark.parametrize("name", MOMENTS)
def test_second_moments_under_a_standard_normal_input_are_the_known_ones(name: str) -> None:
    settings, forward, backward = MOMENTS[name]
    z = torch.linspace(-10, 10, 200_001, dtype=torch.float64, requires_grad=True)
    y = made(name, **settings)(z)
    (slope,) = torch.autograd.grad(y.sum(), z)
    z, y = z.detach(), y.detach()
    assert gaussian_mean(y**2, z) == pytest.approx(forward, rel=0.01)
    assert gaussian_mean(slope**2, z) == pytest.approx(backward, rel=0.01)


def test_selu_has_the_paper_s_constants_and_fixed_point() -> None:
    selu = made("selu")
    assert float(selu(torch.tensor(1.0, dtype=torch.float64))) == pytest.approx(LAMBDA, abs=1e-15)
    assert float(selu(torch.tensor(-1e9, dtype=torch.float64))) == pytest.approx(-LAMBDA * ALPHA, abs=1e-15)
    z = torch.linspace(-12, 12, 240_001, dtype=torch.float64)
    assert gaussian_mean(selu(z), z) == pytest.approx(0, abs=1e-7)
    assert gaussian_mean(selu(z) ** 2, z) == pytest.approx(1, abs=1e-7)


def test_each_activation_names_the_initializer_of_the_textbook() -> None:
    built_in = {component.name: component.facts["pairs_with"] for component in activations if component.origin.package == "dnnkit"}
    assert built_in == {name: initializer for initializer, names in PAIRS.items() for name in names}


@pytest.mark.parametrize("name", [component.name for component in activations])
def test_every_activation_keeps_the_shape_and_its_input(name: str) -> None:
    for shape in ((7,), (4, 5), (2, 3, 4, 4)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        before = x.clone()
        assert made(name)(x).shape == shape
        assert torch.equal(x, before)
