"""Models: the layers that they lay out, their parameters worked out by hand, their sums, and inputs that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dnnkit import plugins
from dnnkit.config import Composer
from dnnkit.errors import ConfigError
from dnnkit.network import build_network
from dnnkit.registry import REGISTRIES

plugins.load()
COMPOSER = Composer()


def network(*overrides: str, inputs: tuple[int, ...] = (1, 28, 28), outputs: int = 10, seed: int = 0) -> nn.Sequential:
    built = build_network(COMPOSER.one(overrides).values, inputs, outputs, seed)
    assert isinstance(built, nn.Sequential)
    return built


def names(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if name and not list(module.children())]


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def of(net: nn.Module, kind: type[Any]) -> list[Any]:
    return [module for module in net.modules() if isinstance(module, kind)]


# Every model


def outputs_of(model: str) -> int:
    return 192 if REGISTRIES["model"].get(model).facts.get("task") == "reconstruction" else 7


@pytest.mark.parametrize("model", REGISTRIES["model"].names())
def test_every_model_maps_images_to_one_row_of_outputs_for_each(model: str) -> None:
    net = network(f"model={model}", inputs=(3, 8, 8), outputs=outputs_of(model))
    assert net(torch.zeros(5, 3, 8, 8)).shape == (5, outputs_of(model))


@pytest.mark.parametrize("model", REGISTRIES["model"].names())
def test_the_weights_of_every_model_are_a_function_of_the_seed_alone(model: str) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    first, second, other = (network(f"model={model}", inputs=(3, 8, 8), outputs=outputs_of(model), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_repeat_lays_the_whole_list_of_an_mlp_out_so_many_times() -> None:
    net = network("model.hidden=[30,20]", "model.repeat=3", inputs=(7,), outputs=2)
    assert [(layer.in_features, layer.out_features) for layer in of(net, nn.Linear)] == [
        (7, 30), (30, 20), (20, 30), (30, 20), (20, 30), (30, 20), (20, 2),
    ]  # fmt: skip
    assert [name for name in names(net) if name.endswith("dense")] == [f"{index:02}_dense" for index in range(7)]


def test_a_hundred_layers_of_a_hundred_units_are_one_setting() -> None:
    net = network("model=dense_100_times_100")
    # 784·100 + 100, then 99 of 100·100 + 100, then 100·10 + 10.
    assert count(net) == 78500 + 99 * 10100 + 1010
    assert len({name.partition("_")[0] for name in names(net) if name.endswith("dense")}) == 101


@pytest.mark.parametrize("repeat", [0, -1, 2.5, "many"])
def test_an_mlp_is_not_repeated_less_than_once(repeat: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.repeat: must be an integer at least 1"):
        COMPOSER.one([f"model.repeat={repeat}"])


@pytest.mark.parametrize("model", ["mlp", "cnn", "resmlp", "autoencoder"])
def test_the_chosen_parts_are_in_every_layer_of_every_model_that_takes_them(model: str) -> None:
    parts = ("activation=tanh", "normalization=batch_norm", "dropout=dropout", "initializer=zeros")
    if "zeros" not in REGISTRIES["initializer"]:
        parts = (*parts[:-1], "initializer=he_uniform")
    net = network(f"model={model}", *parts, inputs=(3, 8, 8), outputs=outputs_of(model))
    weighted = of(net, nn.Linear) + of(net, nn.Conv2d)
    hidden = len(weighted) - 1
    assert len(of(net, nn.Tanh)) == len(of(net, nn.Dropout)) == len(of(net, nn.BatchNorm1d) + of(net, nn.BatchNorm2d)) == hidden > 0
    assert sum(layer.bias is not None for layer in weighted) == 1  # the others feed a normalization
    assert {layer.initializer for layer in weighted} == {parts[-1].removeprefix("initializer=")}
    assert all(layer.bias is None or not layer.bias.any() for layer in weighted)


# cnn


def test_cnn_lays_out_convolutions_with_their_poolings_and_then_dense_layers() -> None:
    net = network("model=cnn", "model.channels=[32,64]", "model.hidden=[128]", "activation=relu")
    assert names(net) == [
        *("00_conv", "00_relu", "00_max_pool", "01_conv", "01_relu", "01_max_pool"),
        *("flatten", "02_dense", "02_relu", "03_dense"),
    ]
    # (in · 3 · 3 + 1) · out for a convolution; 28 → 14 → 7 by the poolings
    assert count(net) == (9 + 1) * 32 + (32 * 9 + 1) * 64 + (64 * 7 * 7 + 1) * 128 + (128 + 1) * 10


def test_cnn_with_every_part_keeps_their_order_and_normalizes_by_channel() -> None:
    parts = ("model=cnn", "model.channels=[4]", "model.hidden=[]", "normalization=batch_norm", "normalization.on_input=true")
    parts = (*parts, "activation=elu", "dropout=dropout", "model.pool=avg")
    pre, post = network(*parts), network(*parts, "normalization.position=post")
    assert names(pre) == ["input_batch_norm", "00_conv", "00_batch_norm", "00_elu", "00_dropout", "00_avg_pool", "flatten", "01_dense"]
    assert names(post)[1:5] == ["00_conv", "00_elu", "00_batch_norm", "00_dropout"]
    assert [layer.num_features for layer in of(pre, nn.BatchNorm2d)] == [1, 4]
    assert [layer.bias is None for layer in of(pre, nn.Conv2d) + of(post, nn.Conv2d)] == [True, False]


@pytest.mark.parametrize(("initializer", "gain"), [("he_normal", 2), ("lecun_normal", 1), ("he_uniform", 2)])
def test_the_fan_of_a_convolution_is_channels_times_kernel_area(initializer: str, gain: int) -> None:
    net = network("model=cnn", "model.channels=[64,512]", "model.kernel=5", f"initializer={initializer}", "model.hidden=[]")
    second = of(net, nn.Conv2d)[1]
    assert second.weight.var().item() * 64 * 25 == pytest.approx(gain, rel=0.02)
    assert not second.bias.any()


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 7])
def test_a_convolution_of_any_kernel_keeps_height_and_width_with_the_odd_zero_after(kernel: int) -> None:
    net = network("model=cnn", "model.channels=[3]", f"model.kernel={kernel}", "model.pool=none", "model.hidden=[]", "activation=identity")
    x = torch.randn(2, 1, 28, 28)
    conv = of(net, nn.Conv2d)[0]
    before, after = (kernel - 1) // 2, kernel - 1 - (kernel - 1) // 2
    expected = functional.conv2d(functional.pad(x, (before, after, before, after)), conv.weight, conv.bias)
    found = net[: names(net).index("flatten")](x)
    assert found.shape == (2, 3, 28, 28)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inputs", [(10,), (28, 28), (1, 2, 3, 4)])
def test_cnn_says_that_it_needs_images(inputs: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"model: needs images, examples of shape \(channels, height, width\), got \(") as caught:
        network("model=cnn", inputs=inputs)
    assert str(inputs) in str(caught.value)


@pytest.mark.parametrize(("size", "channels", "fits"), [(8, 3, True), (8, 4, False), (3, 1, True), (3, 2, False), (1, 1, False)])
def test_cnn_says_how_many_poolings_an_image_has_room_for(size: int, channels: int, fits: bool) -> None:
    words = ("model=cnn", f"model.channels=[{','.join(['4'] * channels)}]", "model.hidden=[]")
    if fits:
        assert network(*words, inputs=(1, size, size))(torch.zeros(2, 1, size, size)).shape == (2, 10)
        return
    with pytest.raises(ConfigError, match=rf"images of {size} × {size} are 1 × 1 after {channels - 1} poolings, too small for one by 2"):
        network(*words, inputs=(1, size, size))
    assert network(*words, "model.pool=none", inputs=(1, size, size))(torch.zeros(2, 1, size, size)).shape == (2, 10)


# resmlp


def test_resmlp_adds_what_its_blocks_make_to_what_they_are_given() -> None:
    net = network("model=resmlp", "model.width=6", "model.blocks=2", "model.depth=2", "activation=tanh", inputs=(5,), outputs=3)
    assert names(net) == [
        *("flatten", "00_dense", "00_tanh"),
        *(f"block_1.{name}" for name in ("01_dense", "01_tanh", "02_dense", "02_tanh")),
        *(f"block_2.{name}" for name in ("03_dense", "03_tanh", "04_dense", "04_tanh")),
        "05_dense",
    ]
    x = torch.randn(9, 5)
    w = [layer.weight for layer in of(net, nn.Linear)]
    h = torch.tanh(x @ w[0].T)
    for first, second in ((1, 2), (3, 4)):
        h = h + torch.tanh(torch.tanh(h @ w[first].T) @ w[second].T)
    torch.testing.assert_close(net(x), h @ w[5].T)


def test_skip_connections_break_the_self_normalization_of_selu() -> None:
    def variance(*words: str) -> float:
        net = network(*words, "activation=selu", inputs=(256,), outputs=256)
        hidden: Tensor = net[:-1](torch.randn(2000, 256, generator=torch.Generator().manual_seed(0)))
        return hidden.var().item()

    plain = variance("model.hidden=[256,256,256,256,256,256,256,256,256,256,256]")
    skipping = variance("model=resmlp", "model.width=256", "model.blocks=10", "model.depth=1")
    assert plain == pytest.approx(1, abs=0.15)
    assert skipping > 8  # a variance of about 1 is added ten times


def test_resmlp_without_blocks_is_an_mlp_of_one_hidden_layer() -> None:
    residual, plain = network("model=resmlp", "model.blocks=0"), network("model.hidden=[100]")
    assert names(residual) == names(plain)
    assert all(torch.equal(a, b) for a, b in zip(residual.parameters(), plain.parameters(), strict=True))


# autoencoder


def test_autoencoder_narrows_to_the_code_and_widens_again() -> None:
    net = network("model=autoencoder", "model.hidden=[100,50]", "model.code=8", outputs=784)
    assert [(layer.in_features, layer.out_features) for layer in of(net, nn.Linear)] == [
        *((784, 100), (100, 50), (50, 8)),
        *((8, 50), (50, 100), (100, 784)),
    ]
    assert names(net)[-2:] == ["04_selu", "05_dense"]


def test_the_encoder_of_an_autoencoder_has_the_names_and_shapes_of_an_mlp() -> None:
    encoder = network("model=autoencoder", "model.hidden=[20]", "model.code=5", outputs=784).state_dict()
    mlp = network("model.hidden=[20,5]").state_dict()
    for name in ("00_dense.weight", "00_dense.bias", "01_dense.weight", "01_dense.bias"):
        assert encoder[name].shape == mlp[name].shape


def test_autoencoder_says_that_it_cannot_classify() -> None:
    with pytest.raises(ConfigError, match="gives back its 784 inputs, the task wants 10 outputs: set task=reconstruction"):
        network("model=autoencoder")


def test_a_linear_autoencoder_learns_the_principal_components() -> None:
    """Its squared error cannot be less than the variance outside the first principal components, and it gets there."""
    draw = torch.Generator().manual_seed(0)
    x = (
        torch.randn(400, 6, generator=draw)
        * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.3, 0.1])
        @ torch.linalg.qr(torch.randn(6, 6, generator=draw))[0]
    )
    x = x - x.mean(0)
    best = float((torch.linalg.svdvals(x.double())[2:] ** 2).sum() / x.numel())
    net = network("model=autoencoder", "model.hidden=[]", "model.code=2", "activation=identity", inputs=(6,), outputs=6)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.mse_loss(net(x), x)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert best * (1 - 1e-5) <= closure().item() == pytest.approx(best, rel=1e-3)
