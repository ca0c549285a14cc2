"""`trainer.engine=auto` takes the faster way: on a clock that the test moves, so that it is known which one that is."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dnnkit.loop import engine as engines
from dnnkit.loop import race
from dnnkit.loop.captured import StepGraph
from dnnkit.loop.race import DeviceClock, ProcessorClock, Race, Way, faster
from dnnkit.module import Module, Outcome, Recipe, Task

Fit = Callable[..., SimpleNamespace]
Same = Callable[[Any, Any], None]

CPU = torch.device("cpu")
X = torch.randn(150, 6, generator=torch.Generator().manual_seed(4))  # 19 minibatches of 8, the last of 6
Y = X[:, :3].argmax(1)


class Hand:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def mark(self) -> float:
        return self.now

    def between(self, first: float, second: float) -> float:
        return second - first


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    clock = Hand()
    monkeypatch.setattr(race, "clock_of", lambda device: clock)
    return clock


def module() -> Module:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.SELU(), nn.Dropout(0.2), nn.Linear(12, 3))
    return Module(net, Task(nn.functional.cross_entropy), Recipe(lambda p: torch.optim.NAdam(p, lr=0.01), lambda *_: 1.0, seed=3), 50)


def costs(monkeypatch: pytest.MonkeyPatch, clock: Hand, graph: float, eager: float) -> None:
    """Seconds of a minibatch in each way."""
    call, eager_step = StepGraph.__call__, engines.eager_step

    def as_a_graph(step: StepGraph, x: Tensor, y: Tensor) -> Any:
        clock.now += graph
        return call(step, x, y)

    def by_operations(*arguments: Any) -> Any:
        execute = eager_step(*arguments)

        def run(*minibatch: Any) -> Outcome:
            clock.now += eager
            return execute(*minibatch)

        return run

    monkeypatch.setattr(StepGraph, "__call__", as_a_graph)
    monkeypatch.setattr(engines, "eager_step", by_operations)


@pytest.mark.parametrize(
    ("graph", "eager", "used", "accumulate", "epochs"),
    [
        (1.0, 2.0, "captured", 1, 8), (1.0, 2.0, "captured", 3, 8), (2.0, 1.0, "eager", 1, 8), (2.0, 1.0, "eager", 3, 8),
        (1.02, 1.0, "eager", 1, 30), (1.0, 1.0, "captured", 1, 30),
    ],
)  # fmt: skip
def test_the_faster_way_goes_on_with_the_same_numbers(
    graph: float, eager: float, used: str, accumulate: int, epochs: int, hand: Hand, fit: Fit, assert_same: Same,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    settings = {"max_epochs": epochs, "accumulate_grad_batches": accumulate}
    wanted = fit(module(), X, Y, "eager", **settings)
    costs(monkeypatch, hand, graph, eager)
    with caplog.at_level(logging.INFO, logger="dnnkit"):
        auto = fit(module(), X, Y, "auto", **settings)
    assert_same(wanted.state, auto.state)
    report = auto.engine.report
    assert (report["wanted"], report["used"], auto.graphs) == ("auto", used, 1)
    assert report["ms_per_minibatch"] == pytest.approx({"captured": 1000 * graph, "eager": 1000 * eager})
    (said,) = [text for record in caplog.records if "training goes on" in (text := record.getMessage())]
    assert said.endswith("as a graph" if used == "captured" else "operation by operation")


def test_what_is_far_apart_is_decided_after_two_turns_of_each(hand: Hand, fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    costs(monkeypatch, hand, 2.0, 1.0)
    chunks: list[str] = []
    chunk = engines.Engine.chunk

    def noted(engine: engines.Engine) -> Any:
        execute = chunk(engine)
        chunks.append("?" if engine._race is None else engine._race.way[0])
        return execute

    monkeypatch.setattr(engines.Engine, "chunk", noted)
    fit(module(), X, Y, "auto", max_epochs=8)
    assert [way for way, _ in groupby(chunks)] == ["?", "c", "e", "c", "?"]


def play(way_costs: dict[Way, Callable[[], float]], clock: Hand, rounds: int = 20) -> tuple[Way | None, int]:
    """A race in chunks of ten on a hand-moved clock: the verdict, and how many chunks it took."""
    contest = Race(CPU)
    for number in range(2 * rounds):
        cost = way_costs[contest.way]

        def execute(
            x: Tensor, y: Tensor, opens: bool, closes: bool, weight: float = 1.0, factor: float = 1.0, cost: Callable[[], float] = cost
        ) -> Outcome:
            clock.now += cost()
            return Outcome(x, x, x, None)

        run = contest.timed(execute, lambda x, weight, factor: True)
        for _ in range(10):
            run(X, Y, True, True)
        contest.end_chunk()
        if contest.bound is not None and (verdict := faster(contest.seconds(), contest.bound)):
            return verdict, number + 1
    return None, 2 * rounds


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("graph", "used"), [(0.96, "captured"), (1.06, "eager")])
def test_time_that_others_take_does_not_decide(graph: float, used: str, seed: int, hand: Hand) -> None:
    """Six minibatches of ten take up to five times as long."""
    chance = random.Random(seed)

    def disturbed(cost: float) -> Callable[[], float]:
        return lambda: cost * (1 + 4 * chance.random() * (chance.random() < 0.6))

    verdict, _ = play({"captured": disturbed(graph), "eager": disturbed(1.0)}, hand)
    assert verdict == used


@pytest.mark.parametrize(("ratio", "chunks"), [(3.0, 4), (1.4, 4), (1.25, 6), (1.11, 12), (1.02, 24)])
def test_the_closer_they_are_the_longer_it_takes(ratio: float, chunks: int, hand: Hand) -> None:
    """1 + 0.6 / rounds is the bound, two chunks are a round; after twelve rounds the graph wins but for a hundredth."""
    assert play({"captured": lambda: ratio, "eager": lambda: 1.0}, hand) == ("eager", chunks)
    assert play({"captured": lambda: 1.0, "eager": lambda: ratio}, hand) == ("captured", chunks)


def test_minibatches_of_another_size_and_those_that_make_a_graph_do_not_count(hand: Hand) -> None:
    contest = Race(CPU)

    def chunk(sizes: Sequence[int], spoiled: int | None = None) -> None:
        def execute(x: Tensor, y: Tensor, opens: bool, closes: bool, weight: float = 1.0, factor: float = 1.0) -> Outcome:
            if len(seen) == spoiled:
                contest.spoil()
                hand.now += 1000
            seen.append(len(x))
            hand.now += len(x)
            return Outcome(x, x, x, None)

        seen: list[int] = []
        run = contest.timed(execute, lambda x, weight, factor: len(x) == 2)
        for size in sizes:
            run(X[:size], Y[:size], True, True)
        contest.end_chunk()

    chunk([2, 2, 2, 7, 2, 2, 2, 2, 2, 2], spoiled=2)
    chunk([2] * 10)
    assert contest.seconds() == {"captured": 2.0, "eager": 2.0}


def test_one_thread_is_timed_by_what_it_computes_and_several_by_the_clock_on_the_wall() -> None:
    import time

    assert ProcessorClock(True).mark is time.thread_time
    assert ProcessorClock(False).mark is time.perf_counter
    threads = torch.get_num_threads()
    try:
        for count, clock in ((1, time.thread_time), (2, time.perf_counter)):
            torch.set_num_threads(count)
            assert race.clock_of(CPU).mark is clock
    finally:
        torch.set_num_threads(threads)


class FakeEvent:
    """The calls of a CUDA event, in their order."""

    calls: list[str] = []  # noqa: RUF012
    count = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        FakeEvent.count += 1
        self.number = FakeEvent.count

    def record(self) -> None:
        self.calls.append(f"record {self.number}")

    def synchronize(self) -> None:
        self.calls.append(f"wait for {self.number}")

    def elapsed_time(self, other: FakeEvent) -> float:
        return 250.0 * (other.number - self.number)  # milliseconds


def test_a_gpu_is_waited_for_between_chunks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    FakeEvent.calls.clear()
    contest = Race(torch.device("cuda", 0))
    assert isinstance(contest._clock, DeviceClock)
    run = contest.timed(lambda x, y, opens, closes, weight=1.0, factor=1.0: Outcome(x, x, x, None), lambda x, weight, factor: True)
    for _ in range(10):
        run(X, Y, True, True)
    assert all(call.startswith("record") for call in FakeEvent.calls)
    contest.end_chunk()
    assert any(call.startswith("wait") for call in FakeEvent.calls)
    # A minibatch lasts from its first event to the next one's, two events later.
    assert contest._times["captured"][False, True] == [0.5] * 8
