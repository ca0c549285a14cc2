"""Networks from parts: names of layers, biases, initial weights, and parameter counts worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dnnkit import plugins
from dnnkit.config import Composer
from dnnkit.errors import PluginError
from dnnkit.network import (
    FALLBACK_INITIALIZER,
    Parts,
    build_network,
    chosen_initializers,
    initializer_for,
    initializers,
    make_part,
    remarks,
)
from dnnkit.registry import REGISTRIES

plugins.load()
COMPOSER = Composer()

#: Variance times fan-in of a square layer: Glorot 1, He 2, LeCun 1; of the output layer, Glorot 2·in/(in + out).
GAIN = {"glorot_normal": 1, "glorot_uniform": 1, "he_normal": 2, "he_uniform": 2, "lecun_normal": 1, "lecun_uniform": 1}
BN = ["normalization=batch_norm"]


def network(*overrides: str, inputs: tuple[int, ...] = (28, 28), outputs: int = 10, seed: int = 0) -> nn.Sequential:
    built = build_network(COMPOSER.one(overrides).values, inputs, outputs, seed)
    assert isinstance(built, nn.Sequential)
    return built


def names(net: nn.Sequential) -> list[str]:
    return [name for name, _ in net.named_children()]


def dense(net: nn.Module) -> list[nn.Linear]:
    return [layer for layer in net.modules() if isinstance(layer, nn.Linear)]


def counts(net: nn.Module) -> tuple[int, int]:
    """Trainable parameters, and moving statistics."""
    moving = sum(buffer.numel() for name, buffer in net.named_buffers() if "running" in name)
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad), moving


def test_layers_are_named_by_their_number_and_part() -> None:
    assert names(network()) == ["flatten", "00_dense", "00_selu", "01_dense", "01_selu", "02_dense"]
    parts = network(*BN, "dropout=dropout", "activation=relu", "model.hidden=[7]", "normalization.on_input=true")
    assert names(parts) == ["flatten", "input_batch_norm", "00_dense", "00_batch_norm", "00_relu", "00_dropout", "01_dense"]
    post = network(*BN, "dropout=dropout", "model.hidden=[7]", "normalization.position=post")
    assert names(post) == ["flatten", "00_dense", "00_selu", "00_batch_norm", "00_dropout", "01_dense"]


def test_a_network_maps_examples_of_any_shape_to_logits() -> None:
    for inputs in ((64,), (8, 8), (1, 28, 28)):
        assert network(inputs=inputs)(torch.zeros(5, *inputs)).shape == (5, 10)
    assert names(network("model.hidden=[]")) == ["flatten", "00_dense"]


@pytest.mark.parametrize("activation", REGISTRIES["activation"].names())
def test_auto_takes_what_the_activation_pairs_with_and_glorot_for_the_output(activation: str) -> None:
    hidden, output = initializers(COMPOSER.one([f"activation={activation}"]).values)
    assert hidden.name == REGISTRIES["activation"].get(activation).facts["pairs_with"]
    assert output.name == "glorot_uniform"
    first, *_, last = dense(network(f"activation={activation}", "model.hidden=[784]"))
    assert first.weight.var().item() * 784 == pytest.approx(GAIN[hidden.name], rel=0.02)
    assert last.weight.var().item() == pytest.approx(2 / (784 + 10), rel=0.1)


def test_the_textbook_pairs_are_these() -> None:
    pairs = {"relu": "he_normal", "elu": "he_normal", "selu": "lecun_normal", "tanh": "glorot_uniform", "sigmoid": "glorot_uniform"}
    for activation, initializer in pairs.items():
        assert initializers(COMPOSER.one([f"activation={activation}"]).values)[0].name == initializer


def test_an_activation_that_names_no_partner_gets_glorot(registries: None) -> None:
    REGISTRIES["activation"].register("odd")(nn.Hardtanh)
    values = {**COMPOSER.one([]).values, "activation": {"name": "odd"}}
    assert initializers(values)[0].name == FALLBACK_INITIALIZER == "glorot_uniform"


def test_the_choice_of_auto_can_be_told() -> None:
    assert chosen_initializers(network("model.hidden=[5]")) == {"00_dense": "lecun_normal", "01_dense": "glorot_uniform"}
    assert chosen_initializers(network("initializer=he_normal", "model.hidden=[]")) == {"00_dense": "he_normal"}


@pytest.mark.parametrize("initializer", sorted(GAIN))
def test_a_named_initializer_is_used_for_every_layer_and_biases_are_zero(initializer: str) -> None:
    net = network(f"initializer={initializer}", "model.hidden=[600,600,600]", inputs=(600,), outputs=600)
    assert len(dense(net)) == 4
    for layer in dense(net):
        assert layer.weight.var().item() * 600 == pytest.approx(GAIN[initializer], rel=0.02)
        assert layer.bias.count_nonzero() == 0


def test_the_default_of_torch_never_survives() -> None:
    torchs = 1 / 3  # nn.Linear: uniform in ±1/√fan_in, of variance 1/(3 fan_in)
    for name in [*GAIN, "auto"]:
        for activation in ("selu", "relu", "tanh"):
            net = network(f"initializer={name}", f"activation={activation}", "model.hidden=[200]", inputs=(200,), outputs=200)
            for layer in dense(net):
                assert abs(layer.weight.var().item() * 200 - torchs) > 0.5
                assert layer.bias.abs().max() == 0


#: Overrides, and whether each dense layer has a bias (two hidden ones and the output).
BIASES: list[tuple[list[str], list[bool]]] = [
    ([], [True, True, True]),
    (BN, [False, False, True]),
    ([*BN, "normalization.position=post"], [True, True, True]),
    ([*BN, "normalization.position=post", "normalization.on_input=true"], [True, True, True]),
    ([*BN, "normalization.on_input=true"], [False, False, True]),
    (["normalization.on_input=true"], [True, True, True]),
    (["normalization=layer_norm"], [False, False, True]),
    ([*BN, "model.use_bias=true"], [True, True, True]),
    ([*BN, "model.use_bias=false"], [False, False, False]),
    (["model.use_bias=false"], [False, False, False]),
]


@pytest.mark.parametrize(("overrides", "biases"), BIASES, ids=lambda value: " ".join(map(str, value)))
def test_a_bias_is_dropped_only_where_a_normalization_with_offset_follows_directly(overrides: list[str], biases: list[bool]) -> None:
    assert [layer.bias is not None for layer in dense(network(*overrides))] == biases


def test_a_normalization_without_offset_leaves_the_bias(registries: None) -> None:
    def plain(features: int) -> nn.Module:
        return nn.LayerNorm(features, elementwise_affine=False)

    REGISTRIES["normalization"].register("plain")(plain)
    values = COMPOSER.one([]).values
    values["normalization"] = {"name": "plain", "position": "pre", "on_input": False}
    assert all(layer.bias is not None for layer in dense(build_network(values, (4,), 2, 0)))


def test_a_normalization_is_told_that_its_layer_is_dense() -> None:
    kinds = [type(layer) for layer in network(*BN).modules() if isinstance(layer, nn.BatchNorm1d)]
    assert kinds == [nn.BatchNorm1d] * 2
    settings = network(*BN, "normalization.momentum=0.01", "normalization.eps=0.001").get_submodule("00_batch_norm")
    assert (settings.momentum, settings.eps) == (0.01, 0.001)


def test_equal_seeds_give_equal_weights_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = network(seed=1), network(seed=1), network(seed=2)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(dense(first)[0].weight, dense(other)[0].weight)
    assert not torch.equal(dense(first)[0].weight[:10, :10], dense(first)[1].weight[:10, :10])


#: Overrides, trainable parameters, moving statistics; inputs 784, hidden 300 and 100, outputs 10.
COUNTS: list[tuple[list[str], int, int]] = [
    ([], 235500 + 30100 + 1010, 0),
    ([*BN, "normalization.on_input=true", "normalization.position=post"], 268978, 2368),
    ([*BN, "normalization.on_input=true"], 268578, 2368),
    (BN, 235200 + 600 + 30000 + 200 + 1010, 800),
    (["normalization=layer_norm"], 235200 + 600 + 30000 + 200 + 1010, 0),
    (["model.hidden=[]"], 7850, 0),
]


@pytest.mark.parametrize(("overrides", "trainable", "moving"), COUNTS, ids=str)
def test_parameters_are_as_many_as_worked_out_by_hand(overrides: list[str], trainable: int, moving: int) -> None:
    assert counts(network("activation=elu", *overrides)) == (trainable, moving)


def test_a_component_that_does_not_return_a_module_is_named_with_its_origin(registries: None) -> None:
    def three() -> Any:
        return 3

    REGISTRIES["activation"].register("three")(three)
    values = {**COMPOSER.one([]).values, "activation": {"name": "three"}}
    with pytest.raises(PluginError, match=r"activation=three \(.*\) has to return an nn.Module, it returned int"):
        build_network(values, (4,), 2, 0)


def test_auto_is_a_question_of_the_activation_and_glorot_where_there_is_none_to_ask() -> None:
    auto = {"name": "auto"}
    assert [initializer_for(auto, name).name for name in ("relu", "selu", None, "softmax")] == [
        *("he_normal", "lecun_normal", "glorot_uniform", "glorot_uniform")
    ]
    assert initializer_for({"name": "he_uniform"}, "selu").name == "he_uniform"


def test_the_settings_of_a_named_initializer_count() -> None:
    node = {"name": "variance_scaling", "scale": 2.0, "mode": "fan_avg", "distribution": "uniform"}
    weight = initializer_for(node, None).fill(torch.empty(600, 200))
    assert weight.abs().max().item() == pytest.approx((12 / 800) ** 0.5, rel=1e-3)  # r = √(12 / (in + out))


def test_a_part_is_told_of_its_layer_only_what_it_asks_for(registries: None) -> None:
    def curious(features: int, layer: str) -> nn.Module:
        return nn.Identity() if (features, layer) == (3, "conv") else nn.Tanh()

    REGISTRIES["normalization"].register("curious")(curious)
    REGISTRIES["normalization"].register("plain")(lambda features: nn.ReLU())
    assert isinstance(make_part("normalization", {"name": "curious"}, 3, layer="conv"), nn.Identity)
    assert isinstance(make_part("normalization", {"name": "plain"}, 3, layer="conv"), nn.ReLU)


def test_a_convolution_is_named_numbered_and_given_its_parts_as_a_dense_layer_is() -> None:
    parts = Parts(COMPOSER.one([*BN, "activation=relu", "dropout=dropout"]).values)
    layers = parts.conv(3, 2, 5, kernel=3, size=(8, 9))
    assert list(layers) == ["03_conv", "03_batch_norm", "03_relu", "03_dropout"]
    assert nn.Sequential(*layers.values())(torch.zeros(4, 2, 8, 9)).shape == (4, 5, 8, 9)
    assert isinstance(layers["03_batch_norm"], nn.BatchNorm2d)
    assert list(parts.conv(0, 2, 5, kernel=2, size=(8, 9)))[:2] == ["00_pad", "00_conv"]


def test_what_a_model_remarks_of_a_layer_is_found_by_its_name() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Identity())
    net[1].__dict__["remark"] = "it does nothing"
    assert remarks(net) == {"1": "it does nothing"}
    assert net.state_dict().keys() == {"0.weight", "0.bias"}
