"""One run, from config to record: what is reproducible, what the counters say, what is left behind."""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import dnnkit
from dnnkit.checkpoint import RunState, load
from dnnkit.errors import ConfigError, DataError, DiskError, DivergedError
from dnnkit.record import RunFolder, read_journal
from dnnkit.registry import activations, data_sources, schedulers
from dnnkit.training import diagnose
from dnnkit.training.summary import layers

QUICK = ("tracking=none", "trainer.progress_bar=false", "trainer.max_epochs=2")


def train(*overrides: str, **keywords: Any) -> dnnkit.Result:
    return dnnkit.train(dnnkit.compose([*QUICK, *overrides]), **keywords)


def journal(result: dnnkit.Result) -> bytes:
    return (result.run_dir / "metrics.jsonl").read_bytes()


def run_json(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("runs/*/run.json")
    return json.loads(path.read_text())


def test_equal_seeds_give_byte_identical_journals_and_another_seed_differs(workdir: Path) -> None:
    first, second, other = train("dropout=dropout"), train("dropout=dropout"), train("dropout=dropout", "seed=1")
    assert journal(first) == journal(second)
    assert journal(first) != journal(other)
    for mine, theirs in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_ran_before_in_the_process_changes_nothing(workdir: Path) -> None:
    alone = journal(train("dropout=alpha_dropout"))
    torch.manual_seed(1234)
    torch.rand(17)
    assert journal(train("dropout=alpha_dropout")) == alone


@pytest.mark.parametrize(
    "extra", [(), ("dropout=dropout", "normalization=batch_norm", "trainer.accumulate_grad_batches=3", "clipping=norm")]
)
def test_the_chunk_size_changes_no_number(workdir: Path, extra: tuple[str, ...]) -> None:
    one, seven, fifty = (journal(train(*extra, f"trainer.chunk_size={size}")) for size in (1, 7, 50))
    assert one == seven == fifty


@pytest.mark.parametrize("accumulate", [1, 4])
def test_every_counter_agrees_with_the_closed_form(workdir: Path, accumulate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    original = torch._fused_sgd_

    def counting(*arguments: Any, **keywords: Any) -> Any:
        calls.append(keywords["lr"])
        return original(*arguments, **keywords)

    monkeypatch.setattr(torch, "_fused_sgd_", counting)
    epochs, batch = 3, 32
    result = train(f"trainer.max_epochs={epochs}", f"trainer.accumulate_grad_batches={accumulate}", "trainer.log_every_n_steps=10")
    rows = json.loads((result.run_dir / "dataset.json").read_text())["profile"]
    train_rows = json.loads(rows)["sizes"]["train"]
    minibatches = math.ceil(train_rows / batch)
    steps = epochs * math.ceil(minibatches / accumulate)
    written = read_journal(result.run_dir / "metrics.jsonl")
    factor = schedulers.get("one_cycle").function
    assert len(calls) == steps
    assert written[-1].step == steps
    assert load(result.run_dir / "checkpoints" / "last.ckpt")["global_step"] == steps
    assert [row.value for row in written if row.key == "lr"][-1] == pytest.approx(0.05 * factor(steps - 1, steps)[0], rel=1e-9)
    assert calls == pytest.approx([0.05 * factor(step, steps)[0] for step in range(steps)], rel=1e-9)
    for row in written:
        if row.key == "lr":
            assert row.value == pytest.approx(0.05 * factor(max(0, row.step - 1), steps)[0], rel=1e-9)
    best = load(result.run_dir / "checkpoints" / "best.ckpt")
    values = [(row.step, row.value) for row in written if row.key == "val/acc"]
    assert best["global_step"] == max(values, key=lambda pair: pair[1])[0]
    per_epoch = math.ceil(minibatches / accumulate)
    assert [step for step, _ in values] == [per_epoch * epoch for epoch in range(1, epochs + 1)]


def test_the_test_split_is_measured_on_the_best_weights(workdir: Path) -> None:
    result = train("trainer.max_epochs=5", "optimizer.lr=0.1")
    best = load(result.run_dir / "checkpoints" / "best.ckpt")["state_dict"]
    for name, tensor in result.module.state_dict().items():
        assert torch.equal(tensor, best[name]), name
    cfg = dnnkit.compose(QUICK)
    from dnnkit.training.assemble import load_data

    test = load_data(cfg).test
    with torch.no_grad():
        right = (result.module(test.x).argmax(1) == test.y).sum().item()
    assert result.metrics["test/acc"] == pytest.approx(right / len(test.y), abs=1e-6)


def test_the_run_folder_holds_everything_that_is_promised(workdir: Path) -> None:
    result = train("name=my run")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d{6}_my-run_[0-9a-f]{8}", result.run_dir.name)
    assert result.run_dir.parent == workdir / "runs"
    files = {str(path.relative_to(result.run_dir)) for path in result.run_dir.rglob("*") if path.is_file()}
    written = {
        "": ("run.json", "params.json", "tags.json", "dataset.json", "metrics.jsonl", "timing.jsonl", "run.log"),
        "config/": ("config.yaml", "overrides.yaml"),
        "environment/": ("environment.json", "packages.txt", "engine.json"),
        "checkpoints/": ("best.ckpt", "last.ckpt"),
        "figures/": ("learning_curves.png", "learning_rate.png", "confusion_matrix.png"),
        "diagnostics/": ("signal.json", "signal.png"),
    }
    assert files >= {f"{part}{name}" for part, names in written.items() for name in names}
    record = json.loads((result.run_dir / "run.json").read_text())
    assert (record["status"], record["dnnkit_status"], record["exit_code"], record["name"]) == ("FINISHED", "finished", 0, "my run")
    keys = {row.key for row in read_journal(result.run_dir / "metrics.jsonl")}
    assert {"train/loss", "train/acc", "val/loss", "val/acc", "test/loss", "test/acc", "lr", "grad_norm", "signal/00_dense/mean"} <= keys
    assert {row.key for row in read_journal(result.run_dir / "timing.jsonl")} == {"time/epoch_s", "time/samples_per_s"}
    assert {str(path.relative_to(workdir)).split("/")[0] for path in workdir.rglob("*")} == {"runs"}


def test_a_line_of_the_journal_holds_step_key_and_value_alone(workdir: Path) -> None:
    lines = journal(train()).decode().splitlines()
    assert all(list(json.loads(line)) == ["step", "key", "value"] for line in lines)
    assert lines[0].startswith('{"step": ') or lines[0].startswith('{"step":')


def test_the_checkpoint_says_how_its_weights_are_used(workdir: Path) -> None:
    result = train()
    path = result.run_dir / "checkpoints" / "best.ckpt"
    state = RunState.of(load(path), path)
    assert (state.inputs, state.outputs, state.seed) == ((1, 8, 8), 10, 0)
    assert state.config["activation"]["name"] == "selu"
    assert state.mean.shape == (1, 1, 1)
    torch.load(path, weights_only=True)


def test_build_gives_the_module_with_its_initial_weights_and_leaves_nothing_behind(workdir: Path) -> None:
    cfg = dnnkit.compose(["model.hidden=[16]"])
    module = dnnkit.build(cfg)
    assert module(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    again = dnnkit.build(cfg)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(module.parameters(), again.parameters(), strict=True))
    assert list(workdir.iterdir()) == []


def test_missing_data_ends_before_anything_is_made(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DNNKIT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(workdir / "cache"))
    with pytest.raises(DataError, match="train-images-idx3-ubyte") as caught:
        dnnkit.train(dnnkit.compose(["data=mnist"]))
    assert "data=digits" in str(caught.value)
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize("size", ["5000", "0.0001"])
def test_a_validation_split_that_does_not_fit_the_data_is_a_problem_of_the_config(workdir: Path, size: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.val_size"):
        train(f"data.val_size={size}")
    assert list(workdir.iterdir()) == []


def test_batch_normalization_refuses_a_minibatch_of_one_and_names_a_size_that_works(workdir: Path) -> None:
    from dnnkit.training.assemble import load_data

    rows = len(load_data(dnnkit.compose(QUICK)).train.y)
    size = next(size for size in range(2, rows) if rows % size == 1)
    with pytest.raises(ConfigError, match=r"data\.batch_size") as caught:
        train("normalization=batch_norm", f"data.batch_size={size}")
    (problem,) = caught.value.problems
    train("normalization=batch_norm", problem.nearest[0], "trainer.max_epochs=1")


def test_a_gpu_that_is_not_there_is_a_problem_of_the_config(workdir: Path) -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match="trainer=cpu"):
        train("trainer=gpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_run_learns_and_repeats_itself(workdir: Path) -> None:
    first, second = (train("trainer=gpu", "dropout=dropout", "trainer.max_epochs=5") for _ in range(2))
    assert journal(first) == journal(second)
    assert first.metrics["test/acc"] > 0.9


def test_a_run_that_diverges_is_recorded_as_diverged(workdir: Path) -> None:
    with pytest.raises(DivergedError) as caught:
        train("optimizer.lr=1e30", "scheduler=constant")
    assert caught.value.exit_code == 5
    record = run_json(workdir)
    assert (record["status"], record["dnnkit_status"], record["exit_code"]) == ("FAILED", "diverged", 5)


@pytest.mark.parametrize("unwritten", ["write_engine", "finish", "write_verdicts"])
def test_a_run_that_diverges_says_so_also_where_the_disk_is_full(
    unwritten: str, workdir: Path, unrecorded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be written after that is told beside it."""
    write_verdicts = diagnose.write_verdicts

    def full(*given: Any) -> None:
        if unwritten == "write_verdicts" and "diverged" not in given[1]:
            return write_verdicts(*given)
        raise DiskError("cannot write")

    monkeypatch.setattr(diagnose if unwritten == "write_verdicts" else RunFolder, unwritten, full)
    with pytest.raises(DivergedError):
        train("optimizer.lr=1e30", "scheduler=constant")
    if unwritten != "finish":  # when the log is closed
        (log,) = workdir.glob("runs/*/run.log")
        assert "WARNING dnnkit: cannot write" in log.read_text()


@pytest.mark.usefixtures("registries")
def test_a_component_that_fails_leaves_a_failed_record_with_its_traceback(workdir: Path) -> None:
    class Breaks(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise RuntimeError("it breaks in training")
            return z

    activations.register("breaks")(Breaks)
    with pytest.raises(RuntimeError, match="it breaks in training"):
        train("activation=breaks")
    record = run_json(workdir)
    assert (record["status"], record["dnnkit_status"], record["exit_code"]) == ("FAILED", "failed", 1)
    (log,) = workdir.glob("runs/*/run.log")
    assert "it breaks in training" in log.read_text()
    assert "Traceback" in log.read_text()


@pytest.mark.usefixtures("registries")
def test_a_source_that_returns_something_else_is_a_plugin_error(workdir: Path) -> None:
    data_sources.register("nothing")(lambda root: None)
    with pytest.raises(dnnkit.errors.PluginError, match=r"dnnkit\.data\.Source"):
        train("data=nothing")


def test_the_chosen_initializers_are_logged(workdir: Path) -> None:
    log = (train("activation=relu").run_dir / "run.log").read_text()
    assert "he_normal for 00_dense" in log
    assert "glorot_uniform for 02_dense" in log


def test_early_stopping_ends_the_run_before_its_last_epoch(workdir: Path) -> None:
    result = train("trainer.max_epochs=30", "trainer.early_stopping=1", "optimizer.lr=0.2", "trainer.limit_train_batches=5")
    validations = [row for row in read_journal(result.run_dir / "metrics.jsonl") if row.key == "val/acc"]
    assert 2 <= len(validations) < 30
    assert "test/acc" in result.metrics


def test_an_early_stop_is_told_with_its_reason_and_the_step_of_the_best_weights_and_an_ordinary_end_is_not(workdir: Path) -> None:
    shown = io.StringIO()
    short = ("optimizer.lr=0.2", "scheduler=constant", "trainer.limit_train_batches=5", "trainer.early_stopping=1")
    stopped = train(*short, "trainer.max_epochs=30", "trainer.progress_bar=true", console=Console(file=shown, width=60))
    values = [(row.step, row.value) for row in read_journal(stopped.run_dir / "metrics.jsonl") if row.key == "val/acc"]
    step, best = max(values, key=lambda pair: pair[1])
    told = f"stopped early: val/acc has not been better than {best:.4g} for 1 validation; the best weights (step {step}) are tested"
    assert step == values[-2][0]
    assert told in shown.getvalue().splitlines()
    assert told in (stopped.run_dir / "run.log").read_text()
    # The same end, reached because there were no more epochs.
    full = train(*short, f"trainer.max_epochs={len(values)}", "trainer.progress_bar=true", console=Console(file=shown, width=60))
    assert "stopped early" not in (full.run_dir / "run.log").read_text()
    assert shown.getvalue().count("stopped early") == 1


@pytest.mark.slow
def test_early_stopping_on_real_images_keeps_the_best_weights_and_not_the_last(workdir: Path, data_root: Path) -> None:
    from dnnkit.training.assemble import load_data

    cfg = dnnkit.compose(["+experiment=fashion/early_stopping", f"data.root={data_root}", "tracking=none", "trainer.progress_bar=false"])
    result = dnnkit.train(cfg)
    losses = [(row.step, row.value) for row in read_journal(result.run_dir / "metrics.jsonl") if row.key == "val/loss"]
    step, best = min(losses, key=lambda pair: pair[1])
    assert 4 < len(losses) < cfg.values["trainer"]["max_epochs"]
    assert step == losses[-4][0], "three validations after the best"
    held = load(result.run_dir / "checkpoints" / "best.ckpt")
    assert held["global_step"] == step
    assert all(torch.equal(tensor, held["state_dict"][name]) for name, tensor in result.module.state_dict().items())
    validation = load_data(cfg).validation
    with torch.no_grad():
        again = nn.functional.cross_entropy(result.module(validation.x), validation.y).item()
    assert again == pytest.approx(best, abs=1e-6)
    assert losses[-1][1] > best + 1e-4
    assert result.metrics["test/acc"] == pytest.approx(0.801, abs=0.02)


def test_limits_and_validation_inside_the_epoch_are_counted_right(workdir: Path) -> None:
    result = train("trainer.limit_train_batches=8", "trainer.val_check_interval=4", "trainer.max_epochs=2")
    assert [row.step for row in read_journal(result.run_dir / "metrics.jsonl") if row.key == "val/acc"] == [4, 8, 12, 16]


@pytest.mark.parametrize("precision", ["bf16", "64"])
def test_other_precisions_train(workdir: Path, precision: str) -> None:
    result = train(f"trainer.precision={precision}", "trainer.max_epochs=4")
    assert result.metrics["test/acc"] > 0.9
    assert next(result.module.parameters()).dtype == (torch.float64 if precision == "64" else torch.float32)


def test_the_summary_counts_trainable_parameters_and_moving_statistics(workdir: Path) -> None:
    network = dnnkit.build(dnnkit.compose(["normalization=batch_norm", "normalization.on_input=true", "model.hidden=[300,100]"])).net
    found = {layer.name: (layer.trainable, layer.fixed) for layer in layers(network, (1, 8, 8))}
    assert found["input_batch_norm"] == (2 * 64, 2 * 64)
    assert found["00_dense"] == (64 * 300, 0)
    assert found["00_batch_norm"] == (2 * 300, 2 * 300)
    assert found["02_dense"] == (100 * 10 + 10, 0)
    assert all(module.training for module in network.modules())


def test_an_epoch_is_one_line_on_a_plain_terminal(workdir: Path) -> None:
    text = io.StringIO()
    train("trainer.progress_bar=true", console=Console(file=text, width=60))
    lines = [line for line in text.getvalue().splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    assert re.match(r"epoch 1/2  train loss \S+ +acc \S+ +val +loss \S+ +acc \S+ +\d+\.\d s", lines[0])


def test_the_number_of_threads_is_put_back_and_recorded(workdir: Path) -> None:
    before = torch.get_num_threads()
    result = train("trainer.threads=2")
    assert torch.get_num_threads() == before
    assert json.loads((result.run_dir / "environment" / "environment.json").read_text())["threads"] == 2


LONG = ("tracking=none", "trainer.max_epochs=2000", "trainer.threads=1")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_a_checkpoint_and_ends_with_its_exit_code(workdir: Path, number: signal.Signals, code: int) -> None:
    process = subprocess.Popen([sys.executable, "-m", "dnnkit", *LONG], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        _wait_for(lambda: len(list(workdir.glob("runs/*/checkpoints/last.ckpt"))) == 1)
        process.send_signal(number)
        _, complaint = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in complaint
    assert number.name in complaint
    record = run_json(workdir)
    assert (record["status"], record["dnnkit_status"], record["exit_code"]) == ("KILLED", "interrupted", code)
    (last,) = workdir.glob("runs/*/checkpoints/last.ckpt")
    steps = int(re.search(r"after (\d+) optimizer steps", complaint).group(1))
    assert load(last)["global_step"] == steps > 0


def _wait_for(what: Any, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


def test_a_run_and_its_training_import_no_mlflow(workdir: Path) -> None:
    script = (
        "import sys, dnnkit\n"
        f"dnnkit.train(dnnkit.compose({[*QUICK, 'trainer.max_epochs=1', 'trainer.limit_train_batches=2']!r}))\n"
        "import dnnkit.sender\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'mlflow'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONWARNINGS": "ignore"}
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"
