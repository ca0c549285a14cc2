"""The figures of the catalogue: one small panel for each built-in component, all on the same axes where they can be compared.

Colours are those of Okabe and Ito (2008), told apart by readers with any colour vision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dnnkit.registry import Component
from docs.generate.records import builtin

BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#9A9A9A"
COLUMNS, WIDTH, HEIGHT = 5, 2.1, 1.75
#: Optimizer steps of the run whose schedules are drawn, and the validations in it of the metric that `performance` watches.
STEPS, VALIDATIONS = 1000, 50
#: The layer whose weights are drawn: fan-out and fan-in.
SHAPE = (300, 784)

CAPTIONS = {
    "activation": "Each with its defaults in evaluation mode: the function in blue, its derivative in orange.",
    "scheduler": (
        f"The factor of `optimizer.lr` over a run of {STEPS} optimizer steps, in blue, and the momentum where it is cycled, dashed in "
        "orange; each with its defaults. `performance` depends on what it watches: here a loss (grey) that is validated every "
        f"{STEPS // VALIDATIONS} steps, falls as 1/n up to the 15th validation and then no more."
    ),
    "initializer": (
        f"The weights of a dense layer from {SHAPE[1]} to {SHAPE[0]} units, {SHAPE[0] * SHAPE[1]:,} numbers, each initializer with its "
        "defaults and the same seed; σ is their standard deviation. Most have the same axis; those that do not fit have their own."
    ),
}


def activations() -> Figure:
    """Function and derivative of every activation over [−4, 4]."""

    def draw(axes: Axes, record: Component) -> None:
        z = torch.linspace(-4, 4, 801, dtype=torch.float64).requires_grad_()
        module = record.function().double().eval()
        y = module(z.reshape(-1, 1)).reshape(-1)
        (slope,) = torch.autograd.grad(y.sum(), z)
        axes.axhline(0, color=GREY, linewidth=0.5)
        axes.axvline(0, color=GREY, linewidth=0.5)
        axes.plot(z.detach(), slope, color=VERMILION, linewidth=1.1)
        axes.plot(z.detach(), y.detach(), color=BLUE, linewidth=1.5)
        axes.set(xlim=(-4, 4), ylim=(-2.1, 4.1), xticks=(-4, -2, 0, 2, 4), yticks=(-2, 0, 2, 4))

    return _panels("activation", draw, "f(z) in blue, f ′(z) in orange, over z")


def schedulers() -> Figure:
    """The factor of every schedule at each step, and its momentum."""

    def draw(axes: Axes, record: Component) -> None:
        curve = _curve(record)
        factors = [value[0] if isinstance(value, tuple) else value for value in curve]
        axes.plot(range(STEPS), factors, color=BLUE, linewidth=1.5)
        momenta = [value[1] for value in curve if isinstance(value, tuple)]
        if momenta:
            axes.plot(range(STEPS), momenta, color=VERMILION, linewidth=1.1, linestyle="--")
        if isinstance(record.function, type):
            axes.plot(range(0, STEPS, STEPS // VALIDATIONS), watched(), color=GREY, linewidth=1)
        axes.set(xlim=(0, STEPS), ylim=(-0.03, 1.08), xticks=(0, STEPS // 2, STEPS), yticks=(0, 0.5, 1))

    return _panels("scheduler", draw, "factor of optimizer.lr in blue, momentum dashed in orange, over the optimizer step")


def watched() -> list[float]:
    """The loss that `performance` is shown on, at each validation."""
    return [1 / min(number, 15) for number in range(1, VALIDATIONS + 1)]


def _curve(record: Component) -> list[Any]:
    """The values of a schedule with its defaults at steps 0 to STEPS − 1."""
    if not isinstance(record.function, type):
        return [record.function(step, STEPS) for step in range(STEPS)]
    schedule: Any = record.function()
    losses, values = dict(zip(range(0, STEPS, STEPS // VALIDATIONS), watched(), strict=True)), []
    for step in range(STEPS):
        if step in losses:
            schedule.observe(losses[step])
        values.append(schedule.factor(step))
    return values


def initializers() -> Figure:
    """The histogram of the weights that every initializer draws."""
    common = 0.2

    def draw(axes: Axes, record: Component) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            weights = record.function(torch.empty(*SHAPE)).flatten()
        widest = float(weights.abs().max())
        limit = common if widest <= common else math.ceil(widest)
        counts, edges = torch.histogram(weights, bins=81, range=(-limit, limit))
        axes.stairs(counts, edges, fill=True, color=BLUE)
        axes.set(xlim=(-limit, limit), xticks=(-limit, 0, limit), yticks=())
        axes.set_ylim(0, axes.get_ylim()[1] * 1.25)
        axes.text(0.97, 0.94, f"σ {float(weights.std(correction=0)):.3g}", transform=axes.transAxes, ha="right", va="top", fontsize=7.5)

    return _panels("initializer", draw, "how many weights have a value, over the value")


def _panels(group: str, draw: Callable[[Axes, Component], None], label: str) -> Figure:
    """A panel for every built-in component of a group, in rows, its name above it; `label` below all of them."""
    records = builtin(group)
    rows = math.ceil(len(records) / COLUMNS)
    figure = Figure(figsize=(COLUMNS * WIDTH, rows * HEIGHT + 0.3), layout="constrained")
    for number, record in enumerate(records):
        axes = figure.add_subplot(rows, COLUMNS, number + 1)
        draw(axes, record)
        axes.set_title(record.name, fontsize=9, family="monospace")
        axes.tick_params(labelsize=7, length=2, pad=2)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.supxlabel(label, fontsize=9)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {"activation": activations, "scheduler": schedulers, "initializer": initializers}
