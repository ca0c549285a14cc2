"""Single layers: a weight layer with its initial weights, or the module of a component by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from dnnkit.errors import PluginError
from dnnkit.registry import REGISTRIES
from dnnkit.schema import Keyed, own_values

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


def initializers(config: Keyed) -> tuple[Initializer, Initializer]:
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
    made.__dict__["dnnkit_part"] = group  # says what its parameters are for; no part of the state
    return made


def has_offset(normalization: nn.Module) -> bool:
    """Whether it adds a trained offset per unit, which makes the bias of the layer before it redundant."""
    return getattr(normalization, "bias", None) is not None
