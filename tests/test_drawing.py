"""A run's figures are drawn by another process from what the run folder holds: the same pictures as in the process that trained."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from sklearn.metrics import confusion_matrix

import dnnkit
from dnnkit.diagnostics import LayerSignal
from dnnkit.record import RunFolder, figures, new_run
from dnnkit.record.draw import FIGURES, draw, due
from dnnkit.record.signal import write_confusion
from dnnkit.sender import Outcome, Sender
from dnnkit.sender.__main__ import main
from dnnkit.sender.drawer import Drawer
from dnnkit.training import Senders
from dnnkit.training.senders import Result
from tests.helpers import eventually

ALL = ["diagnostics/signal.png", "figures/confusion_matrix.png", "figures/learning_curves.png", "figures/learning_rate.png"]
QUICK = ("tracking=none", "trainer=cpu", "trainer.threads=1", "trainer.max_epochs=2", "trainer.progress_bar=false", "model.hidden=[8]")
PATIENT = 120.0


def pictures(run_dir: Path) -> list[str]:
    return sorted(str(path.relative_to(run_dir)) for path in run_dir.rglob("*.png"))


def journalled(folder: Path, steps: int = 3) -> RunFolder:
    run = new_run(folder / "runs", "digits")
    for step in range(1, steps + 1):
        run.journal.log(step, {"train/loss": 1 / step, "lr": 0.1})
    return run


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dnnkit.Result:
    folder = tmp_path_factory.mktemp("drawn")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return dnnkit.train(dnnkit.compose(list(QUICK)))


@pytest.fixture
def copy(result: dnnkit.Result, tmp_path: Path) -> Path:
    """The run's folder without its pictures."""
    folder = Path(shutil.copytree(result.run_dir, tmp_path / result.run_dir.name))
    for name in pictures(folder):
        (folder / name).unlink()
    return folder


def test_the_figures_are_there_when_train_returns_and_are_those_that_this_process_draws(result: dnnkit.Result, copy: Path) -> None:
    assert pictures(result.run_dir) == ALL
    assert result.message == ""
    seen = result.module.evaluations["test"]
    target, predicted = seen.target.cpu().numpy(), seen.prediction.cpu().numpy().argmax(1)
    probes = json.loads((copy / "diagnostics" / "signal.json").read_text())
    figures.learning_curves(copy)
    figures.learning_rate(copy)
    figures.signal(copy, {name: [LayerSignal(**layer) for layer in layers] for name, layers in probes.items()})
    figures.confusion_matrix(copy, confusion_matrix(target, predicted).tolist(), [str(digit) for digit in range(10)])
    for name in ALL:
        assert np.array_equal(imread(result.run_dir / name), imread(copy / name)), name


def test_drawing_once_gives_the_bytes_that_savefig_gives(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert draw(copy) == []

    def by_savefig(figure: Figure, run_dir: Path, name: str, folder: str = "figures") -> Path:
        figure.savefig(tmp_path / f"{name}.png", metadata={"Software": None})
        return tmp_path / f"{name}.png"

    monkeypatch.setattr(figures, "_save", by_savefig)
    for one in FIGURES:
        again = one.draw(copy)
        assert again is not None
        assert again.read_bytes() == (copy / one.figure).read_bytes(), one.figure


def test_only_what_is_missing_or_older_than_its_numbers_is_drawn(tmp_path: Path) -> None:
    run = journalled(tmp_path)
    run.finish("FINISHED", "finished", 0)
    assert draw(run.path) == []
    before = {name: ((run.path / name).stat().st_mtime_ns, (run.path / name).read_bytes()) for name in pictures(run.path)}
    assert list(before) == ["figures/learning_curves.png", "figures/learning_rate.png"]
    assert due(run.path) == draw(run.path) == []
    assert {name: (run.path / name).stat().st_mtime_ns for name in before} == {name: when for name, (when, _) in before.items()}
    with RunFolder(run.path).journal as more:  # resumed
        more.log(9, {"train/loss": 3.0, "lr": 0.2})
    (run.path / "figures" / "learning_rate.png").unlink()
    assert draw(run.path) == []
    assert all((run.path / name).read_bytes() != bytes_ for name, (_, bytes_) in before.items())


@pytest.fixture
def drawer() -> Iterator[Sender]:
    sender = Sender.start(None)
    yield sender
    sender.close(PATIENT)


def test_one_process_draws_for_many_runs_never_imports_mlflow_and_ends_when_let_go(tmp_path: Path, drawer: Sender) -> None:
    runs = [journalled(tmp_path, steps) for steps in (2, 3)]
    for run in runs:
        drawer.announce(run.path)
    assert drawer.outcome(runs[0].path).state == "waiting"
    for run in runs:
        run.finish("FINISHED", "finished", 0)
        assert drawer.wait(run.path, PATIENT) == Outcome("closed")
        assert pictures(run.path) == ["figures/learning_curves.png", "figures/learning_rate.png"]
    assert drawer._process is not None
    if sys.platform == "linux":
        maps = Path(f"/proc/{drawer._process.pid}/maps").read_text()
        assert "matplotlib" in maps  # its compiled parts; those of what MLflow cannot do without are not there
        assert "pyarrow" not in maps
        assert "pydantic_core" not in maps
    drawer.close(PATIENT)
    assert drawer._process.returncode == 0


def test_a_figure_that_cannot_be_drawn_is_told_and_the_others_are_drawn(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(run_dir: Path, counts: list[list[int]], classes: Any) -> None:
        write_confusion(run_dir, [*counts, [1]], classes)

    monkeypatch.setattr("dnnkit.training.fit.write_confusion", broken)
    found = dnnkit.train(dnnkit.compose([*QUICK, "trainer.max_epochs=1"]))
    assert json.loads((found.run_dir / "run.json").read_text())["status"] == "FINISHED"
    assert found.message.startswith("figures/confusion_matrix.png could not be drawn: ValueError: a confusion matrix needs one row")
    assert pictures(found.run_dir) == [name for name in ALL if "confusion" not in name]
    assert main(["--figures", str(found.run_dir)]) == 1
    assert "could not be drawn" in capsys.readouterr().out
    (found.run_dir / "diagnostics" / "confusion_matrix.json").write_text(json.dumps({"counts": [[1, 0], [0, 1]], "classes": None}))
    assert main(["--figures", str(found.run_dir)]) == 0
    assert pictures(found.run_dir) == ALL


def test_a_broken_journal_costs_its_figures_alone(copy: Path) -> None:
    with open(copy / "metrics.jsonl", "a", encoding="utf-8") as journal:
        journal.write("no row\n")
    assert [name for name, _ in draw(copy)] == ["figures/learning_curves.png", "figures/learning_rate.png"]
    assert pictures(copy) == ["diagnostics/signal.png", "figures/confusion_matrix.png"]


def test_a_folder_that_is_gone_or_is_none_is_no_trouble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[dict[str, Any]] = []
    run = journalled(tmp_path)
    drawer = Drawer(run.path, told.append)
    assert not drawer.advance()
    shutil.rmtree(run.path)
    assert drawer.advance()
    assert [event["event"] for event in told] == ["failed"]
    assert main(["--figures", str(tmp_path)]) == 8
    assert "is not a run folder" in capsys.readouterr().err


TRAINER = """
import os, signal, time
from pathlib import Path
from dnnkit.record import new_run
from dnnkit.sender import Sender
run = new_run(Path("runs"), "doomed")
sender = Sender.start(None)
sender.announce(run.path)
run.journal.log(1, {"train/loss": 0.5})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_curves_of_a_killed_run_are_drawn_and_can_be_drawn_later(workdir: Path) -> None:
    trainer = subprocess.run([sys.executable, "-c", TRAINER], check=False, timeout=PATIENT)
    assert trainer.returncode == -signal.SIGKILL
    curves = next(iter((workdir / "runs").iterdir())) / "figures" / "learning_curves.png"
    assert eventually(curves.exists)
    curves.unlink()
    assert main(["--figures", str(curves.parent.parent)]) == 0
    assert curves.exists()


class Broken:
    """Stands in for a sender whose MLflow cannot be imported."""

    uri = "sqlite:///mlflow.db"

    def wait(self, run_dir: Path, timeout: float) -> Outcome:
        return Outcome("failed", None, "the sender ended with code 1: ImportError")

    def close(self, timeout: float) -> None:
        pass


def test_where_the_sender_is_broken_another_process_draws(tmp_path: Path) -> None:
    run = journalled(tmp_path)
    run.finish("FINISHED", "finished", 0)
    with Senders() as senders:
        senders._runs[run.path] = (Broken(), PATIENT)  # type: ignore[assignment]
        found = senders.settle(Result({}, None, run.path, None, "uuid", "sqlite:///mlflow.db"))  # type: ignore[arg-type]
    assert found.message == "the sender ended with code 1: ImportError"
    assert pictures(run.path) == ["figures/learning_curves.png", "figures/learning_rate.png"]


class Slow:
    """Stands in for a process that has not drawn yet."""

    uri = None

    def announce(self, run_dir: Path) -> None:
        pass

    def wait(self, run_dir: Path, timeout: float) -> Outcome:
        return Outcome("waiting")

    def close(self, timeout: float) -> None:
        pass


@pytest.mark.parametrize("slow", [False, True])
def test_where_the_sender_is_broken_a_figure_that_is_not_there_is_said_too(tmp_path: Path, slow: bool) -> None:
    run = journalled(tmp_path)
    run.finish("FINISHED", "finished", 0)
    with open(run.path / "metrics.jsonl", "a", encoding="utf-8") as journal:
        journal.write("no row\n")
    with Senders() as senders:
        if slow:
            senders._senders[None] = Slow()  # type: ignore[assignment]
        senders._runs[run.path] = (Broken(), PATIENT)  # type: ignore[assignment]
        found = senders.settle(Result({}, None, run.path, None, "uuid", "sqlite:///mlflow.db"))  # type: ignore[arg-type]
    first, _, second = found.message.partition("; ")
    assert first == "the sender ended with code 1: ImportError"
    assert second.startswith("not all figures are drawn yet after 120 s" if slow else "figures/learning_curves.png could not be drawn: ")


def test_the_figures_of_a_sweep_whose_sender_is_broken_are_drawn_at_its_end(
    tmp_path: Path, one_drawer: Callable[[Senders], None], caplog: pytest.LogCaptureFixture
) -> None:
    run = journalled(tmp_path)
    run.finish("FINISHED", "finished", 0)
    senders = Senders()
    senders._runs[run.path] = (Broken(), PATIENT)  # type: ignore[assignment]
    one_drawer(senders)  # `close` itself; nobody settles with the jobs of a sweep one by one
    assert pictures(run.path) == ["figures/learning_curves.png", "figures/learning_rate.png"]
    assert "ImportError" in caplog.text


def test_nothing_of_it_is_left_when_the_senders_are_let_go(
    tmp_path: Path, one_drawer: Callable[[Senders], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnnkit.training.senders._LAST_S", PATIENT)
    sender = Sender.start(None)
    run = journalled(tmp_path)
    sender.announce(run.path)
    run.finish("FINISHED", "finished", 0)
    senders = Senders()
    senders._senders[None] = sender
    senders._runs[run.path] = (sender, PATIENT)
    one_drawer(senders)  # `close` itself
    assert sender._process is not None
    with pytest.raises(ProcessLookupError):
        os.kill(sender._process.pid, 0)
    assert pictures(run.path) == ["figures/learning_curves.png", "figures/learning_rate.png"]
