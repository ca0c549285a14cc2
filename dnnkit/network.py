"""Layers from parts: a model component asks for layers, and this room makes them from the chosen names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dnnkit.errors import PluginError
from dnnkit.registry import REGISTRIES
from dnnkit.schema import own_values

#: Keras's default, for layers whose activation asks for nothing else: none, tanh, sigmoid, softmax.
FALLBACK_INITIALIZER = "glorot_uniform"


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


def initializers(config: Mapping[str, Any]) -> tuple[Initializer, Initializer]:
    """The initializers of the hidden layers and of the output layer.

    A name is used for every layer. `auto` takes what the activation's registration says it pairs with for the hidden
    layers, and Glorot uniform for the output, whose activation is none or a softmax inside the loss.
    """
    values = config["initializer"]
    if values["name"] != "auto":
        fill = component("initializer", values)
        assert fill is not None
        return Initializer(values["name"], fill), Initializer(values["name"], fill)
    wanted = REGISTRIES["activation"].get(config["activation"]["name"]).facts.get("pairs_with", FALLBACK_INITIALIZER)
    return tuple(Initializer(name, REGISTRIES["initializer"].get(name).function) for name in (wanted, FALLBACK_INITIALIZER))  # type: ignore[return-value]


class Parts:
    """What a model is made of; its methods return named layers in the order in which they are applied.

    Names are `<index>_<part>`: `00_dense`, `00_batch_norm`, `00_selu`, `00_dropout`. A model lays them out in an
    `nn.Sequential`, or as it likes.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._names = {group: config[group]["name"] for group in ("activation", "normalization", "dropout")}
        self._make = {group: component(group, config[group]) for group in self._names}
        self._position = config["normalization"]["position"]
        self._on_input = config["normalization"]["on_input"]
        self._use_bias: bool | Literal["auto"] = config["model"]["use_bias"]
        self._hidden, self._output = initializers(config)

    def input(self, features: int) -> dict[str, nn.Module]:
        """The normalization of the input, where the config asks for one: applied to shape `(batch, features)`."""
        if not self._on_input or self._make["normalization"] is None:
            return {}
        return {f"input_{self._names['normalization']}": self.normalization(features)}

    def dense(self, index: int, n_in: int, n_out: int) -> dict[str, nn.Module]:
        """A hidden layer, `(batch, n_in)` to `(batch, n_out)`: dense, normalization, activation, dropout in the configured order."""
        normalization = {} if self._make["normalization"] is None else {self._names["normalization"]: self.normalization(n_out)}
        activation = {self._names["activation"]: self.activation()}
        absorbed = self._position == "pre" and any(_has_offset(module) for module in normalization.values())
        bias = not absorbed if self._use_bias == "auto" else self._use_bias
        dense = {"dense": self._linear(n_in, n_out, bias, self._hidden)}
        order = {**dense, **normalization, **activation} if self._position == "pre" else {**dense, **activation, **normalization}
        return {f"{index:02}_{name}": module for name, module in {**order, **self.dropout()}.items()}

    def output(self, index: int, n_in: int, n_out: int) -> dict[str, nn.Module]:
        """The last layer, `(batch, n_in)` to logits or values `(batch, n_out)`: dense alone, with its bias."""
        bias = True if self._use_bias == "auto" else self._use_bias
        return {f"{index:02}_dense": self._linear(n_in, n_out, bias, self._output)}

    def activation(self) -> nn.Module:
        """A fresh activation, shape-preserving."""
        make = self._make["activation"]
        assert make is not None
        return _module("activation", self._names["activation"], make())

    def normalization(self, features: int, layer: Literal["dense", "conv"] = "dense") -> nn.Module:
        """A fresh normalization over `features` units of a dense layer, or channels of a convolution."""
        make = self._make["normalization"]
        assert make is not None
        offered = {"layer": layer} if "layer" in REGISTRIES["normalization"].get(self._names["normalization"]).offered else {}
        return _module("normalization", self._names["normalization"], make(features, **offered))

    def dropout(self) -> dict[str, nn.Module]:
        """A fresh dropout by its name, or nothing where the config has none."""
        make = self._make["dropout"]
        return {} if make is None else {self._names["dropout"]: _module("dropout", self._names["dropout"], make())}

    def _linear(self, n_in: int, n_out: int, bias: bool, initializer: Initializer) -> nn.Linear:
        layer = nn.Linear(n_in, n_out, bias=bias)
        with torch.no_grad():
            initializer.fill(layer.weight)
            if layer.bias is not None:
                layer.bias.zero_()
        layer.__dict__["initializer"] = initializer.name  # for the summary and the log; no part of the state
        return layer


def _module(group: str, name: str, made: Any) -> nn.Module:
    if not isinstance(made, nn.Module):
        origin = REGISTRIES[group].get(name).origin
        raise PluginError(f"{group}={name} ({origin}) has to return an nn.Module, it returned {type(made).__name__}")
    return made


def _has_offset(normalization: nn.Module) -> bool:
    """Whether it adds a trained offset per unit, which makes the bias of the layer before it redundant."""
    return getattr(normalization, "bias", None) is not None


def build_network(config: Mapping[str, Any], inputs: tuple[int, ...], outputs: int, seed: int) -> nn.Module:
    """The network that a resolved config describes, with its initial weights.

    `inputs` is the shape of one example, `outputs` the number of classes or values. The weights are a function of
    `seed` alone; the global random state is left as it was.
    """
    parts = Parts(config)
    make = component("model", config["model"])
    assert make is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _module("model", config["model"]["name"], make(inputs, outputs, parts))
    return network


def chosen_initializers(network: nn.Module) -> dict[str, str]:
    """The initializer that filled each layer's weight, by layer; what `initializer=auto` came to."""
    return {name: str(layer.initializer) for name, layer in network.named_modules() if hasattr(layer, "initializer")}
