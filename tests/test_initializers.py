"""Initializers against the laws they name: SciPy's distributions, and fans counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from dnnkit import plugins
from dnnkit.config import Composer
from dnnkit.network import build_network
from dnnkit.registry import REGISTRIES, initializers

plugins.load()

OUT, IN = 1000, 800  # 800,000 draws: the standard error of their deviation is 0.08 %
VARIANCE = {"glorot": 2 / (IN + OUT), "he": 2 / IN, "lecun": 1 / IN}
#: Those that draw nothing.
CONSTANT = ("zeros", "constant")
NAMES = [f"{who}_{law}" for who in VARIANCE for law in ("normal", "uniform")]
#: Deviation of a standard normal cut at ±2, from SciPy rather than from our constant.
CUT = float(stats.truncnorm(-2, 2).std())


def filled(name: str, shape: tuple[int, ...] = (OUT, IN), dtype: torch.dtype = torch.float32, **settings: object) -> torch.Tensor:
    torch.manual_seed(0)
    return initializers.get(name).function(torch.full(shape, torch.nan, dtype=dtype), **settings)


def law(name: str) -> stats.rv_continuous:
    std = math.sqrt(VARIANCE[name.split("_")[0]])
    if name.endswith("uniform"):
        return stats.uniform(-math.sqrt(3) * std, 2 * math.sqrt(3) * std)
    return stats.truncnorm(-2, 2, scale=std / CUT)


@pytest.mark.parametrize("name", NAMES)
def test_a_large_matrix_follows_the_named_law(name: str) -> None:
    weight = filled(name).flatten()
    assert float(weight.std()) == pytest.approx(math.sqrt(VARIANCE[name.split("_")[0]]), rel=0.01)
    assert abs(float(weight.mean())) < 4 * law(name).std() / math.sqrt(weight.numel())
    assert stats.kstest(weight.numpy(), law(name).cdf).pvalue > 0.01


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("normal")])
def test_normals_are_truncated_at_two_deviations_by_default(name: str) -> None:
    weight = filled(name)
    assert 2.2 < float(weight.abs().max() / weight.std()) <= 2.274


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("normal")])
def test_distribution_normal_is_not_truncated(name: str) -> None:
    weight = filled(name, distribution="normal").flatten()
    std = math.sqrt(VARIANCE[name.split("_")[0]])
    assert stats.kstest(weight.numpy(), stats.norm(0, std).cdf).pvalue > 0.01
    assert float(weight.abs().max() / weight.std()) > 4


@pytest.mark.parametrize(
    ("name", "r"), [("glorot_uniform", math.sqrt(6 / (IN + OUT))), ("he_uniform", math.sqrt(6 / IN)), ("lecun_uniform", math.sqrt(3 / IN))]
)
def test_the_bound_of_a_uniform_law_is_the_closed_form(name: str, r: float) -> None:
    assert 0.999 * r < float(filled(name).abs().max()) <= r


def test_variance_scaling_2_fan_avg_uniform_has_the_bound_root_12_over_the_fans() -> None:
    weight = filled("variance_scaling", scale=2.0, mode="fan_avg", distribution="uniform")
    assert float(weight.abs().max()) == pytest.approx(math.sqrt(12 / (IN + OUT)), rel=1e-3)


@pytest.mark.parametrize(("mode", "n"), [("fan_in", 300 * 9), ("fan_out", 400 * 9), ("fan_avg", 350 * 9)])
def test_fans_of_a_convolution_are_channels_times_kernel_area(mode: str, n: int) -> None:
    weight = filled("variance_scaling", (400, 300, 3, 3), scale=3.0, mode=mode)
    assert float(weight.std()) == pytest.approx(math.sqrt(3 / n), rel=0.01)


@pytest.mark.parametrize("torch_s", [nn.init.xavier_uniform_, nn.init.kaiming_uniform_])
def test_fans_are_those_of_torch(torch_s: object) -> None:
    ours = {nn.init.xavier_uniform_: "glorot_uniform", nn.init.kaiming_uniform_: "he_uniform"}[torch_s]  # type: ignore[index]
    for shape in ((30, 20), (30, 20, 3), (30, 20, 3, 5)):
        torch.manual_seed(0)
        theirs = torch_s(torch.empty(shape), **({"nonlinearity": "relu"} if ours == "he_uniform" else {}))  # type: ignore[operator]
        torch.testing.assert_close(filled(ours, shape), theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*NAMES, "variance_scaling"])
def test_every_floating_dtype_gets_the_same_law(name: str, dtype: torch.dtype) -> None:
    weight = filled(name, dtype=dtype)
    assert weight.dtype == dtype
    assert float(weight.double().std()) == pytest.approx(math.sqrt(VARIANCE.get(name.split("_")[0], 1 / IN)), rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_a_16_bit_weight_is_the_float32_draw_rounded(name: str, dtype: torch.dtype) -> None:
    assert torch.equal(filled(name, (50, 40), dtype), filled(name, (50, 40)).to(dtype))


@pytest.mark.parametrize("name", [component.name for component in initializers])
def test_every_initializer_fills_in_place_from_the_default_generator_alone(name: str) -> None:
    function = initializers.get(name).function
    layers = [nn.Linear(20, 30), nn.Linear(20, 30)]
    results = []
    for layer in layers:
        torch.manual_seed(7)
        results.append(function(layer.weight))
    for layer, result in zip(layers, results, strict=True):
        assert result is layer.weight
        assert result.requires_grad
        assert result.is_leaf
    assert torch.equal(*results)
    torch.manual_seed(8)
    assert torch.equal(function(torch.empty(30, 20)), results[0]) == (name in CONSTANT)


@pytest.mark.parametrize("name", [component.name for component in initializers])
def test_every_initializer_fills_whatever_was_there_dense_or_convolutional_of_every_precision(name: str) -> None:
    for shape in ((30, 20), (5, 4, 3), (6, 3, 2, 5)):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            weight = filled(name, shape, dtype)
            assert weight.dtype == dtype
            assert torch.isfinite(weight).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["normal", "uniform", "orthogonal", "constant"])
def test_a_16_bit_weight_of_the_plain_laws_is_the_float32_draw_rounded_too(name: str, dtype: torch.dtype) -> None:
    assert torch.equal(filled(name, (50, 40), dtype), filled(name, (50, 40)).to(dtype))


@pytest.mark.parametrize("std", [1.0, 0.05])
def test_normal_is_the_normal_law_whatever_the_fans(std: float) -> None:
    for shape in ((OUT, IN), (10, 80, 10, 100)):
        weight = filled("normal", shape, std=std).flatten()
        assert float(weight.std()) == pytest.approx(std, rel=0.01)
        assert stats.kstest(weight.numpy(), stats.norm(0, std).cdf).pvalue > 0.01


@pytest.mark.parametrize("limit", [0.05, 2.0])
def test_uniform_is_symmetric_and_bounded_by_its_limit(limit: float) -> None:
    weight = filled("uniform", limit=limit).flatten()
    assert 0.9999 * limit < float(weight.abs().max()) <= limit
    assert stats.kstest(weight.numpy(), stats.uniform(-limit, 2 * limit).cdf).pvalue > 0.01


def test_the_defaults_of_normal_and_uniform_are_torch_s_and_keras_s() -> None:
    assert float(filled("normal").std()) == pytest.approx(1, rel=0.01)
    assert float(filled("uniform").abs().max()) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("gain", [1.0, 1.7])
@pytest.mark.parametrize("shape", [(40, 40), (60, 20), (20, 60), (20, 3, 4, 2), (30, 2, 3)])
def test_orthogonal_has_orthonormal_rows_or_columns_times_its_gain(shape: tuple[int, ...], gain: float) -> None:
    flat = filled("orthogonal", shape, torch.float64, gain=gain).flatten(1)
    gram = flat @ flat.T if flat.shape[0] <= flat.shape[1] else flat.T @ flat
    torch.testing.assert_close(gram, gain**2 * torch.eye(len(gram), dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert float(flat.square().mean()) == pytest.approx(gain**2 / max(flat.shape), rel=1e-12)


def test_orthogonal_is_uniform_over_all_orthogonal_matrices() -> None:
    """An element of a random orthogonal matrix is that of a random unit vector: (1 + w) / 2 is Beta((n − 1)/2, (n − 1)/2)."""
    torch.manual_seed(0)
    firsts = [float(initializers.get("orthogonal").function(torch.empty(4, 4))[0, 0]) for _ in range(2000)]
    assert stats.kstest((1 + np.array(firsts)) / 2, stats.beta(1.5, 1.5).cdf).pvalue > 0.01


def test_orthogonal_keeps_the_length_of_every_vector() -> None:
    x = torch.randn(10, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = x
    for _ in range(100):
        y = y @ initializers.get("orthogonal").function(torch.empty(50, 50, dtype=torch.float64)).T
    torch.testing.assert_close(y.norm(dim=1), x.norm(dim=1), rtol=1e-10, atol=0)


def test_zeros_and_constant_are_what_they_say() -> None:
    assert filled("zeros", (5, 4)).unique().tolist() == [0]
    assert filled("constant", (5, 4), value=-0.5).unique().tolist() == [-0.5]
    assert filled("constant", (5, 4)).unique().tolist() == [0]


@pytest.mark.parametrize("model", REGISTRIES["model"].names())
def test_no_layer_of_any_model_keeps_torch_s_own_default(model: str) -> None:
    """nn.Linear draws weights of deviation .577/√fan_in, and biases that are not zero; nn.Conv2d does the same."""
    task = ["task=reconstruction"] if REGISTRIES["model"].get(model).facts.get("task") == "reconstruction" else []
    values = Composer().one([f"model={model}", "initializer=constant", "initializer.value=0.125", *task]).values
    outputs = 64 if task else 10
    layers = [
        layer for layer in build_network(values, (1, 8, 8), outputs, 0).modules() if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
    ]
    assert layers
    for layer in layers:
        assert layer.weight.unique().tolist() == [0.125]
        assert layer.bias is not None
        assert layer.bias.unique().tolist() == [0]


@pytest.mark.parametrize("name", [*NAMES, "variance_scaling", "orthogonal"])
def test_a_vector_has_no_fans_and_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"at least two dimensions.*\(5,\)"):
        initializers.get(name).function(torch.empty(5))


def test_lecun_normal_keeps_selu_at_unit_variance_and_torch_s_gain_does_not() -> None:
    """The fixed point needs variance 1/fan_in: gain 1. `calculate_gain("selu")` is 3/4."""
    torch.manual_seed(0)
    signal = {"ours": torch.randn(500, 256), "torch's": torch.randn(500, 256)}
    for _ in range(100):
        weight = initializers.get("lecun_normal").function(torch.empty(256, 256))
        signal["ours"] = nn.functional.selu(signal["ours"] @ weight.T)
        signal["torch's"] = nn.functional.selu(signal["torch's"] @ (nn.init.calculate_gain("selu") * weight).T)
    assert 0.7 < float(signal["ours"].var()) < 1.3
    assert float(signal["torch's"].var()) < 0.2
