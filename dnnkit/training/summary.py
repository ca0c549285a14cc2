"""What a run says before it starts: the data in a few lines, and the network as a table, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from dnnkit.data.tasks import task_named


@dataclass(frozen=True)
class Layer:
    """One line of the summary. `fixed` counts frozen parameters, which `frozen` counts alone, and moving statistics.

    `remark` is what the model says of it.
    """

    name: str
    type: str
    initializer: str
    shape: tuple[int, ...]
    trainable: int
    fixed: int
    remark: str = ""
    frozen: int = 0

    @property
    def total(self) -> int:
        """Parameters and moving statistics together, as Keras counts them."""
        return self.trainable + self.fixed


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
    initializer, remark = (str(getattr(module, note, "")) for note in ("initializer", "remark"))
    frozen = sum(p.numel() for p in own) - trainable
    return Layer(name, type(module).__name__, initializer, shape, trainable, frozen + statistics, remark, frozen)


#: So many decisions about a table's columns are printed; the log and the card have all.
MOST_DECISIONS = 12


def data_lines(card: Mapping[str, Any]) -> list[str]:
    """What is trained on, in lines for a terminal: the task, the sizes of the splits, and what was decided about a table."""
    sizes = ", ".join(f"{count:,} {part}" for part, count in card["sizes"].items())
    streamed = ", streamed" if card["loader"] == "stream" else ""
    decisions = list(card.get("decisions", ()))
    more = len(decisions) - MOST_DECISIONS
    said = decisions if more <= 0 else [*decisions[:MOST_DECISIONS], f"… and {more} more; run.log has all"]
    said += [f"no training example is of class {name}: it cannot be learned" for name in absent_classes(card)]
    return [f"{card['name']}: {card['task']}; {sizes}{streamed}", *(f"  {line}" for line in said)]


def absent_classes(card: Mapping[str, Any]) -> list[str]:
    """The classes, or their like, of which no training example is."""
    return task_named(card["task"]).absent(card)


def table(found: list[Layer]) -> Group:
    """The summary to print: a line for each layer, the totals, and the remarks."""
    rich = Table(box=None, pad_edge=False, header_style="bold")
    counts = ("parameters", "not trained", *(["frozen"] if any(layer.frozen for layer in found) else []))
    for heading in ("layer", "type", "output", "initializer", *counts):
        rich.add_column(heading, justify="right" if heading in counts else "left")
    for layer in found:
        shape = " × ".join(map(str, layer.shape)) or "—"
        fixed = [f"{count:,}" if count else "·" for count in (layer.fixed, layer.frozen)][: len(counts) - 1]
        rich.add_row(layer.name, layer.type, shape, layer.initializer, f"{layer.total:,}", *fixed)
    total, not_trained, frozen = (sum(getattr(layer, part) for layer in found) for part in ("total", "fixed", "frozen"))
    rich.add_section()
    rich.add_row("total", "", "", "", *(f"{count:,}" for count in (total, not_trained, frozen)[: len(counts)]), style="bold")
    lines = [f"{total:,} parameters, {total - not_trained:,} of them trained" + (f", {frozen:,} frozen" if frozen else "")]
    return Group(rich, *(Text(line) for line in [*lines, *(f"{layer.name}: {layer.remark}" for layer in found if layer.remark)]))
