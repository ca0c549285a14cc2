"""Runs on several devices as a user starts them: the same experiment as on one, and nothing left behind, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow.tracking import MlflowClient

from dnnkit import plugins
from dnnkit.record import read_journal

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "dnnkit"]
EXACT = ("trainer.precision=64", "trainer.log_every_n_steps=1", "trainer.max_epochs=1", "diagnostics.every=2")
ENDLESS = ("trainer.max_epochs=100000", "trainer.devices=2", "trainer.progress_bar=false")
SHORT = ("trainer.max_epochs=1", "trainer.limit_train_batches=4", "model.hidden=[5]", "tracking=none")


def dnnkit(folder: Path, *words: str, command: tuple[str, ...] = (sys.executable, "-m", "dnnkit")) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return subprocess.run([*command, *words], cwd=folder, env=environ, capture_output=True, text=True, timeout=240)


def trained(folder: Path, *words: str) -> Path:
    done = dnnkit(folder, *words)
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "runs").iterdir()
    return run


def metrics(run: Path) -> dict[tuple[str, int], float]:
    return {(row.key, row.step): row.value for row in read_journal(run / "metrics.jsonl")}


def read(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


def workers(folder: Path) -> list[int]:
    """The processes that train along in a run below `folder`; those that have ended and await their parent do not count."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 2) for line in listed.splitlines()]
    return [
        int(pid) for pid, state, command in lines if "dnnkit.worker" in command and str(folder) in command and not state.startswith("Z")
    ]


def wait_for(what: Callable[[], Any], seconds: float) -> Any:
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)
    return found


#: What is trained on one device and on two, whose shares of an odd minibatch differ, and of the shorter last one.
PAIRS = {
    "clipped groups of two": (
        *("data.batch_size=51", "trainer.accumulate_grad_batches=2", "metrics=[acc,f1,auroc]"),
        *("clipping=norm", "optimizer.weight_decay=0.01"),
        "optimizer.groups=[{match: output, lr_scale: 0.5, clipping: {name: norm, max_norm: 0.5}}, {match: bias, clipping: none}]",
    ),
    "synchronised": (
        *("data.batch_size=51", "normalization=batch_norm", "trainer.sync_batch_norm=true"),
        *("regularizer=l2", "trainer.val_check_interval=7", "trainer.chunk_size=3"),
    ),
    "regression": ("data=diabetes", "data.batch_size=31", "metrics=[mse,r2]", "optimizer.lr=0.001", "optimizer=nadam"),
}


@pytest.fixture(scope="module", params=PAIRS, ids=lambda name: name.replace(" ", "_"))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run folders of the same config on one device and on two."""
    folder = tmp_path_factory.mktemp("pair")
    words = (*EXACT, *PAIRS[request.param])
    return (
        trained(folder / "one", *words, "trainer=cpu", "tracking=none"),
        trained(folder / "two", *words, "trainer=ddp_cpu", "trainer.devices=2"),
    )


def test_two_devices_log_what_one_device_logs(pair: tuple[Path, Path]) -> None:
    one, two = map(metrics, pair)
    assert one.keys() == two.keys()
    assert len([key for key, _ in one if key == "train/loss"]) >= 10
    for key, value in one.items():
        assert two[key] == pytest.approx(value, rel=1e-9, abs=1e-12), key


def test_two_devices_end_with_the_weights_of_one(pair: tuple[Path, Path]) -> None:
    from dnnkit.checkpoint import load

    one, two = (load(run / "checkpoints" / "last.ckpt")["state_dict"] for run in pair)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-9, atol=1e-12)


def test_a_run_on_two_devices_is_one_run_with_equal_digests(pair: tuple[Path, Path]) -> None:
    two = pair[1]
    store = MlflowClient(f"sqlite:///{two.parent.parent}/mlflow.db")
    (run,) = store.search_runs([experiment.experiment_id for experiment in store.search_experiments()])
    assert run.info.status == "FINISHED"
    ranks = read(two, "environment/ranks.json")
    assert [rank["rank"] for rank in ranks] == [0, 1]
    assert ranks[0]["pid"] != ranks[1]["pid"]
    for what in ("config", "data", "weights"):
        assert len(ranks[0][what]) == 64
        assert ranks[0][what] == ranks[1][what]
    assert ranks[0]["config"] == read(two, "tags.json")["dnnkit.config_digest"]
    assert "2 ranks with equal digests" in (two / "run.log").read_text()
    assert not list(two.glob("rank*.log")) + list(two.glob(".rank*")), "and the second rank had nothing to say"
    assert not workers(two.parent.parent)


@pytest.mark.slow
def test_a_sweep_over_runs_on_two_devices_makes_a_run_for_each_value(workdir: Path) -> None:
    done = dnnkit(workdir, "-m", "trainer=ddp_cpu,cpu", "optimizer.lr=0.1,0.01", *SHORT[:3], "trainer.sync_batch_norm=true")
    assert done.returncode == 0, done.stderr
    runs = sorted((workdir / "runs").iterdir())
    found = {(read(run, "params.json")["trainer.name"], read(run, "params.json")["optimizer.lr"]) for run in runs}
    assert len(runs) == 4
    assert found == {(trainer, rate) for trainer in ("ddp_cpu", "cpu") for rate in ("0.1", "0.01")}
    store = MlflowClient(f"sqlite:///{workdir}/mlflow.db")
    listed = store.search_runs([experiment.experiment_id for experiment in store.search_experiments()])
    assert [run.info.status for run in listed] == ["FINISHED"] * 4
    losses = {read(run, "params.json")["optimizer.lr"]: [] for run in runs}
    for run in runs:
        losses[read(run, "params.json")["optimizer.lr"]].append(metrics(run)["train/loss", 4])
    for one, two in losses.values():
        assert one == pytest.approx(two, rel=1e-4), "on one device after two and the other way round"


IN_ONE_PROCESS = f"""
import os, threading
import dnnkit, sklearn.datasets, torch
import dnnkit.training.fit
before = dict(os.environ), torch.get_num_threads()
for trainer in ("cpu", "ddp_cpu", "ddp_cpu", "cpu"):
    result = dnnkit.train(dnnkit.compose([*{SHORT!r}, f"trainer={{trainer}}", "trainer.progress_bar=false"]))
    assert not torch.distributed.is_initialized()
    assert dict(os.environ) == before[0], set(os.environ.items()) ^ set(before[0].items())
    assert torch.get_num_threads() == before[1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dnnkit")]
    print(result.metrics["train/loss"])
"""


@pytest.mark.slow
def test_runs_on_one_and_two_devices_follow_each_other_in_one_process_and_leave_it_as_it_was(workdir: Path) -> None:
    done = subprocess.run([sys.executable, "-c", IN_ONE_PROCESS], cwd=workdir, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, [done.stderr, *(path.read_text() for path in workdir.rglob("rank*.log"))]
    losses = [float(line) for line in done.stdout.split()]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)
    assert len(list((workdir / "runs").iterdir())) == 4
    assert not workers(workdir)


@pytest.fixture
def endless(workdir: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a run that would never end, and hands it over once it has trained a while on two devices."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "dnnkit", *ENDLESS, "trainer=ddp_cpu", *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        wait_for(lambda: any(read_journal(path) for path in workdir.glob("runs/*/metrics.jsonl")) and _validated(workdir), 120)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _validated(workdir: Path) -> bool:
    return any(row.key == "val/loss" for path in workdir.glob("runs/*/metrics.jsonl") for row in read_journal(path))


def test_a_killed_rank_ends_the_run_as_failed_and_names_the_rank(workdir: Path, endless: Callable[..., subprocess.Popen[str]]) -> None:
    process = endless()
    (worker,) = workers(workdir)
    os.kill(worker, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "rank 1 was ended by SIGKILL" in said
    assert "Traceback" not in said
    (run,) = (workdir / "runs").iterdir()
    assert (read(run, "run.json")["status"], read(run, "run.json")["exit_code"]) == ("FAILED", 1)
    store = MlflowClient(f"sqlite:///{workdir}/mlflow.db")
    (listed,) = store.search_runs([experiment.experiment_id for experiment in store.search_experiments()])
    assert listed.info.status == "FAILED"
    assert not workers(workdir)


@pytest.mark.slow
def test_the_first_rank_killed_takes_the_others_with_it(workdir: Path, endless: Callable[..., subprocess.Popen[str]]) -> None:
    process = endless("tracking=none")
    assert workers(workdir)
    process.kill()
    process.wait()
    wait_for(lambda: not workers(workdir), 60)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_stops_all_ranks_after_the_same_minibatches(
    workdir: Path, endless: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    from dnnkit.checkpoint import load

    process = endless("tracking=none", "data.batch_size=32")
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # Ctrl-C reaches the whole group
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name} after" in said
    (run,) = (workdir / "runs").iterdir()
    assert (read(run, "run.json")["status"], read(run, "run.json")["exit_code"]) == ("KILLED", 128 + number)
    assert f"stopped by {number.name} after {load(run / 'checkpoints' / 'last.ckpt')['global_step']} optimizer steps" in said
    assert not workers(workdir)


def test_a_worker_that_cannot_train_along_says_why(workdir: Path) -> None:
    """The component is registered in this script alone: the other process does not have it."""
    script = f"""
import dnnkit, torch
from dnnkit.registry import activations
dnnkit.compose([])
@activations.register("own")
def own() -> torch.nn.Module:
    "Doubles."
    return torch.nn.ReLU()
dnnkit.train(dnnkit.compose([*{SHORT!r}, "trainer=ddp_cpu", "activation=own", "trainer.progress_bar=false"]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=workdir, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "rank 1 failed: 1 problem in the config" in done.stderr
    assert "no activation is called 'own'" in done.stderr
    (run,) = (workdir / "runs").iterdir()
    assert (read(run, "run.json")["status"], read(run, "run.json")["exit_code"]) == ("FAILED", 2)
    assert "no activation is called 'own'" in (run / "rank1.log").read_text()


@pytest.mark.slow
def test_validation_on_two_devices_measures_what_the_checkpoint_holds(workdir: Path) -> None:
    """Without synchronisation each device has its own moving statistics; all validate with the first one's, which are saved."""
    from dnnkit.checkpoint import load_weights
    from dnnkit.config import Config
    from dnnkit.training import build, prepare_run

    plugins.load()
    words = ("normalization=batch_norm", "trainer=ddp_cpu", "trainer.max_epochs=1", "data.val_size=0.3", "dropout=dropout")
    run = trained(workdir, *words, "tracking=none")
    cfg = Config(yaml.safe_load((run / "config" / "config.yaml").read_text()))
    module, data = build(cfg), prepare_run(cfg).data
    load_weights(run / "checkpoints" / "last.ckpt", module)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(module.eval()(data.validation.x), data.validation.y)
    steps = [step for key, step in metrics(run) if key == "val/loss"]
    assert metrics(run)["val/loss", steps[-1]] == pytest.approx(loss.item(), rel=1e-5)
    said = (run / "run.log").read_text()
    assert "each of the 2 devices normalizes its own share" in said
    assert "the weights of rank 1 are not" not in said


def test_a_diverging_run_ends_all_ranks_with_exit_code_5(workdir: Path) -> None:
    done = dnnkit(workdir, "trainer=ddp_cpu", "optimizer.lr=1e12", "tracking=none", "trainer.max_epochs=3", "activation=relu")
    assert done.returncode == 5, done.stderr
    assert "diverged" in done.stderr
    (run,) = (workdir / "runs").iterdir()
    assert read(run, "run.json")["dnnkit_status"] == "diverged"
    assert not workers(workdir)


#: The second rank has a thread that computes without end, as one that prepares data for later may.
BUSY = """
import os, sys, threading, time

def compute():
    while "dnnkit.training.run" not in sys.modules:
        time.sleep(0.05)
    import torch
    numbers = torch.zeros(100)
    while True:
        numbers + numbers

if "dnnkit.worker" in sys.orig_argv or os.environ.get("RANK") == "1":
    threading.Thread(target=compute, daemon=True).start()
"""


@pytest.fixture
def busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(BUSY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.slow
@pytest.mark.usefixtures("busy")
def test_a_rank_with_a_thread_that_still_computes_ends_well(workdir: Path) -> None:
    done = dnnkit(workdir, "trainer=ddp_cpu", *SHORT)
    assert done.returncode == 0, done.stderr
    (run,) = (workdir / "runs").iterdir()
    assert read(run, "run.json")["status"] == "FINISHED"
    assert not list(run.glob("rank*.log"))


@pytest.mark.slow
def test_a_rank_that_dies_after_all_of_its_work_costs_no_run(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dies = "import atexit, os, sys\nif 'dnnkit.worker' in sys.orig_argv:\n    atexit.register(os.abort)\n"
    (workdir / "sitecustomize.py").write_text(dies)
    monkeypatch.setenv("PYTHONPATH", str(workdir))
    done = dnnkit(workdir, "trainer=ddp_cpu", *SHORT)
    assert done.returncode == 0, done.stderr
    (run,) = (workdir / "runs").iterdir()
    assert read(run, "run.json")["status"] == "FINISHED"
    assert "rank 1 was ended by SIGABRT, but after all of its work: the run is whole" in (run / "run.log").read_text()
    assert not list(run.glob("rank*.log")), "and it had nothing to say"


@pytest.mark.usefixtures("busy")
def test_torchrun_makes_one_run(workdir: Path) -> None:
    done = dnnkit(workdir, "trainer=ddp_cpu", *SHORT, command=tuple(TORCHRUN))
    assert done.returncode == 0, done.stderr
    (run,) = (workdir / "runs").iterdir()
    assert read(run, "run.json")["status"] == "FINISHED"
    assert len(read(run, "environment/ranks.json")) == 2
    assert done.stdout.count("run folder") == 1, "the other ranks print nothing"


@pytest.mark.parametrize(
    ("words", "advice"),
    [((*SHORT, "trainer=cpu"), "trainer.devices=2"), (("-m", *SHORT, "trainer=ddp_cpu", "seed=0,1"), "leave torchrun out")],
    ids=["another number of devices", "a sweep"],
)
@pytest.mark.slow
def test_torchrun_is_refused_what_it_cannot_do(workdir: Path, words: tuple[str, ...], advice: str) -> None:
    done = dnnkit(workdir, *words, command=tuple(TORCHRUN))
    assert done.returncode != 0
    assert advice in done.stderr
    assert "exitcode: 2" in " ".join(done.stderr.replace(":", ": ").split()) or "(exitcode: 2)" in done.stderr
    assert not (workdir / "runs").exists()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_log_what_one_logs(tmp_path: Path) -> None:
    words = (*EXACT, "data.batch_size=51", "normalization=batch_norm", "trainer.sync_batch_norm=true", "tracking=none")
    one = metrics(trained(tmp_path / "one", *words, "trainer=gpu"))
    two = metrics(trained(tmp_path / "two", *words, "trainer=ddp", "trainer.devices=2"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert two[key] == pytest.approx(value, rel=1e-6, abs=1e-9), key
