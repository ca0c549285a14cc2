"""Schedulers: the whole curve against the closed form, torch's own scheduler and Keras's, at every step, alone and in a run."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, StepLR

import dnnkit
from dnnkit import plugins
from dnnkit.config import Config
from dnnkit.config.schedule import WarmUp, schedule_of, warmed_up
from dnnkit.data.loaders import evaluation_batches
from dnnkit.data.resident import Batches
from dnnkit.errors import ConfigError, PluginError
from dnnkit.loop import use_chunks
from dnnkit.module import Module, Recipe, Task
from dnnkit.registry import schedulers
from dnnkit.schema import node
from dnnkit.training.run import prepare_run
from dnnkit.training.scheduling import check_schedule, total_steps

os.environ.setdefault("KERAS_BACKEND", "torch")

plugins.load()

NAMES = [component.name for component in schedulers]
PURE = [component.name for component in schedulers if not component.watches]


def curve(name: str, total: int, **settings: Any) -> list[Any]:
    schedule = schedule_of({**node("scheduler", name), **settings})
    return [schedule(step, total) for step in range(total)]


def factors(values: list[Any]) -> list[float]:
    return [value[0] if isinstance(value, tuple) else value for value in values]


def torch_curve(make: Callable[[torch.optim.Optimizer], Any], total: int) -> list[tuple[float, float]]:
    """Rate and momentum before each of `total` steps, with a peak rate of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler, seen = make(optimizer), []
    for step in range(total):
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        if step < total - 1:
            scheduler.step()
    return seen


def one_cycle_of_torch(total: int, pct_start: float = 0.45, **settings: Any) -> list[tuple[float, float]]:
    chosen = {"div_factor": 10, "final_div_factor": 1000, "base_momentum": 0.85, "max_momentum": 0.95} | settings
    chosen |= {"three_phase": True, "anneal_strategy": "linear", "pct_start": pct_start}
    return torch_curve(lambda optimizer: OneCycleLR(optimizer, 1.0, total, **chosen), total)


@pytest.mark.parametrize("total", [4, 5, 7, 10, 20, 45, 100, 101, 820, 1719, 3438])
def test_one_cycle_is_torch_s_three_phase_linear_one_at_every_step(total: int) -> None:
    for ours, theirs in zip(curve("one_cycle", total), one_cycle_of_torch(total), strict=True):
        assert ours == pytest.approx(theirs, rel=0, abs=1e-12)


@pytest.mark.parametrize("total", [10, 333])
def test_one_cycle_s_settings_are_torch_s_under_other_names(total: int) -> None:
    ours = curve("one_cycle", total, warmup=0.3, start_factor=0.04, end_factor=1e-6, base_momentum=0.8, max_momentum=0.9)
    theirs = one_cycle_of_torch(total, 0.3, div_factor=25, final_div_factor=4e4, base_momentum=0.8, max_momentum=0.9)
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=0, abs=1e-12)


def test_one_cycle_reaches_the_peak_and_ends_a_thousand_times_below_its_start() -> None:
    factors, momenta = zip(*curve("one_cycle", 1000), strict=True)
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[449] == pytest.approx(1)
    assert factors[898] == pytest.approx(0.1)
    assert factors[999] == pytest.approx(1e-4, rel=1e-9)
    assert (momenta[0], momenta[449], momenta[999]) == pytest.approx((0.95, 0.85, 0.95))


@pytest.mark.parametrize("warmup", [0.001, 0.1, 0.25, 0.3, 1 / 3, 0.45, 0.5])
@pytest.mark.parametrize("total", [1, 2, 3, 4, 10])
def test_one_cycle_is_finite_positive_and_at_most_one_in_the_shortest_runs(total: int, warmup: float) -> None:
    for factor, momentum in curve("one_cycle", total, warmup=warmup):
        assert 0 < factor <= 1 + 1e-12
        assert 0.85 - 1e-12 <= momentum <= 0.95 + 1e-12


def test_one_cycle_refuses_a_base_momentum_above_its_maximum() -> None:
    with pytest.raises(ConfigError, match=r"scheduler\.base_momentum: must be at most scheduler\.max_momentum=0\.9, got 0\.95"):
        curve("one_cycle", 20, base_momentum=0.95, max_momentum=0.9)
    curve("one_cycle", 20, base_momentum=0.9, max_momentum=0.9)


@pytest.mark.parametrize("total", [1, 2, 3, 20, 1000])
def test_one_cycle_with_the_shortest_warmup_reaches_its_peak_at_the_second_step(total: int) -> None:
    curved = curve("one_cycle", total, warmup=0.2 / total)
    factors, peak = [factor for factor, _ in curved], min(1, total - 1)
    assert curved[peak] == pytest.approx((1, 0.85))
    assert max(factors) == factors[peak]
    assert factors[:peak] == pytest.approx([0.1][:peak])
    if total > 3:  # down again in as long, then on to the end
        assert factors[2] == pytest.approx(0.1)
        assert factors[-1] == pytest.approx(1e-4)


def half_cosine(share: float) -> float:
    return math.cos(math.pi * share / 2) ** 2


FORMS: list[tuple[str, dict[str, Any], Callable[[int, int], float]]] = [
    ("constant", {}, lambda t, total: 1),
    ("exponential", {"steps": 40}, lambda t, total: 10 ** (-t / 40)),
    ("exponential", {"factor": 0.5, "steps": 7}, lambda t, total: 2 ** (-t / 7)),
    ("exponential", {}, lambda t, total: 10 ** (-t / total)),
    ("power", {"steps": 20}, lambda t, total: 20 / (20 + t)),
    ("power", {"steps": 20, "exponent": 2.0}, lambda t, total: (20 / (20 + t)) ** 2),
    ("power", {}, lambda t, total: total / (total + t)),
    ("polynomial", {}, lambda t, total: (total - t) / total),
    ("polynomial", {"steps": 20, "exponent": 2.0, "end_factor": 0.1}, lambda t, total: 0.1 + 0.9 * (max(20 - t, 0) / 20) ** 2),
    ("step", {"steps": 10}, lambda t, total: [1, 0.1, 0.01, 0.001, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9][t // 10]),
    ("step", {"factor": 0.5}, lambda t, total: 1 if t < total / 3 else 0.5 if t < 2 * total / 3 else 0.25),
    ("multi_step", {}, lambda t, total: 1 if t < math.floor(total / 2) else 0.1 if t < math.floor(0.75 * total) else 0.01),
    ("multi_step", {"milestones": [2, 30, 5000], "factor": 0.5}, lambda t, total: 1 if t < 2 else 0.5 if t < 30 else 0.25),
    ("piecewise", {}, lambda t, total: 1 if t < math.floor(total / 2) else 0.1 if t < math.floor(0.75 * total) else 0.01),
    ("piecewise", {"boundaries": [3, 20], "factors": [0.1, 1.0, 0.5]}, lambda t, total: 0.1 if t < 3 else 1 if t < 20 else 0.5),
    (
        "piecewise",
        {"boundaries": [3, 20], "factors": [0.1, 1.0, 0.5], "inclusive": False},
        lambda t, total: 0.1 if t <= 3 else 1 if t <= 20 else 0.5,
    ),
    ("piecewise", {"boundaries": [], "factors": [0.5]}, lambda t, total: 0.5),
    ("cosine", {}, lambda t, total: half_cosine(t / total)),
    ("cosine", {"end_factor": 0.1}, lambda t, total: 0.1 + 0.9 * half_cosine(t / total)),
    ("cosine_restarts", {}, lambda t, total: half_cosine(t % (total // 3) / (total // 3))),
    (
        "cosine_restarts",  # cycles of 7, 14, 28 and 56 steps
        {"steps": 7, "growth": 2.0, "restart_factor": 0.5, "end_factor": 0.1},
        lambda t, total: next(
            0.1 + 0.9 * 0.5**i * half_cosine((t - 7 * (2**i - 1)) / (7 * 2**i)) for i in range(9) if t < 7 * (2 ** (i + 1) - 1)
        ),
    ),
    ("linear_warmup", {}, lambda t, total: min(0.1 + 0.9 * t / (total // 10), 1) if total >= 10 else 1),
    ("linear_warmup", {"warmup": 5, "start_factor": 0.0}, lambda t, total: min(t / 5, 1)),
    ("warmup_cosine", {"warmup": 5}, lambda t, total: 0.1 + 0.9 * t / 5 if t < 5 else half_cosine((t - 5) / (total - 5))),
    (
        "warmup_cosine",
        {"warmup": 0.2, "start_factor": 0.0, "end_factor": 0.1},
        lambda t, total: t / (total // 5) if t < total // 5 else 0.1 + 0.9 * half_cosine((t - total // 5) / (total - total // 5)),
    ),
]


@pytest.mark.parametrize(("name", "settings", "form"), FORMS)
@pytest.mark.parametrize("total", [9, 45, 90])
def test_a_schedule_is_its_closed_form_at_every_step(
    name: str, settings: dict[str, Any], form: Callable[[int, int], float], total: int
) -> None:
    assert curve(name, total, **settings) == pytest.approx([form(t, total) for t in range(total)], rel=1e-12, abs=1e-15)


def test_every_built_in_schedule_has_an_oracle_here() -> None:
    built_in = {component.name for component in schedulers if component.origin.package == "dnnkit"}
    assert built_in == {name for name, *_ in FORMS} | {"one_cycle", "performance"}  # performance: tests/test_performance_schedule.py


TOTAL = 100
#: Settings, and torch's own scheduler with the same curve.
TORCH: list[tuple[str, dict[str, Any], Callable[[torch.optim.Optimizer], LRScheduler]]] = [
    ("constant", {}, lambda optimizer: lr_scheduler.ConstantLR(optimizer, 1.0)),
    ("exponential", {"factor": 0.9, "steps": 1}, lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9)),
    ("power", {"steps": 20}, lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t / 20))),
    ("polynomial", {}, lambda optimizer: lr_scheduler.PolynomialLR(optimizer, TOTAL)),
    ("polynomial", {"steps": 30, "exponent": 0.9}, lambda optimizer: lr_scheduler.PolynomialLR(optimizer, 30, 0.9)),
    ("step", {"steps": 30}, lambda optimizer: StepLR(optimizer, 30, 0.1)),
    ("multi_step", {"milestones": [7, 30, 80]}, lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [7, 30, 80])),
    (
        "piecewise",
        {"boundaries": [7, 30], "factors": [1.0, 0.5, 0.25]},
        lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [7, 30], 0.5),
    ),
    ("cosine", {}, lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, TOTAL)),
    ("cosine", {"end_factor": 0.1}, lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, TOTAL, 0.1)),
    (
        "cosine_restarts",
        {"steps": 12, "growth": 2.0, "end_factor": 0.01},
        lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 12, 2, 0.01),
    ),
    ("cosine_restarts", {}, lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 34)),
    ("linear_warmup", {"warmup": 5, "start_factor": 1 / 3}, lambda optimizer: lr_scheduler.LinearLR(optimizer)),
    (
        "warmup_cosine",
        {"warmup": 20, "start_factor": 0.2},
        lambda optimizer: lr_scheduler.SequentialLR(
            optimizer,
            [lr_scheduler.LinearLR(optimizer, 0.2, total_iters=20), lr_scheduler.CosineAnnealingLR(optimizer, TOTAL - 20)],
            [20],
        ),
    ),
    (
        "one_cycle",
        {},
        lambda optimizer: OneCycleLR(
            optimizer, 1.0, TOTAL, three_phase=True, anneal_strategy="linear", pct_start=0.45, div_factor=10, final_div_factor=1000
        ),
    ),
]


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
@pytest.mark.parametrize(("name", "settings", "make"), TORCH)
def test_a_schedule_is_torch_s_own_under_its_name_at_every_step(
    name: str, settings: dict[str, Any], make: Callable[[torch.optim.Optimizer], LRScheduler]
) -> None:
    theirs = [rate for rate, _ in torch_curve(make, TOTAL)]
    assert factors(curve(name, TOTAL, **settings)) == pytest.approx(theirs, rel=1e-9, abs=1e-12)


def test_every_pure_schedule_is_compared_with_torch_s() -> None:
    assert {name for name, *_ in TORCH} == {c.name for c in schedulers if c.origin.package == "dnnkit" and not c.watches}


@pytest.fixture
def keras() -> Iterator[Any]:
    """Keras's schedules, computing in float64."""
    found = pytest.importorskip("keras")
    assert found.backend.backend() == "torch"
    before = found.config.floatx()
    found.config.set_floatx("float64")
    yield found.optimizers.schedules
    found.config.set_floatx(before)


KERAS: list[tuple[str, dict[str, Any], Callable[[Any], Any]]] = [
    ("exponential", {"factor": 0.5, "steps": 20}, lambda keras: keras.ExponentialDecay(1.0, 20, 0.5)),
    ("step", {"factor": 0.5, "steps": 20}, lambda keras: keras.ExponentialDecay(1.0, 20, 0.5, staircase=True)),
    ("power", {"steps": 20}, lambda keras: keras.InverseTimeDecay(1.0, 20, 1.0)),
    (
        "piecewise",
        {"boundaries": [7, 30], "factors": [1.0, 0.5, 0.1], "inclusive": False},
        lambda keras: keras.PiecewiseConstantDecay([7, 30], [1.0, 0.5, 0.1]),
    ),
    ("polynomial", {"end_factor": 1e-4}, lambda keras: keras.PolynomialDecay(1.0, TOTAL)),
    ("polynomial", {"steps": 30, "exponent": 2.0, "end_factor": 0.1}, lambda keras: keras.PolynomialDecay(1.0, 30, 0.1, 2.0)),
    ("cosine", {}, lambda keras: keras.CosineDecay(1.0, TOTAL)),
    ("cosine", {"end_factor": 0.1}, lambda keras: keras.CosineDecay(1.0, TOTAL, 0.1)),
    (
        "warmup_cosine",
        {"warmup": 20, "start_factor": 0.2, "end_factor": 0.1},
        lambda keras: keras.CosineDecay(0.2, TOTAL - 20, 0.1, warmup_target=1.0, warmup_steps=20),
    ),
    (
        "cosine",  # the warm-up that every schedule has
        {"end_factor": 0.1, "warmup_steps": 20, "warmup_start_factor": 0.2},
        lambda keras: keras.CosineDecay(0.2, TOTAL - 20, 0.1, warmup_target=1.0, warmup_steps=20),
    ),
    ("cosine_restarts", {"steps": 20}, lambda keras: keras.CosineDecayRestarts(1.0, 20, t_mul=1.0)),
    (
        "cosine_restarts",
        {"steps": 9, "growth": 2.0, "restart_factor": 0.8, "end_factor": 0.1},
        lambda keras: keras.CosineDecayRestarts(1.0, 9, 2.0, 0.8, 0.1),
    ),
]


@pytest.mark.parametrize(("name", "settings", "make"), KERAS)
def test_a_schedule_is_keras_s_at_every_step(name: str, settings: dict[str, Any], make: Callable[[Any], Any], keras: Any) -> None:
    theirs = make(keras)
    found = [float(theirs(step)) for step in range(TOTAL)]
    assert curve(name, TOTAL, **settings) == pytest.approx(found, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", PURE)
@pytest.mark.parametrize("total", [1, 2, 3, 50])
def test_every_schedule_is_a_pure_function_with_finite_positive_factors_up_to_one(name: str, total: int) -> None:
    first, again = curve(name, total), list(reversed([schedulers.get(name).function(t, total) for t in reversed(range(total))]))
    assert first == again
    for factor in factors(first):
        assert 0 < factor <= 1 + 1e-12


# The warm-up that every schedule has.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("steps", "length"), [(10, 10), (0.25, 12), (1, 1)])
def test_a_warm_up_climbs_to_the_schedule_s_first_value_and_the_schedule_begins_then(name: str, steps: float, length: int) -> None:
    total = 50
    warm = curve(name, total, warmup_steps=steps, warmup_start_factor=0.2)
    plain = curve(name, total - length)
    first = factors(plain)[0]
    assert factors(warm)[:length] == pytest.approx([(0.2 + 0.8 * t / length) * first for t in range(length)], rel=1e-12)
    assert warm[length:] == plain
    if isinstance(plain[0], tuple):
        assert [momentum for _, momentum in warm[:length]] == [plain[0][1]] * length


@pytest.mark.parametrize("name", NAMES)
def test_without_a_warm_up_a_schedule_is_itself(name: str) -> None:
    assert node("scheduler", name)["warmup_steps"] == 0
    if name in PURE:
        assert curve(name, 50) == [schedulers.get(name).function(step, 50) for step in range(50)]


@pytest.mark.parametrize(("steps", "total", "length"), [(0.1, 9, 0), (0.1, 10, 1), (0.29, 100, 29), (0.5, 3, 1), (0.999, 10, 9), (4, 5, 4)])
def test_a_share_of_a_run_is_rounded_down_to_whole_steps(steps: float, total: int, length: int) -> None:
    assert WarmUp(steps).length(total) == length
    if length == 0:
        assert warmed_up(lambda step, total: 0.5, WarmUp(steps))(0, total) == 0.5


# What cannot be, found before a run begins.

TWENTY = {"max_epochs": 20, "limit_train_batches": 1.0, "accumulate_grad_batches": 1}
SMALL = ("tracking=none", "trainer.progress_bar=false")


def refused(*overrides: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        prepare_run(dnnkit.compose([*SMALL, *overrides]))
    return [(problem.where, problem.message) for problem in caught.value.problems]


def test_pieces_and_boundaries_that_do_not_fit_are_refused_naming_both() -> None:
    [(where, message)] = refused("scheduler=piecewise", "scheduler.boundaries=[10,20]", "scheduler.factors=[1.0,0.5]")
    assert where == "scheduler.factors"
    assert message == "must hold one more than scheduler.boundaries, 3 for [10, 20], got 2: [1.0, 0.5]"


@pytest.mark.parametrize("places", [[20, 10], [20, 20], [0.5, 0.2], [10, 0.5]])
@pytest.mark.parametrize(("name", "setting"), [("piecewise", "boundaries"), ("multi_step", "milestones")])
def test_places_that_do_not_rise_are_refused(name: str, setting: str, places: list[float]) -> None:
    with pytest.raises(ConfigError, match=rf"scheduler\.{setting}: must rise, and be all steps or all shares of the run, got \["):
        curve(name, 50, **{setting: places})


def test_a_warm_up_as_long_as_the_run_is_refused_naming_both() -> None:
    # digits: 1293 of 1437 training examples, 41 minibatches, 14 updates of 3 of them, twice
    settings = ("trainer.max_epochs=2", "trainer.accumulate_grad_batches=3")
    assert refused(*settings, "scheduler.warmup_steps=28") == [
        ("scheduler.warmup_steps", "must be less than the 28 optimizer steps of the run, got 28")
    ]
    prepare_run(dnnkit.compose([*SMALL, *settings, "scheduler.warmup_steps=27"]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [50, 51])
def test_no_schedule_takes_a_warm_up_as_long_as_the_run(name: str, steps: int) -> None:
    with pytest.raises(ConfigError, match=rf"scheduler\.warmup_steps: must be less than the 50 optimizer steps of the run, got {steps}"):
        curve(name, 50, warmup_steps=steps)


@pytest.mark.parametrize("name", ["linear_warmup", "warmup_cosine"])
def test_a_warm_up_of_their_own_as_long_as_the_run_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"scheduler\.warmup: must be shorter than the run, which has 41 optimizer steps, got 41"):
        curve(name, 41, warmup=41)


def test_boundaries_past_the_run_s_end_are_never_reached() -> None:
    run = prepare_run(dnnkit.compose([*SMALL, "scheduler=piecewise", "scheduler.boundaries=[10,99999]"]))
    assert run.cfg.values["scheduler"]["boundaries"] == [10, 99999]
    assert set(curve("piecewise", 50, boundaries=[10, 99999], factors=[1.0, 0.5, 0.1])) == {1.0, 0.5}


@pytest.mark.parametrize("value", [-0.1, math.nan, "x", None, (0.1, 1.0), (0.1, 0.5, 0.5)])
@pytest.mark.usefixtures("registries")
def test_a_schedule_that_gives_no_factor_is_the_plugin_s_fault(value: Any) -> None:
    @schedulers.register("odd")
    def odd(step: int, total_steps: int) -> Any:
        """Odd."""
        return 1.0 if step == 0 else value

    values = {"scheduler": node("scheduler", "odd"), "trainer": TWENTY, "data": {"batch_size": 32}}
    data = SimpleNamespace(train=SimpleNamespace(y=range(1293)))
    with pytest.raises(PluginError, match=r"scheduler=odd .* at step 819 of 820 it gave"):
        check_schedule(Config(values), data)


# In a run: the rate at every update is the curve at the number of updates done, whatever an update is made of.

SAMPLES, BATCH, RATE = 70, 8, 0.05  # 9 minibatches an epoch, the last of 6


def logged(schedule: Any, epochs: int, accumulate: int, chunk: int | None, folder: Path) -> tuple[list[float], list[float]]:
    """The rate that the journal has at each step from 1 on, and the momentum of each update, which the journal has too if it is cycled."""
    x = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    momenta: list[float] = []

    def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made = torch.optim.SGD(parameters, lr=RATE, momentum=0.9)
        made.register_step_pre_hook(lambda optimizer, *_: momenta.append(optimizer.param_groups[0]["momentum"]))
        return made

    journal: dict[str, dict[int, float]] = {"lr": {}, "momentum": {}}

    class Rates(pl.loggers.logger.Logger):
        name, version = "rates", 0

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            for key in journal.keys() & metrics.keys():
                journal[key][step or 0] = metrics[key]

        def log_hyperparams(self, *arguments: Any, **named: Any) -> None: ...

    module = Module(nn.Linear(4, 2), Task(nn.functional.cross_entropy), Recipe(optimizer, schedule), log_every=1)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        logger=Rates(),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    if chunk is not None:
        use_chunks(trainer, chunk)
    trainer.fit(module, Batches(x, y, BATCH, seed=0), evaluation_batches(x[:8], y[:8]))
    (first, *rates), cycled = journal["lr"].values(), list(journal["momentum"].values())
    assert list(journal["lr"]) == list(range(len(rates) + 1))
    assert first == rates[0], "at the beginning, that of the first update"
    assert cycled in ([], [momenta[0], *momenta])
    assert bool(cycled) == isinstance(schedule(0, 10), tuple)
    return rates, momenta


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("epochs", "accumulate", "warmup", "chunk"), [(1, 1, 2, 50), (2, 1, 0, None), (1, 4, 0, 50), (2, 4, 2, 50)])
def test_in_a_run_every_update_has_the_rate_of_its_step(
    name: str, epochs: int, accumulate: int, warmup: int, chunk: int | None, tmp_path: Path
) -> None:
    # An epoch's last group of minibatches is shorter: ⌈9/4⌉ = 3 updates, not 9/4 of one.
    steps = epochs * math.ceil(9 / accumulate)
    expected = curve(name, steps, warmup_steps=warmup)
    rates, momenta = logged(schedule_of({**node("scheduler", name), "warmup_steps": warmup}), epochs, accumulate, chunk, tmp_path)
    assert rates == pytest.approx([RATE * factor for factor in factors(expected)], rel=1e-12)
    if isinstance(expected[0], tuple):
        assert momenta == pytest.approx([momentum for _, momentum in expected], rel=1e-12)
    else:
        assert set(momenta) == {0.9}


def test_one_cycle_in_a_run_ends_ten_thousand_times_below_its_peak_and_not_at_half_of_it(tmp_path: Path) -> None:
    """Stepped once an epoch it would have come to 63 % of the peak; with batches for steps, to the middle of the last leg."""
    for accumulate in (1, 2):
        rates, _ = logged(schedule_of(node("scheduler", "one_cycle")), 12, accumulate, 50, tmp_path)
        assert rates[-1] == pytest.approx(1e-4 * RATE)
        assert max(rates) == pytest.approx(RATE, rel=0.05)


@pytest.mark.parametrize("accumulate", [1, 2, 3, 7])
@pytest.mark.parametrize(("limit", "batches"), [(1.0, 9), (5, 5), (100, 9), (0.5, 4)])
def test_the_steps_of_a_run_are_known_before_it_begins(accumulate: int, limit: float, batches: int, tmp_path: Path) -> None:
    seen: list[int] = []

    def schedule(step: int, total: int) -> float:
        seen.append(total)
        return 1.0

    trainer = {"max_epochs": 3, "limit_train_batches": limit, "accumulate_grad_batches": accumulate}
    x, y = torch.zeros(SAMPLES, 4), torch.zeros(SAMPLES, dtype=torch.long)
    module = Module(nn.Linear(4, 2), Task(nn.functional.cross_entropy), Recipe(partial(torch.optim.SGD, lr=0.1), schedule))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    fit = pl.Trainer(accelerator="cpu", devices=1, limit_val_batches=0, default_root_dir=tmp_path, **quiet, **trainer)
    use_chunks(fit).fit(module, Batches(x, y, BATCH, seed=0), evaluation_batches(x[:8], y[:8]))
    expected = 3 * math.ceil(batches / accumulate)
    assert set(seen) == {expected} == {fit.global_step}
    assert total_steps({"trainer": trainer, "data": {"batch_size": BATCH}}, SAMPLES) == expected
