"""`model=sequential`: layer lists as in Keras, what they become, and every way in which one can be wrong."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from scipy import signal
from torch import nn

from dnnkit import plugins
from dnnkit.config import Composer
from dnnkit.config.loader import shipped
from dnnkit.errors import ConfigError
from dnnkit.network import build_network, chosen_initializers, remarks
from dnnkit.registry import REGISTRIES
from dnnkit.training.summary import layers as summary
from dnnkit.training.summary import table

plugins.load()
COMPOSER = Composer()
IMAGE = (1, 28, 28)


def network(layers: Sequence[Any] | str, *overrides: str, inputs: tuple[int, ...] = IMAGE, outputs: int = 10, **more: Any) -> nn.Sequential:
    """From a list, or from YAML as in a file."""
    listed = yaml.safe_load(layers) if isinstance(layers, str) else list(layers)
    values = COMPOSER.one(["model=sequential", *overrides]).values
    values["model"]["layers"] = listed
    built = build_network({**values, **more}, inputs, outputs, 0)
    assert isinstance(built, nn.Sequential)
    return built


def names(net: nn.Module) -> list[str]:
    return [name for name, _ in net.named_children()]


def wrong(layers: Any) -> dict[str, str]:
    """What composing says of a list, by config path."""
    with pytest.raises(ConfigError) as caught:
        COMPOSER.one(["model=sequential", f"model.layers={_override(layers)}"])
    return {problem.where: f"{problem.message} {' '.join(problem.nearest)}" for problem in caught.value.problems}


def _override(value: Any) -> str:
    """A value in the grammar of the command line."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_override(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_override, value)) + "]"
    return {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else str(value)


# The two nets of the textbook: name, parameters, and how many of them are not trained.

NET_A = [
    ("flatten", 0, 0),
    ("input_batch_norm", 3136, 1568),
    ("00_dense", 235500, 0),
    ("00_elu", 0, 0),
    ("00_batch_norm", 1200, 600),
    ("01_dense", 30100, 0),
    ("01_elu", 0, 0),
    ("01_batch_norm", 400, 200),
    ("02_dense", 1010, 0),
    ("02_softmax", 0, 0),
]
NET_B = [
    ("flatten", 0, 0),
    ("input_batch_norm", 3136, 1568),
    ("00_dense", 235200, 0),
    ("00_batch_norm", 1200, 600),
    ("00_elu", 0, 0),
    ("01_dense", 30000, 0),
    ("01_batch_norm", 400, 200),
    ("01_elu", 0, 0),
    ("02_dense", 1010, 0),
    ("02_softmax", 0, 0),
]
NET_B_LITERAL = [row for row in NET_B if row[0] != "00_elu"]


@pytest.mark.parametrize(
    ("experiment", "rows", "total", "trained"),
    [("bn_net_a", NET_A, 271346, 268978), ("bn_net_b", NET_B, 270946, 268578), ("bn_net_b_literal", NET_B_LITERAL, 270946, 268578)],
)
def test_the_textbook_s_nets_have_its_parameters_layer_by_layer_also_as_printed(
    experiment: str, rows: list[tuple[str, int, int]], total: int, trained: int
) -> None:
    found = summary(build_network(COMPOSER.one([f"+experiment={experiment}"]).values, IMAGE, 10, 0), IMAGE)
    assert [(layer.name, layer.total, layer.fixed) for layer in found] == rows
    assert (sum(layer.total for layer in found), sum(layer.trainable for layer in found)) == (total, trained)
    text = io.StringIO()
    Console(file=text, width=80).print(table(found))
    lines = text.getvalue().splitlines()
    for line, (name, parameters, fixed) in zip(lines[1:], rows, strict=False):
        words = line.split()
        assert words[0] == name
        assert words[-2:] == [f"{parameters:,}", f"{fixed:,}" if fixed else "·"]
    assert lines[len(rows) + 1].split() == ["total", f"{total:,}", "2,368"]
    assert f"{total:,} parameters, {trained:,} of them trained" in text.getvalue()


@pytest.mark.parametrize("experiment", ["bn_net_a", "bn_net_b", "bn_net_b_literal"])
def test_the_textbook_s_nets_normalize_as_keras_does_by_default(experiment: str) -> None:
    net = build_network(COMPOSER.one([f"+experiment={experiment}"]).values, IMAGE, 10, 0)
    norms = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm1d)]
    assert [(norm.num_features, norm.momentum, norm.eps) for norm in norms] == [(width, 0.01, 0.001) for width in (784, 300, 100)]
    assert chosen_initializers(net) == {"00_dense": "he_normal", "01_dense": "he_normal", "02_dense": "glorot_uniform"}


def test_the_literal_net_b_lacks_the_activation_after_its_first_normalization_and_nothing_else() -> None:
    literal, corrected = (
        yaml.safe_load((shipped("conf") / "model" / f"{name}.yaml").read_text()) for name in ("bn_net_b_literal", "bn_net_b")
    )
    assert corrected["layers"][4] == {"activation": "elu"}
    assert [*corrected["layers"][:4], *corrected["layers"][5:]] == literal["layers"]


@pytest.mark.parametrize(
    ("overrides", "experiment"),
    [(["normalization.position=post"], "bn_net_a"), ([], "bn_net_b")],
)
def test_the_same_nets_come_out_of_mlp_and_its_parts(overrides: list[str], experiment: str) -> None:
    words = ["activation=elu", "normalization=batch_norm", "normalization.on_input=true", "data=fashion_mnist", *overrides]
    by_parts = build_network(COMPOSER.one(words).values, IMAGE, 10, 0)
    listed = build_network(COMPOSER.one([f"+experiment={experiment}"]).values, IMAGE, 10, 0)
    assert names(listed)[:-1] == names(by_parts)
    assert all(torch.equal(a, b) for a, b in zip(listed.parameters(), by_parts.parameters(), strict=True))


# The layers


def test_every_kind_of_layer_is_built_in_its_order() -> None:
    net = network("""
        - {normalization: layer_norm, eps: 0.001}
        - {conv2d: 4, kernel: 5, stride: 2, padding: same, activation: relu}
        - max_pool
        - {conv2d: 6, kernel: 2, use_bias: false}
        - {normalization: batch_norm, momentum: 0.01}
        - {activation: leaky_relu, negative_slope: 0.2}
        - {avg_pool: 2, stride: 1}
        - {dropout: 0.3}
        - flatten
        - {dense: 20, activation: {name: elu, alpha: 0.1}, initializer: {name: variance_scaling, scale: 2.0, mode: fan_avg}}
        - {alpha_dropout: 0.1}
        - dropout
        - {dropout: 0.4}
        - {dense: auto}
    """)
    assert names(net) == [
        *("input_layer_norm", "00_pad", "00_conv", "00_relu", "00_max_pool"),
        *("01_conv", "01_batch_norm", "01_leaky_relu", "01_avg_pool", "01_dropout"),
        *("flatten", "02_dense", "02_elu", "02_alpha_dropout", "02_dropout", "02_dropout_2", "03_dense"),
    ]
    parts = dict(net.named_children())
    assert (parts["01_conv"].bias, parts["01_batch_norm"].momentum, parts["01_leaky_relu"].negative_slope) == (None, 0.01, 0.2)
    assert (parts["02_elu"].alpha, parts["01_dropout"].p, parts["02_alpha_dropout"].p, parts["02_dropout_2"].p) == (0.1, 0.3, 0.1, 0.4)
    # 28 → 14 by the stride, 7 by the pool, 6 by the kernel of 2, 5 by the pool of stride 1
    assert parts["02_dense"].in_features == 6 * 5 * 5
    assert net(torch.zeros(2, *IMAGE)).shape == (2, 10)


@pytest.mark.parametrize("size", [5, 6, 7, 8])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_padding_is_that_of_keras(size: int, kernel: int, stride: int) -> None:
    """`valid` is the correlation where the kernel fits, `same` gives ⌈size / stride⌉ values with the odd zero at the end."""
    x = torch.randn(1, 1, size, size)
    for padding in ("valid", "same"):
        net = network(
            [{"conv2d": 1, "kernel": kernel, "stride": stride, "padding": padding}, "flatten", {"dense": "auto"}], inputs=(1, size, size)
        )
        weight = dict(net.named_children())["00_conv"].weight[0, 0].detach().numpy()
        image = x[0, 0].numpy()
        if padding == "same":
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            image = np.pad(image, (total // 2, total - total // 2))
        expected = signal.correlate2d(image, weight, mode="valid")[::stride, ::stride]
        found = net[: names(net).index("flatten")](x)[0, 0].detach().numpy()
        assert padding == "valid" or found.shape == (-(-size // stride),) * 2
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_initializer_of_a_layer_pairs_with_the_activation_that_follows_it_before_the_next_weights() -> None:
    net = network(
        [
            "flatten",
            {"dense": 9, "activation": "selu"},
            {"dense": 9},
            {"normalization": "batch_norm"},
            {"dropout": 0.1},
            {"activation": "relu"},
            {"dense": 9},
            {"dense": 9, "activation": "relu", "initializer": "lecun_uniform"},
            {"dense": "auto", "activation": "softmax"},
        ]
    )
    assert list(chosen_initializers(net).values()) == ["lecun_normal", "he_normal", "glorot_uniform", "lecun_uniform", "glorot_uniform"]


def test_an_activation_beyond_the_next_weights_is_another_layer_s() -> None:
    net = network(["flatten", {"dense": 9}, {"dense": 9}, {"activation": "relu"}, {"dense": "auto"}])
    assert list(chosen_initializers(net).values()) == ["glorot_uniform", "he_normal", "glorot_uniform"]


def test_a_layer_that_names_no_initializer_gets_the_config_s() -> None:
    net = network(["flatten", {"dense": 9, "activation": "selu"}, {"dense": 10, "initializer": "auto"}], "initializer=he_uniform")
    assert list(chosen_initializers(net).values()) == ["he_uniform", "glorot_uniform"]


def test_weights_have_the_variance_of_their_initializer_and_biases_are_zero() -> None:
    listed = {"name": "variance_scaling", "scale": 2.0, "mode": "fan_avg", "distribution": "uniform"}
    net = network(["flatten", {"dense": 600, "activation": "sigmoid", "initializer": listed}, {"dense": "auto"}])
    weight, bias = net[1].weight, net[1].bias
    assert weight.abs().max().item() == pytest.approx((12 / (784 + 600)) ** 0.5, rel=1e-3)  # r = √(12 / (in + out))
    assert weight.var().item() == pytest.approx(4 / (784 + 600), rel=0.02)
    assert not bias.any()


@pytest.mark.parametrize(
    ("override", "own", "biases"),
    [
        ("model.use_bias=auto", None, [False, True, True]),
        ("model.use_bias=true", None, [True, True, True]),
        ("model.use_bias=false", None, [False, False, False]),
        ("model.use_bias=auto", True, [True, True, True]),
        ("model.use_bias=true", False, [False, True, True]),
    ],
)
def test_the_bias_is_the_layer_s_own_choice_or_the_config_s(override: str, own: bool | None, biases: list[bool]) -> None:
    first = {"dense": 9} if own is None else {"dense": 9, "use_bias": own}
    norm = {"normalization": "batch_norm"}
    net = network(["flatten", first, norm, {"dense": 9, "activation": "relu"}, norm, {"dense": "auto"}], override)
    assert [layer.bias is not None for layer in net.modules() if isinstance(layer, nn.Linear)] == biases


def test_what_the_config_chooses_for_other_models_is_not_put_in() -> None:
    net = network(["flatten", {"dense": 9}, {"dense": "auto"}], "activation=tanh", "normalization=batch_norm", "dropout=dropout")
    assert names(net) == ["flatten", "00_dense", "01_dense"]


def test_a_third_party_s_components_go_by_their_names(registries: None) -> None:
    def scaled(by: float = 2.0) -> nn.Module:
        module = nn.PReLU(init=by)
        return module

    REGISTRIES["activation"].register("scaled", pairs_with="he_uniform")(scaled)
    REGISTRIES["dropout"].register("feature_dropout")(lambda: nn.FeatureAlphaDropout(0.1))
    net = network(["flatten", {"dense": 5, "activation": {"name": "scaled", "by": 3.0}}, {"dropout": "feature_dropout"}, {"dense": "auto"}])
    assert names(net)[2:4] == ["00_scaled", "00_feature_dropout"]
    assert net[2].weight.item() == 3.0
    assert chosen_initializers(net)["00_dense"] == "he_uniform"


def test_a_layer_inside_the_list_is_the_layer_that_was_asked_for_bit_for_bit() -> None:
    net = network(["flatten", {"dense": 7, "activation": "tanh"}, {"dense": "auto"}], inputs=(4,), outputs=3)
    x = torch.randn(5, 4)
    torch.testing.assert_close(net(x), torch.tanh(x @ net[1].weight.T) @ net[3].weight.T, rtol=1e-5, atol=1e-6)


# The end of the list


@pytest.mark.parametrize("end", [[{"dense": 10, "activation": "softmax"}], [{"dense": 10}, {"activation": "softmax"}]])
def test_a_softmax_at_the_end_becomes_the_identity_and_says_so(end: list[Any]) -> None:
    net = network(["flatten", *end])
    plain = network(["flatten", {"dense": 10}])
    x = torch.randn(4, *IMAGE)
    assert torch.equal(net(x), plain(x))
    assert "left out here, because the loss contains it" in remarks(net)["00_softmax"]
    assert remarks(plain) == {}
    text = io.StringIO()
    Console(file=text, width=100).print(table(summary(net, IMAGE)))
    assert "00_softmax: the softmax at the end of the list is left out here" in text.getvalue()


@pytest.mark.parametrize("task", ["regression", "reconstruction"])
def test_a_softmax_is_not_silently_left_out_of_what_is_no_classification(task: str) -> None:
    with pytest.raises(ConfigError, match=rf"model.layers\[1\]: softmax at the end is for classification, the task is {task}"):
        network(["flatten", {"dense": 10, "activation": "softmax"}], task=task)


def test_another_activation_at_the_end_of_a_classification_is_remarked_on() -> None:
    listed = ["flatten", {"dense": 10, "activation": "sigmoid"}]
    assert "changes the outputs" in remarks(network(listed, task="classification"))["00_sigmoid"]
    assert remarks(network(listed, task="reconstruction")) == {}


def test_auto_is_the_number_of_outputs_and_another_number_is_refused_with_both() -> None:
    assert network(["flatten", {"dense": "auto"}], outputs=7)(torch.zeros(2, *IMAGE)).shape == (2, 7)
    with pytest.raises(ConfigError, match=r"model.layers\[2\].dense: the network must end in 3 values.*the list ends in 10.*'auto'"):
        network(["flatten", {"dense": 5}, {"dense": 10}], outputs=3)


def test_a_list_may_end_in_a_convolution_that_gives_one_value_for_each_output() -> None:
    assert network([{"conv2d": 10, "kernel": 28}, "flatten"])(torch.zeros(2, *IMAGE)).shape == (2, 10)
    with pytest.raises(ConfigError, match=r"model.layers: the network must end in 10 values.*the list ends in 20"):
        network([{"conv2d": 20, "kernel": 28}, "flatten"])


# What is found when the config is composed

SOUND = ["flatten", {"dense": "auto"}]

MISTAKES: list[tuple[Any, str, str]] = [
    ("flaten", "[0]", "names no kind of layer; there are: dense, conv2d.*flatten"),
    ("elu", "[0]", r"elu is written \{activation: elu\}"),
    (4, "[0]", "must be the name of a layer or a mapping.*got 4"),
    ({"dens": 300}, "[0]", "names no kind of layer.*dense"),
    ({"dense": 3, "dropout": 0.2}, "[0]", "several layers in one, dense and dropout"),
    ("dense", "[0].dense", "has to be given: an integer at least 1 and at most 1000000 or auto"),
    ({"dense": 0}, "[0].dense", "must be an integer at least 1 and at most 1000000 or auto, got 0"),
    ({"dense": "aut"}, "[0].dense", "got 'aut' auto"),
    ({"dense": 3, "units": 4}, "[0].units", "unknown setting.*dense, activation, initializer, use_bias"),
    ({"dense": 3, "use_bias": 1}, "[0].use_bias", "true or false"),
    ({"dense": 3, "activation": "elo"}, "[0].activation", "no activation is called 'elo'.*elu"),
    ({"dense": 3, "activation": {"alpha": 2}}, "[0].activation", "must be a name or {name"),
    ({"dense": 3, "activation": {"name": "elu", "alfa": 2}}, "[0].activation.alfa", "unknown setting.*alpha"),
    ({"dense": 3, "activation": {"name": "elu", "alpha": -2}}, "[0].activation.alpha", "greater than 0, got -2"),
    ({"dense": 3, "initializer": "he"}, "[0].initializer", "no initializer is called 'he'"),
    ({"dense": 3, "initializer": {"name": "variance_scaling", "mode": "fan_inn"}}, "[0].initializer.mode", "fan_in"),
    ({"conv2d": 3, "kernel": 0}, "[0].kernel", "must be an integer at least 1, got 0"),
    ({"conv2d": 3, "padding": "sane"}, "[0].padding", "one of valid, same.*same"),
    ({"activation": "leaky_relu", "negative_slope": 1}, "[0].negative_slope", "less than 1, got 1"),
    ({"activation": None}, "[0].activation", "must be the name of one; there are"),
    ({"normalization": "batchnorm"}, "[0].normalization", "no normalization is called 'batchnorm'.*batch_norm"),
    ({"normalization": "batch_norm", "position": "pre"}, "[0].position", "unknown setting"),
    ({"normalization": "batch_norm", "momentum": 2}, "[0].momentum", "at most 1, got 2"),
    ({"dropout": 1}, "[0].dropout", "less than 1, got 1"),
    ({"dropout": 0.1, "p": 0.2}, "[0].p", "given twice"),
    ({"dropout": True}, "[0].dropout", "must be a probability"),
    ({"alpha_dropout": "x"}, "[0].alpha_dropout", "must be a probability; got 'x'"),
    ({"max_pool": 0}, "[0].max_pool", "at least 1"),
    ({"flatten": 3}, "[0].flatten", "must be null, got 3"),
]


@pytest.mark.parametrize(("layer", "path", "message"), MISTAKES, ids=str)
def test_a_mistake_in_a_layer_is_answered_at_its_config_path(layer: Any, path: str, message: str) -> None:
    import re

    found = wrong([layer, *SOUND])
    assert list(found) == [f"model.layers{path}"]
    assert re.search(message, found[f"model.layers{path}"])


ORDERS: list[tuple[list[Any], str, str]] = [
    ([], "", "must hold a dense or a conv2d layer"),
    (["flatten"], "", "must hold a dense or a conv2d layer"),
    ([{"conv2d": 4}, {"dense": "auto"}], "[1]", "put flatten before it"),
    ([{"conv2d": 4}, {"activation": "relu"}, {"dense": "auto"}], "[2]", "put flatten before it"),
    (["flatten", {"conv2d": 4}, "flatten", {"dense": "auto"}], "[1]", "cannot come after flatten or dense"),
    ([{"dense": 4}, {"dropout": 0.1}, "max_pool", "flatten", {"dense": "auto"}], "[2]", "cannot come after flatten or dense"),
    ([{"conv2d": 4}, "max_pool"], "", "must end in flat values"),
    (["flatten", {"dense": "auto"}, {"dense": 10}], "[1].dense", "only the last dense layer"),
    (["flatten", {"dense": 5, "activation": "softmax"}, {"dense": "auto"}], "[1]", "softmax can only end the list"),
]


@pytest.mark.parametrize(("layers", "path", "message"), ORDERS, ids=str)
def test_layers_that_cannot_follow_each_other_are_found_without_the_data(layers: list[Any], path: str, message: str) -> None:
    found = wrong(layers)
    assert list(found) == [f"model.layers{path}"]
    assert message in found[f"model.layers{path}"]


def test_every_mistake_of_a_list_is_reported_at_once_beside_the_others() -> None:
    with pytest.raises(ConfigError) as caught:
        COMPOSER.one(["model=sequential", "model.layers=[flaten,{dense:0},{dropout:2}]", "optimizer.lr=-1"])
    assert {problem.where for problem in caught.value.problems} == {
        *("model.layers[0]", "model.layers[1].dense", "model.layers[2].dropout", "optimizer.lr")
    }


@pytest.mark.parametrize("value", ["3", "null", "flatten"])
def test_what_is_no_list_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"model.layers: must be a list of values, got"):
        COMPOSER.one(["model=sequential", f"model.layers={value}"])


# What takes the data to see

UNFIT: list[tuple[list[Any], tuple[int, ...], str]] = [
    ([{"dense": "auto"}], (1, 28, 28), r"model.layers\[0\]: dense needs flat values, here they have shape \(1, 28, 28\)"),
    ([{"conv2d": 4}, "flatten", {"dense": "auto"}], (13,), r"model.layers\[0\]: conv2d needs images.*\(13,\)"),
    (
        [{"conv2d": 4, "kernel": 9}, "flatten", {"dense": "auto"}],
        (1, 8, 8),
        r"layers\[0\].kernel: must be at most the image there, 8 × 8, got 9",
    ),
    (["max_pool", {"max_pool": 5}, "flatten", {"dense": "auto"}], (1, 8, 8), r"layers\[1\].max_pool: must be at most.*4 × 4, got 5"),
    ([{"normalization": "batch_norm"}, "flatten", {"dense": "auto"}], (8, 8), r"layers\[0\]: a normalization needs flat values or images"),
]


@pytest.mark.parametrize(("layers", "inputs", "message"), UNFIT, ids=str)
def test_layers_that_do_not_fit_the_data_are_refused_with_the_shapes(layers: list[Any], inputs: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        network(layers, inputs=inputs)
