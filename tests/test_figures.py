"""Figures: what is drawn is what was journalled. The drawn objects are inspected; the files are opened as images."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from dnnkit.record import Journal, figures


def journalled(folder: Path, rows: list[tuple[int, dict[str, float]]]) -> Path:
    with Journal(folder) as journal:
        for step, values in rows:
            journal.log(step, values)
    return folder


def line(figure: Figure, panel: int, label: str) -> list[tuple[float, float]]:
    found: Any = next(one for one in figure.axes[panel].lines if one.get_label() == label)
    return list(zip(found.get_xdata(), found.get_ydata(), strict=True))


def test_learning_curves_show_training_and_validation_against_optimizer_steps(tmp_path: Path, drawn: list[Figure]) -> None:
    run = journalled(
        tmp_path,
        [
            (5, {"train/loss": 2.0, "train/acc": 0.1}),
            (10, {"train/loss": 1.0, "train/acc": 0.5, "val/loss": 1.5, "val/acc": 0.4}),
            (20, {"train/loss": 0.5, "train/acc": 0.9, "val/loss": 1.7, "val/acc": 0.6}),
        ],
    )
    path = figures.learning_curves(run)
    assert path == run / "figures/learning_curves.png"
    assert imread(path).shape[1] > 1000
    assert [axes.get_ylabel() for axes in drawn[0].axes] == ["Loss", "Accuracy"]
    assert {axes.get_xlabel() for axes in drawn[0].axes} == {"Optimizer steps"}
    assert line(drawn[0], 0, "training") == [(5, 2.0), (10, 1.0), (20, 0.5)]
    assert line(drawn[0], 1, "validation") == [(10, 0.4), (20, 0.6)]
    assert line(drawn[0], 0, "best 1.5 at step 10") == [(10, 1.5)]
    assert line(drawn[0], 1, "best 0.6 at step 20") == [(20, 0.6)]


def test_regression_is_drawn_with_its_own_metrics(tmp_path: Path, drawn: list[Figure]) -> None:
    figures.learning_curves(journalled(tmp_path, [(5, {"train/loss": 2.0, "train/mse": 2.0, "val/mse": 1.0})]))
    assert [axes.get_ylabel() for axes in drawn[0].axes] == ["Loss", "Mean squared error"]


def test_a_diverged_run_is_drawn_with_a_gap(tmp_path: Path, drawn: list[Figure]) -> None:
    losses = [(5, {"train/loss": 2.0}), (10, {"train/loss": math.inf}), (15, {"train/loss": math.nan})]
    figures.learning_curves(journalled(tmp_path, losses))
    assert [math.isnan(value) for _, value in line(drawn[0], 0, "training")] == [False, True, True]


def test_the_learning_rate_is_drawn_with_the_momentum_where_there_is_one(tmp_path: Path, drawn: list[Figure]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    figures.learning_rate(journalled(tmp_path / "a", [(1, {"lr": 0.1}), (2, {"lr": 0.2})]))
    figures.learning_rate(journalled(tmp_path / "b", [(1, {"lr": 0.1, "momentum": 0.95}), (2, {"lr": 0.2, "momentum": 0.85})]))
    assert [[axes.get_ylabel() for axes in one.axes] for one in drawn] == [["Learning rate"], ["Learning rate", "Momentum"]]
    assert list(drawn[1].axes[1].lines[0].get_ydata()) == [0.95, 0.85]


def test_nothing_is_drawn_where_nothing_was_journalled(tmp_path: Path) -> None:
    assert figures.learning_curves(journalled(tmp_path, [])) is None
    assert figures.learning_rate(tmp_path) is None
    assert not (tmp_path / "figures").exists()


def test_a_confusion_matrix_shows_counts_and_colours_by_the_share_of_the_true_class(tmp_path: Path, drawn: list[Figure]) -> None:
    figures.confusion_matrix(tmp_path, [[8, 2], [0, 5]], ["cat", "dog"])
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in axes.texts] == ["8", "2", "0", "5"]
    colours: Any = axes.images[0].get_array()
    assert colours.tolist() == [[0.8, 0.2], [0.0, 1.0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert axes.get_title() == "13 of 15 right (86.67%)"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Predicted class", "True class")


@pytest.mark.parametrize(("size", "numbers"), [(20, 400), (21, 0), (200, 0)])
def test_many_classes_are_drawn_without_numbers(tmp_path: Path, drawn: list[Figure], size: int, numbers: int) -> None:
    figures.confusion_matrix(tmp_path, [[int(row == column) for column in range(size)] for row in range(size)])
    assert len(drawn[0].axes[0].texts) == numbers
    assert len(drawn[0].axes[0].get_xticks()) <= 25


def test_a_class_that_never_occurs_is_a_row_of_zeros(tmp_path: Path, drawn: list[Figure]) -> None:
    figures.confusion_matrix(tmp_path, [[0, 0], [1, 3]])
    colours: Any = drawn[0].axes[0].images[0].get_array()
    assert colours.tolist() == [[0.0, 0.0], [0.25, 0.75]]


def test_counts_that_are_not_square_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one row, column and name per class"):
        figures.confusion_matrix(tmp_path, [[1, 2, 3], [4, 5, 6]])
    with pytest.raises(ValueError, match="got 2 rows and 3 names"):
        figures.confusion_matrix(tmp_path, [[1, 2], [4, 5]], ["a", "b", "c"])


def test_equal_journals_give_equal_figures_byte_for_byte_without_pyplot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would fail
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        path = figures.learning_curves(journalled(tmp_path / name, [(5, {"train/loss": 2.0}), (10, {"train/loss": 1.0, "val/loss": 1.5})]))
        assert path is not None
        written.append(path.read_bytes())
    assert written[0] == written[1]
