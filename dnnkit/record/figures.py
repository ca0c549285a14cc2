"""Figures for a report: learning curves, learning rate, confusion matrix, and the signal layer by layer.

Matplotlib is imported when a figure is drawn, and without pyplot: no backend is chosen, no global state is left.
Colours are those of Okabe and Ito (2008), told apart by readers with any colour vision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnnkit.disk import disk, read_json, replacing
from dnnkit.record.curves import Curve, read_curves
from dnnkit.record.journal import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dnnkit.diagnostics import LayerSignal
    from dnnkit.diagnostics.ramp import Ramp

BLUE, VERMILION, GREEN, GREY, PALE = "#0072B2", "#D55E00", "#009E73", "#4D4D4D", "#9A9A9A"
DPI = 150
MOST_CLASSES_WITH_NUMBERS = 20
MOST_LAYERS_WITH_NAMES = 8
# Key after `train/` and `val/`: axis label, and whether more is better.
PANELS = {"loss": ("Loss", False), "acc": ("Accuracy", True), "mse": ("Mean squared error", False), "r2": ("R²", True)}
# The same of what else a run measures, in its folder's `diagnostics/`.
CURVES = "curves.json"
# Field of a layer's signal: axis label.
SIGNALS = {"second_moment": "Second moment of the output", "delta_norm": "Gradient norm ‖∂L/∂z‖"}
# Colour, width in points, opacity: a thin curve over a wide pale one leaves both to be seen where they are equal.
_PROBE_STYLES = ((BLUE, 2.8, 0.55), (VERMILION, 1.4, 1.0))


def learning_curves(run_dir: Path) -> Path | None:
    """Loss and accuracy (R² or the mean squared error for regression), training and validation, against optimizer steps.

    Of a run that measures none of these its own first metric (`diagnostics/curves.json`, see `write_panels`).
    Writes `figures/learning_curves.png`; the best validation value is marked. Of a long run, the points that could not be told
    apart are left out (`curves.Curve`). None where nothing was journalled.
    """
    figure = draw_learning_curves(run_dir)
    return None if figure is None else _save(figure, run_dir, "learning_curves")


def draw_learning_curves(run_dir: Path) -> Figure | None:
    """The figure of `learning_curves`, which is not written; None where nothing was journalled."""
    known = {**PANELS, **_own_panels(run_dir)}
    curves = read_curves(run_dir / METRICS, [f"{part}/{name}" for name in known for part in ("train", "val")])
    panels = [name for name in known if f"train/{name}" in curves or f"val/{name}" in curves][:2]
    if not panels:
        return None
    figure = blank_figure(4.6 * len(panels), 3.5)
    for number, name in enumerate(panels, start=1):
        _curve_panel(figure.add_subplot(1, len(panels), number), curves, name, *known[name])
    return figure


def _own_panels(run_dir: Path) -> dict[str, tuple[str, bool]]:
    """The panels of metrics that this module does not know, as a run's task and metrics name them."""
    path = run_dir / "diagnostics" / CURVES
    return {name: (str(label), bool(rises)) for name, (label, rises) in read_json(path).items()} if path.exists() else {}


def learning_rate(run_dir: Path) -> Path | None:
    """The learning rate from step 0 on, below it the momentum where it was journalled: lines through what the journal holds.

    Writes `figures/learning_rate.png`; None where no rate was journalled.
    """
    labels = {"lr": "Learning rate", "momentum": "Momentum"}
    curves = read_curves(run_dir / METRICS, labels)
    if not curves:
        return None
    figure = blank_figure(5.2, 3.2 if len(curves) == 1 else 4.6)
    first = None
    for number, (key, curve) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(len(curves), 1, number, sharex=first)
        first = first or axes
        steps, values = curve.steps, curve.values
        axes.plot(steps, values, color=BLUE if key == "lr" else GREEN, linewidth=1.6, marker="o" if len(steps) == 1 else None)
        dress(axes, labels[key], bottom=number == len(curves))
        if key == "lr":
            axes.set_ylim(bottom=0)
    figure.align_ylabels()
    return _save(figure, run_dir, "learning_rate")


def confusion_matrix(run_dir: Path, counts: Sequence[Sequence[int]], classes: Sequence[str] | None = None) -> Path:
    """Counts of (true class, predicted class), coloured by the share of the true class. Shape `(classes, classes)`.

    Writes `figures/confusion_matrix.png`. Up to 20 classes carry their numbers; above that the colours stand alone.
    Raises ValueError where the counts are not square or the names do not fit.
    """
    size = len(counts)
    names = [str(name) for name in classes] if classes is not None else [str(index) for index in range(size)]
    if any(len(row) != size for row in counts) or len(names) != size:
        raise ValueError(f"a confusion matrix needs one row, column and name per class, got {size} rows and {len(names)} names")
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    with_numbers = size <= MOST_CLASSES_WITH_NUMBERS
    side = max(3.6, 0.46 * size + 1.6) if with_numbers else 6.8
    figure = blank_figure(side + 0.9, side)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="Share of the true class", fraction=0.046, pad=0.03)
    if with_numbers:
        _write_counts(axes, counts, shares)
    _name_classes(axes, names, every=1 if with_numbers else math.ceil(size / 25))
    right, total = sum(counts[index][index] for index in range(size)), sum(map(sum, counts))
    axes.set_title(f"{right:,} of {total:,} right ({right / max(1, total):.2%})", fontsize=10)
    return _save(figure, run_dir, "confusion_matrix")


def signal(run_dir: Path, probes: Mapping[str, Sequence[LayerSignal]]) -> Path | None:
    """Each layer's second moment and the norm of ∂L/∂z against depth, on logarithmic scales; a curve for each of at most two probes.

    Writes `diagnostics/signal.png`. What is zero or not finite is a gap. None where no probe met a layer.
    Raises ValueError for a third probe.
    """
    if len(probes) > len(_PROBE_STYLES):
        raise ValueError(f"the figure holds two probes at most, got {', '.join(probes)}")
    layers = [signal.layer for signal in max(probes.values(), key=len, default=())]
    if not layers:
        return None
    figure = blank_figure(9.2, 3.5)
    for number, (measure, label) in enumerate(SIGNALS.items(), start=1):
        axes = figure.add_subplot(1, len(SIGNALS), number)
        held: list[float] = []
        for (name, signals), (colour, width, alpha) in zip(probes.items(), _PROBE_STYLES, strict=False):
            values = [getattr(signal, measure) for signal in signals]
            shown = [value if 0 < value < math.inf else math.nan for value in values]
            size = (2 if len(shown) <= 2 * MOST_LAYERS_WITH_NAMES else 1.2) * width + 1
            axes.plot(range(len(shown)), shown, color=colour, alpha=alpha, linewidth=width, marker="o", markersize=size, mew=0, label=name)
            held += [value for value in shown if value > 0]
        dress(axes, label)
        _scale_by_decades(axes, held)
        _name_layers(axes, layers)
        axes.legend(frameon=False, fontsize=9)
    return _save(figure, run_dir, "signal", folder="diagnostics")


def activations(run_dir: Path, signals: Sequence[LayerSignal]) -> Path | None:
    """How what each layer puts out is distributed, against depth: the median, the middle half and the middle nine tenths.

    Writes `diagnostics/activations.png`; None where no signal holds quantiles.
    """
    shown = [signal for signal in signals if signal.quantiles is not None]
    if not shown:
        return None
    figure = blank_figure(7.2, 3.5)
    axes = figure.add_subplot()
    low, lower, middle, upper, high = zip(*(signal.quantiles or () for signal in shown), strict=True)
    places = range(len(shown))
    axes.fill_between(places, low, high, color=BLUE, alpha=0.18, linewidth=0, label="nine tenths")
    axes.fill_between(places, lower, upper, color=BLUE, alpha=0.4, linewidth=0, label="the middle half")
    axes.plot(places, middle, color=BLUE, linewidth=1.6, marker="o", markersize=3.5, label="median")
    dress(axes, "What the layer puts out")
    _name_layers(axes, [signal.layer for signal in shown])
    axes.legend(frameon=False, fontsize=9)
    return _save(figure, run_dir, "activations", folder="diagnostics")


def ramp(run_dir: Path, found: Ramp) -> Path | None:
    """The loss of each minibatch and the smoothed loss against the rate, on a logarithmic axis, and the rate that they suggest.

    Writes `diagnostics/lr.png`; what lies far above where the loss began is cut. None where there are fewer than two losses.
    """
    if len(found.losses) < 2:
        return None
    figure = blank_figure(6.4, 3.8)
    axes = figure.add_subplot()
    axes.plot(found.rates, found.losses, color=BLUE, alpha=0.35, linewidth=0.8, label="each minibatch")
    axes.plot(found.rates, found.smoothed, color=BLUE, linewidth=2, label="smoothed")
    suggested = found.suggest().rate
    if suggested is not None:
        turn = found.rates[found.turn], found.smoothed[found.turn]
        axes.plot(*turn, marker="o", markersize=9, fillstyle="none", color=GREY, linestyle="none", label=f"lowest at {turn[0]:.2g}")
        axes.axvline(suggested, color=VERMILION, linewidth=1.6, label=f"suggested: {suggested:.2g}")
    dress(axes, "Training loss")
    _frame_ramp(axes, found)
    axes.legend(frameon=False, fontsize=9)
    return _save(figure, run_dir, "lr", folder="diagnostics")


def _frame_ramp(axes: Axes, found: Ramp) -> None:
    """Whole decades of rates; of the losses those up to a third above the start, for the last ones may be thousands of times as high."""
    from matplotlib.ticker import LogFormatterMathtext, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=12))
    axes.xaxis.set_major_formatter(LogFormatterMathtext())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("Learning rate")
    before = found.losses[: found.turn + 1]
    low, high = min(before), max(*before, found.start)
    room = (high - low) or abs(high) or 1.0
    axes.set_ylim(low - 0.05 * room, high + 0.33 * room)


def blank_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, without pyplot, which a notebook shows."""
    from dnnkit.record.notebook import NotebookFigure

    return NotebookFigure(figsize=(width, height), dpi=DPI, layout="constrained")


def _save(figure: Figure, run_dir: Path, name: str, folder: str = "figures") -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path = run_dir / folder / f"{name}.png"
    with disk(path):
        path.parent.mkdir(exist_ok=True)
    with replacing(path) as file:  # whole or not there: somebody else may be drawing or sending it
        # `savefig` would draw twice, the first time for the layout alone; the bytes are the same. Without the stamp equal numbers
        # give equal bytes.
        FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return path


def _curve_panel(axes: Axes, curves: Mapping[str, Curve], name: str, label: str, more_is_better: bool) -> None:
    if f"train/{name}" in curves:
        steps, values = curves[f"train/{name}"].steps, curves[f"train/{name}"].values
        axes.plot(steps, values, color=BLUE, linewidth=1.2, alpha=0.9, label="training", marker="." if len(steps) == 1 else None)
    if f"val/{name}" in curves:
        steps, values = curves[f"val/{name}"].steps, curves[f"val/{name}"].values
        axes.plot(steps, values, color=VERMILION, linewidth=1.6, marker="o", markersize=3.5, label="validation")
        _mark_best(axes, steps, values, more_is_better)
    dress(axes, label)
    axes.legend(frameon=False, fontsize=9)


def _mark_best(axes: Axes, steps: Sequence[int], values: Sequence[float], more_is_better: bool) -> None:
    finite = [(value, step) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    if len(finite) < 2:
        return
    value, step = max(finite, key=lambda pair: (pair[0], -pair[1])) if more_is_better else min(finite)
    label = f"best {value:.4g} at step {step:,}"
    axes.plot([step], [value], marker="o", markersize=9, fillstyle="none", color=GREY, linestyle="none", label=label)


def dress(axes: Axes, label: str, bottom: bool = True) -> None:
    """The look that figures have in common; `label` is that of the y axis, and the lowest axes count optimizer steps."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.set_ylabel(label)
    axes.margins(x=0.02)
    axes.grid(True, color="#E3E3E3", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if bottom:
        axes.set_xlabel("Optimizer steps")
    else:
        axes.tick_params(labelbottom=False)


def _write_counts(axes: Axes, counts: Sequence[Sequence[int]], shares: Sequence[Sequence[float]]) -> None:
    for row, line in enumerate(counts):
        for column, count in enumerate(line):
            colour: Any = "white" if shares[row][column] > 0.5 else ("#9A9A9A" if count == 0 else "black")
            axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)


def _name_classes(axes: Axes, names: Sequence[str], every: int) -> None:
    shown = range(0, len(names), every)
    labels = [names[index] for index in shown]
    long = max(map(len, labels)) > 3
    axes.set_xticks(list(shown), labels)
    if long:
        axes.tick_params(axis="x", labelrotation=45)
        for label in axes.get_xticklabels():
            label.set(horizontalalignment="right", rotation_mode="anchor")
    axes.set_yticks(list(shown), labels)
    axes.set_xlabel("Predicted class")
    axes.set_ylabel("True class")
    axes.spines[:].set_visible(False)


def _scale_by_decades(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis over whole decades: on a part of one there might be no number to read."""
    from matplotlib.ticker import NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter(NullFormatter())
    if values:
        # A marker on the edge would be cut: a tenth of a decade is left to it.
        axes.set_ylim(10.0 ** math.floor(math.log10(min(values)) - 0.1), 10.0 ** math.ceil(math.log10(max(values)) + 0.1))


def _name_layers(axes: Axes, layers: Sequence[str]) -> None:
    """The layers by name, as in the journal, where there is room; else their numbers, from 0, as the names count them."""
    if len(layers) <= MOST_LAYERS_WITH_NAMES and max(map(len, layers)) <= 12:
        axes.margins(x=0.08)
        axes.set_xticks(range(len(layers)), layers)
        axes.set_xlabel("Layer, from input to output")
        if len(layers) > 5:
            axes.tick_params(axis="x", labelrotation=45)
            for label in axes.get_xticklabels():
                label.set(horizontalalignment="right", rotation_mode="anchor")
    else:
        axes.set_xlabel("Number of the layer, from input to output")
