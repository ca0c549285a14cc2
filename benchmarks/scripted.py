"""A torch.fx graph as TorchScript, which PyTorch has deprecated: only to know what it would save."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx


def scripted(module: fx.GraphModule) -> Callable[..., list[Tensor]]:
    """The graph as a function of its inputs, one by one, to the list of its outputs; what the graph holds itself is bound."""
    inputs, lines, constants = [], [], []
    for node in module.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            inputs.append(node.name)
            constants += [operator.attrgetter(node.target)(module)] if node.op == "get_attr" else []
        elif node.op == "output":
            lines.append(f"return {_text(list(node.args[0]))}")
        elif node.target is operator.getitem:
            lines.append(f"{node.name} = {_text(node.args[0])}[{node.args[1]}]")
        else:
            lines.append(f"{node.name} = {_call(node)}")
    signature = ", ".join(f"{name}: Tensor" for name in inputs)
    source = "\n    ".join([f"def step({signature}) -> List[Tensor]:", *lines]) + "\n"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        run = torch.jit.CompilationUnit(source).step

    def call(*tensors: Tensor) -> list[Tensor]:
        # Its own fusion and rewriting would give other bits.
        with torch.jit.optimized_execution(False):
            found: list[Tensor] = run(*tensors, *constants)
        return found

    return call


def _call(node: fx.Node) -> str:
    target: Any = node.target
    arguments = [_text(value) for value in node.args] + [f"{name}={_text(value)}" for name, value in node.kwargs.items()]
    return f"torch.ops.{target.namespace}.{target._opname}({', '.join(arguments)})"


def _text(value: Any) -> str:
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, torch.device):
        return f"torch.device({str(value)!r})"
    return repr(value)
