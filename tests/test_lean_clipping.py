"""Clippings against torch's own, bit for bit, and against Keras's rule written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dnnkit import plugins
from dnnkit.registry import clippings

plugins.load()

TYPES = [torch.float32, torch.float64, torch.bfloat16]


def parameters(dtype: torch.dtype, size: float = 1.0) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(3)
    made = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in ((30, 20), (30,), (), (7, 5))]
    for parameter in made:
        parameter.grad = (size * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)).to(dtype)
    made[1].grad = None
    return made


def gradients(made: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in made if parameter.grad is not None]


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


def bounds(total: float) -> list[float]:
    """Around the norm, where rounding decides, and far from it."""
    return [total * factor for factor in (1e-3, 0.5, 0.98, 1 - 1e-7, 1.0, 1 + 1e-7, 1.005, 1.02, 2, 1e6)] + [1e-9, 1.0]


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e6])
@pytest.mark.parametrize("dtype", TYPES)
def test_norm_is_torchs_clip_grad_norm_bit_for_bit(dtype: torch.dtype, size: float) -> None:
    total = nn.utils.get_total_norm(gradients(parameters(dtype, size))).item()
    for bound in bounds(total):
        ours, theirs = parameters(dtype, size), parameters(dtype, size)
        norm, other = clippings.get("norm").function(ours, bound), nn.utils.clip_grad_norm_(theirs, bound)
        assert torch.equal(norm, other)
        assert norm.dtype == other.dtype
        assert ours[1].grad is None
        assert_equal(gradients(ours), gradients(theirs))


@pytest.mark.parametrize("dtype", TYPES)
def test_per_parameter_norm_is_kerass_rule_for_each(dtype: torch.dtype) -> None:
    for bound in bounds(torch.linalg.vector_norm(gradients(parameters(dtype))[0]).item()):
        ours, before = parameters(dtype), gradients(parameters(dtype))
        norm = clippings.get("per_parameter_norm").function(ours, bound)
        assert torch.equal(norm, nn.utils.get_total_norm(before))
        assert_equal(gradients(ours), [one * (bound / torch.linalg.vector_norm(one)).clamp(max=1) for one in before])


@pytest.mark.parametrize("dtype", TYPES)
def test_value_cuts_every_component_and_returns_the_norm_from_before(dtype: torch.dtype) -> None:
    ours, before = parameters(dtype), gradients(parameters(dtype))
    assert torch.equal(clippings.get("value").function(ours, 0.5), nn.utils.get_total_norm(before))
    assert_equal(gradients(ours), [one.clamp(-0.5, 0.5) for one in before])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["norm", "per_parameter_norm", "value"])
def test_what_is_not_finite_is_treated_as_before(name: str, bad: float) -> None:
    ours, before = parameters(torch.float32), parameters(torch.float32)
    for made in (ours, before):
        assert made[0].grad is not None
        made[0].grad[3, 4] = bad
    norm = clippings.get(name).function(ours, 0.5)
    if name == "norm":
        assert_equal([norm], [nn.utils.clip_grad_norm_(before, 0.5)])
        assert_equal(gradients(ours), gradients(before))
    elif name == "per_parameter_norm":
        assert_equal(gradients(ours), [one * (0.5 / torch.linalg.vector_norm(one)).clamp(max=1) for one in gradients(before)])
    else:
        assert_equal(gradients(ours), [one.clamp(-0.5, 0.5) for one in gradients(before)])


@pytest.mark.parametrize("name", ["norm", "per_parameter_norm", "value"])
def test_without_a_gradient_the_norm_is_zero(name: str) -> None:
    assert clippings.get(name).function([nn.Parameter(torch.ones(2))], 1.0).item() == 0


@pytest.mark.parametrize("name", ["norm", "per_parameter_norm", "value"])
def test_gradients_of_several_types_are_clipped_too(name: str) -> None:
    ours = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3, dtype=torch.float64))]
    for parameter in ours:
        parameter.grad = torch.full_like(parameter, 4.0)
    total = clippings.get(name).function(ours, 1.0).item()
    assert total == pytest.approx(math.sqrt(96))
    expected = {"norm": 4 / math.sqrt(96), "per_parameter_norm": 1 / math.sqrt(3), "value": 1.0}[name]
    for parameter in ours:
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, expected), rtol=1e-6, atol=0)
