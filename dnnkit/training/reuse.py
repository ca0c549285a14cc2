"""Which layers of a network take their weights from another one, and which stay fresh: decided by names, shapes and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dnnkit.config.transfer import unknown
from dnnkit.errors import CheckpointError, ConfigError
from dnnkit.network.roles import OUTPUT, matching, named

#: What `chosen_initializers` says of a layer whose weights were copied.
INITIALIZER = "init_from"
MOST_MISFITS = 10


@dataclass(frozen=True)
class Plan:
    """The layers that are copied, and those that stay as they were made, with the reason."""

    copied: tuple[str, ...]
    fresh: Mapping[str, str]

    def __str__(self) -> str:
        """As the terminal says it: `00_dense, 01_dense; fresh: 02_dense (other classes)`."""
        kept = ", ".join(f"{layer} ({why})" for layer, why in self.fresh.items())
        return ", ".join(self.copied) + (f"; fresh: {kept}" if kept else "")


def plan(
    network: nn.Module, held: Mapping[str, Tensor], layers: Sequence[str] | Literal["auto"], other_outputs: str | None, where: str
) -> Plan:
    """Which layers of `network` can be given the weights `held`, by their names in the network that had them.

    `layers=auto`: all that both have. A shape that differs is an error, but for the output layer, the last with weights: it
    stays fresh where its shape differs, or where `other_outputs` says why its outputs mean something else. What only one
    side has stays as it is. With patterns each has to match a layer, and each layer that is matched has to fit.

    Raises CheckpointError listing what does not fit, or where nothing is left to copy, and ConfigError for a pattern that
    matches nothing; `where` names the source.
    """
    wanted, there = _by_layer(network.state_dict()), _by_layer(held)
    if layers != "auto":
        chosen = _chosen(list(wanted), layers)
        _check_fit({layer: _misfits(layer, wanted[layer], there.get(layer)) for layer in chosen}, where)
        return Plan(tuple(chosen), {layer: "not asked for" for layer in wanted if layer not in chosen})
    last = matching(network, OUTPUT)[0].rpartition(".")[0]
    fresh = {layer: "not in it" for layer in wanted if layer not in there}
    misfits = {layer: _misfits(layer, wanted[layer], there[layer]) for layer in wanted if layer in there}
    if last in misfits and (other_outputs or misfits[last]):
        fresh[last] = other_outputs or "another shape"
        del misfits[last]
    _check_fit(misfits, where)
    if not misfits:
        kept = ", ".join(f"{layer} ({why})" for layer, why in fresh.items()) or "it has no weights"
        raise CheckpointError(f"nothing of {where} can be used: {kept}", f"Its layers are {', '.join(there) or 'none'}.")
    return Plan(tuple(misfits), {layer: fresh[layer] for layer in wanted if layer in fresh})


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
    return key.rpartition(".")[0]


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


def _check_fit(misfits: Mapping[str, list[str]], where: str) -> None:
    lines = [line for found in misfits.values() for line in found]
    if not lines:
        return
    more = [f"  … and {len(lines) - MOST_MISFITS} more"] if len(lines) > MOST_MISFITS else []
    told = "\n".join([*(f"  - {line}" for line in lines[:MOST_MISFITS]), *more])
    fits = [layer for layer, found in misfits.items() if not found]
    cure = f"Name the layers to use: init_from.layers=[{','.join(fits)}]." if fits else "Give the network the widths of that run."
    raise CheckpointError(f"these layers do not fit those of {where}:\n{told}", cure)
