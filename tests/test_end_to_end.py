"""The command line as a user types it, and what MLflow shows afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from dnnkit.record import flatten, read_journal

SHORT = ("trainer.max_epochs=2", "trainer.limit_train_batches=10")


def dnnkit(*words: str, timeout: float = 180, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dnnkit", *words], capture_output=True, text=True, timeout=timeout, env=os.environ | environ
    )


def client(workdir: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{workdir}/mlflow.db")


def runs(of: MlflowClient) -> list:  # type: ignore[type-arg]
    return list(of.search_runs([experiment.experiment_id for experiment in of.search_experiments()]))


def artifacts(of: MlflowClient, run_id: str, path: str = "") -> set[str]:
    found: set[str] = set()
    for entry in of.list_artifacts(run_id, path):
        found |= artifacts(of, run_id, entry.path) if entry.is_dir else {entry.path}
    return found


def test_a_run_is_in_mlflow_whole(workdir: Path) -> None:
    done = dnnkit("+experiment=selu_digits", *SHORT)
    assert done.returncode == 0, done.stderr
    (folder,) = (workdir / "runs").iterdir()
    store = client(workdir)
    (run,) = runs(store)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "selu_digits"
    assert store.get_experiment(run.info.experiment_id).name == "dnnkit"
    assert run.data.params == json.loads((folder / "params.json").read_text())
    assert run.data.params["model.hidden"] == "[300, 100]"
    rows = [row for row in read_journal(folder / "metrics.jsonl") if not row.key.startswith("signal/")]
    for row in (rows := rows + read_journal(folder / "timing.jsonl")):
        assert row.value in [metric.value for metric in store.get_metric_history(run.info.run_id, row.key) if metric.step == row.step]
    summaries = {key for key in run.data.metrics if key.startswith("signal")}
    assert summaries == {f"signal_{name}" for name in ("variance_min", "variance_max", "delta_ratio_first", "gradient_ratio_max")}
    assert sum(len(store.get_metric_history(run.info.run_id, key)) for key in run.data.metrics if key not in summaries) == len(rows)
    assert run.data.tags["mlflow.note.content"].startswith("```\ndnnkit +experiment=selu_digits trainer.max_epochs=2 ")
    assert f"**test/acc {run.data.metrics['test/acc']:.4g}**" in run.data.tags["mlflow.note.content"]
    promised = {"version", "run_uuid", "config_digest", "git", "plugins", "device", "status"}
    assert {f"dnnkit.{tag}" for tag in promised} <= set(run.data.tags)
    assert run.data.tags["dnnkit.status"] == "finished"
    assert "dnnkit.sweep" not in run.data.tags
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "digits"
    assert artifacts(store, run.info.run_id) >= {
        "config/config.yaml", "config/overrides.yaml", "environment/environment.json", "environment/packages.txt", "checkpoints/best.ckpt",
        "figures/learning_curves.png", "figures/learning_rate.png", "figures/confusion_matrix.png", "diagnostics/signal.json", "run.log",
    }  # fmt: skip
    assert not {"metrics.jsonl", "timing.jsonl"} & artifacts(store, run.info.run_id)
    for text in (run.info.run_id, str(folder), "test/acc", f" ui {folder.name[-8:]}"):
        assert text in "".join(done.stdout.splitlines(keepends=True)[-5:])
    assert {path.name for path in workdir.iterdir()} - {".mlflow.db.lock"} == {"mlflow.db", "mlruns", "runs"}


def test_a_killed_run_is_closed_as_killed(workdir: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "dnnkit", "trainer.max_epochs=5000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    try:
        while not _seen_training(workdir) and time.monotonic() < until:
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (run,) = runs(client(workdir))
    while (run := client(workdir).get_run(run.info.run_id)).info.status == "RUNNING" and time.monotonic() < until:
        time.sleep(0.2)
    assert run.info.status == "KILLED"
    assert run.data.tags["dnnkit.status"] == "killed"
    (folder,) = (workdir / "runs").iterdir()
    assert json.loads((folder / "run.json").read_text())["status"] == "KILLED"


def _seen_training(workdir: Path) -> bool:
    sent = list(workdir.glob("runs/*/sender.json"))
    return (
        bool(sent)
        and (workdir / "mlflow.db").exists()
        and bool(read_journal(sent[0].with_name("metrics.jsonl")))
        and bool(_listed(workdir))
    )


def _listed(workdir: Path) -> list:  # type: ignore[type-arg]
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return runs(client(workdir))
    except SQLAlchemyError:
        return []


def test_a_server_that_is_down_costs_seconds_and_loses_nothing(workdir: Path) -> None:
    began = time.monotonic()
    done = dnnkit(*SHORT, "tracking.uri=http://user:secret@127.0.0.1:9", "tracking.wait_s=60")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 90
    (folder,) = (workdir / "runs").iterdir()
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "FINISHED"
    assert record["uuid"] in done.stdout
    assert not [path for path in folder.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]
    assert "secret" not in done.stdout + done.stderr


def test_a_sweep_makes_one_run_for_each_value_in_one_experiment(workdir: Path) -> None:
    done = dnnkit("-m", "optimizer.lr=0.1,0.01", *SHORT)
    assert done.returncode == 0, done.stderr
    assert len(list((workdir / "runs").iterdir())) == 2
    found = runs(client(workdir))
    assert {run.data.params["optimizer.lr"] for run in found} == {"0.1", "0.01"}
    assert {run.info.run_name for run in found} == {"digits_selu · optimizer.lr=0.1", "digits_selu · optimizer.lr=0.01"}
    assert done.stdout.splitlines()[-1].startswith("look at them ")
    assert done.stdout.splitlines()[-1].endswith(" ui")
    assert {run.info.status for run in found} == {"FINISHED"}
    assert len({run.data.tags["dnnkit.sweep"] for run in found}) == 1
    assert {path.name for path in workdir.iterdir()} - {".mlflow.db.lock"} == {"mlflow.db", "mlruns", "runs"}


@pytest.mark.slow
def test_eight_first_runs_at_once_all_succeed(workdir: Path) -> None:
    command = [sys.executable, "-m", "dnnkit", *SHORT, "trainer.threads=1", "tracking.wait_s=300"]
    started = [subprocess.Popen([*command, f"seed={seed}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for seed in range(8)]
    for process in started:
        _, complaint = process.communicate(timeout=500)
        assert process.returncode == 0, complaint
    found = runs(client(workdir))
    assert [run.info.status for run in found] == ["FINISHED"] * 8
    assert {run.data.params["seed"] for run in found} == {str(seed) for seed in range(8)}


def test_nested_values_become_dotted_parameters() -> None:
    assert flatten({"a": {"b": [1, 2]}, "c": None}) == {"a.b": "[1, 2]", "c": "null"}


def reached(workdir: Path, *words: str) -> float:
    """The test accuracy of one run."""
    done = dnnkit(*words, "tracking=none", timeout=2400)
    assert done.returncode == 0, done.stderr
    (folder,) = (workdir / "runs").iterdir()
    accuracy = {row.key: row.value for row in read_journal(folder / "metrics.jsonl")}["test/acc"]
    print(f"{' '.join(words)}: test/acc {accuracy:.4f}")
    return accuracy


@pytest.mark.slow
@pytest.mark.parametrize(("experiment", "least"), [("selu_mnist", 0.982), ("selu_fashion", 0.892)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_main_job_reaches_its_accuracy_on_the_real_test_images(
    workdir: Path, data_root: Path, experiment: str, least: float, seed: int
) -> None:
    assert reached(workdir, f"+experiment={experiment}", f"seed={seed}") >= least


@pytest.mark.slow
def test_a_small_convolutional_network_reaches_its_accuracy_in_ten_epochs(workdir: Path, data_root: Path) -> None:
    assert reached(workdir, "+experiment=cnn_fashion", "trainer.max_epochs=10") >= 0.905


@pytest.mark.slow
def test_mixed_precision_stays_within_three_tenths_of_a_point_of_float32(workdir: Path, data_root: Path) -> None:
    """In float32 the three seeds above reach .9833, .9827 and .9832."""
    assert abs(reached(workdir, "+experiment=selu_mnist", "trainer.precision=bf16") - 0.983) <= 0.003


def test_the_default_run_learns_the_digits(workdir: Path) -> None:
    done = dnnkit("tracking=none")
    assert done.returncode == 0, done.stderr
    (folder,) = (workdir / "runs").iterdir()
    assert {row.key: row.value for row in read_journal(folder / "metrics.jsonl")}["test/acc"] >= 0.96
