"""Forward, loss and backward of one minibatch as a torch.fx graph of ATen operations."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import Parameter

from dnnkit.module import Outcome

Objective = Callable[[nn.Module, Tensor, Tensor], Outcome]
"""A network and a minibatch (x, y) to what is minimised."""

_ATEN = torch.ops.aten
_SAME = (_ATEN.detach.default, _ATEN.alias.default)
_TURNED = _ATEN.t.default
_SUM = _ATEN.sum.dim_IntList
_VIEW = _ATEN.view.default


@dataclass(frozen=True)
class Tensors:
    """What a network's graph reads besides x and y: its parameters and buffers, each once, whatever they are tied to."""

    parameters: dict[str, Parameter]
    buffers: dict[str, Tensor]

    @classmethod
    def of(cls, net: nn.Module) -> Tensors:
        """Those of `net`, by name."""
        return cls(dict(net.named_parameters()), dict(net.named_buffers()))

    @property
    def trained(self) -> list[Parameter]:
        """The parameters that a gradient is taken for."""
        return [parameter for parameter in self.parameters.values() if parameter.requires_grad]

    def values(self) -> list[Tensor]:
        """All of them without their history, in the order of a graph's first inputs."""
        return [tensor.detach() for tensor in (*self.parameters.values(), *self.buffers.values())]


@dataclass(frozen=True)
class Traced:
    """A graph of inputs (parameters, buffers, x, y) and outputs (total, loss, output, penalty if there is one, gradients).

    `reached`: for which of the trained parameters there is a gradient; the others take no part in the loss.
    """

    module: fx.GraphModule
    reached: tuple[bool, ...]
    penalized: bool


def trace(
    net: nn.Module, objective: Objective, x: Tensor, y: Tensor, divisor: int, autocast: Callable[[], AbstractContextManager[None]]
) -> Traced:
    """The operations of `objective` of `net`, and of the gradients of its total over `divisor`.

    Nothing is computed: the tensors are stand-ins without values, so that code whose way depends on values cannot be
    traced and raises, whatever torch or the code itself raises.
    """
    tensors = Tensors.of(net)
    watched = _Watched(net, objective)
    facts: list[tuple[tuple[bool, ...], bool]] = []
    trained = {name for name, parameter in tensors.parameters.items() if parameter.requires_grad}

    def step(parameters: list[Tensor], buffers: list[Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
        named = {name: value.detach().requires_grad_(name in trained) for name, value in zip(tensors.parameters, parameters, strict=True)}
        state = {f"net.{name}": value for name, value in (*named.items(), *zip(tensors.buffers, buffers, strict=True))}
        with torch.enable_grad():
            with autocast():
                outcome = torch.func.functional_call(watched, state, (x, y))
            total = outcome.total / divisor if divisor > 1 else outcome.total
            gradients = torch.autograd.grad(total, [named[name] for name in named if name in trained], allow_unused=True)
        facts.append((tuple(gradient is not None for gradient in gradients), outcome.penalty is not None))
        scalars = [outcome.total, outcome.loss, outcome.output, *([] if outcome.penalty is None else [outcome.penalty])]
        return [*(value.detach() for value in scalars), *(gradient for gradient in gradients if gradient is not None)]

    count = len(tensors.parameters)
    values = tensors.values()
    module = make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)(values[:count], values[count:], x, y)
    if any(map(_by_values, module.graph.nodes)):
        raise ValueError("a number, or how large a tensor is, depends on the values of tensors")
    return Traced(_tidied(module), *facts[-1])


class _Watched(nn.Module):
    """The objective as a module, so that the tensors of the network that it uses can be replaced while it runs."""

    def __init__(self, net: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.net = net
        self._objective = objective

    def forward(self, x: Tensor, y: Tensor) -> Outcome:
        return self._objective(self.net, x, y)


def _tidied(module: fx.GraphModule) -> fx.GraphModule:
    """Without what only autograd needs: second names of a tensor, what is turned and turned back, sums that keep a dimension to lose it."""
    graph = module.graph
    for node in list(graph.nodes):
        source = node.args[0] if node.op == "call_function" and node.args else None
        if not isinstance(source, fx.Node):
            continue
        if node.target in _SAME:
            node.replace_all_uses_with(source)
        elif node.target is _TURNED and source.op == "call_function" and source.target is _TURNED:
            node.replace_all_uses_with(source.args[0])
        elif node.target is _VIEW and _is_kept_sum(source) and list(node.meta["val"].shape) == _lost(source) and len(source.users) == 1:
            with graph.inserting_before(node):
                summed = graph.call_function(_SUM, (*source.args[:2], False), source.kwargs)
            node.replace_all_uses_with(summed)
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op == "call_function" and (changes_nothing(node) or _is_kept_sum(node)):
            graph.erase_node(node)
    module.recompile()
    return module


def _is_kept_sum(node: fx.Node) -> bool:
    """Whether it sums over dimensions, and keeps them with one place each."""
    return node.target is _SUM and len(node.args) == 3 and bool(node.args[1]) and node.args[2] is True


def _lost(summed: fx.Node) -> list[int]:
    """The shape of a sum without the dimensions that it was taken over."""
    shape: torch.Size = summed.meta["val"].shape
    over = {dim % len(shape) for dim in summed.args[1]}  # type: ignore[union-attr, operator]
    return [size for dim, size in enumerate(shape) if dim not in over]


def _by_values(node: fx.Node) -> bool:
    """Whether a node's result is a number read from a tensor, or of a shape that depends on values.

    Torch records such, but settles some questions about it by assumption, such as whether a size is 1.
    """
    made = node.meta.get("val")
    numbers = (torch.SymInt, torch.SymFloat, torch.SymBool)
    return isinstance(made, numbers) or (isinstance(made, Tensor) and any(isinstance(size, torch.SymInt) for size in made.shape))


def is_view(node: fx.Node) -> bool:
    """Whether a node gives another look at its input's memory."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target.is_view


def is_constant(node: fx.Node) -> bool:
    """Whether a node's result depends on nothing but shapes."""
    return getattr(node.target, "overloadpacket", None) in _FACTORIES


def writes(node: fx.Node) -> bool:
    """Whether a node is known to change one of its inputs."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def changes_nothing(node: fx.Node) -> bool:
    """Whether a node whose result nobody needs can go. Normalizations change statistics without a word: they stay."""
    return is_view(node) or is_constant(node) or node.target in _SAME or getattr(node.target, "overloadpacket", None) is _ATEN.empty


_FACTORIES = (
    _ATEN.ones_like,
    _ATEN.zeros_like,
    _ATEN.full_like,
    _ATEN.ones,
    _ATEN.zeros,
    _ATEN.full,
    _ATEN.scalar_tensor,
    _ATEN.arange,
)
