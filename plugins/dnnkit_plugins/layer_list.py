"""The layer list of `model=sequential`: read and judged before anything is built, then built."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from torch import nn

from dnnkit.errors import ConfigError, Problem, nearest
from dnnkit.network import LayerKind, Parts, conv_layers, dense_layer, has_offset, initializer_for, make_part
from dnnkit.registry import REGISTRIES, parameters
from dnnkit.schema import Count, Settings

#: A component by its name, or with settings as `{name: …, …}`.
Named = str | dict[str, Any] | None
Node = Mapping[str, Any]
#: Units or kernels of a layer; more is a slip of the keyboard.
Width = Annotated[int, Ge(1), Le(1_000_000)]

SOFTMAX = "softmax"


@dataclass(frozen=True)
class Dense:
    """Settings of a dense layer; `dense` is the number of units, `auto` as many as the task has outputs."""

    dense: Width | Literal["auto"]
    activation: Named = None
    initializer: Named = None
    use_bias: Literal["auto"] | bool | None = None


@dataclass(frozen=True)
class Conv2d:
    """Settings of a convolution; `conv2d` is the number of kernels, which are square."""

    conv2d: Width
    kernel: Count = 3
    stride: Count = 1
    padding: Literal["valid", "same"] = "valid"
    activation: Named = None
    initializer: Named = None
    use_bias: Literal["auto"] | bool | None = None


@dataclass(frozen=True)
class Flatten:
    """It has no settings."""

    flatten: None = None


@dataclass(frozen=True)
class MaxPool:
    """The maximum of squares `max_pool` wide, `stride` apart; null: side by side."""

    max_pool: Count = 2
    stride: Count | None = None


@dataclass(frozen=True)
class AvgPool:
    """The mean of squares `avg_pool` wide, `stride` apart; null: side by side."""

    avg_pool: Count = 2
    stride: Count | None = None


#: Layers with settings of their own.
_OWN = {"dense": Dense, "conv2d": Conv2d, "flatten": Flatten, "max_pool": MaxPool, "avg_pool": AvgPool}
#: Layers that are a component, by its group.
_COMPONENTS = {"activation": "activation", "normalization": "normalization", "dropout": "dropout", "alpha_dropout": "dropout"}
KINDS = (*_OWN, *_COMPONENTS)
_WEIGHTED = ("dense", "conv2d")


@dataclass(frozen=True)
class Layer:
    """One entry of the list, valid by itself: its config path, its kind, its settings.

    A component is a node `{"name": …, settings}`, under the name of its group.
    """

    where: str
    kind: str
    settings: Mapping[str, Any]


def problems(layers: Sequence[Any], where: str) -> list[Problem]:
    """Everything wrong with a list that can be told without the data; `where` is its config path."""
    return read(layers, where)[1]


def read(layers: Sequence[Any], where: str) -> tuple[list[Layer], list[Problem]]:
    """The layers of a list, and everything wrong with them and their order."""
    found, wrong = [], []
    for index, entry in enumerate(layers):
        layer, problems = _read(entry, f"{where}[{index}]")
        found += [layer] if layer else []
        wrong += problems
    return found, wrong or _judge(found, where)


# One layer


def _read(entry: Any, where: str) -> tuple[Layer | None, list[Problem]]:
    if not isinstance(entry, str | Mapping):
        return None, [Problem(where, f"must be the name of a layer or a mapping, such as {{dense: 300}}, got {entry!r}")]
    values = {entry: None} if isinstance(entry, str) else entry
    kinds = [key for key in values if key in KINDS]
    if "dense" in kinds or "conv2d" in kinds:
        kinds = [kind for kind in kinds if kind != "activation"]  # there it is a setting
    if not kinds:
        return None, [_no_kind(entry, list(values), where)]
    if len(kinds) > 1:
        return None, [Problem(where, f"is several layers in one, {' and '.join(kinds)}: give each an entry of its own")]
    kind = kinds[0]
    if isinstance(entry, str):
        values = {}
    return _own(kind, values, where) if kind in _OWN else _component_layer(kind, values, where)


def _no_kind(entry: Any, keys: list[str], where: str) -> Problem:
    groups = [group for group in ("activation", "normalization", "dropout") for key in keys if key in REGISTRIES[group]]
    hint = f"; {entry} is written {{{groups[0]}: {entry}}}" if groups and isinstance(entry, str) else ""
    close = tuple(dict.fromkeys(name for key in keys for name in nearest(str(key), KINDS)))
    return Problem(where, f"names no kind of layer; there are: {', '.join(KINDS)}; got {entry!r}{hint}", close)


def _own(kind: str, values: Mapping[str, Any], where: str) -> tuple[Layer | None, list[Problem]]:
    settings, found = Settings.of(_OWN[kind]).validate(values, where)
    for group in ("activation", "initializer"):
        if settings.get(group) is not None:
            settings[group], wrong = _nested(group, settings[group], f"{where}.{group}")
            found += wrong
    return Layer(where, kind, settings), found


def _nested(group: str, value: str | Mapping[str, Any], where: str) -> tuple[Node, list[Problem]]:
    """A component as the setting of a layer: a name, or a node."""
    if isinstance(value, str):
        return _component(group, value, {}, where, where)
    name = value.get("name")
    if not isinstance(name, str):
        return {}, [Problem(where, f"must be a name or {{name: …, settings}}, got {dict(value)!r}")]
    return _component(group, name, {key: setting for key, setting in value.items() if key != "name"}, f"{where}.name", where)


def _component_layer(kind: str, values: Mapping[str, Any], where: str) -> tuple[Layer | None, list[Problem]]:
    """A component as a layer: `{activation: elu, alpha: 0.1}`, `{dropout: 0.2}`, `{alpha_dropout: 0.2}`."""
    group, at = _COMPONENTS[kind], f"{where}.{kind}"
    chosen, settings = values.get(kind), {key: value for key, value in values.items() if key != kind}
    if group == "dropout" and not isinstance(chosen, str):
        return _dropout(kind, chosen, settings, where)
    if not isinstance(chosen, str) or kind == "alpha_dropout":
        rule = "a probability" if kind == "alpha_dropout" else f"the name of one; there are: {', '.join(REGISTRIES[group].names())}"
        return None, [Problem(at, f"must be {rule}; got {chosen!r}")]
    node, found = _component(group, chosen, settings, at, where)
    return Layer(where, kind, {group: node}), found


def _dropout(name: str, p: Any, settings: dict[str, Any], where: str) -> tuple[Layer | None, list[Problem]]:
    at = f"{where}.{name}"
    if p is not None and (isinstance(p, bool) or not isinstance(p, int | float)):
        return None, [Problem(at, f"must be a probability, or the name of a dropout, got {p!r}")]
    if p is not None and "p" in settings:
        return None, [Problem(f"{where}.p", f"is given twice, as {name}: {p} and as p: {settings['p']}")]
    node, found = _component("dropout", name, settings if p is None else {**settings, "p": p}, at, where)
    if p is not None:
        found = [replace(problem, where=at) if problem.where == f"{where}.p" else problem for problem in found]
    return Layer(where, name, {"dropout": node}), found


def _component(group: str, name: str, settings: Mapping[str, Any], at: str, where: str) -> tuple[Node, list[Problem]]:
    """A node with its defaults; `at` is the path of the name, `where` that of the settings."""
    switches = {"initializer": ["auto"], "activation": [SOFTMAX]}.get(group, [])
    choices = [*REGISTRIES[group].names(), *switches]
    if name not in choices:
        return {}, [Problem(at, f"no {group} is called {name!r}; there are: {', '.join(choices)}", nearest(name, choices))]
    if name in switches:
        # A registered softmax, if there ever is one, would still be the last layer's, so it is read as the switch.
        return {"name": name}, [Problem(f"{where}.{key}", f"{name} has no settings") for key in settings]
    record = REGISTRIES[group].get(name)
    valid, found = Settings(parameters(record.kind, record.function)).validate(settings, where)
    return {"name": name, **valid}, found


# The layers together


def _judge(layers: Sequence[Layer], where: str) -> list[Problem]:
    """What is wrong with the order of layers that are right by themselves."""
    weighted = [layer for layer in layers if layer.kind in _WEIGHTED]
    if not weighted:
        return [Problem(where, "must hold a dense or a conv2d layer: otherwise there is nothing to train")]
    dense = [layer for layer in weighted if layer.kind == "dense"]
    early = [layer for layer in dense[:-1] if layer.settings["dense"] == "auto"]
    wrong = [Problem(f"{layer.where}.dense", "auto is the number of outputs, so only the last dense layer can have it") for layer in early]
    wrong += [
        Problem(layer.where, "softmax can only end the list, where it stands for the one inside the loss")
        for layer in layers[:-1]
        if _activation(layer) == SOFTMAX
    ]
    return wrong + _judge_shapes(layers, where)


def _judge_shapes(layers: Sequence[Layer], where: str) -> list[Problem]:
    wrong, flat, image = [], False, False
    for layer in layers:
        if layer.kind == "dense" and image:
            wrong.append(Problem(layer.where, "dense needs flat values: put flatten before it", ("flatten",)))
        if layer.kind in ("conv2d", "max_pool", "avg_pool") and flat:
            wrong.append(Problem(layer.where, f"{layer.kind} needs images: it cannot come after flatten or dense"))
        flat = layer.kind in ("flatten", "dense") or (flat and layer.kind in _COMPONENTS)
        image = layer.kind in ("conv2d", "max_pool", "avg_pool") or (image and layer.kind in _COMPONENTS)
    if image and not wrong:
        wrong.append(Problem(where, "must end in flat values, one for each output: end it with flatten and {dense: auto}"))
    return wrong


def _activation(layer: Layer) -> str | None:
    node = layer.settings.get("activation")
    return node["name"] if node else None


# Building


def network(layers: Sequence[Any], inputs: tuple[int, ...], outputs: int, parts: Parts, where: str = "model.layers") -> nn.Sequential:
    """The network of a list, `(batch, *inputs)` to `(batch, outputs)`; ConfigError with what is wrong, by config path."""
    entries, wrong = read(layers, where)
    if wrong:
        raise ConfigError(wrong)
    stack = _Stack(inputs, outputs, parts)
    for index, layer in enumerate(entries):
        stack.add(layer, entries[index + 1 :])
    if stack.shape != (outputs,):
        last = next((f"{layer.where}.dense" for layer in reversed(entries) if layer.kind == "dense"), where)
        ends, hint = " × ".join(map(str, stack.shape)), ("auto",) if last != where else ()
        message = f"the network must end in {outputs} values, one for each class or target, the list ends in {ends}"
        raise ConfigError([Problem(last, message, hint)])
    return nn.Sequential(stack.modules)


class _Stack:
    """The modules so far, by name, and the shape of an example after them."""

    def __init__(self, inputs: tuple[int, ...], outputs: int, parts: Parts) -> None:
        self.modules: OrderedDict[str, nn.Module] = OrderedDict()
        self.shape = inputs
        self._outputs, self._config = outputs, parts.config
        self._index = -1

    def add(self, layer: Layer, rest: Sequence[Layer]) -> None:
        """Add one layer; `rest` are those that follow it."""
        if layer.kind in _WEIGHTED:
            self._index += 1
            self._dense(layer, rest) if layer.kind == "dense" else self._conv(layer, rest)
        elif layer.kind == "flatten":
            self.shape = (math.prod(self.shape),)
            self._put("flatten", nn.Flatten())
        elif layer.kind in ("max_pool", "avg_pool"):
            self._pool(layer)
        elif layer.kind == "normalization":
            self._put(self._name(layer.settings["normalization"]["name"]), self._normalization(layer, self.shape))
        elif "dropout" in layer.settings:
            node = layer.settings["dropout"]
            self._put(self._name(node["name"]), make_part("dropout", node))
        if _activation(layer) is not None:
            self._activate(layer, last=not rest)

    def _dense(self, layer: Layer, rest: Sequence[Layer]) -> None:
        if len(self.shape) != 1:
            message = f"dense needs flat values, here they have shape {self.shape}: put flatten before it"
            raise ConfigError([Problem(layer.where, message, ("flatten",))])
        units = self._outputs if layer.settings["dense"] == "auto" else layer.settings["dense"]
        fan_in, self.shape = self.shape[0], (units,)
        bias = self._bias(layer, rest)
        self._put(self._name("dense"), dense_layer(fan_in, units, bias, initializer_for(*self._initializer(layer, rest))))

    def _conv(self, layer: Layer, rest: Sequence[Layer]) -> None:
        channels, height, width = self._image(layer)
        made, kernel, stride = (layer.settings[key] for key in ("conv2d", "kernel", "stride"))
        if layer.settings["padding"] == "same":
            same, size = (height, width), (math.ceil(height / stride), math.ceil(width / stride))
        else:
            same, size = None, self._slide(layer, "kernel", kernel, stride)
        self.shape = (made, *size)
        initializer = initializer_for(*self._initializer(layer, rest))
        for name, module in conv_layers(channels, made, kernel, self._bias(layer, rest), initializer, stride, same).items():
            self._put(self._name(name), module)

    def _pool(self, layer: Layer) -> None:
        channels, _, _ = self._image(layer)
        size = layer.settings[layer.kind]
        stride = layer.settings["stride"] or size
        self.shape = (channels, *self._slide(layer, layer.kind, size, stride))
        pool = nn.MaxPool2d if layer.kind == "max_pool" else nn.AvgPool2d
        self._put(self._name(layer.kind), pool(size, stride))

    def _activate(self, layer: Layer, last: bool) -> None:
        node, task = layer.settings["activation"], self._config["task"]
        facts = REGISTRIES["task"].get(task).facts if task in REGISTRIES["task"] else {}
        if node["name"] == SOFTMAX and task in REGISTRIES["task"] and not facts.get("softmax"):
            fitting = " and ".join(record.name for record in REGISTRIES["task"] if record.facts.get("softmax"))
            raise ConfigError([Problem(layer.where, f"softmax at the end is for {fitting}, the task is {task}")])
        module = nn.Identity() if node["name"] == SOFTMAX else make_part("activation", node, features=self.shape[0])
        if node["name"] == SOFTMAX:
            module.__dict__["remark"] = "the softmax at the end of the list is left out here, because the loss contains it"
        elif last and facts.get("logits") and node["name"] != "identity":
            module.__dict__["remark"] = f"{node['name']} changes the outputs, which a {task}'s loss takes as logits"
        self._put(self._name(node["name"]), module)

    def _initializer(self, layer: Layer, rest: Sequence[Layer]) -> tuple[Node, str | None]:
        """The layer's own initializer or the config's, and the activation that follows before the next weights."""
        block = [layer]
        for follower in rest:
            if follower.kind in _WEIGHTED:
                break
            block.append(follower)
        node = layer.settings["initializer"] or self._config["initializer"]
        return node, next((name for name in map(_activation, block) if name is not None), None)

    def _bias(self, layer: Layer, rest: Sequence[Layer]) -> bool:
        """`auto`: not where the next thing is a normalization with an offset."""
        own = layer.settings["use_bias"]
        chosen = self._config["model"]["use_bias"] if own is None else own
        if chosen != "auto":
            return bool(chosen)
        follows = rest and rest[0].kind == "normalization" and _activation(layer) is None
        return not (follows and has_offset(self._normalization(rest[0], self.shape)))

    def _normalization(self, layer: Layer, shape: tuple[int, ...]) -> nn.Module:
        if len(shape) not in (1, 3):
            message = f"a normalization needs flat values or images (channels, height, width), here they have shape {shape}"
            raise ConfigError([Problem(layer.where, message, ("flatten",))])
        kind: LayerKind = "dense" if len(shape) == 1 else "conv"
        return make_part("normalization", layer.settings["normalization"], shape[0], layer=kind)

    def _image(self, layer: Layer) -> tuple[int, int, int]:
        if len(self.shape) != 3:
            message = f"{layer.kind} needs images, examples of shape (channels, height, width), here they have shape {self.shape}"
            raise ConfigError([Problem(layer.where, message)])
        return self.shape[0], self.shape[1], self.shape[2]

    def _slide(self, layer: Layer, key: str, size: int, stride: int) -> tuple[int, int]:
        """Height and width after a square window `size` wide went over the image in steps of `stride`."""
        height, width = self.shape[1], self.shape[2]
        if min(height, width) < size:
            raise ConfigError([Problem(f"{layer.where}.{key}", f"must be at most the image there, {height} × {width}, got {size}")])
        return (height - size) // stride + 1, (width - size) // stride + 1

    def _name(self, part: str) -> str:
        return f"{'input' if self._index < 0 else f'{self._index:02}'}_{part}"

    def _put(self, name: str, module: nn.Module) -> None:
        free = (name if number == 1 else f"{name}_{number}" for number in itertools.count(1))
        self.modules[next(candidate for candidate in free if candidate not in self.modules)] = module
