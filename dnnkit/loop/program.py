"""A graph as straight-line Python: one call for each operation, by the shortest way into PyTorch.

What depends on nothing but parameters' memory or on shapes is done once, when the program is made.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from dnnkit.loop.graph import is_constant, is_view, writes
from dnnkit.loop.team import giving, steady

Program = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""x and y to a graph's outputs. To be called without recording gradients."""


class Unrecorded:
    """`torch.no_grad()` for code that runs at every step: entering and leaving that takes 2.7 µs, this 0.8."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)

    def __exit__(self, *error: object) -> None:
        torch._C._set_grad_enabled(self._before)


_LITERALS = (bool, int, str, type(None))


def program(module: fx.GraphModule, values: Sequence[Tensor], short: bool = True) -> Program:
    """The graph of `module` with `values` for its first inputs, all but x and y, whose memory must stay where it is.

    `short`: operations are called by torch's own Python names where they have one, which takes a third less time than their
    dispatcher's handle, but chooses among an operation's forms by the arguments: the caller compares results.

    Where it is made for several CPU threads, operations for which one gives the same bits make do with one on a busy machine.
    """
    made = _Writer(module, values, short)
    source = made.source()
    code = compile(source, "<captured step>", "exec")
    exec(code, made.names)  # noqa: S102 - of node names and literals alone
    function: Program = made.names["step"]
    return function


class _Writer:
    """Writes the source of one program; `names` is what it refers to."""

    def __init__(self, module: fx.GraphModule, values: Sequence[Tensor], short: bool) -> None:
        self.names: dict[str, Any] = {}
        self._module, self._short = module, short
        self._nodes = list(module.graph.nodes)
        inputs = [node for node in self._nodes if node.op == "placeholder"]
        self._arguments = [node.name for node in inputs[len(values) :]]
        self._kept: dict[fx.Node, Tensor] = dict(zip(inputs, values, strict=False))
        self._last = {needed: node for node in self._nodes for needed in node.all_input_nodes}

    def source(self) -> str:
        """The function `step`."""
        lines = self._shared_out([(node, self._lines(node)) for node in self._nodes])
        self.names.update((node.name, value) for node, value in self._kept.items())
        return "\n ".join([f"def step({', '.join(self._arguments)}):", *lines])

    def _shared_out(self, parts: list[tuple[fx.Node, list[str]]]) -> list[str]:
        """The lines, between them what says with how many CPU threads they are run."""
        threads = torch.get_num_threads()
        if threads == 1 or any(value.device.type != "cpu" for value in self._kept.values()):
            return [line for _, lines in parts for line in lines]
        self.names["_fewer"], self.names["_every"] = giving(threads)
        made, may = [], False
        for node, lines in parts:
            if lines and steady(node, threads) != may:
                may = not may
                made.append("_fewer()" if may else "_every()")
            made += lines
        return made

    def _lines(self, node: fx.Node) -> list[str]:
        if node.op == "placeholder":
            return []
        if node.op == "get_attr":
            self._kept[node] = operator.attrgetter(str(node.target))(self._module)
            return []
        if node.op == "output":
            return [f"return {self._text(tuple(node.args[0]))}"]  # type: ignore[arg-type]
        if self._once(node):
            return []
        gone = [needed.name for needed in node.all_input_nodes if self._last[needed] is node and needed not in self._kept]
        gone = [name for name in gone if name not in self._arguments]
        result = node.name if node.users else "_"
        return [f"{result} = {self._call(node)}", *([f"del {', '.join(gone)}"] if gone else [])]

    def _once(self, node: fx.Node) -> bool:
        """Whether the node's result was taken over into what is kept from step to step."""
        if is_view(node) and all(needed in self._kept for needed in node.all_input_nodes):
            arguments, settings = fx.node.map_arg((node.args, node.kwargs), self._kept.__getitem__)
            self._kept[node] = node.target(*arguments, **settings)  # type: ignore[operator]
            return True
        if is_constant(node) and not any(writes(user) or is_view(user) or user.op == "output" for user in node.users):
            arguments, settings = fx.node.map_arg((node.args, node.kwargs), _stand_in)
            self._kept[node] = node.target(*arguments, **settings)  # type: ignore[operator]
            return True
        return False

    def _call(self, node: fx.Node) -> str:
        if node.target is operator.getitem:
            return f"{self._text(node.args[0])}[{node.args[1]!r}]"
        settings = {**_left_out(node), **node.kwargs}
        arguments = [self._text(part) for part in node.args] + [f"{key}={self._text(part)}" for key, part in settings.items()]
        return f"{self._function(node)}({', '.join(arguments)})"

    def _function(self, node: fx.Node) -> str:
        target: Any = node.target
        if not isinstance(target, torch._ops.OpOverload):
            return self._name("call", target)
        name = target._schema.name.removeprefix("aten::")
        if self._short and target.namespace == "aten":
            for home in (torch._C._VariableFunctions, torch._C._nn, Tensor):
                if hasattr(home, name):
                    return self._name(name, getattr(home, name))
        return self._name(name.replace("::", "_"), target._op)

    def _text(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return value.name
        if isinstance(value, list):
            return f"[{', '.join(map(self._text, value))}]"
        if isinstance(value, tuple):
            return f"({''.join(self._text(part) + ', ' for part in value)})"
        if isinstance(value, _LITERALS) or (isinstance(value, float) and math.isfinite(value)):
            return repr(value)
        return self._name("value", value)

    def _name(self, stem: str, value: Any) -> str:
        """A name for something that cannot be written down; the same thing has the same name."""
        for name, known in self.names.items():
            if known is value:
                return name
        name = f"_{stem}_{len(self.names)}"
        self.names[name] = value
        return name


def _stand_in(node: fx.Node) -> Tensor:
    """A tensor of the shape that a node's result has; its values are nobody's business."""
    like = node.meta["val"]
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)


def _left_out(node: fx.Node) -> dict[str, Any]:
    """What a graph leaves out because it is the operation's own default, and torch's Python name has another: a loss's `reduction`."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    rest = node.target._schema.arguments[len(node.args) :]
    return {argument.name: argument.default_value for argument in rest if argument.name == "reduction" and argument.name not in node.kwargs}
