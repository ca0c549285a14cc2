"""The network as a table: layer by layer, its shape, its parameters, trainable and not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """One line of the summary. `fixed` counts frozen parameters and moving statistics."""

    name: str
    type: str
    initializer: str
    shape: tuple[int, ...]
    trainable: int
    fixed: int


def layers(network: nn.Module, inputs: tuple[int, ...]) -> list[Layer]:
    """Every layer without children, in the order in which a forward pass meets it.

    The pass is one of zeros in evaluation mode; weights, buffers, mode and random state stay as they were.
    """
    order: dict[str, tuple[int, ...]] = {}
    leaves = {name: module for name, module in network.named_modules() if name and not any(True for _ in module.children())}
    handles = [module.register_forward_hook(_noting(order, name)) for name, module in leaves.items()]
    training = {name: module.training for name, module in network.named_modules()}
    parameter = next(network.parameters(), torch.empty(0))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            network.eval()(torch.zeros(2, *inputs, dtype=parameter.dtype, device=parameter.device))
    finally:
        for handle in handles:
            handle.remove()
        for name, module in network.named_modules():
            module.training = training[name]
    return [_layer(name, leaves[name], order.get(name, ())) for name in [*order, *(name for name in leaves if name not in order)]]


def _noting(order: dict[str, tuple[int, ...]], name: str) -> Callable[[nn.Module, object, object], None]:
    def note(_module: nn.Module, _inputs: object, output: object) -> None:
        order.setdefault(name, tuple(output.shape[1:]) if isinstance(output, Tensor) else ())

    return note


def _layer(name: str, module: nn.Module, shape: tuple[int, ...]) -> Layer:
    own = list(module.parameters(recurse=False))
    trainable = sum(parameter.numel() for parameter in own if parameter.requires_grad)
    statistics = sum(buffer.numel() for key, buffer in module.named_buffers(recurse=False) if key != "num_batches_tracked")
    initializer = str(getattr(module, "initializer", ""))
    return Layer(name, type(module).__name__, initializer, shape, trainable, sum(p.numel() for p in own) - trainable + statistics)


def table(found: list[Layer]) -> Table:
    """The summary to print."""
    rich = Table(box=None, pad_edge=False, header_style="bold")
    for heading, justify in (
        ("layer", "left"),
        ("type", "left"),
        ("output", "left"),
        ("initializer", "left"),
        ("trainable", "right"),
        ("not trained", "right"),
    ):
        rich.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for layer in found:
        shape = " × ".join(map(str, layer.shape)) or "—"
        rich.add_row(layer.name, layer.type, shape, layer.initializer, _count(layer.trainable), _count(layer.fixed))
    trainable, fixed = sum(layer.trainable for layer in found), sum(layer.fixed for layer in found)
    rich.add_section()
    rich.add_row(f"{trainable + fixed:,} parameters", "", "", "", f"{trainable:,}", f"{fixed:,}", style="bold")
    return rich


def _count(number: int) -> str:
    return f"{number:,}" if number else "·"
