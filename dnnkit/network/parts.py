"""Layers from parts: a model component asks for layers, which are made here from the chosen names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from dnnkit.errors import ConfigError, Problem
from dnnkit.network.layers import LayerKind, conv_layers, dense_layer, has_offset, initializers, make_part
from dnnkit.schema import Keyed, own_values


class Parts:
    """What a model is made of; its methods return named layers in the order in which they are applied.

    Names are `<index>_<part>`: `00_dense`, `00_batch_norm`, `00_selu`, `00_dropout`, `01_conv`. A model lays them out in an
    `nn.Sequential`, or as it likes. `config` is the whole resolved config, for a model that names parts of its own.
    """

    def __init__(self, config: Keyed) -> None:
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


def build_network(config: Keyed, inputs: tuple[int, ...], outputs: int, seed: int) -> nn.Module:
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
