"""The page of a run: its name, its description, what of the signal is on it, and the command that opens it.

The oracles are the SQLite file, read without MLflow, MLflow's own server, and a shell.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dnnkit.cli import main
from dnnkit.record import Journal, Row, RunFolder, new_run, read_journal
from dnnkit.record.journal import cut_journals
from dnnkit.record.title import command, title
from dnnkit.sender.mark import Batch, Mark, Tail
from dnnkit.sender.page import Server
from dnnkit.sender.rewind import rewound
from dnnkit.sender.summaries import SUMMARIES, summary
from dnnkit.sender.sync import sync
from dnnkit.training.invocation import pasteable
from dnnkit.training.report import look_at


def trained(folder: Path, uri: str | None = None, **facts: Any) -> RunFolder:
    """A run folder at its end, with two numbers."""
    run = new_run(folder / "runs", "digits", tracking_uri=uri, **facts)
    run.journal.log(0, {"train/loss": 0.5, "lr": 0.1})
    run.finish("FINISHED", "finished", 0)
    return run


def ask(folder: Path, question: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(folder / "mlflow.db", timeout=30)
    try:
        return connection.execute(question).fetchall()
    finally:
        connection.close()


# The name


@pytest.mark.parametrize(
    ("words", "swept", "expected"),
    [
        ((), None, "selu_mnist"),
        (("+experiment=selu_mnist", "trainer.max_epochs=1", "trainer=gpu", "tracking=none", "lint.strict=true"), None, "selu_mnist"),
        (("data.root=/elsewhere", "diagnostics.every=null", "checkpoint.monitor=val/loss"), None, "selu_mnist"),
        (("activation=relu", "optimizer.lr=0.1", "seed=2"), None, "selu_mnist · relu · optimizer.lr=0.1 · seed 2"),
        (("activation=selu", "data=mnist"), None, "selu_mnist"),
        (("activation=elu",), None, "selu_mnist · elu"),
        (("normalization=none", "+experiment=fashion/optimizer_sgd"), None, "selu_mnist · normalization=none · optimizer_sgd"),
        (("optimizer.lr=0.1", "optimizer.lr=0.2"), None, "selu_mnist · optimizer.lr=0.2"),
        (("name=selu_mnist", "optimizer.lr=0.1"), None, "selu_mnist"),
        (("optimizer.lr=0.1", "trainer.max_epochs=5", "seed=1"), {"trainer.max_epochs"}, "selu_mnist · trainer.max_epochs=5"),
    ],
)
def test_the_title_of_a_run_is_its_name_and_what_was_chosen(words: tuple[str, ...], swept: set[str] | None, expected: str) -> None:
    assert title("selu_mnist", words, swept) == expected


def test_a_long_title_is_cut() -> None:
    assert len(title("x", [f"model.key_{number}=1" for number in range(99)])) == 120


def test_the_command_of_a_run_is_one_that_a_shell_takes_apart_into_its_words() -> None:
    words = ["model.hidden=[3, 1]", "name=it's"]
    printed = subprocess.run(["bash", "-c", f"printf '%s\\n' {command(words, 'my presets')}"], capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines() == ["dnnkit", "--config-dir", "my presets", *words]


# The description


def note(folder: Path) -> str:
    [(text,)] = ask(folder, "select value from tags where key = 'mlflow.note.content'")
    return str(text)


def test_a_run_has_its_title_and_a_description_which_keeps_what_somebody_writes_there(workdir: Path, uri: str) -> None:
    from mlflow.tracking import MlflowClient

    run = trained(workdir, uri, title="digits · relu", command="dnnkit activation=relu")
    found = {
        "start": [{"word": "vanishing", "text": "vanishing gradients: from 1 to 1e-9"}],
        "timeline": [
            {"word": "dead", "text": "dead units: later", "first": 400, "lasting": True},
            {"word": "dead", "text": "dead units: first", "first": 200, "lasting": False},
            {"word": "vanishing", "text": "all the time", "first": 0, "lasting": True},
        ],
        "end": [],
    }
    (run.path / "diagnostics/verdicts.json").write_text(json.dumps(found))
    with Journal(run.path) as journal:
        journal.log(25, {"test/loss": 0.125, "test/acc": 0.96875})
    outcome = sync(run.path)
    assert ask(workdir, "select name from runs") == [("digits · relu",)]
    assert note(workdir).split("\n\n") == [
        "```\ndnnkit activation=relu\n```",
        "**test/acc 0.9688** · **test/loss 0.125**",
        "- before training: vanishing gradients: from 1 to 1e-9\n- during training: dead units: first",
    ]
    MlflowClient(uri).set_tag(str(outcome.run_id), "mlflow.note.content", "mine")
    assert sync(run.path) == outcome
    assert note(workdir) == "mine"


def test_a_description_whose_sender_was_killed_is_brought_up_to_date(workdir: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    run = trained(workdir, uri, command="dnnkit")

    class Killed(BaseException):
        """Stands for SIGKILL."""

    def killed(self: Any, *arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_tag", killed)
        with pytest.raises(Killed):
            sync(run.path)
    (run.path / "diagnostics/verdicts.json").write_text("{}")
    sync(run.path)
    assert note(workdir) == "```\ndnnkit\n```\n\nNothing was found wrong with the signal, layer by layer."


def test_the_table_of_runs_shows_the_final_metrics_of_all_of_them(workdir: Path, uri: str) -> None:
    for metric in ("acc", "r2"):
        run = trained(workdir, uri)
        write(run.path, [Row(1, "test/loss", 0.25), Row(1, f"test/{metric}", 0.5)])
        assert sync(run.path).state == "closed"
    [(view,)] = ask(workdir, "select value from experiment_tags where key = 'mlflow.sharedViewState.dnnkit'")
    names = [f"{part}/{name}" for names in (("acc", "loss"), ("r2",)) for part in ("test", "val") for name in names]
    assert json.loads(view) == {"selectedColumns": [f"metrics.`{name}`" for name in names]}


# The signal


def looks(steps: Sequence[int]) -> list[Row]:
    """Looks at three layers, between other rows."""
    rows = []
    for step in steps:
        rows.append(Row(step, "train/loss", 1 / (step + 1)))
        for number in range(3):
            layer = {"variance": 1.0 + number + step, "dead": 0.1 * number, "delta_ratio": 0.5 + number, "gradient_ratio": 3.0 - number}
            rows += [Row(step, f"signal/{number:02d}_dense/{measure}", value) for measure, value in layer.items()]
    return rows


def write(folder: Path, rows: Sequence[Row]) -> None:
    with Journal(folder) as journal:
        for row in rows:
            journal.log(row.step, {row.key: row.value})


def shown(step: int) -> dict[str, float]:
    """What is to be shown of one of `looks`, by hand: the third layer is the output."""
    return {
        "signal_dead_max": 0.2,
        "signal_variance_min": 1.0 + step,
        "signal_variance_max": 2.0 + step,
        "signal_delta_ratio_first": 0.5,
        "signal_gradient_ratio_max": 3.0,
    }


def test_a_look_at_the_signal_has_a_few_summaries() -> None:
    assert summary({row.key: row.value for row in looks([7])[1:]}) == shown(7)
    assert summary({}) == {}
    assert summary({"signal/a/variance": 2.0, "signal/a/saturated": 0.25}) == {
        "signal_saturated_max": 0.25,
        "signal_variance_min": 2.0,
        "signal_variance_max": 2.0,
    }
    bad = {"signal/a/gradient_ratio": math.nan, "signal/b/gradient_ratio": 2.0, "signal/c/gradient_ratio": 1.0}
    assert summary(bad) == {"signal_gradient_ratio_max": 2.0}
    assert len(SUMMARIES) <= 6


@pytest.mark.parametrize("setting", ["summary", "layers", "none"])
def test_mlflow_gets_of_the_signal_what_tracking_signal_says_and_the_folder_keeps_all(workdir: Path, uri: str, setting: str) -> None:
    run = trained(workdir, uri, signal=setting)
    write(run.path, looks([3, 5]))
    assert sync(run.path).state == "closed"
    rows = {Row(*row) for row in ask(workdir, "select step, key, value from metrics where key like 'signal%'")}
    whole = {row for row in looks([3, 5]) if row.key.startswith("signal/")}
    summaries = {Row(step, key, value) for step in (3, 5) for key, value in shown(step).items()}
    assert rows == {"summary": summaries, "layers": whole, "none": set()}[setting]
    assert ask(workdir, "select count(*) from metrics where key = 'train/loss'") == [(3,)]
    assert read_journal(run.path / "metrics.jsonl")[2:] == looks([3, 5])


@pytest.mark.parametrize("cut", [1, 9, 14, 20])
@pytest.mark.parametrize("most", [1, 2, 1000])
def test_a_look_that_is_still_being_written_is_summed_up_once_it_is_whole_and_once_only(tmp_path: Path, cut: int, most: int) -> None:
    """The sender dies after every batch, and another goes on from what the mark says; the journal grows meanwhile."""
    rows, mark, sent = looks([3, 5]), Mark("sqlite://"), list[Row]()
    for part, ended in ((rows[:cut], False), (rows[cut:], False), ([], True)):
        write(tmp_path, part)
        while batch := Tail(tmp_path, mark, "summary").next_batch(most, ended=ended):
            assert len(batch) <= most
            mark.begin(tmp_path, Batch(0, batch))
            mark.done(tmp_path)
            sent += batch
    expected = [Row(step, key, value) for step in (3, 5) for key, value in [("train/loss", 1 / (step + 1)), *shown(step).items()]]
    assert sorted(sent) == sorted(expected)


def test_two_looks_at_one_step_are_two_summaries(tmp_path: Path) -> None:
    """The last look while a network trains, and the probe after it."""
    look = looks([3])[1:]
    write(tmp_path, [*look, *look])
    assert Tail(tmp_path, Mark("sqlite://"), "summary").next_batch(99, ended=True) == [Row(3, *one) for one in shown(3).items()] * 2


def test_a_run_that_goes_back_and_on_has_each_summary_once(workdir: Path, uri: str) -> None:
    run = trained(workdir, uri, signal="summary")
    write(run.path, looks([3, 5, 7]))
    first = sync(run.path)
    with rewound(run.path, 5, 60) as orphans:
        cut_journals(run.path, 5)
        run.record.resumed_at(5, "checkpoints/last.ckpt").write(run.path)
    assert orphans == [7]
    again = RunFolder(run.path)
    write(run.path, looks([7, 9]))
    again.finish("FINISHED", "finished", 0)
    assert sync(run.path) == first
    held = sorted(ask(workdir, "select step, key, value from metrics where key like 'signal%'"))
    assert held == sorted((step, key, value) for step in (3, 5, 7, 9) for key, value in shown(step).items())


# The command that opens it


def get(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=60) as answer:
        assert answer.status == 200
        return answer.read()


def test_the_last_line_of_a_run_pasted_into_the_shell_opens_the_page_of_the_run_and_ends_with_ctrl_c(workdir: Path, uri: str) -> None:
    run = trained(workdir, uri, experiment="my experiment")
    write(run.path, [Row(1, "test/loss", 0.25), Row(1, "test/acc", 0.5)])
    outcome = sync(run.path)
    line = look_at(run.path)
    assert line is not None
    assert line.endswith(f" ui {run.path.name[-8:]}")
    process = subprocess.Popen(["bash", "-c", f"exec {line}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        whole, table, charts, one = (process.stdout.readline().split()[-1] for _ in range(4))
        [(experiment,)] = ask(workdir, "select experiment_id from runs")
        address, _, where = whole.partition("/#/")
        assert where == f"experiments/{experiment}?workflowType=machine_learning"
        assert table == f"{address}/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey=dnnkit"
        assert charts == f"{address}/#/experiments/{experiment}/runs?workflowType=machine_learning&compareRunsMode=CHART"
        assert one == f"{address}/#/experiments/{experiment}/runs/{outcome.run_id}?workflowType=machine_learning"
        assert b"<title>MLflow</title>" in get(address)
        found = json.loads(get(f"{address}/api/2.0/mlflow/runs/get?run_id={outcome.run_id}"))
        assert {metric["key"] for metric in found["run"]["data"]["metrics"]} >= {"train/loss", "lr"}
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=90)
    assert process.returncode == 0, said
    with pytest.raises(OSError, match="refused"):
        get(address)
    assert {path.name for path in workdir.iterdir()} <= {".mlflow.db.lock", "mlflow.db", "mlruns", "runs"}


@pytest.mark.parametrize("found", ["dnnkit", "python", "nothing"])
def test_a_line_to_paste_works_whatever_the_shell_finds(workdir: Path, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = workdir / "bin"
    folder.mkdir()
    beside = Path(sys.executable).absolute()
    if found != "nothing":
        monkeypatch.setenv("PATH", f"{beside.parent}:/usr/bin:/bin")
    else:
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if found == "python":
        monkeypatch.setattr("shutil.which", lambda name: None if name == "dnnkit" else str(beside.parent / name))
    line = pasteable("--version")
    assert line.startswith({"dnnkit": "dnnkit ", "python": "python -m dnnkit ", "nothing": f"{beside} -m dnnkit "}[found])
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=dict(os.environ), timeout=60)
    assert (done.returncode, done.stdout[:1].isdigit()) == (0, True)


def test_an_interpreter_in_the_working_folder_is_called_by_its_short_path(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", str(workdir / "my env/bin/python"))
    assert pasteable("ui", "1a2b3c4d") == "'my env/bin/python' -m dnnkit ui 1a2b3c4d"


def test_of_a_run_on_a_server_the_page_itself_is_named(workdir: Path) -> None:
    run = trained(workdir, "https://me:hush@host/base/")
    mark = Mark("https://host/base/", experiment_id="7", run_id="abc")
    assert look_at(run.path) is None
    mark.write(run.path)
    assert look_at(run.path) == "https://host/base/#/experiments/7/runs/abc?workflowType=machine_learning"
    assert look_at(run.path, all_runs=True) == "https://host/base/#/experiments/7?workflowType=machine_learning"


def test_of_a_run_on_a_server_ui_prints_the_page_and_starts_nothing(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "start", None)
    run = trained(workdir, "https://me:hush@host/base/")
    Mark("https://host/base/", experiment_id="7", run_id="abc").write(run.path)
    assert main(["ui", run.path.name[-8:]]) == 0
    out = capsys.readouterr().out
    whole, _, one = (line.split()[-1] for line in out.splitlines())
    assert [whole, one] == [look_at(run.path, all_runs=True), look_at(run.path)]


def test_the_last_line_of_a_sweep_says_which_store_and_experiment_are_not_the_default(workdir: Path, uri: str) -> None:
    run = trained(workdir, uri)
    Mark(uri, experiment_id="1", run_id="abc").write(run.path)
    assert str(look_at(run.path, all_runs=True)).endswith(" ui")
    other = trained(workdir, f"sqlite:///{workdir}/my.db", experiment="my study")
    Mark("sqlite:///my.db", experiment_id="1", run_id="abc").write(other.path)
    assert str(look_at(other.path, all_runs=True)).endswith(f" ui tracking.uri=sqlite:///{workdir}/my.db 'tracking.experiment=my study'")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((), 2, "there is no {}/mlflow.db: nothing has been recorded there"),
        (("tracking.uri=sqlite:///x.db",), 2, "there is no {}/x.db"),
        (("tracking.name=x",), 2, "is no setting of this command; there are: tracking.uri, tracking.experiment"),
        (("--port", "x"), 2, "must be an integer at least 1"),
        (("--prot", "5"), 2, "Did you mean '--port'?"),
        (("1a2b3c4d",), 6, "there is no run '1a2b3c4d'"),
        (("a", "b"), 2, "one run at a time"),
    ],
)
def test_what_cannot_be_shown_is_said_and_nothing_is_made(
    workdir: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, told: str
) -> None:
    assert main(["ui", *words]) == code
    assert told.format(workdir) in capsys.readouterr().err
    assert list(workdir.iterdir()) == []


def test_a_run_that_mlflow_has_not_is_said(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(workdir)
    assert main(["ui", run.path.name[-8:]]) == 6
    assert "is not in MLflow\n  It ran with tracking=none." in capsys.readouterr().err


def test_a_server_that_cannot_start_says_why_and_leaves_no_process(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workdir / "mlflow.db").write_text("this is no database, and no MLflow opens it")
    assert main(["ui"]) == 1
    assert "MLflow did not start: " in capsys.readouterr().err


def test_sigterm_ends_the_server_too(workdir: Path, uri: str) -> None:
    command = [sys.executable, "-m", "dnnkit", "ui"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    until = time.monotonic() + 90
    while not (started := Path(children).read_text().split()) and time.monotonic() < until:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(90) == 143
    assert len(started) == 1
    assert not Path(f"/proc/{started[0]}").exists()


def test_a_signal_while_the_server_is_being_started_leaves_no_process(workdir: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def interrupted(*words: Any, **settings: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*words, **settings))
        signal.raise_signal(signal.SIGTERM)  # before the one who called knows of the process
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    assert main(["ui"]) == 143
    assert started[0].poll() is not None
