"""What a run leaves in Python: its history as a table, its curves as a figure, itself in a line; and what `train` prints."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import pandas
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

import dnnkit
from dnnkit.cli import main
from dnnkit.errors import CheckpointError
from dnnkit.record import Journal
from dnnkit.training.report import report

UUID = "90e7c34a-1111-4222-8333-444455556666"
nan = math.nan


def result(folder: Path, **changes: Any) -> dnnkit.Result:
    metrics = {"signal/00_dense/mean": 3.0, "train/loss": 0.125, "val/acc": 0.875, "lr": 0.1, "test/loss": 0.07251, "test/acc": 0.98049}
    module: Any = None
    return dataclasses.replace(dnnkit.Result(metrics, "f00", folder, module, UUID, "sqlite:///mlflow.db"), **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with two journals: numbers at steps 5, 10 and 12, one of them twice, as a resumed run may have it."""
    with Journal(tmp_path) as journal:
        journal.log(5, {"lr": 0.05, "train/loss": 2.0})
        journal.log(10, {"val/loss": 1.5, "train/loss": math.inf, "signal/00_dense/mean": 0.25})
        journal.log(12, {"train/loss": 9.0, "test/acc": 0.5})
        journal.log(12, {"train/loss": 1.0})
        journal.time(10, {"time/epoch_s": 0.5})
    return tmp_path


def test_the_history_has_a_row_for_each_measured_step_and_training_before_validation_before_the_rest(folder: Path) -> None:
    wanted = pandas.DataFrame(
        {"train/loss": [2.0, math.inf, 1.0], "val/loss": [nan, 1.5, nan], "lr": [0.05, nan, nan]},
        index=pandas.Index([5, 10, 12], name="step"),
    )
    pandas.testing.assert_frame_equal(result(folder).history, wanted)


def test_the_journal_has_every_number_of_both_files(folder: Path) -> None:
    found = result(folder).journal
    assert list(found) == ["lr", "train/loss", "val/loss", "signal/00_dense/mean", "test/acc", "time/epoch_s"]
    assert found.index.tolist() == [5, 10, 12]
    assert found["time/epoch_s"].dropna().to_dict() == {10: 0.5}
    assert found["test/acc"].dropna().to_dict() == {12: 0.5}


def test_an_empty_journal_is_an_empty_history_and_nothing_to_draw(tmp_path: Path) -> None:
    Journal(tmp_path).log(0, {})
    assert result(tmp_path).history.shape == (0, 0)
    assert result(tmp_path).history.index.name == "step"
    with pytest.raises(CheckpointError, match="no loss to draw"):
        result(tmp_path).plot()


def test_the_plot_holds_the_journalled_losses_and_shows_itself_as_a_png(folder: Path) -> None:
    figure: Any = result(folder).plot()
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    assert axes.get_ylabel() == "Loss"
    training = next(line for line in axes.lines if line.get_label() == "training")
    assert list(training.get_xdata()) == [5, 10, 12, 12]
    assert [value for value in training.get_ydata() if math.isfinite(value)] == [2.0, 9.0, 1.0]
    with Image.open(io.BytesIO(figure._repr_png_())) as image:
        assert image.format == "PNG"
        assert image.width > 500
    assert not (folder / "figures").exists()


@pytest.mark.parametrize(
    "ask", [lambda one: one.history, lambda one: one.journal, lambda one: one.plot()], ids=["history", "journal", "plot"]
)
def test_a_folder_that_was_moved_is_said_with_what_to_type(folder: Path, tmp_path_factory: pytest.TempPathFactory, ask: Any) -> None:
    gone = tmp_path_factory.mktemp("elsewhere") / "run"
    moved = result(gone)
    with pytest.raises(CheckpointError, match=r"moved or removed\n.*dataclasses\.replace\(result, run_dir="):
        ask(moved)
    assert ask(dataclasses.replace(moved, run_dir=folder)) is not None


def test_the_line_of_a_result_begins_with_the_test_and_is_short() -> None:
    assert repr(result(Path("runs/x"))) == "Result(test/acc 0.9805, test/loss 0.07251, run 90e7c34a in runs/x)"
    assert repr(result(Path("runs/x"), metrics={})) == "Result(run 90e7c34a in runs/x)"


def test_a_notebook_gets_a_table_by_metric_and_part_with_what_is_no_html_escaped() -> None:
    shown = result(Path("runs/<b>"), message="a & b")._repr_html_()
    assert "<tr><th></th><th>test</th><th>last validation</th><th>last training</th></tr>" in shown
    assert "<tr><th>loss</th><td>0.07251</td><td></td><td>0.125</td></tr>" in shown
    assert "<tr><th>acc</th><td>0.9805</td><td>0.875</td><td></td></tr>" in shown
    assert "runs/&lt;b&gt;" in shown
    assert "MLflow <code>a &amp; b</code>" in shown
    assert "signal" not in shown


def test_what_is_missing_of_a_run_without_mlflow_are_figures() -> None:
    shown = result(Path("runs/x"), run_id=None, tracking_uri=None, message="no room")._repr_html_()
    assert "figures <code>no room</code>" in shown
    assert "MLflow <code>" not in shown


def test_the_interface_is_what_dir_shows_and_each_name_leads_somewhere() -> None:
    assert dir(dnnkit) == sorted([*dnnkit.__all__, "__version__"])
    assert all(getattr(dnnkit, name) is not None for name in dir(dnnkit))


def printed(text: str) -> list[str]:
    """The lines without what differs from one run to the next: ids, folders, seconds."""
    return [line.split("  ")[0] if line.startswith(("MLflow run", "run folder")) else line.rsplit("  ", 1)[0] for line in text.splitlines()]


def test_train_prints_what_the_command_prints_once_and_nothing_with_the_bar_off(
    workdir: Path, unrecorded: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tracking=none", "trainer.max_epochs=1", "model.hidden=[4]", "trainer.threads=1"]
    found = dnnkit.train(dnnkit.compose(words))
    by_python = capsys.readouterr().out
    assert main(words) == 0
    by_command = capsys.readouterr().out
    assert printed(by_python) == printed(by_command)
    assert by_command.count("run folder") == by_python.count(str(found.run_dir)) == 1
    assert f"test/acc {found.metrics['test/acc']:.4g}" in by_python
    rows = [json.loads(line) for line in (found.run_dir / "metrics.jsonl").read_text().splitlines()]
    wanted = {row["step"]: row["value"] for row in rows if row["key"] == "val/loss"}
    assert found.history["val/loss"].dropna().to_dict() == wanted
    dnnkit.train(dnnkit.compose([*words, "trainer.progress_bar=false"]))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("look", "told"), [("dnnkit ui 1a2b3c4d", "in a terminal: dnnkit ui 1a2b3c4d"), ("http://h/#/1", "http://h/#/1")])
def test_a_command_that_serves_is_for_a_terminal_where_the_lines_stand_in_a_notebook(
    look: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnnkit.training.report.look_at", lambda _: look)
    for jupyter, wanted in ((False, look), (True, told)):
        console = Console(file=(file := io.StringIO()), width=200)
        console.is_jupyter = jupyter
        monkeypatch.setattr(console, "print", lambda text="", *, _file=file, **_: _file.write(f"{text}\n"))  # not to ask IPython
        report(result(Path("runs/x")), console)
        assert f"look at it  {wanted}" in file.getvalue().splitlines()
