"""Going on with a run: what it becomes is what one run without a break would have been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import dnnkit
from dnnkit.checkpoint import load
from dnnkit.cli.main import main
from dnnkit.errors import CheckpointError, ConfigError, DataError, Interrupted
from dnnkit.record import Row, RunRecord, read_journal
from dnnkit.registry import schedulers
from dnnkit.sender.mark import Batch, Mark, Tail
from dnnkit.training.evaluate import evaluate
from dnnkit.training.resume import MAY_CHANGE, resume
from tests.helpers import ask, eventually

QUICK = ("tracking=none", "trainer.progress_bar=false")
SMALL = ("data.val_size=300", "trainer.limit_train_batches=20", "trainer.log_every_n_steps=7")


def train(*overrides: str) -> Path:
    return dnnkit.train(dnnkit.compose([*QUICK, *SMALL, *overrides])).run_dir


def rows(folder: Path) -> list[Row]:
    return read_journal(folder / "metrics.jsonl")


def trained(folder: Path) -> list[Row]:
    """What training and validation wrote: the probes and tests at a run's end are left out, which come in every part."""
    return [row for row in rows(folder) if not row.key.startswith(("signal/", "test/"))]


def times(folder: Path) -> list[tuple[int, str]]:
    """Where the journal of wall-clock metrics has a row: each epoch is timed once, from its own beginning."""
    found = read_journal(folder / "timing.jsonl")
    assert all(row.value < 100 for row in found if row.key == "time/epoch_s")
    return [(row.step, row.key) for row in found]


def at_the_end(folder: Path) -> list[Row]:
    last = max(row.step for row in rows(folder))
    return [row for row in rows(folder) if row.step == last]


def assert_equal(one: Any, other: Any) -> None:
    """Checkpoints, compared bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_equal(mine, theirs)
    else:
        assert one == other


def assert_same_run(resumed: Path, whole: Path) -> None:
    assert trained(resumed) == trained(whole)
    assert at_the_end(resumed) == at_the_end(whole)
    for name in ("best.ckpt", "last.ckpt"):
        mine, theirs = (load(folder / "checkpoints" / name) for folder in (resumed, whole))
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
            assert_equal(mine[key], theirs[key])
    assert not [place for place, count in Counter((row.step, row.key) for row in rows(resumed)).items() if count > 1]


PARTS = {
    "plain": ("scheduler=constant",),
    "much at once": (
        "scheduler=constant", "dropout=dropout", "normalization=batch_norm", "optimizer=adam", "optimizer.lr=0.001", "clipping=norm",
        "trainer.accumulate_grad_batches=3", "constraint=max_norm", "regularizer=l2",
        "optimizer.weight_decay=0.01", "optimizer.groups=[{match: output, lr_scale: 0.5, clipping: value}, {role: norm, lr_scale: 2}]",
    ),
    "validation inside the epoch": ("scheduler=constant", "trainer.val_check_interval=0.25"),
    "a stream in 64 bits": ("scheduler=constant", "data.loader=stream", "trainer.precision=64"),
    "whole epochs": ("scheduler=constant", "trainer.limit_train_batches=1.0", "trainer.log_every_n_steps=50"),
    "values": ("scheduler=constant", "optimizer.lr=0.001", "data=diabetes", "data.val_size=80", "trainer.limit_train_batches=1.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_two_epochs_and_two_more_are_four_epochs_bit_for_bit(workdir: Path, name: str) -> None:
    whole, parts = train(*PARTS[name], "trainer.max_epochs=4"), train(*PARTS[name], "trainer.max_epochs=2")
    result = resume(parts.name[-8:], ["trainer.max_epochs=4"])
    assert result.run_dir == parts
    assert_same_run(parts, whole)
    assert times(parts) == times(whole)
    last = {row.key: row.value for row in rows(parts)}
    assert dict(result.metrics) == last


def test_a_run_can_be_resumed_again_and_again(workdir: Path) -> None:
    whole, parts = train("scheduler=constant", "trainer.max_epochs=3"), train("scheduler=constant", "trainer.max_epochs=1")
    resume(parts, ["trainer.max_epochs=2"])
    resume(parts, ["trainer.max_epochs=3"])
    assert_same_run(parts, whole)
    record = RunRecord.read(parts)
    assert [(part["step"], part["status"]) for part in record.earlier] == [(20, "FINISHED"), (40, "FINISHED")]
    assert (record.status, record.resumed_step, record.exit_code) == ("FINISHED", 40, 0)


@pytest.mark.parametrize("name", ["one_cycle", "cosine", "exponential"])
def test_a_schedule_over_the_whole_run_is_that_of_the_longer_run_from_there_on(workdir: Path, name: str) -> None:
    parts = train(f"scheduler={name}", "trainer.max_epochs=2", "optimizer.lr=0.08")
    factor = schedulers.get(name).function

    def rate(step: int, total: int) -> float:
        value = factor(max(0, step - 1), total)  # the row at a step is about the update that made it, at 0 about the first
        return 0.08 * (value[0] if isinstance(value, tuple) else value)

    result = resume(parts, ["trainer.max_epochs=5"])
    found = {row.step: row.value for row in rows(parts) if row.key == "lr"}
    assert found == pytest.approx({step: rate(step, 40 if step <= 40 else 100) for step in found}, rel=1e-12)
    assert max(found) == 100
    said = (result.run_dir / "run.log").read_text()
    assert f"the schedule {name} is over the whole run: from step 40 on, the rate is that of a run of 100 steps, not of 40" in said


KILL = """
import os, signal, sys, torch, dnnkit
calls, original = [], torch._fused_sgd_
def step(*arguments, **keywords):
    calls.append(None)
    if len(calls) == {at}:
        os.kill(os.getpid(), signal.{number})
    return original(*arguments, **keywords)
torch._fused_sgd_ = step
dnnkit.train(dnnkit.compose({overrides!r}))
"""


def killed(number: str, at: int, *overrides: str) -> Path:
    """A run that got a signal in its update number `at`."""
    before = set(Path("runs").glob("*"))
    script = KILL.format(number=number, at=at, overrides=[*QUICK, *SMALL, *overrides])
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode != 0
    (folder,) = set(Path("runs").glob("*")) - before
    return folder.absolute()


@pytest.mark.parametrize("number", ["SIGKILL", "SIGINT"])
def test_a_run_that_was_ended_inside_an_epoch_becomes_the_run_without_a_break(workdir: Path, number: str) -> None:
    settings = ("trainer.max_epochs=4", "trainer.val_check_interval=0.5", "dropout=dropout")
    whole, broken = train(*settings), killed(number, 51, *settings)
    if number == "SIGINT":
        assert {path.name for path in (broken / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "epoch.ckpt"}
        assert 40 < max(row.step for row in rows(broken)) < 60
    else:
        assert RunRecord.read(broken).status == "RUNNING"
    resume(broken)
    assert_same_run(broken, whole)
    assert {path.name for path in (broken / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert times(broken) == times(whole)


def test_a_signal_in_a_resumed_run_leaves_the_epoch_before_to_go_on_from(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = train("trainer.max_epochs=3"), killed("SIGINT", 31, "trainer.max_epochs=3")
    original = torch._fused_sgd_
    with monkeypatch.context() as patch:
        calls: list[None] = []

        def step(*arguments: Any, **keywords: Any) -> Any:
            calls.append(None)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return original(*arguments, **keywords)

        patch.setattr(torch, "_fused_sgd_", step)
        with pytest.raises(Interrupted):
            resume(broken)
    record = RunRecord.read(broken)
    assert (record.status, record.exit_code, len(record.earlier)) == ("KILLED", 130, 1)
    resume(broken)
    assert_same_run(broken, whole)


def test_a_run_stopped_in_its_first_epoch_cannot_be_resumed(workdir: Path) -> None:
    broken = killed("SIGINT", 5, "trainer.max_epochs=3")
    before = (broken / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"no checkpoint of an epoch's end.*last.ckpt was saved inside an epoch"):
        resume(broken)
    assert (broken / "metrics.jsonl").read_bytes() == before


# val/loss as large as possible: the first epoch is the best one, and no later one improves on it.
WORSE = ("checkpoint.monitor=val/loss", "checkpoint.mode=max", "scheduler=constant", "optimizer=sgd", "optimizer.lr=0.005")


def test_the_best_weights_are_those_of_both_parts_also_in_another_folder(workdir: Path) -> None:
    parts = train(*WORSE, "trainer.max_epochs=2")
    moved = Path(shutil.move(parts, workdir / "elsewhere"))
    first = load(moved / "checkpoints" / "best.ckpt")
    assert first["global_step"] == 20
    result = resume(moved, ["trainer.max_epochs=4"])
    assert_equal(load(moved / "checkpoints" / "best.ckpt")["state_dict"], first["state_dict"])
    tests = [row.value for row in rows(moved) if row.key == "test/loss"]
    assert len(tests) == 2
    assert tests[0] == tests[1] == result.metrics["test/loss"]


def test_early_stopping_goes_on_counting(workdir: Path) -> None:
    whole = train(*WORSE, "trainer.max_epochs=9", "trainer.early_stopping=4")
    assert max(row.step for row in rows(whole)) == 100  # best after epoch 1, then 4 without improvement
    parts = train(*WORSE, "trainer.max_epochs=9", "trainer.early_stopping=2")
    assert max(row.step for row in rows(parts)) == 60
    with pytest.raises(ConfigError, match="has not improved for 2 validations"):
        resume(parts, ["trainer.max_epochs=12"])
    resume(parts, ["trainer.early_stopping=4"])
    assert_same_run(parts, whole)


def test_what_changed_is_kept_and_the_parameters_stay(workdir: Path) -> None:
    parts = train("trainer.max_epochs=1")
    params = (parts / "params.json").read_bytes()
    resume(parts, ["trainer.max_epochs=2"])
    resume(parts, ["trainer.max_epochs=3", "trainer.chunk_size=5"])
    assert (parts / "params.json").read_bytes() == params
    tags = json.loads((parts / "tags.json").read_text())
    notes = json.loads(tags["dnnkit.changed.trainer.max_epochs"])
    assert [(note["from"], note["to"], note["step"]) for note in notes] == [(1, 2, 20), (2, 3, 40)]
    assert [(note["from"], note["to"]) for note in json.loads(tags["dnnkit.changed.trainer.chunk_size"])] == [(50, 5)]
    assert {name for name in tags if "changed" in name} == {"dnnkit.changed.trainer.max_epochs", "dnnkit.changed.trainer.chunk_size"}
    for name, epochs in (("config.1.yaml", 1), ("config.2.yaml", 2), ("config.yaml", 3)):
        assert f"max_epochs: {epochs}\n" in (parts / "config" / name).read_text()
    record = json.loads((parts / "run.json").read_text())
    assert tags["dnnkit.run_uuid"] == record["uuid"]
    assert record["pid"] == os.getpid()
    assert "resumed (part 3 of the run) after epoch 2, step 40" in (parts / "run.log").read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, to be copied."""
    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("finished"))
    try:
        return train("trainer.max_epochs=2", "scheduler=constant")
    finally:
        os.chdir(here)


@pytest.fixture
def run(finished: Path, workdir: Path) -> Path:
    """A copy of a run of two epochs, in `runs` of the working folder."""
    return Path(shutil.copytree(finished, workdir / "runs" / finished.name))


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("optimizer.lr=0.1", "start a new run"),
        ("trainer.max_epoch=5", "Did you mean 'trainer.max_epochs=…'"),
        ("seed=1", "start a new run"),
        ("model=cnn", "start a new run"),
        ("trainer.log_every_n_steps=1", "start a new run"),
        ("trainer.max_epochs=2", "must be more than 2"),
        ("trainer.max_epochs=0", "must be an integer at least 1"),
        ("trainer.max_epochs=3,4", "cannot be changed here"),
        ("data.path=x.csv", "has no setting 'path'"),
    ],
)
def test_what_would_be_another_experiment_is_refused_and_nothing_is_touched(run: Path, word: str, why: str) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=why):
        resume(run, ["trainer.max_epochs=4"] * ("max_epochs" not in word) + [word])
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".run.lock"} == before


def test_a_run_that_still_goes_on_is_refused_until_its_process_is_gone(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "RUNNING", "pid": os.getppid()}))
    with pytest.raises(CheckpointError, match=f"still running .process {os.getppid()}"):
        resume(run, ["trainer.max_epochs=3"])
    (run / "run.json").write_text(json.dumps({**record, "status": "RUNNING", "host": "another"}))
    with pytest.raises(CheckpointError, match="still running"):
        resume(run, ["trainer.max_epochs=3"])
    resume(run, ["trainer.max_epochs=3"], gone=True)
    assert RunRecord.read(run).status == "FINISHED"


def test_only_one_process_resumes_a_run(run: Path) -> None:
    from filelock import FileLock

    with FileLock(run / ".run.lock"), pytest.raises(CheckpointError, match="being resumed by another process"):
        resume(run, ["trainer.max_epochs=3"])


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_torn_checkpoint_is_exit_code_6(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoints" / name
    path.write_bytes(path.read_bytes()[:-100])
    assert main(["resume", run.name, "trainer.max_epochs=4"]) == 6
    assert "damaged" in capsys.readouterr().err
    path.unlink()
    assert main(["resume", run.name, "trainer.max_epochs=4"]) == 6


def test_other_data_are_refused(run: Path) -> None:
    dataset = json.loads((run / "dataset.json").read_text())
    source = json.loads(dataset["source"])
    (run / "dataset.json").write_text(json.dumps({**dataset, "source": json.dumps({**source, "fingerprint": "f" * 64})}))
    with pytest.raises(DataError, match="not the data of the run"):
        resume(run, ["trainer.max_epochs=4"])
    assert RunRecord.read(run).status == "FINISHED"


def test_a_sender_that_is_still_at_work_is_waited_for_in_bounded_time(run: Path) -> None:
    from filelock import FileLock

    (run / "sender.json").write_text(json.dumps({"tracking_uri": "x", "run_id": "y", "sent": {}, "batch": None}))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with FileLock(run / ".sender.lock"), pytest.raises(CheckpointError, match="still on its way to MLflow"):
        resume(run, ["trainer.max_epochs=4", "tracking.wait_s=0.1"])
    assert {path: before[path] for path in before} == {path: path.read_bytes() for path in before}
    assert resume(run, ["trainer.max_epochs=3"]).run_dir == run


def test_torchrun_is_not_needed_and_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="under torchrun"):
        resume(run, ["trainer.max_epochs=3"])


@pytest.mark.slow
def test_several_devices_go_on_as_one_would(workdir: Path) -> None:
    settings = ("scheduler=constant", "trainer=ddp_cpu", "trainer.devices=2", "dropout=dropout")
    whole, parts = train(*settings, "trainer.max_epochs=3"), train(*settings, "trainer.max_epochs=1")
    resume(parts, ["trainer.max_epochs=3"])
    assert_same_run(parts, whole)


def test_what_was_best_in_the_part_that_is_trained_again_is_forgotten(workdir: Path) -> None:
    settings = ("trainer.val_check_interval=0.25", "checkpoint.monitor=val/loss", "optimizer.lr=0.01")
    broken = killed("SIGKILL", 54, "trainer.max_epochs=3", *settings)
    best = broken / "checkpoints" / "best.ckpt"
    assert load(best)["global_step"] == 50
    before = {row.step: row.value for row in rows(broken) if row.key == "val/loss"}
    resume(broken, ["trainer.max_epochs=5"])  # another schedule, so the steps from 41 on are others
    after = {row.step: row.value for row in rows(broken) if row.key == "val/loss"}
    assert after[50] != before[50]
    step = load(best)["global_step"]
    assert step > 40
    assert evaluate(broken, split="validation").metrics["loss"] == after[step] == min(value for at, value in after.items() if at > 40)
    assert "best.ckpt is of a step after the one that the run goes on from" in (broken / "run.log").read_text()


def test_a_run_that_diverged_is_not_made_to_diverge_again(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "FAILED", "dnnkit_status": "diverged"}))
    with pytest.raises(ConfigError, match="would do so again"):
        resume(run)


def test_the_command_ends_with_the_report_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", run.name[-8:], "trainer.max_epochs=3"]) == 0
    said = capsys.readouterr().out
    assert "going on after epoch 2 (step 40) up to epoch 3" not in said  # trainer.progress_bar=false
    assert "test/acc" in said
    assert str(run) in said.splitlines()[-1]
    assert main(["resume", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in MAY_CHANGE)


@pytest.mark.slow
def test_in_mlflow_it_is_one_run_whose_changes_are_tags_and_whose_rows_are_there_once(workdir: Path) -> None:
    settings = ("tracking=mlflow", "trainer.max_epochs=3", "scheduler=constant", "trainer.log_every_n_steps=4")
    broken = killed("SIGINT", 30, *settings)
    eventually(lambda: json.loads((broken / "sender.json").read_text())["closed"])
    assert ask(workdir, "select status from runs") == [("KILLED",)]
    stopped = max(row.step for row in rows(broken))
    assert 20 < stopped < 40
    params = ask(workdir, "select key, value from params order by key")
    [(run_id,)] = ask(workdir, "select run_uuid from runs")
    for words in ([run_id], [broken.name, "trainer.max_epochs=4"]):
        done = subprocess.run([sys.executable, "-m", "dnnkit", "resume", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"MLflow run  {run_id}" in done.stdout
        assert str(broken) in done.stdout
    assert ask(workdir, "select run_uuid, status from runs") == [(run_id, "FINISHED")]
    assert ask(workdir, "select key, value from params order by key") == params
    tags = dict(ask(workdir, "select key, value from tags"))
    assert [(note["from"], note["to"], note["step"]) for note in json.loads(tags["dnnkit.changed.trainer.max_epochs"])] == [(3, 4, 60)]
    assert tags["dnnkit.status"] == "finished"
    journal = [row for row in rows(broken) + read_journal(broken / "timing.jsonl") if not row.key.startswith("signal/")]
    held = Counter(ask(workdir, "select step, key, value from metrics where key not like 'signal%'"))
    assert {tuple(row): 1 for row in journal} == {tuple(row): held[tuple(row)] for row in journal}
    # What was written when it was stopped inside the epoch stays in MLflow, and nothing else does.
    assert {step for step, key, value in held if Row(step, key, value) not in set(journal)} == {stopped}
    uploaded = {path.name for path in workdir.glob("mlruns/**/artifacts/config/*")}
    assert uploaded == {"config.yaml", "config.1.yaml", "config.2.yaml", "overrides.yaml", "overrides.1.yaml", "overrides.2.yaml"}


# What MLflow holds, and what it is sent after the journals were cut back.


def bring(folder: Path, mark: Mark, sent: list[Row], most: int, tell: bool = True) -> None:
    """Send one batch of at most so many rows, as the sender does; without `tell`, the sender dies before it knows that it did."""
    batch = mark.batch
    if batch is None:
        beyond = set(mark.beyond)
        new = Tail(folder, mark).next_batch(most)
        batch = Batch(0, [row for row in new if row not in beyond], [row for row in new if row in beyond])
        mark.begin(folder, batch)
    sent += batch.rows
    if tell:
        mark.done(folder)


def journal(folder: Path, steps: range, *keys: str, factor: float = 1.0) -> list[Row]:
    written = [Row(step, key, step * factor) for step in steps for key in keys]
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(row._asdict()) + "\n" for row in written)
    return written


@pytest.mark.parametrize("sends", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("tell", [True, False])
@pytest.mark.parametrize("step", [0, 3, 5])
@pytest.mark.parametrize("changed", [False, True])
def test_after_a_cut_mlflow_gets_every_new_row_once_and_no_old_one_again(
    tmp_path: Path, sends: int, tell: bool, step: int, changed: bool
) -> None:
    from dnnkit.record.journal import cut_journals

    mark, sent = Mark("sqlite:///x"), list[Row]()
    first = journal(tmp_path, range(6), "a", "b") + journal(tmp_path, range(5, 6), "end")  # "end" does not come back at step 5
    for number in range(sends):
        bring(tmp_path, mark, sent, 4, tell=tell or number < sends - 1)
    mark.cut_back(first, step)
    mark.write(tmp_path)
    cut_journals(tmp_path, step)
    assert read_journal(tmp_path / "metrics.jsonl") == [row for row in first if row.step <= step]
    again = Mark.read(tmp_path, "sqlite:///x")
    whole = [row for row in first if row.step <= step]
    whole += journal(tmp_path, range(step + 1, 9), "a", "b", factor=2.0 if changed else 1.0) + journal(tmp_path, range(8, 9), "end")
    if again.batch is not None:
        sent = sent[: len(sent) - len(again.batch.rows)]  # it is sent once more, with its old time: MLflow takes it once
    for _ in range(20):
        bring(tmp_path, again, sent, 3)
    counts = Counter(sent)
    assert dict.fromkeys(whole, 1) == {row: counts[row] for row in whole}
    assert max(counts.values()) == 1
    orphans = set(sent) - set(whole)
    assert all(row in first and row.step > step for row in orphans)
    assert again.sent == Counter(row.key for row in whole)
