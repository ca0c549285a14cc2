"""Normalizations, dropouts, penalties, constraints, clippings, losses, metrics and models; and what holds for every component."""

from __future__ import annotations

import inspect
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor, nn

from dnnkit import plugins
from dnnkit.errors import ConfigError
from dnnkit.network import Parts, has_offset
from dnnkit.registry import REGISTRIES, Component
from dnnkit.schema import MISSING, node, validate_node

plugins.load()

EVERY = [component for components in REGISTRIES.values() for component in components]
BUILT_IN = [component for component in EVERY if component.origin.package == "dnnkit"]
#: Components that no publication introduced.
NO_SOURCE = {
    "identity",
    "constant",
    "step",
    "acc",
    "top_k",
    "csv",
    "parquet",
    "npz",
    "image_folder",
    "normal",
    "uniform",
    "zeros",
    "piecewise",
    "classification",
    "multi_label",
    "reconstruction",
    "regression",
}
#: λα, the value to which SELU saturates.
SATURATED = -1.0507009873554805 * 1.6732632423543772


def component_id(component: Component) -> str:
    return f"{component.kind.group}={component.name}"


def function(group: str, name: str) -> Any:
    return REGISTRIES[group].get(name).function


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Sequential:
    """Every sort of layer that has weights, each filled with values of both signs."""
    layers = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.PReLU(), nn.Flatten(), nn.Linear(12, 5), nn.LayerNorm(5), nn.Linear(5, 2)
    )
    for index, parameter in enumerate(layers.parameters()):
        parameter.data = randn(*parameter.shape, seed=index) * 3
    return layers.double()


# Every component


@pytest.mark.parametrize("component", EVERY, ids=component_id)
def test_every_component_says_what_it_is_in_its_first_paragraph(component: Component) -> None:
    assert component.summary
    assert component.summary.rstrip("`").endswith(".")
    assert len(component.summary) <= 200


@pytest.mark.parametrize("component", BUILT_IN, ids=component_id)
def test_every_built_in_component_cites_its_source(component: Component) -> None:
    assert bool(component.source) == (component.name not in NO_SOURCE)


@pytest.mark.parametrize("component", EVERY, ids=component_id)
def test_every_default_keeps_its_own_bounds_and_survives_json(component: Component) -> None:
    values = {key: "given" if value == MISSING else value for key, value in node(component.kind.group, component.name).items()}
    assert json.loads(json.dumps(values)) == values
    assert validate_node(component.kind.group, values) == (values, [])


@pytest.mark.parametrize("component", BUILT_IN, ids=component_id)
def test_every_built_in_component_is_named_after_its_function(component: Component) -> None:
    own = component.function.__name__
    assert (re.sub(r"(?<=[a-z])(?=[A-Z])", "_", own).lower() if inspect.isclass(component.function) else own) == component.name


def test_a_file_of_components_holds_one_family_or_a_task_with_its_own_loss_and_metrics() -> None:
    families: dict[str, set[str]] = {}
    for component in BUILT_IN:
        families.setdefault(component.origin.module, set()).add(component.kind.group)
    assert all(len(groups) == 1 or {"task"} < groups <= {"task", "loss", "metrics"} for groups in families.values()), families


# Normalizations


@pytest.mark.parametrize(("layer", "shape", "axes"), [("dense", (40, 6), (0,)), ("conv", (10, 6, 3, 5), (0, 2, 3))])
def test_batch_norm_standardises_by_the_minibatch_and_keeps_unbiased_moving_statistics(
    layer: str, shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    norm = function("normalization", "batch_norm")(6, layer, momentum=0.25, eps=1e-3).double()
    x = randn(*shape) * 3 + 2
    z = x.numpy()
    mean, var = z.mean(axes, keepdims=True), z.var(axes, keepdims=True)
    np.testing.assert_allclose(norm(x).detach(), (z - mean) / np.sqrt(var + 1e-3), rtol=1e-10, atol=1e-12)
    count = z.size // 6
    np.testing.assert_allclose(norm.running_mean, 0.25 * mean.flatten(), rtol=1e-6)
    np.testing.assert_allclose(norm.running_var, 0.75 + 0.25 * var.flatten() * count / (count - 1), rtol=1e-6)
    norm.eval()
    moved, spread = (stat.numpy().reshape(mean.shape) for stat in (norm.running_mean, norm.running_var))
    np.testing.assert_allclose(norm(x).detach(), (z - moved) / np.sqrt(spread + 1e-3), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("layer", "shape", "axes"), [("dense", (40, 6), (1,)), ("conv", (10, 6, 3, 5), (1, 2, 3))])
def test_layer_norm_standardises_each_sample(layer: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    norm = function("normalization", "layer_norm")(6, layer, eps=1e-3).double()
    x = randn(*shape) * 3 + 2
    z = x.numpy()
    oracle = (z - z.mean(axes, keepdims=True)) / np.sqrt(z.var(axes, keepdims=True) + 1e-3)
    np.testing.assert_allclose(norm(x).detach(), oracle, rtol=1e-10, atol=1e-12)
    assert [tuple(parameter.shape) for parameter in norm.parameters()] == [(6,), (6,)]


@pytest.mark.parametrize("layer", ["dense", "conv"])
def test_batch_norm_takes_the_biased_variance_where_it_is_asked_to_and_learns_the_same(layer: str) -> None:
    shape, axes = ((40, 6), (0,)) if layer == "dense" else ((10, 6, 3, 5), (0, 2, 3))
    plain, biased = (
        function("normalization", "batch_norm")(6, layer, momentum=0.25, unbiased=unbiased).double() for unbiased in (True, False)
    )
    moving = biased.running_var
    variance = 1.0
    for step in range(3):
        x = randn(*shape, seed=step) * 3 + 2
        assert torch.equal(plain(x), biased(x))
        torch.nn.functional.mse_loss(biased(x), x).backward()  # the second call: the moving statistics take this minibatch twice
        variance = 0.75**2 * variance + (1 - 0.75**2) * x.numpy().var(axes)
    np.testing.assert_allclose(biased.running_var, variance, rtol=1e-12)
    assert biased.running_var is moving
    assert torch.isfinite(biased.weight.grad).all()
    assert plain.state_dict().keys() == biased.state_dict().keys()
    before = biased.running_var.clone()
    biased.eval()(x)
    assert torch.equal(biased.running_var, before)


def test_synchronised_batch_norm_keeps_to_the_biased_variance(tmp_path: Path) -> None:
    from dnnkit.loop.synced import SyncedBatchNorm

    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        for unbiased in (True, False):
            alone, like = (function("normalization", "batch_norm")(6, "dense", unbiased=unbiased).double() for _ in range(2))
            synced = SyncedBatchNorm(like)
            for step in range(3):
                x = randn(8, 6, seed=step) * 3 + 2
                torch.testing.assert_close(synced(x), alone(x), rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(synced.running_var, alone.running_var, rtol=1e-10, atol=0)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("layer", "shape", "axes"), [("dense", (40, 6), (1,)), ("conv", (10, 6, 3, 5), (1, 2, 3))])
@pytest.mark.parametrize("eps", [None, 0.1])
def test_rms_norm_divides_each_sample_by_its_root_mean_square(
    layer: str, shape: tuple[int, ...], axes: tuple[int, ...], eps: float | None
) -> None:
    norm = function("normalization", "rms_norm")(6, layer, eps=eps).double()
    gamma = randn(6, seed=1)
    norm.weight.data = gamma
    z = (randn(*shape) * 3 + 2).numpy()
    oracle = z / np.sqrt((z**2).mean(axes, keepdims=True) + (np.finfo(float).eps if eps is None else eps))
    expected = oracle * gamma.numpy().reshape(1, 6, *[1] * (len(shape) - 2))
    np.testing.assert_allclose(norm(torch.from_numpy(z)).detach(), expected, rtol=1e-10, atol=1e-12)
    assert [tuple(parameter.shape) for parameter in norm.parameters()] == [(6,)]
    assert not has_offset(norm)


@pytest.mark.parametrize("layer", ["dense", "conv"])
def test_rms_norm_of_16_bits_does_not_overflow_and_takes_the_epsilon_of_float32(layer: str) -> None:
    for size in (1000.0, 1e-3):
        x = torch.full((2, 6) if layer == "dense" else (2, 6, 3, 3), size, dtype=torch.float16)
        y = function("normalization", "rms_norm")(6, layer).half()(x)
        assert y.dtype == torch.float16
        x_exact = float(x.flatten()[0])
        assert y.float().flatten().tolist() == pytest.approx([x_exact / math.sqrt(x_exact**2 + 2**-23)] * y.numel(), rel=1e-3)


@pytest.mark.parametrize(("layer", "shape"), [("dense", (40, 6)), ("conv", (10, 6, 3, 5))])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_group_norm_standardises_neighbouring_channels_together(layer: str, shape: tuple[int, ...], groups: int) -> None:
    norm = function("normalization", "group_norm")(6, layer, num_groups=groups, eps=1e-3).double()
    z = (randn(*shape) * 3 + 2).numpy()
    parts = [
        (part - part.mean(axes, keepdims=True)) / np.sqrt(part.var(axes, keepdims=True) + 1e-3)
        for part in np.split(z, groups, axis=1)
        for axes in [tuple(range(1, z.ndim))]
    ]
    np.testing.assert_allclose(norm(torch.from_numpy(z)).detach(), np.concatenate(parts, axis=1), rtol=1e-10, atol=1e-12)
    if groups == 1:
        torch.testing.assert_close(
            norm(torch.from_numpy(z)), function("normalization", "layer_norm")(6, layer, 1e-3).double()(torch.from_numpy(z))
        )


@pytest.mark.parametrize(
    ("layer", "features", "groups", "words"),
    [
        (
            "dense",
            300,
            32,
            "must divide the 300 units into groups of two or more: 1, 2, 3, .*, 100, 150; got 32. Did you mean '30' or '25'",
        ),
        ("dense", 8, 8, "the 8 units into groups of two or more: 1, 2, 4; got 8"),
        ("conv", 10, 4, r"must divide the 10 channels: 1, 2, 5, 10; got 4. Did you mean '5' or '2'"),
        ("conv", 1, 4, "must divide the 1 channels: 1; got 4"),
        ("dense", 1, 1, "a layer has a single one"),
    ],
)
def test_group_norm_refuses_groups_that_do_not_divide_and_lists_those_that_do(layer: str, features: int, groups: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        function("normalization", "group_norm")(features, layer, num_groups=groups)


def test_group_norm_of_as_many_groups_as_channels_is_instance_normalization() -> None:
    x = randn(4, 6, 3, 5)
    norm = function("normalization", "group_norm")(6, "conv", num_groups=6).double()
    torch.testing.assert_close(norm(x), nn.functional.instance_norm(x))


@pytest.mark.parametrize(("name", "kept"), [("rms_norm", True), ("group_norm", False), ("layer_norm", False), ("batch_norm", False)])
def test_a_layer_keeps_its_bias_before_a_normalization_without_an_offset(name: str, kept: bool) -> None:
    made = parts(normalization={"name": name, **node("normalization", name)})
    assert (made.dense(0, 4, 8)["00_dense"].bias is not None) == kept
    assert (made.conv(0, 4, 8, 3, (5, 5))["00_conv"].bias is not None) == kept


# Dropouts


def test_dropout_zeroes_a_share_of_p_and_scales_the_rest() -> None:
    torch.manual_seed(0)
    y = function("dropout", "dropout")(0.3)(torch.ones(1_000_000))
    assert y.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    assert float((y == 0).float().mean()) == pytest.approx(0.3, abs=5 * math.sqrt(0.21e-6))


def test_alpha_dropout_at_a_fifth_maps_zero_to_the_two_known_values() -> None:
    torch.manual_seed(0)
    y = function("dropout", "alpha_dropout")(0.2)(torch.zeros(100_000))
    assert sorted(y.unique().tolist()) == [pytest.approx(-1.23616, abs=5e-6), pytest.approx(0.30904, abs=5e-6)]
    assert float((y < 0).float().mean()) == pytest.approx(0.2, abs=0.006)


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5])
def test_alpha_dropout_is_the_paper_s_map_and_keeps_mean_and_variance(p: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(1_000_000, dtype=torch.float64)
    y = function("dropout", "alpha_dropout")(p)(x)
    a = ((1 - p) * (1 + p * SATURATED**2)) ** -0.5
    b = -a * p * SATURATED
    dropped = (y - (a * SATURATED + b)).abs() < 1e-6
    torch.testing.assert_close(y[~dropped], a * x[~dropped] + b, rtol=1e-6, atol=1e-6)
    assert float(dropped.double().mean()) == pytest.approx(p, abs=0.003)
    assert float(y.mean()) == pytest.approx(0, abs=0.006)
    assert float(y.var()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", ["dropout", "alpha_dropout"])
def test_a_dropout_is_the_identity_in_evaluation_and_at_p_0(name: str) -> None:
    x = randn(50, 4)
    assert torch.equal(function("dropout", name)(0.5).eval()(x), x)
    assert torch.equal(function("dropout", name)(0.0)(x), x)


# Regularizers and constraints


def test_penalties_are_sums_over_the_kernels_alone() -> None:
    net = network()
    kernels = [net[0].weight, net[4].weight, net[6].weight]
    assert function("regularizer", "l1")(net, 0.1).item() == pytest.approx(0.1 * sum(np.abs(w.detach().numpy()).sum() for w in kernels))
    assert function("regularizer", "l2")(net, 0.1).item() == pytest.approx(0.1 * sum((w.detach().numpy() ** 2).sum() for w in kernels))
    both = sum(0.1 * np.abs(w.detach().numpy()).sum() + 0.02 * (w.detach().numpy() ** 2).sum() for w in kernels)
    assert function("regularizer", "l1_l2")(net, 0.1, 0.02).item() == pytest.approx(both)


@pytest.mark.parametrize(("name", "slope"), [("l1", torch.sign), ("l2", lambda w: 2 * w), ("l1_l2", lambda w: torch.sign(w) + 2 * w)])
def test_the_gradient_of_a_penalty_is_the_closed_form_and_touches_nothing_else(name: str, slope: Any) -> None:
    net = network()
    function("regularizer", name)(net, *([0.01] if name != "l1_l2" else [])).backward()
    for layer in net:
        for role, parameter in layer.named_parameters():
            if role == "weight" and isinstance(layer, nn.Linear | nn.Conv2d):
                torch.testing.assert_close(parameter.grad, 0.01 * slope(parameter.detach()))
            else:
                assert parameter.grad is None


def test_l2_is_torch_s_weight_decay_of_twice_its_factor() -> None:
    ours, theirs = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
    theirs.load_state_dict(ours.state_dict())
    decay = torch.optim.SGD(theirs.parameters(), lr=0.1, weight_decay=0.02)
    plain = torch.optim.SGD(ours.parameters(), lr=0.1)
    for step in range(10):
        for net, optimizer in ((ours, plain), (theirs, decay)):
            optimizer.zero_grad()
            loss = net(randn(5, 4, seed=step).float()).square().mean()
            (loss + function("regularizer", "l2")(net, 0.01) if net is ours else loss).backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-7)


def test_a_module_without_kernels_has_no_penalty() -> None:
    for name in ("l1", "l2", "l1_l2"):
        assert function("regularizer", name)(nn.BatchNorm1d(3)).item() == 0


def test_max_norm_bounds_every_unit_and_leaves_the_others_alone() -> None:
    net = network()
    net[4].weight.data[0] *= 1e-3
    before = {name: value.clone() for name, value in net.state_dict().items()}
    function("constraint", "max_norm")(net, 2.0)
    for name, value in net.state_dict().items():
        if name not in ("0.weight", "4.weight", "6.weight"):
            assert torch.equal(value, before[name])
            continue
        w = before[name].numpy()
        norms = np.sqrt((w**2).sum(tuple(range(1, w.ndim)), keepdims=True))
        np.testing.assert_allclose(value, w * np.minimum(1, 2 / norms), rtol=1e-6)
    assert torch.equal(net[4].weight[0], before["4.weight"][0])


def test_max_norm_finds_the_units_of_a_transposed_convolution() -> None:
    layer = nn.ConvTranspose2d(3, 4, 2)
    layer.weight.data[:, 1] = 5
    before = layer.weight.detach().clone()
    function("constraint", "max_norm")(layer, 3.0)
    assert layer.weight[:, 1].norm().item() == pytest.approx(3, rel=1e-6)
    assert torch.equal(layer.weight[:, 0], before[:, 0])


# Clippings


def with_gradients(*gradients: list[float]) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return parameters


@pytest.mark.parametrize(
    ("name", "expected"), [("value", [0.9, 1.0]), ("norm", [0.009, 0.99996]), ("per_parameter_norm", [0.009, 0.99996])]
)
def test_the_textbook_gradient_is_clipped_to_the_textbook_result(name: str, expected: list[float]) -> None:
    parameters = with_gradients([0.9, 100.0])
    total = function("clipping", name)(parameters, 1.0)
    assert parameters[0].grad.tolist() == pytest.approx(expected, abs=5e-6)
    assert isinstance(total, Tensor)
    assert float(total) == pytest.approx(math.hypot(0.9, 100))


@pytest.mark.parametrize("name", ["value", "norm", "per_parameter_norm"])
def test_a_small_gradient_is_left_alone(name: str) -> None:
    parameters = with_gradients([0.3, -0.4], [0.1])
    total = function("clipping", name)(parameters, 1.0)
    assert torch.equal(parameters[0].grad, torch.tensor([0.3, -0.4]))
    assert torch.equal(parameters[1].grad, torch.tensor([0.1]))
    assert float(total) == pytest.approx(math.sqrt(0.26))


def test_norm_is_one_norm_for_all_parameters_and_keeps_the_direction() -> None:
    parameters = with_gradients([3.0], [4.0, 0.0], [12.0])
    parameters.append(nn.Parameter(torch.zeros(2)))
    assert float(function("clipping", "norm")(parameters, 2.6)) == pytest.approx(13)
    clipped = torch.cat([parameter.grad for parameter in parameters[:3]])
    torch.testing.assert_close(clipped, torch.tensor([0.6, 0.8, 0.0, 2.4]), rtol=1e-6, atol=0)
    assert parameters[3].grad is None


def test_value_clips_both_signs_at_the_threshold() -> None:
    parameters = with_gradients([-7.0, 0.2], [0.6])
    function("clipping", "value")(parameters, 0.5)
    assert [parameter.grad.tolist() for parameter in parameters] == [pytest.approx([-0.5, 0.2]), [0.5]]


def test_per_parameter_norm_has_a_norm_for_each_parameter_and_returns_that_of_all() -> None:
    parameters = with_gradients([3.0, 4.0], [0.6, 0.8], [0.0, 0.0], [0.0, -12.0])
    parameters.append(nn.Parameter(torch.zeros(2)))
    assert float(function("clipping", "per_parameter_norm")(parameters, 2.5)) == pytest.approx(math.sqrt(25 + 1 + 144))
    assert [parameter.grad.tolist() for parameter in parameters[:4]] == [[1.5, 2.0], pytest.approx([0.6, 0.8]), [0, 0], [0, -2.5]]
    assert parameters[4].grad is None


def test_the_textbook_gradient_on_two_parameters_keeps_its_direction_by_norm_and_loses_it_by_parameter() -> None:
    for name, expected in (("norm", [0.009, 0.99996]), ("per_parameter_norm", [0.9, 1.0])):
        parameters = with_gradients([0.9], [100.0])
        function("clipping", name)(parameters, 1.0)
        assert [float(parameter.grad) for parameter in parameters] == pytest.approx(expected, abs=5e-6)


def test_norm_adds_torch_s_millionth_and_per_parameter_norm_does_not() -> None:
    """torch's clip_grad_norm_ divides by ‖g‖ + 1e-6: half of a gradient that is itself a millionth."""
    for name, size in (("norm", 5e-8), ("per_parameter_norm", 1e-7)):
        parameters = with_gradients([6e-7, 8e-7])
        function("clipping", name)(parameters, 1e-7)
        assert float(parameters[0].grad.norm()) == pytest.approx(size, rel=1e-5)


@pytest.mark.parametrize("name", ["value", "norm", "per_parameter_norm"])
def test_a_gradient_that_is_not_a_number_is_not_hidden(name: str) -> None:
    parameters = with_gradients([math.nan, 1.0], [1.0])
    assert math.isnan(float(function("clipping", name)(parameters, 1.0)))
    assert math.isnan(float(parameters[0].grad[0]))


@pytest.mark.parametrize("name", ["value", "norm", "per_parameter_norm"])
def test_without_gradients_the_norm_is_zero(name: str) -> None:
    assert float(function("clipping", name)([nn.Parameter(torch.zeros(2))], 1.0)) == 0


# Losses and metrics


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_cross_entropy_is_the_closed_form_on_logits(smoothing: float) -> None:
    logits, target = randn(20, 4) * 5, torch.arange(20) % 4
    log_p = special.log_softmax(logits.numpy(), axis=1)
    q = np.full((20, 4), smoothing / 4)
    q[np.arange(20), target.numpy()] += 1 - smoothing
    loss = function("loss", "cross_entropy")(logits, target, smoothing)
    assert float(loss) == pytest.approx(float(-(q * log_p).sum(1).mean()), rel=1e-12)


def test_cross_entropy_of_equal_logits_is_the_log_of_the_number_of_classes() -> None:
    assert float(function("loss", "cross_entropy")(torch.zeros(3, 10), torch.tensor([0, 5, 9]))) == pytest.approx(math.log(10))


def test_acc_is_the_share_of_right_answers() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.1, 0.2], [-1.0, -2.0, -3.0], [0.0, 5.0, 0.0]])
    assert float(function("metrics", "acc")(logits, torch.tensor([0, 2, 1, 1]))) == 0.75


# Models


def parts(**chosen: dict[str, Any]) -> Parts:
    names = {"model": "mlp", "activation": "selu", "initializer": "auto", "normalization": "none", "dropout": "none"}
    return Parts({group: node(group, name) | chosen.get(group, {}) for group, name in names.items()})


def test_mlp_lays_its_parts_out_in_order_with_the_textbook_number_of_parameters() -> None:
    net = function("model", "mlp")((1, 28, 28), 10, parts())
    assert [name for name, _ in net.named_children()] == ["flatten", "00_dense", "00_selu", "01_dense", "01_selu", "02_dense"]
    assert sum(parameter.numel() for parameter in net.parameters()) == 235_500 + 30_100 + 1_010
    assert net(torch.zeros(7, 1, 28, 28)).shape == (7, 10)


def test_mlp_without_hidden_layers_is_linear() -> None:
    net = function("model", "mlp")((4,), 3, parts(), hidden=[])
    assert [name for name, _ in net.named_children()] == ["flatten", "00_dense"]
    x = randn(5, 4).float()
    torch.testing.assert_close(net(2 * x), 2 * net(x))
