"""A sample of the training data as one figure: images by class, or the distributions of a table's first features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dnnkit.data import DataSet
from dnnkit.data.tasks import task_named
from dnnkit.disk import disk

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe & Ito 2008, told apart with any colour vision; yellow, pale on white, is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DPI = 150
MOST_FEATURES, MOST_CLASSES, PER_CLASS = 12, 10, 10
MOST_ROWS = 10_000
MOST_BINS = 30
_ACROSS = 4
# Opacity by the number of outlines: many fills over each other would be mud.
_FILL = (0.0, 0.55, 0.3, 0.3, 0.15, 0.1, 0.1, 0.1)


def sample_figure(data: DataSet, path: Path) -> Path:
    """Draw a sample of the training split, in raw units, into the PNG file `path`.

    Images: the first ten of each of the first ten classes, a row for each class; without classes, the first hundred.
    Tables: histograms of the first features, twelve panels in all, over at most 10,000 rows, one outline for each of up to seven classes;
    for a regression the targets come first. What the groups and the targets are is the task's to say. Raises DiskError.
    """
    figure = _images(data) if data.kind == "image" else _table(data)
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})  # without the stamp equal numbers give equal bytes
    return path


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _raw(data: DataSet, rows: Tensor) -> Tensor:
    """Those training examples in raw units, float64 `(rows, *inputs)`."""
    return data.scaling.undo(data.train.x[rows])


def _labels(data: DataSet, rows: Tensor) -> Tensor:
    """Class indices `(rows,)`, or values in their own units `(rows, outputs)`."""
    y = data.train.y[rows].cpu()
    return y if data.target_scaling is None else data.target_scaling.undo(y)


def _shown(name: str, width: int = 24) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"


def _title(figure: Figure, data: DataSet, what: str) -> None:
    figure.suptitle(f"{data.card['name']}: {what}", fontsize=11, parse_math=False)


# Images


def _images(data: DataSet) -> Figure:
    groups = task_named(data.task).groups(data, torch.arange(len(data.train.x)))
    grid = [(name, rows[:PER_CLASS]) for name, rows in groups[:MOST_CLASSES] if len(rows)] or _in_order(data)
    shown = max(len(rows) for _, rows in grid)
    height, width = data.inputs[-2:]
    side = 0.72
    tall = side * min(3.0, max(1 / 3, height / width))
    figure = _figure(max(4.0, side * shown + 1.6), max(1.6, tall * len(grid) + 0.7))
    every = _raw(data, torch.cat([rows for _, rows in grid]))
    # One scale for all: what is brighter is brighter.
    low, high = float(every.min()), float(every.max())
    axes = figure.subplots(len(grid), shown, squeeze=False)
    for line, (name, rows) in zip(axes, grid, strict=True):
        pictures = _raw(data, rows)
        for column, one in enumerate(line):
            one.set(xticks=[], yticks=[])
            one.spines[:].set_visible(False)
            if column < len(rows):
                _picture(one, pictures[column], low, high)
        if name:
            line[0].set_ylabel(_shown(name), rotation=0, ha="right", va="center", fontsize=9, parse_math=False)
    more = f", the first {len(grid)} of {len(groups)} classes" if len(grid) < len(groups) else ""
    _title(figure, data, f"training images, {height} × {width}{more}")
    return figure


def _in_order(data: DataSet) -> list[tuple[str, Tensor]]:
    rows = torch.arange(min(len(data.train.x), PER_CLASS * MOST_CLASSES))
    return [("", block) for block in torch.split(rows, PER_CLASS)]


def _picture(axes: Axes, picture: Tensor, low: float, high: float) -> None:
    """One image `(channels, height, width)`: the first channel in grey, or the first three in colour."""
    scaled = (picture - low) / max(high - low, 1e-300)
    height, width = picture.shape[-2:]
    # A strip of a few pixels is stretched, or nothing of it would be seen.
    how: dict[str, Any] = {"interpolation": "nearest", "aspect": "equal" if 1 / 3 <= height / width <= 3 else "auto"}
    if len(picture) >= 3:
        axes.imshow(scaled[:3].permute(1, 2, 0).clamp(0, 1).numpy(), **how)
    else:
        axes.imshow(scaled[0].numpy(), cmap="gray", vmin=0, vmax=1, **how)


# Tables


def _table(data: DataSet) -> Figure:
    rows = torch.arange(min(len(data.train.x), MOST_ROWS))
    x, y = _raw(data, rows).flatten(1), _labels(data, rows)
    targets = task_named(data.task).target_names(data)
    panels = [(name, y[:, index], True) for index, name in enumerate(targets)][: MOST_FEATURES // 2]
    names = data.columns or [f"feature {index}" for index in range(x.shape[1])]
    room = MOST_FEATURES - len(panels)
    panels += [(name, x[:, index], False) for index, name in enumerate(names[:room])]
    across = min(_ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    groups = _groups(data, rows)
    figure = _figure(2.6 * across + 0.4, 2.0 * down + 1.0)
    for number, (name, values, is_target) in enumerate(panels, start=1):
        axes = figure.add_subplot(down, across, number)
        _histogram(axes, values, [("", COLOURS[1], torch.arange(len(values)))] if is_target else groups)
        axes.set_title(f"target: {_shown(name, 20)}" if is_target and data.targets else _shown(name, 28), fontsize=9, parse_math=False)
        if (number - 1) % across == 0:
            axes.set_ylabel("Examples", fontsize=8)
    shown = min(room, len(names))
    features = f"the first {shown} of {len(names)} features" if shown < len(names) else f"{shown} feature{'s' if shown > 1 else ''}"
    _title(figure, data, f"{features} in {len(rows):,} training examples")
    if len(groups) > 1:
        _legend(figure, groups)
    return figure


Group = tuple[str, str, Tensor]


def _groups(data: DataSet, rows: Tensor) -> list[Group]:
    """Name, colour and rows of each outline; one for all where there are no classes, or too many to tell apart."""
    found = task_named(data.task).groups(data, rows)
    if not 0 < len(found) <= len(COLOURS):
        return [("", COLOURS[0], torch.arange(len(rows)))]
    return [(name, COLOURS[index], places) for index, (name, places) in enumerate(found)]


def _histogram(axes: Axes, values: Tensor, groups: Sequence[Group]) -> None:
    """Counts in common bins, so that the groups can be compared."""
    from matplotlib.ticker import MaxNLocator

    edges = _edges(values)
    for _, colour, rows in groups:
        counts, _ = np.histogram(values[rows].numpy(), edges)
        axes.stairs(counts, edges, fill=True, color=colour, alpha=_FILL[len(groups)], linewidth=0)
        axes.stairs(counts, edges, color=colour, linewidth=1.1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=edges[0] % 1 == 0.5))  # a bin for each whole number
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.tick_params(labelsize=8)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)


def _edges(values: Tensor) -> list[float]:
    """Borders of the bins: one bin for each whole number where there are few and nothing else, else as many as rows suggest."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return [low - 0.5, low + 0.5]
    # Back from float32, a whole number is whole to six digits or so.
    if high - low < MOST_BINS and bool(((values - values.round()).abs() <= 1e-5 * values.abs().clamp(min=1)).all()):
        return [round(low) - 0.5 + step for step in range(round(high - low) + 2)]
    bins = min(MOST_BINS, max(8, math.isqrt(len(values))))
    return [low + (high - low) * step / bins for step in range(bins)] + [high]


def _legend(figure: Figure, groups: Sequence[Group]) -> None:
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(facecolor=colour, edgecolor=colour, alpha=0.6) for _, colour, _ in groups]
    legend = figure.legend(handles, [_shown(name) for name, _, _ in groups], loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
