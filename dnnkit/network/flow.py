"""Who gets whose output: the order of calls in a network, traced without computing anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from dnnkit.network.roles import part_of


@dataclass
class Call:
    """One call in a forward pass: of a layer, by its dotted name, or of anything else, whose `layer` is None.

    `what` names it for a reader; `sources` are the calls whose results it takes, `users` those that take its result.
    """

    what: str
    layer: str | None = None
    sources: list[Call] = field(default_factory=list)
    users: list[Call] = field(default_factory=list)


class UnknownFlow(Exception):
    """The order of calls cannot be told without data, or at all."""


class _Tracer(fx.Tracer):
    """Stops at layers: modules without children, and those that a component made whole."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(True for _ in m.children()) or part_of(m) not in (None, "model")


def calls(network: nn.Module) -> list[Call]:
    """Every call of a forward pass of `network`, in order; UnknownFlow where it depends on the data or cannot be traced."""
    try:
        graph = _Tracer().trace(network)
    except Exception as error:  # whatever somebody's forward raises when it is called with a placeholder
        raise UnknownFlow(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no word why'}") from error
    found: dict[fx.Node, Call] = {}
    for node in graph.nodes:
        found[node] = Call(_named(node), str(node.target) if node.op == "call_module" else None)
        for source in node.all_input_nodes:
            found[node].sources.append(found[source])
            found[source].users.append(found[node])
    return list(found.values())


def used_directly(network: nn.Module, traced: list[Call]) -> set[Tensor]:
    """Parameters and buffers that a forward takes by themselves, outside the layer that owns them, as tied weights are."""
    names = {call.what for call in traced if call.layer is None}
    own = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    return {tensor for name, tensor in own if name in names}


def _named(node: fx.Node) -> str:
    if node.op in ("call_module", "get_attr"):
        return str(node.target)
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", node.target))
    return {"placeholder": "the input", "output": "the output"}.get(node.op, str(node.target))


def shapes(network: nn.Module, inputs: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shape of what each layer is given for two examples of zeros, by the layer's name; of the first call, in evaluation mode.

    Mode, weights and buffers stay as they were.
    """
    met: dict[str, tuple[int, ...]] = {}

    def noting(name: str) -> Any:
        def note(_module: nn.Module, given: tuple[Any, ...]) -> None:
            if given and isinstance(given[0], Tensor):
                met.setdefault(name, tuple(given[0].shape))

        return note

    modes = {module: module.training for module in network.modules()}
    handles = [module.register_forward_pre_hook(noting(name)) for name, module in network.named_modules()]
    parameter = next(network.parameters(), torch.empty(0))
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(2, *inputs, dtype=parameter.dtype, device=parameter.device))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return met
