"""Run folders become MLflow runs. The oracle is the SQLite file itself, read without MLflow."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dnnkit.checkpoint import RunState, save
from dnnkit.record import RunFolder, RunRecord, new_run
from dnnkit.sender import Outcome, Sender, artifact_root, resolve_uri
from dnnkit.sender.lines import LineReader, LineWriter
from dnnkit.sender.sync import sync
from tests.helpers import ask, eventually

CONFIG = {"name": "digits", "seed": 0, "model": {"hidden": [300, 100]}, "note": "x" * 7000}
PATIENT = 90.0  # seconds that a loaded machine may take for what takes five


@pytest.fixture
def start() -> Iterator[Callable[..., Sender]]:
    """`Sender.start`, with all that were started ended after the test."""
    started: list[Sender] = []

    def one(*arguments: Any, **keywords: Any) -> Sender:
        started.append(Sender.start(*arguments, **keywords))
        return started[-1]

    yield one
    for sender in started:
        if sender._process is not None:
            sender._process.kill()
        sender.close(PATIENT)


def described(folder: Path, uri: str | None = None, **facts: Any) -> RunFolder:
    """A run folder with all that is written before training starts."""
    run = new_run(folder / "runs", "digits", tracking_uri=uri, **facts)
    run.write_config(CONFIG, ["seed=0"])
    run.write_environment("cpu")
    run.write_tags(CONFIG, device="cpu", plugins={"dnnkit": "1"})
    run.write_dataset("digits", "f" * 64, origin="scikit-learn", inputs=(64,), card={"train": 1000})
    return run


def trained(folder: Path, uri: str | None = None, steps: int = 25, **facts: Any) -> RunFolder:
    """A run folder at its end."""
    run = described(folder, uri, **facts)
    for step in range(1, steps + 1):
        run.journal.log(step, {"train/loss": 1 / step, "lr": 0.1})
    run.journal.time(steps, {"time/epoch_s": 2.5})
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "figures/learning_curves.png", "figures/learning_rate.png", "run.log"):
        (run.path / name).write_text(name)
    (run.path / "diagnostics" / "signal.json").write_text("{}")
    run.finish("FINISHED", "finished", 0)
    return run


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_the_address_is_the_explicit_one_else_the_variable_else_a_database_in_the_working_folder(tmp_path: Path) -> None:
    variable = {"MLFLOW_TRACKING_URI": "http://variable"}
    assert resolve_uri("http://explicit", tmp_path, variable) == "http://explicit"
    assert resolve_uri(None, tmp_path, variable) == "http://variable"
    assert resolve_uri(None, tmp_path, {}) == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_uri("sqlite:///sub/my.db?timeout=5", tmp_path, {}) == f"sqlite:///{tmp_path}/sub/my.db?timeout=5"
    assert resolve_uri("sqlite:////elsewhere/my.db", tmp_path, {}) == "sqlite:////elsewhere/my.db"


def test_artifacts_lie_beside_the_database_and_where_a_server_wants_them(tmp_path: Path) -> None:
    assert artifact_root(f"sqlite:///{tmp_path}/mlflow.db", Path("/elsewhere")) == tmp_path / "mlruns"
    assert artifact_root("postgresql://db/mlflow", tmp_path) == tmp_path / "mlruns"
    assert artifact_root("http://host", tmp_path) is None


def test_everything_in_the_folder_arrives_in_mlflow(workdir: Path, uri: str, start: Callable[..., Sender]) -> None:
    sender = start(uri)
    run = trained(workdir, uri, experiment="my/experiment")
    sender.announce(run.path)
    outcome = sender.wait(run.path, PATIENT)
    assert outcome == Outcome("closed", sender.run_id(run.path))
    record = run.record
    ended = [int(1000 * time.mktime(time.strptime(when[:19], "%Y-%m-%dT%H:%M:%S"))) for when in (record.created, str(record.ended))]
    [(run_id, name, status, begun, over, experiment)] = ask(
        workdir,
        "select run_uuid, runs.name, status, start_time, end_time, experiments.name from runs join experiments using (experiment_id)",
    )
    assert (run_id, name, status, experiment) == (outcome.run_id, "digits", "FINISHED", "my/experiment")
    assert [moment // 1000 * 1000 for moment in (begun, over)] == ended
    params = dict(ask(workdir, "select key, value from params"))
    assert params == {"name": "digits", "seed": "0", "model.hidden": "[300, 100]", "note": "x" * 6000}
    assert "note: 7000 characters cut" in (run.path / "sender.log").read_text()
    tags = dict(ask(workdir, "select key, value from tags"))
    assert {key: tags[key] for key in tags if key.startswith("dnnkit.")} == {
        **json.loads((run.path / "tags.json").read_text()),
        "dnnkit.status": "finished",
    }
    metrics = ask(workdir, "select key, step, value from metrics order by key, step")
    losses = [("train/loss", step, 1 / step) for step in range(1, 26)]
    assert metrics == [*(("lr", step, 0.1) for step in range(1, 26)), ("time/epoch_s", 25, 2.5), *losses]
    assert ask(workdir, "select name, digest, dataset_source_type from datasets") == [("digits", "f" * 36, "local")]
    assert ask(workdir, "select count(*) from inputs") == [(1,)]


def test_the_promised_artifacts_are_uploaded_and_nothing_else(workdir: Path, uri: str) -> None:
    run = trained(workdir, uri)
    outcome = sync(run.path)
    root = workdir / "mlruns" / "dnnkit" / str(outcome.run_id) / "artifacts"
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == [
        "checkpoints/best.ckpt",
        "config/config.yaml",
        "config/overrides.yaml",
        "diagnostics/signal.json",
        "environment/environment.json",
        "environment/packages.txt",
        "figures/learning_curves.png",
        "figures/learning_rate.png",
        "run.log",
    ]


def test_a_value_that_is_not_finite_arrives_as_mlflow_writes_it(workdir: Path, uri: str) -> None:
    run = described(workdir, uri)
    run.journal.log(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    run.finish("FAILED", "diverged", 5)
    sync(run.path)
    largest = sys.float_info.max
    assert ask(workdir, "select key, value, is_nan from metrics order by key") == [("a", 0, 1), ("b", largest, 0), ("c", -largest, 0)]
    assert ask(workdir, "select status from runs") == [("FAILED",)]
    assert ask(workdir, "select value from tags where key = 'dnnkit.status'") == [("diverged",)]


def test_a_run_is_followed_while_it_goes_on(workdir: Path, uri: str, start: Callable[..., Sender]) -> None:
    sender = start(uri)
    run = described(workdir, uri)
    sender.announce(run.path)
    for step in (1, 2, 3):
        run.journal.log(step, {"train/loss": 1.0})
        eventually(lambda step=step: ask(workdir, "select count(*) from metrics") == [(step,)])
    assert ask(workdir, "select status from runs") == [("RUNNING",)]
    assert sender.outcome(run.path).state == "waiting"
    run.finish("KILLED", "interrupted", 130)
    assert sender.wait(run.path, PATIENT).state == "closed"
    assert ask(workdir, "select status from runs") == [("KILLED",)]


def test_one_sender_serves_many_runs_and_ends_by_itself_when_let_go(workdir: Path, uri: str, start: Callable[..., Sender]) -> None:
    sender = start(uri)
    runs = [trained(workdir, uri, steps=number) for number in (1, 2, 3)]
    for run in runs:
        sender.announce(run.path)
    sender.close(PATIENT)
    assert sender._process is not None
    assert sender._process.returncode == 0
    counts = "select count(*) from metrics where key = 'lr' group by run_uuid order by 1"
    assert (ask(workdir, counts), ask(workdir, "select distinct status from runs")) == ([(1,), (2,), (3,)], [("FINISHED",)])


TRAINER = """
import os, signal, sys, time
from pathlib import Path
from dnnkit.record import new_run
from dnnkit.sender import Sender
sender = Sender.start(sys.argv[1])
run = new_run(Path("runs"), "doomed", tracking_uri=sys.argv[1])
sender.announce(run.path)
run.journal.log(1, {"train/loss": 0.5})
while sender.run_id(run.path) is None:
    time.sleep(0.05)
run.journal.log(2, {"train/loss": 0.25})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_whose_process_is_killed_is_closed_as_killed_with_its_last_number(workdir: Path, uri: str) -> None:
    trainer = subprocess.run([sys.executable, "-c", TRAINER, uri], check=False, timeout=PATIENT)
    assert trainer.returncode == -signal.SIGKILL
    eventually(lambda: ask(workdir, "select status from runs") == [("KILLED",)])
    assert ask(workdir, "select step, value from metrics order by step") == [(1, 0.5), (2, 0.25)]
    assert ask(workdir, "select value from tags where key = 'dnnkit.status'") == [("killed",)]
    [folder] = (workdir / "runs").iterdir()
    assert (RunRecord.read(folder).status, RunRecord.read(folder).dnnkit_status) == ("KILLED", "killed")


def test_a_dead_trainer_whose_number_another_process_has_taken_is_still_known_to_be_dead(workdir: Path, uri: str) -> None:
    # The pid in run.json is this test's own, which lives; the process that started the sender does not.
    borrowed = f"run.record.__class__(**{{**run.record.__dict__, 'pid': {os.getpid()}}}).write(run.path)"
    script = TRAINER.replace("os.kill(", f"{borrowed}; os.kill(")
    assert subprocess.run([sys.executable, "-c", script, uri], check=False, timeout=PATIENT).returncode == -signal.SIGKILL
    eventually(lambda: ask(workdir, "select status from runs") == [("KILLED",)])


def test_control_c_in_the_terminal_does_not_reach_the_sender(workdir: Path, uri: str, start: Callable[..., Sender]) -> None:
    sender = start(uri)
    assert sender._process is not None
    assert os.getsid(sender._process.pid) != os.getsid(0)


class Killed(BaseException):
    """Stands for SIGKILL: no `except Exception` sees it."""


@pytest.mark.parametrize("moment", ["before the batch arrives", "after the batch has arrived", "after the run was created"])
def test_a_sender_killed_at_the_worst_moment_and_started_again_neither_loses_nor_doubles_a_row(
    workdir: Path, uri: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    run = described(workdir, uri)  # still going, so that each batch is sent with the time of the day
    for step in range(1, 1201):
        run.journal.log(step, {"train/loss": 1 / step, "lr": 0.1})
    log_batch, create_run = MlflowClient.log_batch, MlflowClient.create_run
    batches = 0

    def killed_in_the_second(self: Any, run_id: str, metrics: Any = (), **others: Any) -> None:
        nonlocal batches
        batches += bool(metrics)
        if batches == 2 and moment.startswith("before"):
            raise Killed
        log_batch(self, run_id, metrics=metrics, **others)
        if batches == 2:
            raise Killed

    def killed_after_creating(self: Any, *arguments: Any, **others: Any) -> None:
        create_run(self, *arguments, **others)
        raise Killed

    with monkeypatch.context() as patch:
        if "created" in moment:
            patch.setattr(MlflowClient, "create_run", killed_after_creating)
        else:
            patch.setattr(MlflowClient, "log_batch", killed_in_the_second)
        with pytest.raises(Killed):
            sync(run.path)
    time.sleep(0.01)  # another millisecond: a row that were sent again with a new time would be a second row
    assert sync(run.path).run_id is not None
    assert ask(workdir, "select count(*), count(distinct key || step) from metrics") == [(2400, 2400)]
    assert ask(workdir, "select count(*) from runs") == [(1,)]
    run.journal.close()


def test_a_sender_process_killed_in_the_middle_and_started_again_neither_loses_nor_doubles_a_row(workdir: Path, uri: str) -> None:
    run = described(workdir, uri)
    for step in range(1, 25_001):
        run.journal.log(step, {"train/loss": 1 / step, "lr": 0.1})
    command = [sys.executable, "-m", "dnnkit.sender", str(run.path)]
    kills = 0
    for rows in (2_000, 12_000, 22_000):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            eventually(lambda rows=rows: ask(workdir, "select count(*) from metrics")[0][0] >= rows or process.poll() is not None)
            kills += process.poll() is None
            process.kill()
    assert kills == 3
    run.finish("FINISHED", "finished", 0)
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENT)
    assert answer.stdout.startswith("closed: MLflow run ")
    assert ask(workdir, "select count(*), count(distinct key || step) from metrics") == [(50_000, 50_000)]
    assert ask(workdir, "select status from runs") == [("FINISHED",)]


def test_syncing_twice_changes_nothing(workdir: Path, uri: str) -> None:
    run = trained(workdir, uri)
    before = sync(run.path)
    rows = ask(workdir, "select * from metrics order by key, step")
    assert sync(run.path) == before
    assert ask(workdir, "select * from metrics order by key, step") == rows
    assert ask(workdir, "select count(*) from runs") == [(1,)]


def test_a_run_that_was_cut_back_and_resumed_continues_its_mlflow_run(workdir: Path, uri: str) -> None:
    run = described(workdir, uri)
    for step in (1, 2, 3):
        run.journal.log(step, {"train/loss": 1 / step})
        run.journal.time(step, {"time/epoch_s": step / 3})
    run.record.ended_as("KILLED", "killed", None).write(run.path)
    first = sync(run.path)
    for name in ("metrics.jsonl", "timing.jsonl"):  # back to the checkpoint after step 1
        whole = (run.path / name).read_bytes()
        (run.path / name).write_bytes(whole[: whole.index(b"\n") + 1])
    again = RunFolder(run.path)
    for step in (2, 3, 4):
        again.journal.log(step, {"train/loss": 1 / step})
        again.journal.time(step, {"time/epoch_s": 7.0})
    again.finish("FINISHED", "finished", 0)
    assert sync(run.path) == first
    assert ask(workdir, "select step from metrics where key = 'train/loss' order by step") == [(1,), (2,), (3,), (4,)]
    assert ask(workdir, "select step from metrics where key = 'time/epoch_s' order by step") == [(1,), (2,), (3,), (4,)]
    assert ask(workdir, "select status from runs") == [("FINISHED",)]


def test_a_journal_cut_back_under_a_live_sender_is_read_again_from_the_start(tmp_path: Path) -> None:
    from dnnkit.sender.mark import Batch, Mark, Tail

    mark = Mark("sqlite://")
    tail, seen = Tail(tmp_path, mark), []
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "key": "a", "value": 0.123456789}) + "\n" for step in (1, 2, 3)]
    shorter = [json.dumps({"step": step, "key": "a", "value": 0.5}) + "\n" for step in (2, 3, 4)]
    for content in (lines, lines[:1], lines[:1] + shorter):
        path.write_text("".join(content))
        if rows := tail.next_batch(100):
            mark.begin(tmp_path, Batch(0, rows))
            mark.done(tmp_path)
        seen.append([row.step for row in rows])
    assert seen == [[1, 2, 3], [], [4]]


def test_a_run_that_is_still_going_is_sent_as_far_as_it_is_and_left_open(workdir: Path, uri: str) -> None:
    run = described(workdir, uri)
    run.journal.log(1, {"train/loss": 1.0})
    assert sync(run.path).state == "waiting"
    assert ask(workdir, "select status from runs") == [("RUNNING",)]
    assert run.record.status == "RUNNING"


def test_two_senders_do_not_follow_one_folder(workdir: Path, uri: str, start: Callable[..., Sender]) -> None:
    run = described(workdir, uri)
    sender = start(uri)
    sender.announce(run.path)
    eventually(lambda: sender.run_id(run.path))
    assert "another sender is following" in sync(run.path).message


def test_a_follower_that_had_to_wait_goes_on_from_what_was_sent_meanwhile(workdir: Path, uri: str) -> None:
    from dnnkit.sender.follow import Follower
    from dnnkit.sender.store import Store

    run, store = trained(workdir, uri), Store(uri, artifact_root(uri, workdir))
    first, second = (Follower(run.path, store, lambda event: None) for _ in range(2))
    for follower in (first, second):
        eventually(follower.advance)
    assert ask(workdir, "select count(*) from runs") == [(1,)]
    assert ask(workdir, "select count(*) from metrics") == [(51,)]


def test_a_sender_of_an_earlier_process_lets_go_of_a_run_that_another_one_has_resumed(workdir: Path, uri: str) -> None:
    from dnnkit.sender.follow import Follower
    from dnnkit.sender.store import Store

    run, store = described(workdir, uri), Store(uri, artifact_root(uri, workdir))
    follower = Follower(run.path, store, lambda event: None)
    run.record.resumed_at(0, "checkpoints/last.ckpt").write(run.path)
    follower.orphaned = True
    assert follower.advance()
    assert run.record.status == "RUNNING"
    assert ask(workdir, "select count(*) from runs") == [(0,)]


def test_a_deleted_experiment_is_a_failure_that_says_what_to_do(workdir: Path, uri: str) -> None:
    from dnnkit.sender.store import Store

    store = Store(uri, workdir / "mlruns")
    store.client.delete_experiment(store.experiment("gone"))
    outcome = sync(trained(workdir, uri, experiment="gone").path)
    assert outcome.state == "failed"
    assert "restore it there or choose another tracking.experiment" in outcome.message


def test_a_server_that_is_down_is_reported_within_seconds_and_the_folder_synced_later(
    workdir: Path, uri: str, start: Callable[..., Sender]
) -> None:
    down = f"http://me:hush@127.0.0.1:{closed_port()}/?token=abcdef"
    begun = time.monotonic()
    sender = start(down)
    run = trained(workdir, down)
    (run.path / "figures" / "learning_curves.png").unlink()
    sender.announce(run.path)
    outcome = sender.wait(run.path, PATIENT)
    assert (run.path / "figures" / "learning_curves.png").stat().st_size > 1000  # figures do not depend on MLflow
    assert time.monotonic() - begun < 45
    assert (outcome.state, outcome.run_id) == ("failed", None)
    assert outcome.message.startswith("no answer from http://127.0.0.1:")
    assert not [path for path in workdir.rglob("*") if path.is_file() and (b"hush" in path.read_bytes() or b"abcdef" in path.read_bytes())]
    assert sync(run.path, uri).state == "closed"


def test_a_run_is_created_late_when_its_server_comes_up_late(workdir: Path, uri: str, start: Callable[..., Sender]) -> None:
    file = workdir / "mlflow.db"
    kept = file.rename(workdir / "kept.db")
    file.mkdir()  # a database that cannot be opened
    sender = start(uri)
    run = described(workdir, uri)
    run.journal.log(1, {"train/loss": 1.0})
    sender.announce(run.path)
    assert eventually(lambda: sender.outcome(run.path).message)
    file.rmdir()
    kept.rename(file)
    assert eventually(lambda: sender.run_id(run.path))
    run.finish("FINISHED", "finished", 0)
    assert sender.wait(run.path, PATIENT).state == "closed"


def test_a_sender_that_dies_is_reported_and_ends_nothing(workdir: Path, uri: str, start: Callable[..., Sender]) -> None:
    sender = start(uri)
    run = trained(workdir, uri)
    assert sender._process is not None
    sender._process.kill()
    sender._process.wait()
    sender.announce(run.path)
    assert sender.wait(run.path, PATIENT) == Outcome("failed", None, "the sender ended with code -9")


def test_a_sender_that_cannot_be_started_is_reported_and_ends_nothing(workdir: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(workdir / "no-python"))
    sender = Sender.start(uri)
    run = trained(workdir, uri)
    sender.announce(run.path)
    outcome = sender.wait(run.path, PATIENT)
    assert outcome.state == "failed"
    assert "could not be started" in outcome.message
    sender.close()


def test_a_sender_that_hangs_holds_nothing_up(workdir: Path, uri: str, start: Callable[..., Sender]) -> None:
    sender = start(uri)
    assert sender._process is not None
    os.kill(sender._process.pid, signal.SIGSTOP)
    begun = time.monotonic()
    for number in range(3000):  # more than a pipe holds
        sender.announce(workdir / f"{number:0100}")
    assert time.monotonic() - begun < 10
    assert sender.wait(workdir / "0", 0.5).state == "waiting"
    assert time.monotonic() - begun < 15


def test_lines_pass_a_full_pipe_whole_and_in_order() -> None:
    left, right = os.pipe()
    writer, reader = LineWriter(right), LineReader(left)
    for number in range(20_000):
        writer.write({"number": number})
    seen: list[int] = []
    while len(seen) < 20_000:
        seen += [line["number"] for line in reader.read(1.0)]
        writer.flush()
    os.close(right)
    assert seen == list(range(20_000))
    assert reader.read(1.0) == []
    assert not reader.open
    os.close(left)


def test_writing_to_an_end_that_is_gone_is_noticed_and_harmless() -> None:
    left, right = os.pipe()
    writer = LineWriter(right)
    os.close(left)
    writer.write({"a": 1})
    assert not writer.open
    os.close(right)


FIRST_RUN = """
import sys
from pathlib import Path
from dnnkit.record import new_run
from dnnkit.sender import Sender, resolve_uri
uri = resolve_uri(None, Path.cwd(), {})
sender = Sender.start(uri)
run = new_run(Path("runs"), "first", tracking_uri=uri)
sender.announce(run.path)
run.journal.log(1, {"train/loss": 0.5})
run.finish("FINISHED", "finished", 0)
outcome = sender.wait(run.path, 300)
sender.close(60)
sys.exit(0 if outcome.state == "closed" else outcome.message or outcome.state)
"""


def with_network(run: RunFolder, config: dict[str, Any], net: nn.Module) -> None:
    """Puts a checkpoint of `net` into the run folder."""
    mean, std = torch.zeros(1), torch.ones(1)
    state = RunState(config, "d" * 64, (2, 3), 3, ("a", "b", "c"), mean, std, 0, "0")
    weights = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    save({"state_dict": weights, "dnnkit": state.as_dict()}, run.path / "checkpoints/best.ckpt")


@pytest.mark.filterwarnings("ignore")  # torch.export and MLflow have their own
@pytest.mark.parametrize(("precision", "dtype"), [("32", torch.float32), ("64", torch.float64)])
def test_log_model_gives_a_model_that_mlflow_loads_and_that_takes_any_batch(
    workdir: Path, uri: str, precision: str, dtype: torch.dtype
) -> None:
    import mlflow

    from dnnkit.config import compose
    from dnnkit.network import build_network

    # Parts that must be in evaluation mode.
    config = compose(["model.hidden=[4]", "normalization=batch_norm", "dropout=dropout", f"trainer.precision={precision}"]).values
    net = build_network(config, (2, 3), 3, seed=1).to(dtype).train()
    net(torch.randn(50, 2, 3, dtype=dtype) * 3 + 1)
    run = trained(workdir, uri, log_model=True)
    with_network(run, config, net)
    outcome = sync(run.path)
    assert (outcome.state, outcome.message) == ("closed", "")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        loaded = mlflow.pytorch.load_model(f"runs:/{outcome.run_id}/model")
    finally:
        mlflow.set_tracking_uri(before)
    for rows in (1, 2, 7):
        x = torch.randn(rows, 2, 3, dtype=dtype)
        torch.testing.assert_close(loaded(x), net.eval()(x), rtol=1e-6, atol=1e-6)
    assert not [path for path in (run.path / "model").rglob("*") if "pickle" in path.name]


def test_a_model_that_cannot_be_saved_is_a_warning_and_the_run_is_closed(workdir: Path, uri: str) -> None:
    run = trained(workdir, uri, log_model=True)
    (run.path / "checkpoints/best.ckpt").unlink()
    outcome = sync(run.path)
    assert outcome.state == "closed"
    assert "model/ could not be saved: CheckpointError: there is no" in outcome.message
    assert ask(workdir, "select status from runs") == [("FINISHED",)]


@pytest.mark.parametrize("count", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_first_runs_started_at_once_in_a_fresh_folder_all_succeed(workdir: Path, count: int) -> None:
    runs = [subprocess.Popen([sys.executable, "-c", FIRST_RUN], stderr=subprocess.PIPE, text=True) for _ in range(count)]
    said = [run.communicate(timeout=500)[1] for run in runs]
    assert ([run.returncode for run in runs], said) == ([0] * count, [""] * count)
    assert ask(workdir, "select status, count(*) from runs group by 1") == [("FINISHED", count)]
    assert ask(workdir, "select count(*) from metrics") == [(count,)]
    assert ask(workdir, "select count(*) from experiments where name = 'dnnkit'") == [(1,)]
    assert ask(workdir, "select artifact_location from experiments where name = 'dnnkit'") == [((workdir / "mlruns/dnnkit").as_uri(),)]


def test_an_experiment_that_another_process_creates_first_is_used(workdir: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    from dnnkit.sender.store import Store

    store, look = Store(uri, workdir / "mlruns"), MlflowClient.get_experiment_by_name
    theirs = store.client.create_experiment("shared")
    looks: list[str] = []

    def too_early(self: MlflowClient, name: str) -> Any:
        looks.append(name)
        return None if len(looks) == 1 else look(self, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", too_early)
    assert store.experiment("shared") == theirs
    assert looks == ["shared", "shared"]


@pytest.mark.slow
def test_runs_started_at_once_against_a_server_share_one_experiment(workdir: Path, uri: str) -> None:
    port = closed_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: answers(f"{address}/health"))
        code = FIRST_RUN.replace("resolve_uri(None, Path.cwd(), {})", repr(address))
        runs = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(3)]
        assert [run.communicate(timeout=300)[1] for run in runs] == [""] * 3
        assert ask(workdir, "select status, count(*) from runs group by 1") == [("FINISHED", 3)]
        assert ask(workdir, "select count(*) from experiments where name = 'dnnkit'") == [(1,)]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
