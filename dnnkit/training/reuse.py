"""Which layers of a network take their weights from another one, and which stay fresh: decided by names, shapes and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dnnkit.config.transfer import typed, unknown
from dnnkit.errors import CheckpointError, ConfigError
from dnnkit.network.roles import OUTPUT, matching, named

#: What `chosen_initializers` says of a layer whose weights were copied.
INITIALIZER = "init_from"
MOST_MISFITS = 10

#: The weights and buffers of a network by its layers.
_Layers = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Plan:
    """The layers that are copied, and those that stay as they were made, with the reason.

    `left`: under `auto`, the layers of the source that this network has not. Without them it is another function.
    """

    copied: tuple[str, ...]
    fresh: Mapping[str, str]
    left: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As the terminal says it: `00_dense; fresh: 01_dense (other classes); not taken: 00_prelu (not in this network)`."""
        kept = ", ".join(f"{layer} ({why})" for layer, why in self.fresh.items())
        left = f"; not taken: {', '.join(self.left)} (not in this network)" if self.left else ""
        return ", ".join(self.copied) + (f"; fresh: {kept}" if kept else "") + left


def plan(
    network: nn.Module,
    held: Mapping[str, Tensor],
    layers: Sequence[str] | Literal["auto"],
    other_outputs: str | None,
    where: str,
    node: Mapping[str, Any] = MappingProxyType({"run": "RUN"}),
) -> Plan:
    """Which layers of `network` can be given the weights `held`, by their names in the network that had them.

    `layers=auto`: all that both have. A shape that differs is an error, but for the output layer, the last with weights: it
    stays fresh where its shape differs, or where `other_outputs` says why its outputs mean something else. What only one
    side has stays as it is. With patterns each has to match a layer, and each layer that is matched has to fit.

    Raises CheckpointError listing what does not fit, or where nothing is left to copy, and ConfigError for a pattern that
    matches nothing; `where` names the source, and `node` is the `init_from` that a cure is written with.
    """
    wanted, there = _by_layer(network.state_dict()), _by_layer(held)
    if layers != "auto":
        chosen = _chosen(list(wanted), layers)
        _check_fit({layer: _misfits(layer, wanted[layer], there.get(layer)) for layer in chosen}, wanted, there, where, node)
        return Plan(tuple(chosen), {layer: "not asked for" for layer in wanted if layer not in chosen})
    last = _layer(matching(network, OUTPUT)[0])
    fresh = {layer: "not in it" for layer in wanted if layer not in there}
    misfits = {layer: _misfits(layer, wanted[layer], there[layer]) for layer in wanted if layer in there}
    if last in misfits and (other_outputs or misfits[last]):
        fresh[last] = other_outputs or "another shape"
        del misfits[last]
    _check_fit(misfits, wanted, there, where, node)
    if not misfits:
        kept = ", ".join(f"{layer} ({why})" for layer, why in fresh.items()) or "it has no weights"
        raise CheckpointError(f"nothing of {where} can be used: {kept}", f"Its layers are {', '.join(there) or 'none'}.")
    left = tuple(layer for layer in there if layer not in wanted)
    return Plan(tuple(misfits), {layer: fresh[layer] for layer in wanted if layer in fresh}, left)


def copy(network: nn.Module, held: Mapping[str, Tensor], planned: Plan) -> None:
    """Give the planned layers their weights and buffers, in place, in the precision that the network has."""
    own = network.state_dict()
    with torch.no_grad():
        for key, tensor in own.items():
            if _layer(key) in planned.copied:
                tensor.copy_(held[key])
    for name, layer in network.named_modules():
        if name in planned.copied and "initializer" in layer.__dict__:
            layer.__dict__["initializer"] = INITIALIZER


def _chosen(known: list[str], patterns: Sequence[str]) -> list[str]:
    problems = [
        unknown(f"init_from.layers[{index}]", pattern, "layer of this network", known)
        for index, pattern in enumerate(patterns)
        if not any(named(layer, pattern) for layer in known)
    ]
    if problems:
        raise ConfigError(problems)
    return [layer for layer in known if any(named(layer, pattern) for pattern in patterns)]


def _by_layer(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        found.setdefault(_layer(key), {})[key] = tensor
    return found


def _layer(key: str) -> str:
    """The layer that owns a weight; what a parametrization makes a weight of belongs to its layer."""
    owner, parametrized, _ = f".{key}".partition(".parametrizations.")
    return (owner if parametrized else owner.rpartition(".")[0]).removeprefix(".")


def _misfits(layer: str, wanted: Mapping[str, Tensor], there: Mapping[str, Tensor] | None) -> list[str]:
    """One line for each weight of a layer that is missing, not expected, or of another shape."""
    if there is None:
        return [f"{layer}: not in it"]
    return [
        f"{key}: shape {_shape(there, key)} there, {_shape(wanted, key)} here"
        for key in dict.fromkeys((*wanted, *there))
        if key not in wanted or key not in there or wanted[key].shape != there[key].shape
    ]


def _shape(state: Mapping[str, Tensor], key: str) -> str:
    return str(tuple(state[key].shape)) if key in state else "none"


def _check_fit(misfits: Mapping[str, list[str]], wanted: _Layers, there: _Layers, where: str, node: Mapping[str, Any]) -> None:
    lines = [line for found in misfits.values() for line in found]
    if not lines:
        return
    more = [f"  … and {len(lines) - MOST_MISFITS} more"] if len(lines) > MOST_MISFITS else []
    told = "\n".join([*(f"  - {line}" for line in lines[:MOST_MISFITS]), *more])
    raise CheckpointError(f"these layers do not fit those of {where}:\n{told}", _cure(misfits, wanted, there, node))


def _cure(misfits: Mapping[str, list[str]], wanted: _Layers, there: _Layers, node: Mapping[str, Any]) -> str:
    fits = [layer for layer, found in misfits.items() if not found]
    fewer = f"the layers that fit: {typed(node, layers=fits)}" if fits else ""
    wrong = [layer for layer, found in misfits.items() if found]
    if not _same_widths(wanted, there, wrong):
        return f"Name {fewer}" if fewer else "Give the network the widths of that run."
    said = "The widths agree, the parts of the layers do not: "
    norms_there, norms_here = _norms_instead(there, wanted, wrong), _norms_instead(wanted, there, wrong)
    if norms_there:
        said += f"that run has normalizations ({norms_there}) that stand in for a bias; give this network the same normalization"
    elif norms_here:
        said += f"this network has normalizations ({norms_here}) that stand in for a bias, that run has none; leave them out here too"
    else:
        said += "give this network the same normalization and model.use_bias as that run"
    return f"{said}; or name {fewer}" if fewer else f"{said}."


def _same_widths(wanted: _Layers, there: _Layers, layers: Sequence[str]) -> bool:
    """Whether these layers are on both sides, and differ only in weights that one side has not."""
    return all(
        layer in there and all(tensor.shape == there[layer][key].shape for key, tensor in wanted[layer].items() if key in there[layer])
        for layer in layers
    )


def _norms_instead(state: _Layers, other: _Layers, layers: Sequence[str]) -> str:
    """The normalizations, by the names that ours have, that one side alone has, where its layers lack weights of the other's."""
    lacking = any(key not in state[layer] for layer in layers for key in other[layer])
    return ", ".join(layer for layer in state if lacking and layer.endswith("_norm") and layer not in other)
