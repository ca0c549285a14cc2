"""The page of a run: its name, its description, what of the signal is on it, and the command that opens it.

The oracles are the SQLite file, read without MLflow, MLflow's own server, and a shell.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dnnkit.cli import main
from dnnkit.cli.ui import _has_screen
from dnnkit.errors import DnnkitError
from dnnkit.record import Journal, Row, RunFolder, new_run, read_journal
from dnnkit.record.journal import cut_journals
from dnnkit.record.title import command, title
from dnnkit.sender import page
from dnnkit.sender.mark import Batch, Mark, Tail
from dnnkit.sender.page import Remote, Server
from dnnkit.sender.rewind import rewound
from dnnkit.sender.summaries import SUMMARIES, summary
from dnnkit.sender.sync import sync
from dnnkit.training.invocation import pasteable
from dnnkit.training.report import look_at
from tests.helpers import PATIENT, ask


def trained(folder: Path, uri: str | None = None, **facts: Any) -> RunFolder:
    """A run folder at its end, with two numbers."""
    run = new_run(folder / "runs", "digits", tracking_uri=uri, **facts)
    run.journal.log(0, {"train/loss": 0.5, "lr": 0.1})
    run.finish("FINISHED", "finished", 0)
    return run


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


@pytest.mark.parametrize("damage", ["{", "[]", '{"start": [{"word": "dead"}]}'])
def test_a_run_whose_verdicts_are_damaged_has_no_description_and_is_recorded(workdir: Path, uri: str, damage: str) -> None:
    run = trained(workdir, uri, command="dnnkit")
    (run.path / "diagnostics/verdicts.json").write_text(damage)
    assert sync(run.path).state == "closed"
    assert ask(workdir, "select status from runs") == [("FINISHED",)]
    assert ask(workdir, "select value from tags where key = 'mlflow.note.content'") == []
    assert "no description: " in (run.path / "sender.log").read_text()


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


#: Whatever http_proxy says, these servers are on this machine.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(address: str) -> Any:
    with DIRECT.open(address, timeout=60) as answer:
        assert answer.status == 200
        return answer.read()


def ctrl_c() -> None:
    """In a new process: Ctrl-C interrupts it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_last_line_of_a_run_pasted_into_the_shell_opens_the_page_of_the_run_and_ends_with_ctrl_c(workdir: Path, uri: str) -> None:
    run = trained(workdir, uri, experiment="my experiment")
    write(run.path, [Row(1, "test/loss", 0.25), Row(1, "test/acc", 0.5)])
    outcome = sync(run.path)
    line = look_at(run.path)
    assert line is not None
    assert line.endswith(f" ui {run.path.name[-8:]}")
    # As in a terminal, also where these tests run in the background, where a shell has Ctrl-C ignored.
    words = ["bash", "-c", f"exec {line}"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=ctrl_c)
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
        _, said = process.communicate(timeout=PATIENT)
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


def test_the_last_line_of_a_sweep_on_a_database_with_a_password_says_nothing_that_the_variable_says(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "postgresql://me:hush@host/runs"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    run = trained(workdir, address)
    Mark("postgresql://host/runs", experiment_id="1", run_id="abc").write(run.path)
    assert str(look_at(run.path, all_runs=True)).endswith(" ui")


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
        (("1a2b3c4d", "tracking.experiment=x"), 2, "1a2b3c4d is shown in the experiment that it is in; leave this out"),
        (("tracking.uri=http://me:hush@host", "--port", "5001"), 2, "the runs are on the server http://host; nothing is started here"),
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


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that are started from here on."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*words: Any, **settings: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*words, **settings))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    return started


def is_gone(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has ended, and all others of the group that it leads."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return process.returncode is not None
    return False


def test_a_server_that_cannot_start_says_why_and_leaves_no_process(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = recorded(monkeypatch)
    (workdir / "mlflow.db").write_text("this is no database, and no MLflow opens it")
    assert main(["ui"]) == 1
    assert "MLflow did not start: " in capsys.readouterr().err
    assert len(started) == 1
    assert is_gone(started[0])


def test_a_server_that_does_not_answer_leaves_no_process(
    workdir: Path, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = recorded(monkeypatch)
    monkeypatch.setattr(page, "PATIENCE_S", 0.0)
    monkeypatch.setattr(page, "_answers", lambda address: False)
    assert main(["ui"]) == 1
    assert "MLflow does not answer at http://127.0.0.1:" in capsys.readouterr().err
    assert len(started) == 1
    assert is_gone(started[0])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sigterm_ends_the_server_too_which_was_at_the_port_that_was_named(workdir: Path, uri: str) -> None:
    assert sync(trained(workdir, uri).path).state == "closed"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]  # and not the usual one
    command = [sys.executable, "-m", "dnnkit", "ui", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        address = process.stdout.readline().split()[-1].partition("/#/")[0]
        assert address == f"http://127.0.0.1:{port}"
        assert get(f"{address}/health") == b"OK"
        started = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    finally:
        process.terminate()
        process.communicate(timeout=PATIENT)
    assert process.returncode == 143
    assert len(started) == 1
    assert not Path(f"/proc/{started[0]}").exists()
    with pytest.raises(OSError, match="refused"):
        get(address)


def test_a_signal_while_the_server_is_being_started_leaves_no_process(workdir: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started = recorded(monkeypatch)
    start = subprocess.Popen

    def interrupted(*words: Any, **settings: Any) -> subprocess.Popen[bytes]:
        process = start(*words, **settings)
        signal.raise_signal(signal.SIGTERM)  # before the one who called knows of the process
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    assert main(["ui"]) == 143
    assert len(started) == 1
    assert is_gone(started[0])


# A server that is ours, and what it is asked

ODD = "my study & 100% more/less?"


class Foreign(BaseHTTPRequestHandler):
    """Somebody else's server, which takes every question for one of its own."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"OK")

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def foreign() -> Iterator[int]:
    """The port of such a server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Foreign)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def shown_run(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run in an experiment of an odd name, in the store of its folder."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copy(migrated, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = trained(folder, f"sqlite:///{folder}/mlflow.db", experiment=ODD)
        write(run.path, [Row(1, "test/loss", 0.25)])
        assert sync(run.path).state == "closed"
    return run


@pytest.fixture(scope="module")
def served(shown_run: RunFolder, foreign: int) -> Iterator[Server]:
    """MLflow on that store: where another server is at the usual port, a proxy is named that is not there, and files have odd names."""
    folder = shown_run.path.parent.parent
    for name in ("random.py", "flask.py"):
        (folder / name).write_text("raise SystemExit('this is none of the modules of MLflow or Python')")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "USUAL_PORT", foreign)
        patch.setenv("http_proxy", "http://127.0.0.1:9")
        patch.delenv("no_proxy", raising=False)
        server = Server.start(f"sqlite:///{folder}/mlflow.db")
    yield server
    server.end()


def test_where_another_server_is_at_the_usual_port_ours_is_at_another_and_is_the_one_that_answers(served: Server, foreign: int) -> None:
    assert served.address.startswith("http://127.0.0.1:")
    assert served.address != f"http://127.0.0.1:{foreign}"
    assert b"<title>MLflow</title>" in get(served.address)
    assert "/health" not in Foreign.asked


def test_a_proxy_that_is_named_before_anything_is_imported_is_not_asked_for_this_machine(foreign: int) -> None:
    code = f"from dnnkit.sender.page import _answers; raise SystemExit(0 if _answers('http://127.0.0.1:{foreign}/') else 1)"
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    done = subprocess.run([sys.executable, "-c", code], env={**environment, "http_proxy": "http://127.0.0.1:9"}, timeout=120)
    assert done.returncode == 0


@pytest.mark.parametrize("port", ["theirs", "99999"])
def test_a_port_that_cannot_be_had_is_said_and_nothing_is_started(
    port: str, foreign: int, workdir: Path, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = recorded(monkeypatch)
    number = str(foreign) if port == "theirs" else port
    assert main(["ui", "--port", number]) == 2
    assert f"--port: the port {number} cannot be had: " in capsys.readouterr().err
    assert started == []


def test_from_the_first_moment_nobody_else_can_have_the_port() -> None:
    with page.listen() as ours, pytest.raises(OSError, match="in use"):
        ThreadingHTTPServer(ours.getsockname(), Foreign)  # with SO_REUSEADDR, as MLflow's own server


@pytest.mark.parametrize("kind", ["here", "elsewhere"])
def test_a_server_is_asked_for_experiments_by_names_of_any_letters(kind: str, served: Server, shown_run: RunFolder) -> None:
    store = served if kind == "here" else Remote(served.address)
    folder = shown_run.path.parent.parent
    [(experiment, run_id)] = ask(folder, "select experiment_id, run_uuid from runs")
    assert store.experiment_id(ODD) == str(experiment)
    assert store.experiment_id("my study ") is None
    assert sorted(store.experiments()) == ["Default", ODD]
    assert store.experiment_of(run_id) == str(experiment)
    assert store.experiment_of("0" * 32) is None
    assert (served.has_view(str(experiment)), served.has_view("0")) == (True, False)


def test_an_answer_that_cannot_be_read_and_none_at_all_are_said(foreign: int, served: Server) -> None:
    with page.listen() as closed:
        nobody = closed.getsockname()[1]
    for port in (foreign, nobody):
        with pytest.raises(DnnkitError, match="MLflow gave no answer to experiments/search"):
            dataclasses.replace(served, address=f"http://127.0.0.1:{port}").experiments()
    with pytest.raises(DnnkitError, match="MLflow answered 400 to experiments/get"):
        served._ask("experiments/get?experiment_id=")


class Over:
    """In the place of the server's process, which ends at once."""

    def wait(self, timeout: float | None = None) -> int:
        return 0


@pytest.fixture
def over(served: Server, shown_run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Over:
    """`dnnkit ui` shows what that server has, which is not ended with it."""
    process = Over()
    server = dataclasses.replace(served, process=process)  # type: ignore[arg-type]
    monkeypatch.chdir(shown_run.path.parent.parent)
    monkeypatch.setattr(Server, "start", lambda uri, port: server)
    monkeypatch.setattr(Server, "end", lambda server: None)
    return process


def browser(monkeypatch: pytest.MonkeyPatch, tty: bool = True) -> list[str]:
    """The pages that are opened from here on; a test is in a terminal with a screen."""
    pages: list[str] = []
    monkeypatch.setattr("webbrowser.open", pages.append)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: tty, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    return pages


@pytest.mark.parametrize(("words", "opens"), [((f"tracking.experiment={ODD}",), "table"), (("tracking.experiment=Default",), "runs")])
def test_without_a_run_the_table_of_an_experiment_is_opened_or_its_runs_where_it_has_no_columns_of_ours(
    words: tuple[str, ...], opens: str, over: Over, served: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = browser(monkeypatch)
    assert main(["ui", *words]) == 1  # since it ends by itself
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert list(printed) == (["runs", "table", "curves"] if opens == "table" else ["runs", "curves"])
    experiment = served.experiment_id(words[0].partition("=")[2])
    assert printed["runs"] == f"{served.address}/#/experiments/{experiment}?workflowType=machine_learning"
    assert opened == [printed[opens]]


def test_with_a_run_its_page_is_opened(
    over: Over, shown_run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = browser(monkeypatch)
    assert main(["ui", shown_run.path.name[-8:]]) == 1
    assert opened == [capsys.readouterr().out.split()[-1]]
    assert f"/runs/{json.loads((shown_run.path / 'sender.json').read_text())['run_id']}?" in opened[0]


@pytest.mark.parametrize("without", ["browser", "terminal", "screen"])
def test_no_browser_is_opened_without(
    without: str, over: Over, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = browser(monkeypatch, tty=without != "terminal")
    if without == "screen":
        monkeypatch.setattr("dnnkit.cli.ui._has_screen", lambda: False)
    assert main(["ui", f"tracking.experiment={ODD}", *["--no-browser"] * (without == "browser")]) == 1
    assert opened == []


@pytest.mark.parametrize(
    ("platform", "variables", "screen"),
    [("darwin", {}, True), ("linux", {}, False), ("linux", {"DISPLAY": ":0"}, True), ("linux", {"WAYLAND_DISPLAY": "w"}, True)],
)
def test_a_screen_is_told_by_what_the_platform_says(
    platform: str, variables: dict[str, str], screen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, setting in variables.items():
        monkeypatch.setenv(name, setting)
    monkeypatch.setattr(sys, "platform", platform)
    assert _has_screen() is screen


@pytest.mark.parametrize("kind", ["here", "elsewhere"])
def test_an_experiment_that_is_not_there_is_said_with_those_that_are(
    kind: str, over: Over, served: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    address = served.uri if kind == "here" else served.address
    assert main(["ui", f"tracking.uri={address}", f"tracking.experiment={ODD[:-1]}"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"there is no experiment {ODD[:-1]!r} in {address}; there are: " in said.err
    assert f"Did you mean 'tracking.experiment={ODD}'?" in said.err
    assert main(["ui", f"tracking.uri={address}", f"tracking.experiment={ODD}", "--no-browser"]) == (1 if kind == "here" else 0)


@pytest.mark.parametrize("kind", ["here", "elsewhere"])
def test_a_run_that_the_store_does_not_know_is_said(
    kind: str, over: Over, served: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path, "sqlite:///other.db")
    Mark("sqlite:///other.db", experiment_id="1", run_id="0" * 32).write(run.path)
    address = served.uri if kind == "here" else served.address
    assert main(["ui", str(run.path), f"tracking.uri={address}"]) == 6
    said = capsys.readouterr()
    assert said.out == ""
    assert f"the run {'0' * 32} is not in {address}" in said.err


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
@pytest.mark.parametrize("ignored", [False, True])
def test_a_signal_ends_it_unless_it_is_ignored_as_after_nohup(
    number: signal.Signals, ignored: bool, over: Over, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(over, "wait", lambda timeout=None: signal.raise_signal(number), raising=False)
    before = signal.signal(number, signal.SIG_IGN if ignored else lambda *_: None)
    try:
        assert main(["ui", f"tracking.experiment={ODD}"]) == (1 if ignored else 128 + number)
    finally:
        signal.signal(number, before)


def test_while_the_server_is_being_started_an_ignored_signal_stays_ignored_and_another_waits() -> None:
    came: list[int] = []
    before = [(one, signal.getsignal(one)) for one in (signal.SIGHUP, signal.SIGTERM)]
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda one, _: came.append(one))
        with page.held_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            signal.raise_signal(signal.SIGTERM)
            assert came == []
        assert came == [signal.SIGTERM]
    finally:
        for one, handler in before:
            signal.signal(one, handler)
