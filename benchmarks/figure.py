"""The ratios as a picture."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.contenders import CONTENDERS, FLOOR
from benchmarks.results import Results


def draw(results: Results, path: Path) -> None:
    """Every epoch as a dot, its contender's median as a bar, one panel for each batch size; saved as PNG."""
    names = [name for name in CONTENDERS if name != FLOOR and results.ratios(name, results.batch_sizes[0])]
    figure = Figure(figsize=(8, 0.9 + 0.8 * len(results.batch_sizes)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(results.batch_sizes), 1, sharex=True, squeeze=False)[:, 0]
    for panel, batch_size in zip(panels, results.batch_sizes, strict=True):
        for place, name in enumerate(names):
            ratios = results.ratios(name, batch_size)
            panel.barh(place, median(ratios), height=0.6, color="C0" if name == "ours" else "0.75")
            panel.plot(ratios, [place] * len(ratios), "k|", markersize=9, alpha=0.6)
            panel.annotate(f"{median(ratios):.2f}", (max(ratios), place), (5, 0), textcoords="offset points", va="center")
        panel.axvline(1.0, color="0.2", linewidth=1, linestyle="--")
        panel.set_yticks(range(len(names)), [CONTENDERS[name] for name in names])
        panel.invert_yaxis()
        panel.set_title(f"batch {batch_size}", loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.1)
    panels[-1].set_xlabel(f"CPU time of an epoch ÷ that of the {CONTENDERS[FLOOR]} (dashed)")
    figure.savefig(path, dpi=150)
