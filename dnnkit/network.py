"""Layers from parts: a model component asks for layers, and this room makes them from the chosen names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from dnnkit.errors import ConfigError, PluginError, Problem
from dnnkit.registry import REGISTRIES
from dnnkit.schema import own_values

#: Keras's default, for layers whose activation asks for nothing else: none, tanh, sigmoid, softmax.
FALLBACK_INITIALIZER = "glorot_uniform"

#: What a normalization follows: its `features` are units of a dense layer or channels of a convolution.
LayerKind = Literal["dense", "conv"]


def component(group: str, values: Mapping[str, Any]) -> Callable[..., Any] | None:
    """The chosen component with its settings bound; None for the name `none`.

    The result is called with what the builder passes (see the table of kinds), and with nothing else.
    """
    if values["name"] == "none":
        return None
    record = REGISTRIES[group].get(values["name"])
    return partial(record.function, **own_values(group, values))


@dataclass(frozen=True)
class Initializer:
    """A named way to fill a weight in place."""

    name: str
    fill: Callable[[Tensor], Any]


def initializer_for(values: Mapping[str, Any], activation: str | None) -> Initializer:
    """The initializer that a node `{"name": …, settings}` names.

    `auto` is what the registration of the activation after the layer says it pairs with, and Glorot uniform for one that
    says nothing, for none (None) and for a softmax, which is inside the loss.
    """
    if values["name"] != "auto":
        fill = component("initializer", values)
        assert fill is not None
        return Initializer(values["name"], fill)
    known = activation is not None and activation in REGISTRIES["activation"]
    facts = REGISTRIES["activation"].get(activation).facts if known and activation else {}
    name = facts.get("pairs_with", FALLBACK_INITIALIZER)
    return Initializer(name, REGISTRIES["initializer"].get(name).function)


def initializers(config: Mapping[str, Any]) -> tuple[Initializer, Initializer]:
    """The initializers of the hidden layers and of the output layer, which no activation follows."""
    values = config["initializer"]
    return initializer_for(values, config["activation"]["name"]), initializer_for(values, None)


def dense_layer(n_in: int, n_out: int, bias: bool, initializer: Initializer) -> nn.Linear:
    """W·x + b, `(batch, n_in)` to `(batch, n_out)`, W by the initializer and b zero."""
    return _initialized(nn.Linear(n_in, n_out, bias=bias), initializer)


def conv_layers(
    c_in: int, c_out: int, kernel: int, bias: bool, initializer: Initializer, stride: int = 1, same: tuple[int, int] | None = None
) -> dict[str, nn.Module]:
    """A convolution, `(batch, c_in, h, w)` to `(batch, c_out, …)`, weights by the initializer and biases zero.

    Without padding an output is ⌊(length − kernel) / stride⌋ + 1 long. With `same`, the height and width of the images, it is
    ⌈length / stride⌉: zeros surround the image, and where their number is odd the one more is at the bottom and at the
    right, as in Keras. torch pads both sides alike, so then a layer `pad` goes before the convolution.
    """
    rows, columns = [_around(length, kernel, stride) for length in same] if same else [(0, 0), (0, 0)]
    even = rows[0] == rows[1] and columns[0] == columns[1]
    layer = nn.Conv2d(c_in, c_out, kernel, stride, padding=(rows[0], columns[0]) if even else 0, bias=bias)
    pad: dict[str, nn.Module] = {} if even else {"pad": nn.ZeroPad2d((*columns, *rows))}
    return {**pad, "conv": _initialized(layer, initializer)}


def _around(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after, with which `length` becomes ⌈length / stride⌉."""
    total = max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


_Weighted = TypeVar("_Weighted", nn.Linear, nn.Conv2d)


def _initialized(layer: _Weighted, initializer: Initializer) -> _Weighted:
    with torch.no_grad():
        initializer.fill(layer.weight)
        if layer.bias is not None:
            layer.bias.zero_()
    layer.__dict__["initializer"] = initializer.name  # for the summary and the log; no part of the state
    return layer


def make_part(group: str, values: Mapping[str, Any], *arguments: Any, **offered: Any) -> nn.Module:
    """A fresh module of the component that a node `{"name": …, settings}` names; it is offered only what it asks for."""
    make = component(group, values)
    assert make is not None
    record = REGISTRIES[group].get(values["name"])
    made = make(*arguments, **{name: value for name, value in offered.items() if name in record.offered})
    if not isinstance(made, nn.Module):
        raise PluginError(f"{group}={record.name} ({record.origin}) has to return an nn.Module, it returned {type(made).__name__}")
    return made


def has_offset(normalization: nn.Module) -> bool:
    """Whether it adds a trained offset per unit, which makes the bias of the layer before it redundant."""
    return getattr(normalization, "bias", None) is not None


class Parts:
    """What a model is made of; its methods return named layers in the order in which they are applied.

    Names are `<index>_<part>`: `00_dense`, `00_batch_norm`, `00_selu`, `00_dropout`, `01_conv`. A model lays them out in an
    `nn.Sequential`, or as it likes. `config` is the whole resolved config, for a model that names parts of its own.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self._position = config["normalization"]["position"]
        self._on_input = config["normalization"]["on_input"]
        self._use_bias: bool | Literal["auto"] = config["model"]["use_bias"]
        self._hidden, self._output = initializers(config)

    def input(self, features: int, layer: LayerKind = "dense") -> dict[str, nn.Module]:
        """The normalization of the input, `(batch, features)` or `(batch, features, h, w)`, where the config asks for one."""
        if not self._on_input or not self._has("normalization"):
            return {}
        return {f"input_{self._name('normalization')}": self.normalization(features, layer)}

    def dense(self, index: int, n_in: int, n_out: int) -> dict[str, nn.Module]:
        """A hidden layer, `(batch, n_in)` to `(batch, n_out)`: dense, normalization, activation, dropout in the configured order."""
        return self._block(index, "dense", n_out, lambda bias: {"dense": dense_layer(n_in, n_out, bias, self._hidden)})

    def conv(self, index: int, c_in: int, c_out: int, kernel: int, size: tuple[int, int]) -> dict[str, nn.Module]:
        """A hidden convolution of images of `size`, `(batch, c_in, h, w)` to `(batch, c_out, h, w)`, and what follows it as in `dense`."""
        return self._block(index, "conv", c_out, lambda bias: conv_layers(c_in, c_out, kernel, bias, self._hidden, same=size))

    def output(self, index: int, n_in: int, n_out: int) -> dict[str, nn.Module]:
        """The last layer, `(batch, n_in)` to logits or values `(batch, n_out)`: dense alone, with its bias."""
        bias = True if self._use_bias == "auto" else self._use_bias
        return {f"{index:02}_dense": dense_layer(n_in, n_out, bias, self._output)}

    def activation(self, features: int | None = None) -> nn.Module:
        """A fresh activation, shape-preserving; `features` tells one that asks for them the units or channels of its layer."""
        return make_part("activation", self.config["activation"], features=features)

    def normalization(self, features: int, layer: LayerKind = "dense") -> nn.Module:
        """A fresh normalization over `features` units of a dense layer, or channels of a convolution."""
        return make_part("normalization", self.config["normalization"], features, layer=layer)

    def dropout(self) -> dict[str, nn.Module]:
        """A fresh dropout by its name, or nothing where the config has none."""
        return {self._name("dropout"): make_part("dropout", self.config["dropout"])} if self._has("dropout") else {}

    def _block(self, index: int, kind: LayerKind, features: int, weighted: Callable[[bool], dict[str, nn.Module]]) -> dict[str, nn.Module]:
        normalization = {self._name("normalization"): self.normalization(features, kind)} if self._has("normalization") else {}
        activation = {self._name("activation"): self.activation(features)}
        absorbed = self._position == "pre" and any(has_offset(module) for module in normalization.values())
        first = weighted(not absorbed if self._use_bias == "auto" else self._use_bias)
        order = {**first, **normalization, **activation} if self._position == "pre" else {**first, **activation, **normalization}
        return {f"{index:02}_{name}": module for name, module in {**order, **self.dropout()}.items()}

    def _name(self, group: str) -> str:
        return str(self.config[group]["name"])

    def _has(self, group: str) -> bool:
        return self._name(group) != "none"


def build_network(config: Mapping[str, Any], inputs: tuple[int, ...], outputs: int, seed: int) -> nn.Module:
    """The network that a resolved config describes, with its initial weights.

    `inputs` is the shape of one example, `outputs` the number of classes or values. The weights are a function of
    `seed` alone; the global random state is left as it was. ConfigError for a network that does not fit into memory.
    """
    parts = Parts(config)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make_part("model", config["model"], inputs, outputs, parts)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in _NO_MEMORY):
            raise
        sizes = ", ".join(f"model.{key}={value}" for key, value in own_values("model", config["model"]).items())
        raise ConfigError([Problem("model", f"the network does not fit into memory: {sizes}")]) from error


#: How PyTorch says that a tensor is larger than memory, or than any memory.
_NO_MEMORY = ("allocate memory", "not enough memory", "out of memory", "calculation overflowed")


def chosen_initializers(network: nn.Module) -> dict[str, str]:
    """The initializer that filled each layer's weight, by layer; what `initializer=auto` came to."""
    return {name: str(layer.initializer) for name, layer in network.named_modules() if hasattr(layer, "initializer")}


def remarks(network: nn.Module) -> dict[str, str]:
    """What a model says of layers that are not what they were asked to be, by layer."""
    return {name: str(layer.remark) for name, layer in network.named_modules() if hasattr(layer, "remark")}
