"""Schedulers: the whole curve against the closed form, or torch's own scheduler, at every step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from dnnkit import plugins
from dnnkit.registry import schedulers

plugins.load()


def curve(name: str, total: int, **settings: Any) -> list[Any]:
    function = schedulers.get(name).function
    return [function(step, total, **settings) for step in range(total)]


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


FORMS: list[tuple[str, dict[str, Any], Callable[[int, int], float]]] = [
    ("constant", {}, lambda t, total: 1),
    ("exponential", {"steps": 40}, lambda t, total: 10 ** (-t / 40)),
    ("exponential", {"factor": 0.5, "steps": 7}, lambda t, total: 2 ** (-t / 7)),
    ("exponential", {}, lambda t, total: 10 ** (-t / total)),
    ("power", {"steps": 20}, lambda t, total: 20 / (20 + t)),
    ("power", {"steps": 20, "exponent": 2.0}, lambda t, total: (20 / (20 + t)) ** 2),
    ("power", {}, lambda t, total: total / (total + t)),
    ("step", {"steps": 10}, lambda t, total: [1, 0.1, 0.01, 0.001, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9][t // 10]),
    ("step", {"factor": 0.5}, lambda t, total: 1 if t < total / 3 else 0.5 if t < 2 * total / 3 else 0.25),
    ("cosine", {}, lambda t, total: math.cos(math.pi * t / total / 2) ** 2),
    ("cosine", {"end_factor": 0.1}, lambda t, total: 0.1 + 0.9 * math.cos(math.pi * t / total / 2) ** 2),
]


@pytest.mark.parametrize(("name", "settings", "form"), FORMS)
@pytest.mark.parametrize("total", [9, 45, 90])
def test_a_schedule_is_its_closed_form_at_every_step(
    name: str, settings: dict[str, Any], form: Callable[[int, int], float], total: int
) -> None:
    assert curve(name, total, **settings) == pytest.approx([form(t, total) for t in range(total)], rel=1e-12)


def test_step_falls_where_torch_s_does() -> None:
    theirs = torch_curve(lambda optimizer: StepLR(optimizer, 30, 0.1), 100)
    assert curve("step", 100, steps=30) == pytest.approx([rate for rate, _ in theirs], rel=1e-12)


def test_every_built_in_schedule_has_an_oracle_here() -> None:
    built_in = {component.name for component in schedulers if component.origin.package == "dnnkit"}
    assert built_in == {name for name, *_ in FORMS} | {"one_cycle"}


@pytest.mark.parametrize("name", [component.name for component in schedulers])
@pytest.mark.parametrize("total", [1, 2, 3, 50])
def test_every_schedule_is_a_pure_function_with_finite_positive_factors_up_to_one(name: str, total: int) -> None:
    first, again = curve(name, total), list(reversed([schedulers.get(name).function(t, total) for t in reversed(range(total))]))
    assert first == again
    for value in first:
        factor = value[0] if isinstance(value, tuple) else value
        assert 0 < factor <= 1 + 1e-12
