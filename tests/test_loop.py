"""The chunked loop against Lightning's own: the same network, data and seed must end in the same bits."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers.logger import Logger
from torch import Tensor, nn

from dnnkit import plugins
from dnnkit.config.schedule import WarmUp, Watching, warmed_up
from dnnkit.data.loaders import evaluation_batches
from dnnkit.data.resident import Batches
from dnnkit.errors import ConfigError, DivergedError
from dnnkit.loop import ChunkedEpochLoop, use_chunks
from dnnkit.loop.chunk import Chunk, chunk_of, minibatches_until, until_multiple
from dnnkit.module import Module, Recipe, Task
from dnnkit.registry import REGISTRIES

FEATURES, CLASSES, SAMPLES, BATCH = 6, 3, 150, 8  # 19 minibatches an epoch, the last of 6 samples


class Memory(Logger):
    """Keeps what is logged: (step, key, value) in order."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int | None, str, float]] = []

    name, version, save_dir = "memory", 0, None

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.lines += [(step, key, value) for key, value in metrics.items()]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def of(self, key: str) -> dict[int | None, float]:
        return {step: value for step, name, value in self.lines if name == key}


def accuracy(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction.argmax(1) == target).float().mean()


def half_cosine(step: int, total: int) -> tuple[float, float]:
    factor = (1 + math.cos(math.pi * step / total)) / 2
    return factor, 0.95 - 0.1 * factor


def momentum(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, fused=True)


def small_net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, CLASSES))


def samples(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, FEATURES, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, :CLASSES] + 0.5 * x[:, CLASSES:]).argmax(1)


@dataclass
class Case:
    """One way to train; `chunk_size=None` is Lightning's own loop."""

    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = momentum
    schedule: Callable[[int, int], Any] = half_cosine
    recipe: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    monitor: dict[str, Any] = field(default_factory=lambda: {"monitor": "val/loss", "save_last": True})
    callbacks: Callable[[], list[Callback]] = list
    batch_size: int = BATCH
    log_every: int = 5
    net: Callable[[], nn.Module] = small_net


class Recorder(Callback):
    """What a checkpoint saved at a minibatch's end, or at validation, would say about the loop, and what hooks are given."""

    chunked = True

    def __init__(self) -> None:
        self.states: dict[tuple[str, int], Any] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.states["batch", trainer.fit_loop.total_batch_idx] = trainer.fit_loop.state_dict(), dict(outputs), batch_idx

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.states["validation", trainer.fit_loop.total_batch_idx] = trainer.fit_loop.state_dict()


@dataclass
class Run:
    trainer: pl.Trainer
    module: Module
    memory: Memory
    recorder: Recorder


def train(case: Case, chunk_size: int | None, folder: Path, ckpt_path: Path | None = None) -> Run:
    task = Task(nn.functional.cross_entropy, {"acc": accuracy})
    module = Module(case.net(), task, Recipe(case.optimizer, case.schedule, seed=3, **case.recipe), case.log_every)
    memory = Memory()
    recorder, rates = Recorder(), LearningRateMonitor("step", log_momentum=True)
    callbacks = [ModelCheckpoint(dirpath=folder, **case.monitor), rates, recorder, *case.callbacks()]
    settings = {"max_epochs": 3, "log_every_n_steps": 4, **case.trainer}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=memory, callbacks=callbacks, default_root_dir=folder, **quiet, **settings)
    if chunk_size is not None:
        use_chunks(trainer, chunk_size)
    loaders = Batches(*samples(SAMPLES), case.batch_size, seed=3), evaluation_batches(*samples(40, seed=9), batch_size=16)
    torch.manual_seed(chunk_size or 0)  # what ran before must not matter
    trainer.fit(module, *loaders, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    return Run(trainer, module, memory, recorder)


def outcome(run: Run) -> dict[str, Any]:
    """Everything in which the two loops must agree."""
    trainer, checkpoint = run.trainer, run.trainer.checkpoint_callback
    assert isinstance(checkpoint, ModelCheckpoint)
    return {
        "network": run.module.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "schedule": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "rates": [config.scheduler.get_last_lr() for config in trainer.lr_scheduler_configs],
        "loop": trainer.fit_loop.state_dict(),
        "global_step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "best": (Path(checkpoint.best_model_path).name, checkpoint.best_model_score),
        "files": sorted(path.name for path in Path(checkpoint.dirpath or "").glob("*.ckpt")),
        "monitored": {key: float(value) for key, value in trainer.callback_metrics.items()},
        "stop": trainer.should_stop,
    }


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    """Equal to the last bit, through dicts, lists and tensors."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}/{index}")
    elif isinstance(one, Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), f"{where}: differ by {(one.double() - other.double()).abs().max()}"
    else:
        assert one == other, where


def clip_by_norm(parameters: list[nn.Parameter]) -> Tensor:
    return nn.utils.clip_grad_norm_(parameters, 0.3)


def squares(net: nn.Module) -> Tensor:
    return 1e-3 * torch.stack([parameter.square().sum() for parameter in net.parameters()]).sum()


def max_norm(net: nn.Module) -> None:
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(torch.renorm(layer.weight, 2, 0, 0.8))


def stops_at_once() -> list[Callback]:
    return [EarlyStopping("val/loss", patience=1, mode="max")]  # the loss falls, so this triggers


def by_name(group: str, name: str, **settings: Any) -> Any:
    """A component as a config would choose it."""
    plugins.load()
    return partial(REGISTRIES[group].get(name).function, **settings)


def follows(monitor: str, **settings: Any) -> Watching:
    """A rate that is cut at every measurement that is not much better than the best so far."""
    return Watching(by_name("scheduler", "performance")(monitor, factor=0.5, patience=0, threshold=0.5), **settings)


CASES = {
    "plain": Case(),
    "clipped by norm": Case(recipe={"clip": clip_by_norm}),
    "clipped by the trainer": Case(trainer={"gradient_clip_val": 0.3}),
    "penalty and constraint": Case(recipe={"penalty": squares, "constrain": max_norm}),
    "accumulation, 19 = 4·4 + 3": Case(trainer={"accumulate_grad_batches": 4}),
    "accumulation and clipping": Case(recipe={"clip": clip_by_norm}, trainer={"accumulate_grad_batches": 3}),
    "bf16": Case(trainer={"precision": "bf16-mixed"}),
    "64 bits": Case(trainer={"precision": "64-true"}),
    "validation inside the epoch": Case(trainer={"val_check_interval": 6}),
    "validation inside a group": Case(trainer={"val_check_interval": 6, "accumulate_grad_batches": 4}),
    "validation by steps across epochs": Case(trainer={"val_check_interval": 13, "check_val_every_n_epoch": None}),
    "early stopping": Case(trainer={"max_epochs": 9}, callbacks=stops_at_once),
    "early stopping inside the epoch": Case(trainer={"max_epochs": 9, "val_check_interval": 7}, callbacks=stops_at_once),
    "checkpoint every 3 steps": Case(monitor={"every_n_train_steps": 3, "save_top_k": -1}),
    "checkpoint by training loss": Case(monitor={"monitor": "train/loss", "every_n_train_steps": 3, "save_top_k": 2}),
    "max_steps inside the epoch": Case(trainer={"max_steps": 31, "max_epochs": -1}),
    "limit_train_batches": Case(trainer={"limit_train_batches": 7}),
    "no validation": Case(trainer={"limit_val_batches": 0}, monitor={"save_top_k": 1}),
    "nadam": Case(optimizer=partial(torch.optim.NAdam, lr=0.01)),
    "plain sgd": Case(optimizer=partial(torch.optim.SGD, lr=0.05)),
    "performance": Case(schedule=follows("val/loss")),
    "performance inside the epoch": Case(schedule=follows("val/acc"), trainer={"val_check_interval": 6}),
    "performance inside a group": Case(schedule=follows("val/loss"), trainer={"val_check_interval": 6, "accumulate_grad_batches": 4}),
    "performance of training": Case(schedule=follows("train/loss")),
    "performance of training, accumulation": Case(schedule=follows("train/acc"), trainer={"accumulate_grad_batches": 4}),
    "performance and warm-up": Case(schedule=follows("val/loss", warmup=WarmUp(25, 0.1)), trainer={"val_check_interval": 6}),
    "warm-up": Case(schedule=warmed_up(half_cosine, WarmUp(0.3))),
    "decoupled decay": Case(optimizer=by_name("optimizer", "momentum", lr=0.05, weight_decay=0.1, decoupled=True)),
    "decoupled decay, accumulation": Case(
        optimizer=by_name("optimizer", "nesterov", lr=0.05, weight_decay=0.1, decoupled=True), trainer={"accumulate_grad_batches": 4}
    ),
    "keras momentum, decoupled": Case(
        optimizer=by_name("optimizer", "momentum", lr=0.05, weight_decay=0.1, decoupled=True, keras_momentum=True)
    ),
    "adamw": Case(optimizer=by_name("optimizer", "adamw", lr=0.01, amsgrad=True)),
    "adam with eps hat": Case(optimizer=by_name("optimizer", "adam", lr=0.01, weight_decay=0.1, eps_hat=True)),
    "adagrad": Case(optimizer=by_name("optimizer", "adagrad", lr=0.05, weight_decay=0.1, decoupled=True)),
    "rmsprop": Case(optimizer=by_name("optimizer", "rmsprop", lr=0.01, momentum=0.5, weight_decay=0.1, decoupled=True)),
    "rmsprop inside": Case(optimizer=by_name("optimizer", "rmsprop", lr=0.01, momentum=0.5, centered=True, eps_inside=True)),
    "adamax": Case(optimizer=by_name("optimizer", "adamax", lr=0.01, weight_decay=0.1, decoupled=True)),
    "nadam, decoupled": Case(
        optimizer=by_name("optimizer", "nadam", lr=0.01, weight_decay=0.1, decoupled=True), trainer={"precision": "64-true"}
    ),
    "minibatches off a 64-byte line": Case(batch_size=7),
    "no early look": Case(trainer={"log_every_n_steps": 1000}, log_every=1000),
}
SIZES = {"plain": (1, 7, 50), "accumulation, 19 = 4·4 + 3": (1, 7, 50)} | dict.fromkeys(
    ("decoupled decay", "keras momentum, decoupled", "adamw", "adagrad", "rmsprop", "rmsprop inside", "adamax", "nadam, decoupled"), (7,)
)


@pytest.mark.filterwarnings(
    "ignore:.*smaller than the logging interval",
    "ignore:Detected call of",
    "ignore:.*does not have many workers",
    "ignore:You have set log_momentum",
)
@pytest.mark.parametrize("name", CASES)
def test_chunked_loop_ends_as_the_stock_loop_does(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    stock = train(case, None, tmp_path / "stock")
    for size in SIZES.get(name, (7, 50)):
        chunked = train(case, size, tmp_path / f"chunked{size}")
        assert isinstance(chunked.trainer.fit_loop.epoch_loop, ChunkedEpochLoop)
        assert chunked.trainer.fit_loop.epoch_loop._by_chunks, "fell back"
        assert_equal(outcome(stock), outcome(chunked), name)
        seen, states = chunked.recorder.states, stock.recorder.states
        assert_equal({at: state for at, state in states.items() if at in seen or at[0] == "validation"}, seen, name)
        if "accumulate_grad_batches" in case.trainer:
            # The stock rate monitor logs a step once for each minibatch of its group, the chunked one once.
            assert dict.fromkeys(stock.memory.lines) == dict.fromkeys(chunked.memory.lines)
        else:
            assert stock.memory.lines == chunked.memory.lines
        assert stock.memory.lines


def test_the_rate_of_a_performance_schedule_was_cut_in_these_runs(tmp_path: Path) -> None:
    for name in (name for name in CASES if name.startswith("performance")):
        assert len(set(train(CASES[name], 50, tmp_path / name).memory.of("lr").values())) > 1, name


RESUMED = {
    "plain": Case(),
    "performance": Case(schedule=follows("val/loss", warmup=WarmUp(15)), trainer={"val_check_interval": 8}),
    "adam with eps hat and decoupled decay": Case(
        optimizer=by_name("optimizer", "adam", lr=0.01, weight_decay=0.1, decoupled=True, eps_hat=True)
    ),
}


def assert_rest_equals_whole(whole: Run, rest: Run, step: int) -> None:
    one, other = outcome(whole), outcome(rest)
    for key in ("network", "optimizer", "schedule", "rates", "global_step", "epoch", "monitored"):
        assert_equal(one[key], other[key], key)
    for key in ("train/loss", "train/acc", "val/loss", "lr", "grad_norm"):
        later = {at: value for at, value in whole.memory.of(key).items() if at is not None and at > step}
        assert later == {at: value for at, value in rest.memory.of(key).items() if at is not None and at > step}, key
        assert later


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("step", [12, 19, 24])  # inside an epoch; the end of one (without accumulation); inside a later one
@pytest.mark.parametrize("sizes", [(50, None), (None, 7)], ids=str)
def test_resumed_run_equals_the_uninterrupted_one(name: str, step: int, sizes: tuple[int | None, int | None], tmp_path: Path) -> None:
    monitor = {"every_n_train_steps": step, "save_top_k": -1, "save_on_train_epoch_end": False, "filename": "{step}"}
    case = replace(RESUMED[name], monitor=monitor)
    whole = train(case, sizes[0], tmp_path / "whole")
    rest = train(case, sizes[1], tmp_path / "rest", ckpt_path=tmp_path / "whole" / f"step={step}.ckpt")
    assert_rest_equals_whole(whole, rest, step)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("on_train_epoch_end", [False, True])
def test_run_resumed_at_an_epochs_end_goes_on_with_the_next_epochs_order(on_train_epoch_end: bool, tmp_path: Path) -> None:
    monitor = {"monitor": "val/loss", "save_top_k": -1, "filename": "{step}", "save_on_train_epoch_end": on_train_epoch_end}
    whole = train(Case(monitor=monitor), 50, tmp_path / "whole")
    assert_rest_equals_whole(whole, train(Case(monitor=monitor), 50, tmp_path / "rest", ckpt_path=tmp_path / "whole" / "step=19.ckpt"), 19)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_run_resumed_where_a_limited_epoch_ended_without_validation_begins_the_next(tmp_path: Path) -> None:
    limits = {"limit_train_batches": 7, "limit_val_batches": 0, "max_steps": 18, "max_epochs": -1}
    case = Case(trainer=limits, monitor={"save_top_k": -1, "filename": "{step}", "save_on_train_epoch_end": True})
    whole = train(case, 50, tmp_path / "whole")
    rest = train(case, 50, tmp_path / "rest", ckpt_path=tmp_path / "whole" / "step=7.ckpt")
    assert_equal(outcome(whole)["network"], outcome(rest)["network"])


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("limit", [19, 7])
@pytest.mark.parametrize("size", [None, 50])
def test_steps_rates_and_journal_agree_with_the_closed_form(accumulate: int, limit: int, size: int | None, tmp_path: Path) -> None:
    calls: list[float] = []

    def counted(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = momentum(parameters)
        optimizer.register_step_post_hook(lambda optimizer, *_: calls.append(optimizer.param_groups[0]["lr"]))
        return optimizer

    trainer = {"accumulate_grad_batches": accumulate, "limit_train_batches": limit}
    run = train(Case(optimizer=counted, trainer=trainer), size, tmp_path)
    steps = 3 * math.ceil(min(limit, math.ceil(SAMPLES / BATCH)) / accumulate)
    assert run.trainer.global_step == len(calls) == steps
    assert calls == [0.05 * half_cosine(step, steps)[0] for step in range(steps)]
    assert run.trainer.optimizers[0].param_groups[0]["lr"] == calls[-1]
    assert max(step for step, _, _ in run.memory.lines if step is not None) == steps
    assert max(run.memory.of("val/loss")) == max(run.memory.of("train/loss")) == max(run.memory.of("lr")) == steps
    assert run.memory.of("lr") == {step: calls[max(0, step - 1)] for step in run.memory.of("lr") if step is not None}
    assert min(step for step in run.memory.of("lr") if step is not None) == 0
    assert all(step in run.memory.of("train/loss") for step in range(5, steps + 1, 5))


class Masks(nn.Module):
    """Dropout that remembers how its masks began."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.seen = small_net(), []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append((nn.functional.dropout(torch.ones(64)) > 0).tolist())
        return self.net(x)


def test_masks_of_a_minibatch_depend_on_its_number_alone(tmp_path: Path) -> None:
    seen = []
    for size in (None, 1, 7, 50):
        net = Masks()
        train(Case(net=lambda net=net: net), size, tmp_path / str(size))
        seen.append(net.seen)
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert len({tuple(mask) for mask in seen[0]}) == len(seen[0]) == 57  # and no two minibatches share one


class Watcher(Callback):
    def __init__(self) -> None:
        self.calls: list[int] = []


class BeforeStep(Watcher):
    chunked = True  # says nothing about a hook that belongs to every update

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
        self.calls.append(trainer.global_step)


class BatchEnd(Watcher):
    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.calls.append(batch_idx)


class Checkpoints(ModelCheckpoint):
    def on_train_batch_end(self, *arguments: Any, **named: Any) -> None:
        super().on_train_batch_end(*arguments, **named)


def lambda_callback() -> Callback:
    return pl.callbacks.LambdaCallback(on_train_batch_start=lambda *_: None)


@pytest.mark.parametrize("callback", [BeforeStep, BatchEnd, partial(Checkpoints, save_top_k=0), lambda_callback])
def test_callback_that_needs_every_minibatch_gets_it_and_the_numbers_stay(
    callback: Callable[[], Callback], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = callback()
    with caplog.at_level(logging.WARNING, logger="dnnkit"):
        watched = train(Case(callbacks=lambda: [watcher]), 50, tmp_path / "watched")
    assert_equal(outcome(train(Case(), 50, tmp_path / "chunked"))["network"], outcome(watched)["network"])
    reasons = [record.getMessage() for record in caplog.records if record.name == "dnnkit"]
    assert len(reasons) == 1, "logged once, not once an epoch"
    assert type(watcher).__name__ in reasons[0]
    if isinstance(watcher, Watcher):
        assert len(watcher.calls) == 57


def test_callback_that_declares_itself_chunked_is_called_once_per_chunk(tmp_path: Path) -> None:
    watcher = BatchEnd()
    watcher.chunked = True
    train(Case(callbacks=lambda: [watcher], log_every=10, trainer={"log_every_n_steps": 0, "max_epochs": 1}), 50, tmp_path)
    assert watcher.calls == [9, 18]


class OwnStep(Module):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx)


def fit_by_chunks(module: pl.LightningModule, loader: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = use_chunks(pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, limit_val_batches=0, **quiet))
    trainer.fit(module, loader, evaluation_batches(*samples(8)))
    return trainer


def test_module_that_overrides_a_step_hook_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    module = OwnStep(small_net(), Task(nn.functional.cross_entropy), Recipe(momentum, half_cosine))
    assert fit_by_chunks(module, Batches(*samples(SAMPLES), BATCH, seed=3)).global_step == 19
    assert "OwnStep overrides training_step" in caplog.text


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_loader_that_is_not_resident_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    module = Module(small_net(), Task(nn.functional.cross_entropy), Recipe(momentum, half_cosine))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*samples(SAMPLES)), batch_size=BATCH)
    assert fit_by_chunks(module, loader).global_step == 19
    assert "DataLoader" in caplog.text


class StopAfter(Watcher):
    chunked = True

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= 12


@pytest.mark.parametrize("size", [4, 6])
def test_callback_that_stops_training_at_a_chunks_end_stops_it_as_in_the_stock_loop(size: int, tmp_path: Path) -> None:
    case = Case(callbacks=lambda: [StopAfter()], trainer={"log_every_n_steps": 0}, log_every=1000)
    stock, chunked = (train(case, kind, tmp_path / str(kind)) for kind in (None, size))
    assert stock.trainer.global_step == 12
    assert_equal(outcome(stock), outcome(chunked))
    assert stock.memory.lines == chunked.memory.lines
    assert max(stock.memory.of("train/loss")) == 12, "what was left when training stopped is flushed"


@pytest.mark.filterwarnings("ignore:When using .Trainer.accumulate_grad_batches")
@pytest.mark.parametrize("size", [None, 50])
def test_accumulation_that_changes_between_epochs_is_followed(size: int | None, tmp_path: Path) -> None:
    case = Case(
        schedule=lambda step, total: 1.0,
        callbacks=lambda: [pl.callbacks.GradientAccumulationScheduler({1: 4})],
        trainer={"max_epochs": 2},
    )
    assert train(case, size, tmp_path).trainer.global_step == 19 + 5


@pytest.mark.parametrize("size", [None, 7, 50])
def test_loss_that_is_not_finite_ends_the_run_naming_step_and_value(size: int | None, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"train/loss is (nan|inf) at step 2") as caught:
        train(Case(optimizer=partial(torch.optim.SGD, lr=1e30)), size, tmp_path)
    assert caught.value.exit_code == 5
    assert "optimizer.lr" in caught.value.cure


def test_chunk_size_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        use_chunks(pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False), 0)


@pytest.mark.parametrize("accumulate", [1, 3, 4])
@pytest.mark.parametrize("limit", [1, 2, 5, 50])
def test_chunks_cover_an_epoch_and_count_every_group_once(accumulate: int, limit: int) -> None:
    length, first, chunks = 19, 0, []
    while first < length:
        chunks.append(chunk_of(limit, first, length, accumulate, [6 - first % 6]))
        assert 1 <= chunks[-1].size <= limit
        assert first // 6 == (chunks[-1].stop - 1) // 6, "passes no boundary"
        first = chunks[-1].stop
    assert sum(chunk.updates for chunk in chunks) == sum(chunk.openings for chunk in chunks) == math.ceil(length / accumulate)
    for chunk in chunks:
        indices = range(chunk.first, chunk.stop)
        assert chunk.updates == sum(map(chunk.closes, indices))
        assert chunk.openings == sum(map(chunk.opens, indices))


def test_distances_to_a_boundary() -> None:
    assert [until_multiple(done, 4) for done in range(5)] == [4, 3, 2, 1, 4]
    assert minibatches_until(2, first=5, accumulate=4) == 7, "5 6 7 close one group, 8 9 10 11 the next"
    assert Chunk(first=16, size=3, length=19, accumulate=4).ends_on_update
