"""The figures as pictures, PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, ScalarFormatter, StrMethodFormatter

from benchmarks.contenders import CONTENDERS, FLOOR
from benchmarks.jobs import NETWORKS, OPTIMIZERS, Work
from benchmarks.results import Results

_TICKS = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_MARKS = "osD^v"


def draw_ratios(results: Results, path: Path) -> None:
    """A panel for each network and optimizer, a row for each contender, a mark for each batch size: median and range."""
    names = [name for name in results.contenders if name != FLOOR]
    panels = [dict(chain) for _, chain in groupby(results.works.items(), lambda item: (item[1].network, item[1].optimizer))]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 1.0 + rows * (0.6 + 0.36 * len(names))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for panel, works in zip(axes, panels, strict=False):
        _draw_panel(panel, results, works, names)
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.supxlabel(f"CPU time of an epoch ÷ that of the {CONTENDERS[FLOOR].label} (dashed), median and range", fontsize=10)
    figure.savefig(path, dpi=130)


def _draw_panel(panel: Axes, results: Results, works: dict[int, Work], names: list[str]) -> None:
    for index, (place, work) in enumerate(works.items()):
        shift = 0.24 * (index - (len(works) - 1) / 2)
        found = [(row, results.ratios(name, place)) for row, name in enumerate(names)]
        found = [(row, ratios) for row, ratios in found if ratios]
        middles = [median(ratios) for _, ratios in found]
        below = [middle - min(ratios) for middle, (_, ratios) in zip(middles, found, strict=True)]
        above = [max(ratios) - middle for middle, (_, ratios) in zip(middles, found, strict=True)]
        heights = [row + shift for row, _ in found]
        label = f"batch {work.batch_size}"
        panel.errorbar(middles, heights, xerr=[below, above], fmt=_MARKS[index % len(_MARKS)], markersize=4, linewidth=1, label=label)
    first = next(iter(works.values()))
    panel.axvline(1.0, color="0.2", linewidth=1, linestyle="--")
    panel.set_title(f"{NETWORKS[first.network]}, {OPTIMIZERS[first.optimizer]}", loc="left", fontsize=10)
    panel.set_yticks(range(len(names)), [CONTENDERS[name].label for name in names])
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(FixedLocator(_TICKS))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.grid(axis="x", color="0.9")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def draw_growth(results: Results, axes: Mapping[str, Sequence[tuple[float, int]]], labels: Mapping[str, str], path: Path) -> None:
    """CPU time of an epoch, the fastest, against each of `axes`, pairs of a value and the place of its work; log–log."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(2, 2, sharey=True).flat)
    for panel, (name, points) in zip(panels, axes.items(), strict=True):
        for index, contender in enumerate(results.contenders):
            found = [(value, results.fastest(contender, place)) for value, place in points]
            panel.plot(*zip(*found, strict=True), marker=_MARKS[index], markersize=4, label=CONTENDERS[contender].label)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.xaxis.set_major_locator(FixedLocator([value for value, _ in points]))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.set_xlabel(labels[name])
        panel.grid(color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
    figure.supylabel("CPU s of an epoch", fontsize=10)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)
    figure.savefig(path, dpi=130)
