"""`trainer.engine=auto` takes the faster way: on a clock that the test moves, so that it is known which one that is."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from dnnkit.data.loaders import evaluation_batches
from dnnkit.data.resident import Batches
from dnnkit.loop import engine as engines
from dnnkit.loop import engine_report, epoch, race, use_chunks
from dnnkit.loop.captured import StepGraph
from dnnkit.loop.race import TURN, DeviceClock, ProcessorClock, Race, Way, faster
from dnnkit.loop.strategy import RankStrategy
from dnnkit.module import Module, Outcome, Recipe, Task

Fit = Callable[..., SimpleNamespace]
Same = Callable[[Any, Any], None]

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")

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
    ("graph", "eager", "used", "accumulate", "epochs", "size"),
    [
        (1.0, 2.0, "captured", 1, 8, 8), (1.0, 2.0, "captured", 3, 8, 8), (2.0, 1.0, "eager", 1, 8, 8), (2.0, 1.0, "eager", 3, 8, 8),
        (1.02, 1.0, "eager", 1, 30, 8), (1.0, 1.0, "captured", 1, 30, 8),
        # A group of more minibatches than an epoch has, the last of them shorter or not.
        (1.0, 2.0, "captured", 20, 30, 75), (2.0, 1.0, "eager", 20, 30, 75), (1.0, 2.0, "captured", 20, 30, 100),
    ],
)  # fmt: skip
def test_the_faster_way_goes_on_with_the_same_numbers(
    graph: float, eager: float, used: str, accumulate: int, epochs: int, size: int, hand: Hand, fit: Fit, assert_same: Same,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    settings = {"max_epochs": epochs, "accumulate_grad_batches": accumulate, "batch_size": size}
    wanted = fit(module(), X, Y, "eager", **settings)
    costs(monkeypatch, hand, graph, eager)
    with caplog.at_level(logging.INFO, logger="dnnkit"):
        auto = fit(module(), X, Y, "auto", **settings)
    assert_same(wanted.state, auto.state)
    report = auto.engine.report
    assert (report["wanted"], report["used"], auto.graphs) == ("auto", used, 1)
    assert report["why"] == ("it is as fast" if graph == eager else "it is the faster")
    assert report["ms_per_minibatch"] == pytest.approx({"captured": 1000 * graph, "eager": 1000 * eager})
    (said,) = [text for record in caplog.records if "training goes on" in (text := record.getMessage())]
    assert said.endswith("as a graph" if used == "captured" else "operation by operation")


def test_what_is_far_apart_is_decided_after_two_turns_of_each(hand: Hand, fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """In short turns: of 75 minibatches, of which nobody looks at any but each 50th and the last, a turn has ten."""
    costs(monkeypatch, hand, 2.0, 1.0)
    ways: list[str] = []
    sizes: list[int] = []
    chunk, run_chunk = engines.Engine.chunk, epoch.run_chunk

    def noted(engine: engines.Engine) -> Any:
        execute = chunk(engine)
        ways.append("?" if engine._race is None else engine._race.way[0])
        return execute

    def measured(*arguments: Any) -> Outcome:
        sizes.append(arguments[3].size)
        return run_chunk(*arguments)

    monkeypatch.setattr(engines.Engine, "chunk", noted)
    monkeypatch.setattr(epoch, "run_chunk", measured)
    fit(module(), X, Y, "auto", max_epochs=4, batch_size=2, log_every_n_steps=1000)
    assert [way for way, _ in groupby(ways)] == ["?", "c", "e", "c", "?"]
    racing = [size for size, way in zip(sizes, ways, strict=True) if way != "?"]
    assert max(racing[1:]) == TURN, "the first was measured out before it was known that there would be turns"
    assert sizes[0] == max(sizes[2 + len(racing) :]) == 50


def test_where_too_few_minibatches_are_left_no_graph_is_made_however_large_a_group_is(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 30 epochs of two minibatches, 29 are left after the first chunk; so many groups of 20 would be 580."""
    monkeypatch.setattr(engines, "_WORTHWHILE", 59)
    with caplog.at_level(logging.INFO, logger="dnnkit"):
        run = fit(module(), X, Y, "auto", max_epochs=30, accumulate_grad_batches=20, batch_size=75)
    assert (run.graphs, run.engine.report) == (0, {"wanted": "auto", "used": "eager", "why": "a graph would not pay"})
    assert "for 58 minibatches more, a graph would not pay" in caplog.text


def test_on_three_devices_the_graph_is_kept_without_a_race() -> None:
    engine = engines.Engine.__new__(engines.Engine)
    engine._trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=3, num_training_batches=9, accumulate_grad_batches=1, estimated_stepping_batches=9000, global_step=9
    )
    engine._chunks, engine._undecided, engine._given_up, engine._race = 2, True, False, None
    assert engine._pays()
    assert engine._race is None
    assert "no clock decides: the graph is kept" in engine._why


#: What a minibatch costs on each of two ranks, as a graph and eager, and the way that is the faster on the slowest.
ON_EACH = {"eager": ((1.0, 3.0), (2.0, 1.0)), "captured": ((2.0, 2.0), (1.0, 5.0))}


@pytest.fixture(scope="module")
def two_ranks(in_two_processes: Callable[[Callable[[int], dict[str, Any]]], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What each of two processes ended with, for which the other way is the faster."""
    return in_two_processes(_rank)


def _rank(rank: int) -> dict[str, Any]:
    found = {"alone": _shared(rank, "eager")}
    for used, (graph, eager) in ON_EACH.items():
        clock = Hand()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(race, "clock_of", lambda device, clock=clock: clock)
            patch.setattr(engines, "_WORTHWHILE", 0)
            costs(patch, clock, graph[rank], eager[rank])
            found[used] = _shared(rank, "auto")
    return found


def _shared(rank: int, engine: str) -> dict[str, Any]:
    """The weights and the report of one of two ranks."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    strategy = RankStrategy(rank, 2, rank, 0)
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, use_distributed_sampler=False, max_epochs=8, limit_val_batches=0, **quiet
    )  # fmt: skip
    use_chunks(trainer, 50, engine)  # type: ignore[arg-type]
    trained = module()
    trainer.fit(trained, Batches(X, Y, 8, seed=3, rank=rank, world=2), evaluation_batches(X[:4], Y[:4]))
    return {"weights": {name: value.detach() for name, value in trained.named_parameters()}, "report": engine_report(trainer)}


@pytest.mark.parametrize("used", ON_EACH)
def test_two_ranks_go_the_same_way_whatever_the_clock_of_each_says(used: str, two_ranks: list[dict[str, Any]], assert_same: Same) -> None:
    graph, eager = (1000 * max(costs) for costs in ON_EACH[used])
    for found in two_ranks:
        report = found[used]["report"]
        assert (report["used"], report["why"]) == (used, "it is the faster")
        assert report["ms_per_minibatch"] == pytest.approx({"captured": graph, "eager": eager}), "the slowest rank's"
        assert_same(found[used]["weights"], two_ranks[0]["alone"]["weights"])


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

        run = contest.timed(execute, lambda x, closes, weight, factor: True)
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


def test_updates_weigh_as_much_for_both_ways_as_there_are_of_them(hand: Hand) -> None:
    """A third of the minibatches make one, at four times the cost: the first and the last of a chunk aside, 6 of the 19 of both ways."""
    contest = Race(CPU)
    for minibatches, cost in ((12, 1.0), (11, 2.0)):

        def execute(
            x: Tensor, y: Tensor, opens: bool, closes: bool, weight: float = 1.0, factor: float = 1.0, cost: float = cost
        ) -> Outcome:
            hand.now += 4 * cost if closes else cost
            return Outcome(x, x, x, None)

        run = contest.timed(execute, lambda x, closes, weight, factor: True)
        for index in range(minibatches):
            run(X, Y, index % 3 == 0, index % 3 == 2)
        contest.end_chunk()
    assert contest.seconds() == pytest.approx({"captured": (13 + 4 * 6) / 19, "eager": 2 * (13 + 4 * 6) / 19})


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
        run = contest.timed(execute, lambda x, closes, weight, factor: len(x) == 2)
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
    run = contest.timed(lambda x, y, opens, closes, weight=1.0, factor=1.0: Outcome(x, x, x, None), lambda x, closes, weight, factor: True)
    for _ in range(10):
        run(X, Y, True, True)
    assert all(call.startswith("record") for call in FakeEvent.calls)
    contest.end_chunk()
    assert any(call.startswith("wait") for call in FakeEvent.calls)
    # A minibatch lasts from its first event to the next one's, two events later.
    assert contest._times["captured"][False, True] == [0.5] * 8
