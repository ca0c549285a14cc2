"""`dnnkit describe data`: the card of a data set, and the figure of a sample of it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris

from dnnkit import compose
from dnnkit.cli import main
from dnnkit.cli.card import card_text
from dnnkit.data import DataSet
from dnnkit.record import sample
from dnnkit.record.sample import sample_figure
from dnnkit.training.assemble import load_data

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@pytest.fixture(autouse=True)
def here(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder on a machine without data."""
    monkeypatch.delenv("DNNKIT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(workdir / "cache"))
    return workdir


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is drawn, kept for inspection."""
    kept: list[Figure] = []
    make = sample._figure

    def keep(*size: float) -> Figure:
        kept.append(make(*size))
        return kept[-1]

    monkeypatch.setattr(sample, "_figure", keep)
    return kept


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["describe", "data", *words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["describe", "data", *words])
    return code, capsys.readouterr().err


def data(*overrides: str) -> DataSet:
    return load_data(compose(overrides))


# The command


def test_data_that_is_there_is_described_by_its_page_and_its_card(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    text = told(capsys, "iris")
    page, _, card = text.partition("\n\ndata=iris\n")
    assert "Source: Fisher 1936" in page
    assert "sepal length (cm), sepal width (cm), petal length (cm), petal width (cm)" in card
    assert data("data=iris").fingerprint in card
    assert not list(here.iterdir())


def test_the_card_counts_rows_and_classes_with_their_shares(capsys: pytest.CaptureFixture[str]) -> None:
    """150 irises, 50 of each: 30 for test, 12 of the other 120 for validation, stratified."""
    lines = [line.split() for line in told(capsys, "iris", "seed=3").splitlines()]
    assert ["train", "108", "72.0%"] in lines
    assert ["validation", "12", "8.0%", "stratified", "from", "train"] in lines
    assert ["test", "30", "20.0%", "stratified", "from", "train"] in lines
    for name in load_iris().target_names:
        assert [name, "36", "33.3%", "4", "33.3%", "10", "33.3%"] in lines


def test_overrides_change_the_card_which_is_then_all_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "iris", "data.test_size=50", "data.split=tail")
    assert text.startswith("data=iris\n")
    assert "Fisher" not in text
    lines = [line.split() for line in text.splitlines()]
    assert ["test", "50", "33.3%", "tail", "from", "train"] in lines
    assert ["virginica", "0", "0.0%", "0", "0.0%", "50", "100.0%"] in lines


def test_json_is_the_card_that_a_run_records(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(told(capsys, "iris", "seed=3", "--json")) == data("data=iris", "seed=3").card
    record = json.loads(told(capsys, "iris", "--json"))
    assert record["name"] == "iris"
    assert record["card"] == data("data=iris").card
    assert json.loads(told(capsys, "npz", "--json"))["card"] is None


def test_a_regression_has_the_statistics_of_its_target(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split() for line in told(capsys, "diabetes", "data.val_size=2", "data.test_size=2").splitlines()]
    [row] = [line for line in lines if line[:1] == ["progression"] and len(line) == 5]
    # All but four of the 442 rows: mean 152.1 and deviation 77.0 of the whole set, to what four rows may change.
    assert [float(value) for value in row[1:]] == pytest.approx([152.13, 77.0, 25, 346], abs=1.5)


def test_constant_columns_and_decisions_are_told(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3))
    x[:, 1] = 7
    np.savez(here / "mine.npz", x=x, y=np.array(["b", "a"] * 20))
    text = told(capsys, "npz", "data.path=mine.npz")
    assert "constant features  1\n" in text
    assert "- y holds texts: 2 classes" in text
    (here / "mine.csv").write_text(
        "a,b,c,y\n" + "".join(f"{i % 7}.5,1,{'' if i % 9 == 0 else i % 5}.25,{'uv'[i % 2]}\n".replace(",.25", ",") for i in range(40))
    )
    text = told(capsys, "csv", "data.path=mine.csv", "data.target=y")
    assert "constant features  b\n" in text
    assert "missing            c (5)\n" in text


def test_data_that_needs_a_setting_is_described_with_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "image_folder")
    assert "one folder for each class" in text
    assert "no card:\n  data.path: has to be given" in text
    assert "dnnkit describe data image_folder data.SETTING=VALUE" in text


def test_data_that_is_not_there_is_described_and_not_downloaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    monkeypatch.setenv("DNNKIT_MIRRORS", "http://127.0.0.1:9")
    threads = threading.active_count()
    text = told(capsys, "mnist")
    assert "LeCun" in text
    assert "nothing was downloaded: a run does that" in text
    assert threading.active_count() == threads
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["irsi", "seed=1"], 2, "'iris'"),
        (["iris", "seed=x"], 2, "seed"),
        (["iris", "data.spilt=tail"], 2, "'data.split'"),
        (["iris", "data=wine"], 2, "already says which data: iris"),
        (["iris", "--jsn"], 2, "'--json'"),
        (["iris", "--figure=x.pdf"], 2, "PNG"),
        (["npz", "data.path=no.npz"], 4, "there is no file no.npz"),
        (["mnist", "seed=1"], 4, "DNNKIT_MIRRORS"),
    ],
)
def test_what_is_wrong_ends_with_the_code_of_its_kind(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, text = refused(capsys, *words)
    assert found == code
    assert message in text


def test_the_help_says_what_data_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "--help"]) == 0
    assert "--figure [FILE.png]" in capsys.readouterr().out


# The text of a card


def test_long_cards_are_cut_and_say_so() -> None:
    card = data("data=digits").card
    many = 50
    card |= {"classes": [f"c{i}" for i in range(many)], "class_balance": {part: [1] * many for part in card["sizes"]}}
    card |= {"columns": [f"column{i}" for i in range(many)], "more": {"key": "x" * 500}, "empty": []}
    text = card_text(card)
    assert "… 20 more classes" in text
    assert "column11, … (50 in all)" in text
    assert "(--json shows all)" in text
    assert max(map(len, text.splitlines())) < 250
    assert "empty" not in text


# The figure


def test_a_figure_is_written_where_it_is_asked_for_and_only_then(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    assert "figure: iris_sample.png" in told(capsys, "iris", "--figure")
    assert "figure: deep/er/x.png" in told(capsys, "iris", "--figure", "deep/er/x.png")
    told(capsys, "iris", "--figure=y.png", "seed=1", "--json")
    assert sorted(str(path.relative_to(here)) for path in here.rglob("*.png")) == ["deep/er/x.png", "iris_sample.png", "y.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in here.rglob("*.png"))


def test_equal_data_gives_equal_bytes(here: Path) -> None:
    iris = data("data=iris")
    assert sample_figure(iris, here / "a.png").read_bytes() == sample_figure(iris, here / "b.png").read_bytes()


def test_images_stand_in_a_row_for_each_class_in_their_own_grey(here: Path, pictures: list[Figure]) -> None:
    digits = data("data=digits")
    sample_figure(digits, here / "x.png")
    [figure] = pictures
    axes = np.array(figure.axes).reshape(10, 10)
    assert [line[0].get_ylabel() for line in axes] == list("0123456789")
    for label, line in enumerate(axes):
        rows = (digits.train.y == label).nonzero()[:10, 0]
        for one, row in zip(line, rows.tolist(), strict=True):
            raw = digits.scaling.undo(digits.train.x[row : row + 1])[0, 0]
            shown = np.asarray(one.images[0].get_array()) * 16  # from 0 to 16 in the data
            np.testing.assert_allclose(shown, raw, atol=1e-5)


def test_a_table_s_histograms_count_every_example_of_each_class(here: Path, pictures: list[Figure]) -> None:
    iris = data("data=iris")
    sample_figure(iris, here / "x.png")
    [figure] = pictures
    assert [axes.get_title() for axes in figure.axes] == list(load_iris().feature_names)
    for axes in figure.axes:
        counts = [patch.get_data().values.sum() for patch in axes.patches if not patch.get_fill()]
        assert counts == [36, 36, 36]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["setosa", "versicolor", "virginica"]


def test_a_regression_shows_its_target_first_in_its_own_units(here: Path, pictures: list[Figure]) -> None:
    sample_figure(data("data=diabetes"), here / "x.png")
    first, *others = pictures[0].axes
    assert first.get_title() == "target: progression"
    values = first.patches[-1].get_data()
    assert values.values.sum() == 319
    assert 25 <= values.edges[0] < values.edges[-1] <= 346
    assert len(others) == 10


def test_whole_numbers_have_a_bin_each(here: Path, pictures: list[Figure]) -> None:
    sample_figure(data("data=diabetes"), here / "x.png")
    [sex] = [axes for axes in pictures[0].axes if axes.get_title() == "sex"]
    np.testing.assert_array_equal(sex.patches[-1].get_data().edges, [0.5, 1.5, 2.5])


ODD = {
    "many features": {"x": torch.randn(60, 40), "y": torch.arange(60) % 2},
    "many classes": {"x": torch.randn(400, 3), "y": torch.arange(400) % 40},
    "a constant feature": {"x": torch.zeros(60, 2), "y": torch.arange(60) % 2},
    "two channels": {"x": torch.rand(60, 5, 5, 2)[..., :1], "y": torch.arange(60) % 2},
    "four channels": {"x": torch.rand(60, 4, 5, 5), "y": torch.arange(60) % 30},
    "wide images": {"x": torch.rand(60, 2, 200), "y": torch.arange(60) % 2},
    "several targets": {"x": torch.randn(60, 2), "y": torch.randn(60, 9)},
    "images with values": {"x": torch.rand(60, 4, 4), "y": torch.randn(60)},
    "texts that look like formulas": {"x": torch.randn(60, 2), "y": np.array(["$x_", "_b", r"\frac"] * 20)},
}


@pytest.mark.parametrize("loader", ["resident", "stream"])
@pytest.mark.parametrize("what", ODD)
def test_any_data_can_be_drawn(what: str, loader: str, here: Path) -> None:
    np.savez(here / "mine.npz", **{key: np.asarray(array) for key, array in ODD[what].items()})
    drawn = sample_figure(data("data=npz", "data.path=mine.npz", f"data.loader={loader}"), here / "x.png")
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_a_reconstruction_of_images_shows_them(here: Path, pictures: list[Figure]) -> None:
    sample_figure(data("data=digits", "task=reconstruction"), here / "x.png")
    assert len(pictures[0].axes) == 100
