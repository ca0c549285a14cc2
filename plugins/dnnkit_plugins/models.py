"""Models: networks from an example's shape to logits or values, their layers made by `parts` from the chosen names.

Every model returns `(batch, outputs)`. Layers are numbered in the order of the signal: `00_dense`, `01_conv`, ….
"""

import math
from collections import OrderedDict
from typing import Annotated, Any, Literal

from annotated_types import Ge
from torch import Tensor, nn

from dnnkit.errors import ConfigError, Problem
from dnnkit.network import Parts
from dnnkit.registry import models
from dnnkit.schema import Check, Count
from dnnkit_plugins import layer_list, layer_schema

Width = layer_list.Width

_POOLS = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}


@models.register("mlp")
def mlp(
    inputs: tuple[int, ...],
    outputs: int,
    parts: Parts,
    hidden: list[Width] = [300, 100],  # noqa: B006 (a config node holds lists; never written to)
    repeat: Count = 1,
) -> nn.Module:
    """Dense layers of the widths `hidden`, then one of `outputs` units: `(batch, *inputs)` to `(batch, outputs)`.

    The whole list is laid out `repeat` times: hidden=[100] repeat=100 is a hundred layers of a hundred units.
    Every hidden layer has the chosen normalization, activation and dropout; the last has none of them. An empty list is
    linear (softmax) regression.
    Source: Rumelhart, Hinton & Williams 1986.
    """
    return _stack(_dense_layers(inputs, outputs, parts, hidden * repeat))


@models.register("cnn")
def cnn(
    inputs: tuple[int, ...],
    outputs: int,
    parts: Parts,
    channels: list[Width] = [16, 32],  # noqa: B006
    kernel: Width = 3,
    pool: Literal["max", "avg", "none"] = "max",
    pool_size: Width = 2,
    hidden: list[Width] = [64],  # noqa: B006
) -> nn.Module:
    """Convolutions with `channels` kernels, each with a pooling, then dense layers: `(batch, c, h, w)` to `(batch, outputs)`.

    A convolution of `kernel` × `kernel` keeps height and width; normalization (per channel), activation and dropout follow as
    in a dense layer, then the maximum or the mean of every `pool_size` × `pool_size` square, the incomplete ones left out.
    Then come dense layers of the widths `hidden` and one of `outputs` units. ConfigError for examples that are not images,
    or too small for so many poolings.
    Source: LeCun, Bottou, Bengio & Haffner 1998, section II; the maximum by Ranzato, Huang, Boureau & LeCun 2007.
    """
    found, height, width = _image("model", inputs)
    layers = parts.input(found, "conv")
    for index, made in enumerate(channels):
        layers |= parts.conv(index, found, made, kernel, (height, width))
        found = made
        if pool != "none":
            _check_pool(inputs, (height, width), pool_size, index)
            layers[f"{index:02}_{pool}_pool"] = _POOLS[pool](pool_size)
            height, width = height // pool_size, width // pool_size
    layers["flatten"] = nn.Flatten()
    width = found * height * width
    for index, units in enumerate(hidden, len(channels)):
        layers |= parts.dense(index, width, units)
        width = units
    return _stack({**layers, **parts.output(len(channels) + len(hidden), width, outputs)})


@models.register("resmlp")
def resmlp(
    inputs: tuple[int, ...], outputs: int, parts: Parts, width: Width = 100, blocks: Annotated[int, Ge(0)] = 2, depth: Width = 2
) -> nn.Module:
    """A dense layer, `blocks` times x ← x + f(x), and a dense output: `(batch, *inputs)` to `(batch, outputs)`.

    f is `depth` dense layers of `width` units, each with the chosen normalization, activation and dropout. The sum is not
    activated again, as it is in the paper, so that x passes unchanged. Adding f(x) adds its variance: skip connections
    break the self-normalization of SELU. Layers of block 1 are called `block_1.01_dense`, ….
    Source: He, Zhang, Ren & Sun 2016, "Deep residual learning", eq. 1, with dense layers.
    """
    size = math.prod(inputs)
    layers = {"flatten": nn.Flatten(), **parts.input(size), **parts.dense(0, size, width)}
    for block in range(blocks):
        inner: dict[str, nn.Module] = {}
        for index in range(depth):
            inner |= parts.dense(1 + block * depth + index, width, width)
        layers[f"block_{block + 1}"] = Residual(OrderedDict(inner))
    return _stack({**layers, **parts.output(1 + blocks * depth, width, outputs)})


class Residual(nn.Sequential):
    """x + f(x), where f is the layers inside one after the other; shape-preserving."""

    def forward(self, x: Tensor) -> Tensor:
        """Gives x + f(x)."""
        change: Tensor = super().forward(x)
        return x + change


@models.register("autoencoder", task="reconstruction")
def autoencoder(
    inputs: tuple[int, ...],
    outputs: int,
    parts: Parts,
    hidden: list[Width] = [100],  # noqa: B006
    code: Width = 30,
) -> nn.Module:
    """Dense layers `hidden`, then `code` units, then `hidden` backwards: `(batch, *inputs)` to `(batch, prod(inputs))`.

    It learns to give back its input through the few numbers of the code, a hidden layer like the others, with the chosen
    activation. The encoder's layers have the names and shapes of an mlp with model.hidden=[*hidden, code]. With
    activation=identity the best it can learn is principal component analysis.
    Needs task=reconstruction, which is what task=auto means with it; ConfigError for another.
    Source: Hinton & Salakhutdinov 2006, here trained in one go and without tied weights.
    """
    if outputs != math.prod(inputs):
        message = f"autoencoder gives back its {math.prod(inputs)} inputs, the task wants {outputs} outputs: set task=reconstruction"
        raise ConfigError([Problem("model", message, ("mlp",))])
    return _stack(_dense_layers(inputs, outputs, parts, [*hidden, code, *reversed(hidden)]))


@models.register("sequential", parts_in="layers")
def sequential(
    inputs: tuple[int, ...],
    outputs: int,
    parts: Parts,
    layers: Annotated[list[Any], Check(layer_list.problems, layer_schema.schema)] = [  # noqa: B006
        "flatten",
        {"dense": 300, "activation": "relu"},
        {"dense": 100, "activation": "relu"},
        {"dense": "auto"},
    ],
) -> nn.Module:
    """The layers of a list, one after the other, as in a Keras `Sequential`: `(batch, *inputs)` to `(batch, outputs)`.

    A layer is a mapping that begins with its kind; one without settings may be the bare word:

        - flatten
        - {dense: 300, activation: elu, initializer: he_normal, use_bias: false}       # dense: auto = as many as outputs
        - {conv2d: 64, kernel: 3, stride: 1, padding: valid|same, …as dense}
        - {activation: leaky_relu, negative_slope: 0.2}
        - {normalization: batch_norm, momentum: 0.01, eps: 0.001}
        - {max_pool: 2, stride: 2}                                                     # or avg_pool; stride: null = the size
        - {dropout: 0.2}                                                               # or {alpha_dropout: 0.2}

    Activations, normalizations, dropouts and initializers go by their registered names, anybody's; inside a dense or conv2d
    one with settings is a mapping: activation: {name: leaky_relu, negative_slope: 0.2}.
    What a layer leaves open comes from the config: its initializer (`auto` pairs with the activation that follows the layer)
    and model.use_bias. The config's activation, normalization and dropout are not put in: what is not listed is not there.
    The list has to end in as many values as the task has outputs. A softmax at its end becomes the identity, which the log and
    the summary say, because cross_entropy contains it; anywhere else it is refused.
    Differs from Keras: channels come first, and dense needs flat values, so `flatten` comes before it; batch_norm's momentum is
    1 − Keras's. Layers are named as in other models; a normalization before all others is `input_batch_norm`.
    Source: the syntax follows Chollet's Keras, `keras.Sequential`.
    """
    return layer_list.network(layers, inputs, outputs, parts)


def _dense_layers(inputs: tuple[int, ...], outputs: int, parts: Parts, hidden: list[int]) -> dict[str, nn.Module]:
    width = math.prod(inputs)
    layers = {"flatten": nn.Flatten(), **parts.input(width)}
    for index, units in enumerate(hidden):
        layers |= parts.dense(index, width, units)
        width = units
    return {**layers, **parts.output(len(hidden), width, outputs)}


def _stack(layers: dict[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _image(where: str, inputs: tuple[int, ...]) -> tuple[int, int, int]:
    if len(inputs) != 3:
        message = f"needs images, examples of shape (channels, height, width), got {inputs}"
        raise ConfigError([Problem(where, message, ("mlp",))])
    return inputs[0], inputs[1], inputs[2]


def _check_pool(inputs: tuple[int, ...], size: tuple[int, int], pool_size: int, done: int) -> None:
    if min(size) < pool_size:
        now, most = f"{size[0]} × {size[1]}", f"at most {done} of the {'convolutions' if done != 1 else 'convolution'} can be pooled"
        message = f"images of {inputs[1]} × {inputs[2]} are {now} after {done} poolings, too small for one by {pool_size}; {most}"
        raise ConfigError([Problem("model.channels", message, ("model.pool=none",))])
