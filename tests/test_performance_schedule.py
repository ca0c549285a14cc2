"""The schedule that watches a metric: against torch's and Keras's own, in both loops, and where a run is taken up again."""

from __future__ import annotations

import logging
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

import dnnkit
from dnnkit import plugins
from dnnkit.checkpoint import load
from dnnkit.config.schedule import Watching, schedule_of
from dnnkit.config.sections import task_problems
from dnnkit.data.loaders import evaluation_batches
from dnnkit.data.resident import Batches
from dnnkit.errors import ConfigError
from dnnkit.loop import use_chunks
from dnnkit.module import Module, Recipe, ScheduleLR, Task
from dnnkit.record import read_journal
from dnnkit.registry import REGISTRIES
from dnnkit.schema import node
from dnnkit.training.resume import resume

os.environ.setdefault("KERAS_BACKEND", "torch")

plugins.load()

SERIES = 200


def performance(monitor: str = "val/loss", **settings: Any) -> Any:
    return REGISTRIES["scheduler"].get("performance").function(monitor, **settings)


def series(seed: int, length: int = 60) -> list[float]:
    """A loss that falls, rests, rises and is noisy, in turns; now and then it is exactly what it was."""
    draw, value, values = random.Random(seed), 2.0, []
    for _ in range(length):
        value *= draw.choice([0.9, 0.999, 1.0, 1.0, 1.01, 0.99995])
        values.append(value + draw.choice([0.0, 0.0, draw.gauss(0, 0.05)]))
    return values


def observed(watcher: Any, values: list[float]) -> list[float]:
    """The factor after each measurement."""
    factors = []
    for value in values:
        watcher.observe(value)
        factors.append(watcher.factor(0))
    return factors


def by_torch(values: list[float], **settings: Any) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    plateau, rates = ReduceLROnPlateau(optimizer, eps=0, **settings), []
    for value in values:
        plateau.step(value)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
def test_it_cuts_where_torch_s_does(mode: Any, threshold_mode: Any) -> None:
    cuts = 0
    for seed in range(SERIES):
        draw = random.Random(seed)
        values = [value if mode == "min" else 3 - value for value in series(seed)]
        settings: dict[str, Any] = {
            "factor": draw.choice([0.1, 0.5]),
            "patience": draw.randrange(5),
            "cooldown": draw.randrange(4),
            "threshold": draw.choice([0.0, 1e-4, 0.01]),
            "threshold_mode": threshold_mode,
            "mode": mode,
        }
        theirs = by_torch(values, **settings, min_lr=0.003)
        assert observed(performance(**settings, min_factor=0.003), values) == theirs, settings
        cuts += len(set(theirs)) > 1
    assert cuts > SERIES / 2, "most of the series have a cut"


@pytest.mark.parametrize("mode", ["min", "max"])
def test_it_cuts_where_keras_s_does_with_the_documented_settings(mode: Any) -> None:
    keras = pytest.importorskip("keras")
    mismatches, cuts = 0, 0
    for seed in range(SERIES):
        draw = random.Random(seed)
        patience, cooldown, factor = draw.randrange(1, 6), draw.randrange(1, 5), draw.choice([0.1, 0.5])
        values = [value if mode == "min" else 3 - value for value in series(seed)]
        # min_lr=0 is compared in float32: the factors stay far above what that calls zero.
        plateau = keras.callbacks.ReduceLROnPlateau("val_loss", factor=factor, patience=patience, cooldown=cooldown, mode=mode)
        plateau.set_model(SimpleNamespace(optimizer=SimpleNamespace(learning_rate=1.0)))
        plateau.on_train_begin()
        theirs = []
        for epoch, value in enumerate(values):
            plateau.on_epoch_end(epoch, {"val_loss": value})
            theirs.append(float(plateau.model.optimizer.learning_rate))
        settings = {"patience": patience - 1, "cooldown": cooldown - 1, "threshold_mode": "abs", "threshold": 1e-4}
        mismatches += observed(performance(factor=factor, mode=mode, **settings), values) != pytest.approx(theirs, rel=1e-5)
        cuts += len(set(theirs)) > 1
    assert mismatches == 0
    assert cuts > SERIES / 2, "most of the series have a cut"


def test_the_defaults_are_torch_s() -> None:
    for seed in range(20):
        assert observed(performance(), series(seed, 200)) == by_torch(series(seed, 200))


def test_every_counts_measurements_and_the_others_do_not_matter() -> None:
    values = series(3)
    sparse = observed(performance(patience=1, every=4), values)
    assert sparse[3::4] == observed(performance(patience=1), values[3::4])
    assert all(sparse[i] == (sparse[i - 1] if i else 1.0) for i in range(len(values)) if i % 4 != 3)


def test_a_value_that_is_not_defined_is_no_improvement_as_in_torch() -> None:
    values = [1.0, math.nan, math.nan, 0.5, math.nan, math.nan]
    assert observed(performance(patience=1), values) == by_torch(values, patience=1) == [1, 1, 0.1, 0.1, 0.1, 0.1 * 0.1]


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [("val/loss", "min"), ("train/loss", "min"), ("train/penalty", "min"), ("val/acc", "max"), ("val/mse", "min"), ("train/r2", "max")],
)
def test_the_metric_itself_says_in_which_direction_it_is_better(monitor: str, mode: str) -> None:
    schedule = schedule_of({**node("scheduler", "performance"), "monitor": monitor})
    assert isinstance(schedule, Watching)
    assert vars(schedule.watcher)["mode"] == mode
    assert "mode" not in node("scheduler", "performance")


# The schedule that holds it.


def scheduled(watcher: Any, total: int = 100) -> ScheduleLR:
    groups = [{"params": [nn.Parameter(torch.zeros(1))]}, {"params": [nn.Parameter(torch.zeros(1))], "lr": 0.02}]
    return ScheduleLR.of(torch.optim.SGD(groups, lr=0.2), Watching(watcher), total)


def test_a_cut_is_in_the_rate_of_every_group_at_once_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    schedule = scheduled(performance(patience=0, factor=0.5))
    schedule.seek(7)
    with caplog.at_level(logging.INFO, logger="dnnkit"):
        schedule.observe(1.0, 7)
        assert [group["lr"] for group in schedule.optimizer.param_groups] == [0.2, 0.02]
        schedule.observe(2.0, 7)
    assert [group["lr"] for group in schedule.optimizer.param_groups] == schedule.get_last_lr() == [0.1, 0.01]
    assert (schedule.rate, schedule.last_epoch) == (0.1, 7)
    assert [record.getMessage() for record in caplog.records] == ["val/loss is 2 at step 7: the rate goes from 1 to 0.5 times its peak"]


def test_what_it_observed_is_saved_as_plain_values_and_restored(tmp_path: Path) -> None:
    values = series(5)
    whole, parts, later = (scheduled(performance(patience=1, cooldown=1, every=2)) for _ in range(3))
    for value in values:
        whole.observe(value, 0)
    for value in values[:31]:
        parts.observe(value, 0)
    torch.save(parts.state_dict(), tmp_path / "state.pt")
    later.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for value in values[31:]:
        later.observe(value, 0)
    assert later.state_dict() == whole.state_dict()
    assert later.rate == whole.rate < 0.2


def test_a_module_that_is_trained_again_begins_with_nothing_observed(tmp_path: Path) -> None:
    schedule = Watching(performance(patience=0, threshold=0.5))
    first, again = (rates(schedule, None, tmp_path)[0] for _ in range(2))
    assert first == again
    assert len(set(first)) > 1
    assert schedule.watcher.factor(0) == 1


# In a run.

SAMPLES, BATCH = 70, 8  # 9 minibatches an epoch


def rates(
    schedule: Any,
    chunk: int | None,
    folder: Path,
    metrics: dict[str, Callable[[Tensor, Tensor], Tensor]] | None = None,
    **trainer: Any,
) -> tuple[list[float], Module]:
    """The rate of each update."""
    x = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    seen: list[float] = []

    def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made = torch.optim.SGD(parameters, lr=1.0)
        made.register_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"]))
        return made

    module = Module(nn.Linear(4, 2), Task(nn.functional.cross_entropy, metrics or {}), Recipe(optimizer, schedule), log_every=3)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"max_epochs": 3, **trainer}
    fit = pl.Trainer(accelerator="cpu", devices=1, default_root_dir=folder, **quiet, **settings)
    if chunk is not None:
        use_chunks(fit, chunk)
    fit.fit(module, Batches(x, y, BATCH, seed=0), evaluation_batches(x[:8], y[:8]))
    return seen, module


class Halving:
    """Halves the rate at every measurement, which it keeps."""

    def __init__(self, monitor: str) -> None:
        self.monitor, self.times = monitor, 0

    def factor(self, step: int) -> float:
        return 0.5**self.times

    def observe(self, value: float) -> None:
        assert isinstance(value, float)
        self.times += 1


@pytest.mark.parametrize("chunk", [None, 1, 4, 50])
@pytest.mark.parametrize(
    ("monitor", "trainer", "measured_after"),
    [
        ("val/loss", {}, [9, 18]),
        ("val/loss", {"val_check_interval": 4}, [4, 8, 13, 17, 22, 26]),
        ("val/loss", {"check_val_every_n_epoch": 2}, [18]),
        ("val/loss", {"accumulate_grad_batches": 2}, [5, 10]),
        ("train/loss", {}, [3, 6, 9, 12, 15, 18, 21, 24]),
        ("train/loss", {"accumulate_grad_batches": 2}, [3, 5, 6, 9, 10, 12]),
    ],
)
def test_the_first_update_after_a_measurement_has_the_new_rate(
    monitor: str, trainer: dict[str, Any], measured_after: list[int], chunk: int | None, tmp_path: Path
) -> None:
    seen, _ = rates(Watching(Halving(monitor)), chunk, tmp_path, **trainer)
    assert seen == [0.5 ** sum(step <= done for step in measured_after) for done in range(len(seen))]


def test_a_sanity_check_and_a_validation_outside_of_training_are_no_measurements(tmp_path: Path) -> None:
    seen, module = rates(Watching(Halving("val/loss")), 50, tmp_path, num_sanity_val_steps=2, max_epochs=1)
    assert seen == [1.0] * 9
    assert module._schedule.state_dict()["watcher"]["times"] == 1
    x = torch.randn(8, 4)
    module.trainer.validate(module, evaluation_batches(x, (x[:, 0] > 0).long()), verbose=False)
    assert module._schedule.state_dict()["watcher"]["times"] == 1


@pytest.mark.parametrize(
    ("monitor", "trainer"),
    [("val/acc", {}), ("val/los", {}), ("loss", {}), ("lr", {}), ("train/penalty", {}), ("val/loss", {"limit_val_batches": 0})],
)
def test_a_metric_that_is_never_measured_ends_the_run_before_it_begins(monitor: str, trainer: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"scheduler\.monitor: must be one of .*train/loss, which this run measures, got"):
        rates(Watching(performance(monitor)), 50, tmp_path, **trainer)


def test_it_follows_a_metric_that_is_sometimes_not_defined(tmp_path: Path) -> None:
    undefined = {"never": lambda prediction, target: torch.tensor(math.nan)}
    seen, _ = rates(Watching(performance("val/never", patience=0)), 50, tmp_path, undefined)
    assert [seen[0], seen[9], seen[18]] == pytest.approx([1, 0.1, 0.01])


# From a config.

QUICK = ("tracking=none", "trainer.progress_bar=false", "data.val_size=300", "trainer.limit_train_batches=20")
CUTTING = ("scheduler=performance", "scheduler.patience=0", "scheduler.threshold=0.4", "scheduler.factor=0.5")


def problems(*overrides: str) -> list[tuple[str, str, tuple[str, ...]]]:
    with pytest.raises(ConfigError) as caught:
        dnnkit.compose([*QUICK, "scheduler=performance", *overrides])
    return [(problem.where, problem.message, problem.nearest) for problem in caught.value.problems]


def test_a_monitor_that_is_not_measured_is_refused_with_the_nearest_right_name() -> None:
    measured = "must be one of val/loss, val/acc, train/loss, train/acc, which this run measures"
    classification = ("task=classification",)
    assert problems("scheduler.monitor=val/accuracy", *classification) == [
        ("scheduler.monitor", f"{measured}, got 'val/accuracy'", ("val/acc",))
    ]
    assert problems("scheduler.monitor=acc", *classification) == [("scheduler.monitor", f"{measured}, got 'acc'", ("val/acc", "train/acc"))]
    [(_, message, near)] = problems("scheduler.monitor=test/acc", *classification)
    assert (message, near) == (f"{measured}, got 'test/acc'; the test split is kept for the end", ("val/acc", "train/acc"))
    [(_, message, _)] = problems("scheduler.monitor=val/f1", *classification)
    assert message.endswith("name the metrics as metrics=[acc,f1]")


@pytest.mark.parametrize(
    ("task", "metric", "others"),
    [("regression", "acc", "classification"), ("classification", "mse", "regression"), ("reconstruction", "acc", "classification")],
)
@pytest.mark.parametrize("setting", ["scheduler.monitor", "checkpoint.monitor"])
def test_a_metric_of_another_task_is_not_advised(setting: str, task: str, metric: str, others: str) -> None:
    config = {"scheduler": node("scheduler", "performance"), "metrics": "auto", "regularizer": {"name": "none"}, "loss": {"name": "auto"}}
    config |= {"checkpoint": {"monitor": "auto", "mode": "auto"}}
    config[setting.partition(".")[0]]["monitor"] = f"val/{metric}"
    [problem] = task_problems(config, task)
    assert problem.where == setting
    assert f"{metric} is for " in problem.message
    assert others in problem.message
    assert f"the task is {task}" in problem.message
    assert "metrics=[" not in problem.message


def test_what_is_advised_while_the_task_is_open_is_accepted() -> None:
    [(_, message, _)] = problems("scheduler.monitor=val/f1")
    assert "which this run may measure" in message
    assert message.endswith("metrics=[f1]")
    dnnkit.build(dnnkit.compose([*QUICK, "scheduler=performance", "scheduler.monitor=val/f1", "metrics=[f1]"]))


def test_what_is_measured_is_known_once_the_data_say_what_is_learnt() -> None:
    cfg = dnnkit.compose([*QUICK, "scheduler=performance", "scheduler.monitor=val/r2"])  # possible, for a regression
    with pytest.raises(ConfigError, match=r"scheduler\.monitor: must be one of val/loss, val/acc, train/loss, train/acc"):
        dnnkit.build(cfg)
    dnnkit.build(dnnkit.compose([*QUICK, "scheduler=performance", "scheduler.monitor=val/r2", "data=diabetes"]))
    dnnkit.build(dnnkit.compose([*QUICK, "scheduler=performance", "scheduler.monitor=train/penalty", "regularizer=l2"]))


def test_a_monitor_that_is_not_defined_on_the_validation_split_is_refused() -> None:
    # The last rows of iris are all of one class.
    settings = ("data=iris", "data.val_size=10", "data.split=tail", "metrics=[acc,auroc]", "trainer.limit_train_batches=1.0")
    with pytest.raises(ConfigError, match=r"scheduler\.monitor: val/auroc is not defined on these 10 validation rows"):
        dnnkit.build(dnnkit.compose([*QUICK, *settings, "scheduler=performance", "scheduler.monitor=val/auroc"]))


def test_the_rate_is_cut_in_a_run_and_the_log_says_when(workdir: Path) -> None:
    run = dnnkit.train(dnnkit.compose([*QUICK, *CUTTING, "trainer.max_epochs=5", "optimizer.lr=0.01"])).run_dir
    rows = read_journal(run / "metrics.jsonl")
    losses = {row.step: row.value for row in rows if row.key == "val/loss"}
    after = observed(performance(patience=0, threshold=0.4, factor=0.5), list(losses.values()))
    rate = {row.step: row.value for row in rows if row.key == "lr"}
    assert [rate[step] for step in losses] == pytest.approx([0.01 * factor for factor in (1.0, *after[:-1])])
    log = (run / "run.log").read_text()
    assert len(set(after)) > 1
    for step, was, now in zip(losses, (1.0, *after), after, strict=False):
        said = f"val/loss is {losses[step]:g} at step {step}: the rate goes from {was:g} to {now:g} times its peak"
        assert (said in log) == (was != now)


FOLLOWING_TRAINING = ("scheduler.warmup_steps=10", "scheduler.monitor=train/loss", "trainer.log_every_n_steps=7")


@pytest.mark.parametrize("extra", [(), pytest.param(FOLLOWING_TRAINING, marks=pytest.mark.slow)])
def test_a_run_that_is_taken_up_again_is_the_run_without_a_break(workdir: Path, extra: tuple[str, ...]) -> None:
    settings = (*QUICK, *CUTTING, "optimizer=adam", "optimizer.decoupled=true", "optimizer.weight_decay=0.01", *extra)
    whole, parts = (dnnkit.train(dnnkit.compose([*settings, f"trainer.max_epochs={epochs}"])).run_dir for epochs in (4, 2))
    resume(parts, ["trainer.max_epochs=4"])
    one, other = (
        [row for row in read_journal(run / "metrics.jsonl") if not row.key.startswith(("signal/", "test/"))] for run in (whole, parts)
    )
    assert one == other
    assert len({row.value for row in one if row.key == "lr"}) > 1
    mine, theirs = (load(run / "checkpoints" / "last.ckpt") for run in (whole, parts))
    assert mine["lr_schedulers"] == theirs["lr_schedulers"]
    assert all(torch.equal(mine["state_dict"][name], theirs["state_dict"][name]) for name in mine["state_dict"])
