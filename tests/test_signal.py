"""The signal probes on disk: the numbers come back, the figure shows them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from dnnkit.diagnostics import LayerSignal
from dnnkit.record import figures
from dnnkit.record.signal import write_signal


def signal(layer: str, second_moment: float, delta_norm: float) -> LayerSignal:
    return LayerSignal(layer, 1000, 10, 0.5, 2.0, second_moment, None, delta_norm, 0.25)


START = [signal("00_dense", 1.0, 0.5), signal("01_dense", 0.0, 0.25)]
END = [signal("00_dense", 100.0, math.inf), signal("01_dense", math.nan, 1e-9)]


def test_the_numbers_come_back_from_the_file(tmp_path: Path) -> None:
    write_signal(tmp_path, {"start": START, "end": END[:1]})
    held = json.loads((tmp_path / "diagnostics/signal.json").read_text("utf-8"))
    assert {name: [LayerSignal(**values) for values in layers] for name, layers in held.items()} == {"start": START, "end": END[:1]}
    assert imread(tmp_path / "diagnostics/signal.png").shape[1] > 1000


def test_the_figure_shows_start_and_end_against_depth_with_gaps_where_a_logarithm_is_none(tmp_path: Path, drawn: list[Figure]) -> None:
    write_signal(tmp_path, {"start": START, "end": END})
    panels = drawn[0].axes
    assert [axes.get_ylabel() for axes in panels] == ["Second moment of the output", "Gradient norm ‖∂L/∂z‖"]
    assert {axes.get_yscale() for axes in panels} == {"log"}
    curves = [[(one.get_label(), [str(v) for v in np.asarray(one.get_ydata())]) for one in axes.lines] for axes in panels]
    assert curves == [[("start", ["1.0", "nan"]), ("end", ["100.0", "nan"])], [("start", ["0.5", "0.25"]), ("end", ["nan", "1e-09"])]]
    assert [text.get_text() for text in panels[0].get_xticklabels()] == ["00_dense", "01_dense"]
    assert all(
        low < v < high for axes in panels for low, high in [axes.get_ylim()] for one in axes.lines for v in one.get_ydata() if v == v
    )


def test_many_layers_are_numbered(tmp_path: Path, drawn: list[Figure]) -> None:
    write_signal(tmp_path, {"start": [signal(f"{i:02}_dense", 1, 1) for i in range(100)]})
    assert drawn[0].axes[0].get_xlabel() == "Number of the layer, from input to output"
    assert len(drawn[0].axes[0].get_xticks()) < 10


def test_nothing_to_draw_on_a_logarithmic_scale_is_no_error(tmp_path: Path) -> None:
    write_signal(tmp_path, {"start": [signal("00_dense", 0.0, math.nan)]})
    assert (tmp_path / "diagnostics/signal.png").exists()


def test_a_network_without_layers_has_numbers_and_no_figure(tmp_path: Path) -> None:
    write_signal(tmp_path, {"start": [], "end": []})
    assert json.loads((tmp_path / "diagnostics/signal.json").read_text("utf-8")) == {"start": [], "end": []}
    assert not (tmp_path / "diagnostics/signal.png").exists()


def test_a_third_probe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two probes at most, got start, middle, end"):
        figures.signal(tmp_path, {"start": START, "middle": START, "end": END})
