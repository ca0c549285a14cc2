"""Activations against closed forms in float64 NumPy, and the Gaussian moments known from the literature."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import nn

import dnnkit
from dnnkit import plugins
from dnnkit.config import Composer
from dnnkit.errors import ConfigError
from dnnkit.network import Parts, build_network, roles
from dnnkit.registry import activations

plugins.load()

LAMBDA, ALPHA = 1.0507009873554805, 1.6732632423543772

#: name, settings, torch's class (nn.Module where it has none), closed form
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
    ("rrelu", {"lower": 0.2, "upper": 0.2}, nn.RReLU, lambda z: np.maximum(z, 0.2 * z)),
    ("prelu", {}, nn.PReLU, lambda z: np.maximum(z, 0) + 0.25 * np.minimum(z, 0)),
    ("prelu", {"init": -0.5}, nn.PReLU, lambda z: np.where(z > 0, z, -0.5 * z)),
    ("celu", {}, nn.CELU, lambda z: np.where(z > 0, z, np.exp(z) - 1)),
    ("celu", {"alpha": 2.5}, nn.CELU, lambda z: np.where(z > 0, z, 2.5 * (np.exp(z / 2.5) - 1))),
    ("swish", {}, nn.SiLU, lambda z: z / (1 + np.exp(-z))),
    ("swish", {"beta": 2.5}, nn.Module, lambda z: z / (1 + np.exp(-2.5 * z))),
    ("swish", {"beta": 0.0}, nn.Module, lambda z: z / 2),
    ("hard_swish", {}, nn.Hardswish, lambda z: z * np.clip(z + 3, 0, 6) / 6),
    ("mish", {}, nn.Mish, lambda z: z * np.tanh(np.log(1 + np.exp(z)))),
    ("softplus", {}, nn.Softplus, lambda z: np.log(1 + np.exp(z))),
    ("softsign", {}, nn.Softsign, lambda z: z / (1 + np.abs(z))),
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
    "swish": ({}, 0.3558, 0.3795),
    "mish": ({}, 0.4523, 0.4791),
    "tanh": ({}, 0.3943, 0.4644),
    "rrelu": ({"lower": 0.2, "upper": 0.2}, 0.52, 0.52),
    "prelu": ({}, (1 + 0.25**2) / 2, (1 + 0.25**2) / 2),
    "celu": ({}, 0.6449, 0.6681),
}
PAIRS = {
    "glorot_uniform": {"identity", "tanh", "sigmoid", "softsign", "softplus"},
    "he_normal": {"relu", "leaky_relu", "rrelu", "prelu", "elu", "celu", "gelu", "silu", "swish", "hard_swish", "mish"},
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
    activation = made(name, **settings).double()
    assert type(activation) is module or module is nn.Module
    np.testing.assert_allclose(activation(torch.from_numpy(z)).detach(), form(z), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "settings", "module", "form"), FORMS)
def test_the_gradient_is_that_of_the_closed_form_away_from_the_kink(
    name: str, settings: dict[str, object], module: type[nn.Module], form: object
) -> None:
    z = torch.tensor([[-4.0, -2.7, -1.1, -0.2], [0.3, 0.9, 2.5, 3.4]], dtype=torch.float64, requires_grad=True)
    activation = made(name, **settings).double()
    assert torch.autograd.gradcheck(lambda z, *_: activation(z), (z, *activation.parameters()))


@pytest.mark.parametrize("name", MOMENTS)
def test_second_moments_under_a_standard_normal_input_are_the_known_ones(name: str) -> None:
    settings, forward, backward = MOMENTS[name]
    z = torch.linspace(-10, 10, 200_001, dtype=torch.float64, requires_grad=True)
    y = made(name, **settings).double()(z)
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


def test_every_built_in_activation_has_its_closed_form_here() -> None:
    assert {name for name, *_ in FORMS} == {component.name for component in activations if component.origin.package == "dnnkit"}


@pytest.mark.parametrize("name", [component.name for component in activations])
def test_every_activation_keeps_the_shape_and_its_input(name: str) -> None:
    for shape in ((7,), (4, 5), (2, 3, 4, 4)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        before = x.clone()
        assert made(name)(x).shape == shape
        assert torch.equal(x, before)


def test_swish_with_beta_1_is_silu_to_the_bit_and_with_a_large_beta_nearly_relu() -> None:
    z = torch.linspace(-30, 30, 100_001)
    assert torch.equal(made("swish")(z), made("silu")(z))
    torch.testing.assert_close(made("swish", beta=1e4)(z), made("relu")(z), rtol=0, atol=1e-4)


def test_celu_is_smooth_at_zero_for_every_alpha_and_elu_is_not() -> None:
    for name, slope in (("celu", 1.0), ("elu", 0.3)):
        z = torch.tensor(-1e-9, dtype=torch.float64, requires_grad=True)
        made(name, alpha=0.3)(z).backward()
        assert float(z.grad) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softplus_is_exact_where_torch_s_own_threshold_would_leave_out_the_logarithm(dtype: torch.dtype) -> None:
    z = torch.tensor([-60.0, -1.0, 19.9, 20.5, 25.0, 36.0, 39.9, 40.1, 500.0], dtype=dtype, requires_grad=True)
    y = made("softplus")(z)
    y.sum().backward()
    exact = np.logaddexp(0, z.detach().double().numpy())
    rtol = 4 * torch.finfo(dtype).eps
    np.testing.assert_allclose(y.detach(), exact, rtol=rtol)
    np.testing.assert_allclose(z.grad, special.expit(z.detach().double().numpy()), rtol=rtol)
    assert exact[3] - float(nn.functional.softplus(z.detach()[3].double())) > 1e-9


# RReLU


def test_rrelu_draws_a_slope_per_element_in_training_and_takes_their_mean_in_evaluation() -> None:
    torch.manual_seed(0)
    rrelu = made("rrelu")
    z = torch.full((1000, 200), -2.0)
    slopes = rrelu(z) / z
    assert stats.kstest(slopes.flatten().double().numpy(), stats.uniform(1 / 8, 1 / 3 - 1 / 8).cdf).pvalue > 0.01
    assert slopes.unique().numel() > 100_000
    assert torch.equal(rrelu(-z), -z)
    assert float(rrelu.eval()(torch.tensor(-1.0))) == pytest.approx(-0.2291667, abs=1e-7)


def test_the_gradient_of_rrelu_in_training_is_the_slope_that_was_drawn() -> None:
    rrelu, z = made("rrelu").double(), torch.tensor([-3.0, -0.5, 0.4], dtype=torch.float64, requires_grad=True)

    def again(z: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return rrelu(z)

    assert torch.autograd.gradcheck(again, (z,))


def test_the_noise_of_rrelu_is_a_function_of_the_seed(workdir: Path) -> None:
    def journal() -> bytes:
        short = ("trainer.max_epochs=1", "trainer.limit_train_batches=8", "tracking=none", "trainer.progress_bar=false")
        words = ("activation=rrelu", "model.hidden=[10]", "data.val_size=50", *short)
        return (dnnkit.train(dnnkit.compose(words)).run_dir / "metrics.jsonl").read_bytes()

    first = journal()
    torch.rand(1000)  # whatever ran before
    assert journal() == first


def test_rrelu_refuses_bounds_in_the_wrong_order_and_names_both() -> None:
    with pytest.raises(ConfigError, match=r"activation.lower: must be at most activation.upper=0.2, got 0.3"):
        made("rrelu", lower=0.3, upper=0.2)
    with pytest.raises(ConfigError, match=r"at most activation.upper=0.3333"):
        network("activation=rrelu", "activation.lower=0.5")


# PReLU


def network(*overrides: str) -> nn.Module:
    return build_network(Composer().one(["model.hidden=[300,100]", *overrides]).values, (784,), 10, 0)


@pytest.mark.parametrize(("per_unit", "slopes"), [("false", [1, 1]), ("true", [300, 100])])
def test_prelu_on_the_textbook_s_net_has_one_slope_or_one_per_unit(per_unit: str, slopes: list[int]) -> None:
    net = network("activation=prelu", f"activation.per_unit={per_unit}", "activation.init=0.1")
    found = [layer.weight for layer in net.modules() if isinstance(layer, nn.PReLU)]
    assert [weight.numel() for weight in found] == slopes
    assert all(bool((weight == 0.1).all()) for weight in found)
    assert [name for name, role in roles(net).items() if role == "slope"] == ["00_prelu.weight", "01_prelu.weight"]


def test_prelu_has_a_slope_per_channel_after_a_convolution() -> None:
    parts = Parts(Composer().one(["activation=prelu", "activation.per_unit=true"]).values)
    prelu = parts.conv(0, 1, 5, kernel=3, size=(8, 8))["00_prelu"]
    assert isinstance(prelu, nn.PReLU)
    assert prelu.num_parameters == 5
    with torch.no_grad():
        prelu.weight.copy_(torch.arange(5.0))
    y = prelu(torch.full((2, 5, 3, 4), -1.0))
    assert torch.equal(y, -torch.arange(5.0).view(1, 5, 1, 1).expand(2, 5, 3, 4))


def test_prelu_per_unit_says_so_where_a_model_does_not_tell_it_of_its_units() -> None:
    with pytest.raises(ConfigError, match=r"activation.per_unit: true needs the number of units.*mean 'false'"):
        made("prelu", per_unit=True)
