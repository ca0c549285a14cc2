"""The rate and the momentum of a run that is still to come, against its optimizer steps and epochs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dnnkit.record.curves import Curve
from dnnkit.record.figures import BLUE, GREEN, VERMILION, blank_figure, dress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe & Ito 2008; the first ones are far apart in brightness too.
COLOURS = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass(frozen=True)
class Schedule:
    """What is drawn of one run: `scales` are the parts of the rate that groups of parameters have, by name."""

    label: str
    total: int
    epochs: int
    warmup: int
    rate: Curve
    momentum: Curve | None
    scales: Mapping[str, float]


def schedule_figure(schedules: Sequence[Schedule], title: str) -> Figure:
    """The rate of each schedule, below it the momentum where one has it; epochs above, where all have them at the same steps."""
    rows = 2 if any(one.momentum is not None for one in schedules) else 1
    figure = blank_figure(7.2, 3.3 if rows == 1 else 4.9)
    # Names of settings hold underscores and dollar signs, which are no formula.
    figure.suptitle(title, fontsize=11, parse_math=False)
    top = figure.add_subplot(rows, 1, 1)
    _draw_rates(top, schedules)
    _mark_warmup(top, schedules)
    _mark_epochs(top, schedules)
    dress(top, "Learning rate", bottom=rows == 1)
    top.set_ylim(bottom=0)
    if rows == 2:
        low = figure.add_subplot(rows, 1, 2, sharex=top)
        _draw_momenta(low, schedules)
        dress(low, "Momentum")
        figure.align_ylabels()
    handles, labels = top.get_legend_handles_labels()
    if labels:
        across = 3 if max(map(len, labels)) <= 32 else 1
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=across, frameon=False, fontsize=8)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def _draw_rates(axes: Axes, schedules: Sequence[Schedule]) -> None:
    several = len(schedules) > 1
    for number, one in enumerate(schedules):
        colour, marker = COLOURS[number % len(COLOURS)], "o" if one.total == 1 else None
        everybody = "all others" if one.scales else None
        label = f"{one.label}, {everybody}" if several and everybody else one.label if several else everybody
        axes.plot(one.rate.steps, one.rate.values, color=colour, linewidth=_width(schedules, number), marker=marker, label=label)
        for place, (name, scale) in enumerate(one.scales.items(), start=1):
            colour = COLOURS[(place if not several else number) % len(COLOURS)]
            text = f"{one.label}, {name} (× {scale:g})" if several else f"{name} (× {scale:g})"
            scaled = [value * scale for value in one.rate.values]
            axes.plot(one.rate.steps, scaled, color=colour, linewidth=1.2, linestyle="--", marker=marker, label=text)


def _draw_momenta(axes: Axes, schedules: Sequence[Schedule]) -> None:
    for number, one in enumerate(schedules):
        if one.momentum is not None:
            colour = COLOURS[number % len(COLOURS)] if len(schedules) > 1 else GREEN
            marker = "o" if one.total == 1 else None
            axes.plot(one.momentum.steps, one.momentum.values, color=colour, linewidth=_width(schedules, number), marker=marker)
    low, high = axes.get_ylim()
    if high - low < 0.1:
        axes.set_ylim(max(0.0, low - 0.05), min(1.0, high + 0.05))


def _width(schedules: Sequence[Schedule], number: int) -> float:
    """Points; earlier lines are wider, so that they are seen beneath later ones where these are equal."""
    return 1.5 + min(0.8 * (len(schedules) - 1 - number), 3.2)


def _mark_warmup(axes: Axes, schedules: Sequence[Schedule]) -> None:
    lengths = {one.warmup for one in schedules}
    if len(lengths) == 1 and (length := lengths.pop()):
        axes.axvspan(0, length, color="#000000", alpha=0.07, linewidth=0, label=f"warm-up, {length:,} step{'s' if length > 1 else ''}")


def _mark_epochs(axes: Axes, schedules: Sequence[Schedule]) -> None:
    from matplotlib.ticker import MaxNLocator

    lengths = {one.total / one.epochs for one in schedules}
    if len(lengths) == 1:
        each = lengths.pop()
        to_epochs: Callable[[Any], Any] = lambda step: step / each  # noqa: E731 (a pair, of arrays)
        to_steps: Callable[[Any], Any] = lambda epoch: epoch * each  # noqa: E731
        above = axes.secondary_xaxis("top", functions=(to_epochs, to_steps))
        above.set_xlabel("Epochs")
        above.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
        above.spines["top"].set_visible(False)
