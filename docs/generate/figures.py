"""The figures of the catalogue: one small panel for each built-in component, all on the same axes where they can be compared.

Colours are those of Okabe and Ito (2008), told apart by readers with any colour vision.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dnnkit.config.schedule import schedule_of
from dnnkit.record.component_figures import SHAPE, STEPS, VALIDATIONS, draw_activation, draw_schedule, draw_weights, drawn_weights
from dnnkit.registry import Component
from dnnkit.schema import node
from docs.generate.records import builtin

COLUMNS, WIDTH, HEIGHT = 5, 2.1, 1.75

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
        draw_activation(axes, record.function())
        axes.set(xlim=(-4, 4), ylim=(-2.1, 4.1), xticks=(-4, -2, 0, 2, 4), yticks=(-2, 0, 2, 4))

    return _panels("activation", draw, "f(z) in blue, f ′(z) in orange, over z")


def schedulers() -> Figure:
    """The factor of every schedule at each step, and its momentum."""

    def draw(axes: Axes, record: Component) -> None:
        draw_schedule(axes, schedule_of(node("scheduler", record.name)))
        axes.set(xlim=(0, STEPS), ylim=(-0.03, 1.08), xticks=(0, STEPS // 2, STEPS), yticks=(0, 0.5, 1))

    return _panels("scheduler", draw, "factor of optimizer.lr in blue, momentum dashed in orange, over the optimizer step")


def initializers() -> Figure:
    """The histogram of the weights that every initializer draws."""
    common = 0.2

    def draw(axes: Axes, record: Component) -> None:
        weights = drawn_weights(record.function).flatten()
        widest = float(weights.abs().max())
        limit = common if widest <= common else math.ceil(widest)
        draw_weights(axes, weights, limit)
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
