"""How many CPU threads a run gets, and what they do on a busy machine. No time is asserted."""

from __future__ import annotations

import io
import json
import os
import pydoc
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, fx, nn

import dnnkit
from dnnkit import plugins, worker
from dnnkit.config import Trainer
from dnnkit.loop.graph import Tensors, trace
from dnnkit.loop.program import program
from dnnkit.loop.team import CROWD, steady
from dnnkit.module import Outcome
from dnnkit.training import crowd
from dnnkit.training.crowd import Judge, Look, Sleepy, idle_seconds, sharing, torchs
from dnnkit.training.devices import choose_threads, threads_to_prepare
from dnnkit.training.evaluate import evaluate
from dnnkit.training.finished import recorded_threads
from dnnkit.training.place import Place
from dnnkit.training.resume import resume
from dnnkit.training.run import _how, prepare_run
from dnnkit.training.work import multiplications, typical

plugins.load()

CPU, GPU = torch.device("cpu"), torch.device("cuda")
QUIET = ("tracking=none", "trainer.progress_bar=false", "trainer.max_epochs=1", "diagnostics.every=null")
LINUX = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says what its cores do")


def mlp(*sizes: int) -> nn.Sequential:
    layers = [layer for fan in pairwise(sizes) for layer in (nn.Linear(*fan), nn.SELU())]
    return nn.Sequential(*layers[:-1])


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    CROWD.here = False


def test_the_work_of_dense_and_convolutional_layers_is_that_of_the_formula() -> None:
    assert multiplications(mlp(784, 300, 100, 10), (784,), 128) == [128 * 784 * 300, 128 * 300 * 100, 128 * 100 * 10]
    convolution = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.Flatten(), nn.Linear(8 * 36, 4))
    assert multiplications(convolution, (3, 6, 6), 7) == [7 * 36 * 8 * 3 * 25, 7 * 8 * 36 * 4]


def test_the_typical_operation_is_the_one_in_which_half_of_the_work_is_reached() -> None:
    assert typical([1, 60, 39]) == 60
    assert typical([10, *[5] * 20]) == 5
    assert typical([]) == 0


#: A network and its inputs, the batch size, the cores, the device, and the threads.
COUNTS = [
    (mlp(64, 300, 100, 10), (64,), 32, 2, CPU, 1),  # digits by default: nothing gained by a second
    (mlp(784, 300, 100, 10), (784,), 128, 2, CPU, 2),
    (mlp(784, 300, 100, 10), (784,), 128, 64, CPU, 7),  # 30.1 million multiply-adds in the first layer
    (mlp(784, *[100] * 20, 10), (784,), 128, 2, CPU, 1),  # nineteen of 1.28 million
    (nn.Conv2d(1, 64, 3), (1, 28, 28), 128, 64, CPU, 12),  # 128 · 26² · 64 · 9 = 49.8 million
    (mlp(784, 4000, 4000, 10), (784,), 512, 64, CPU, 64),
    (mlp(784, 4000, 4000, 10), (784,), 512, 1, CPU, 1),
    (mlp(784, 4000, 4000, 10), (784,), 512, 64, GPU, 1),
]


@pytest.mark.parametrize(("network", "inputs", "batch", "cores", "device", "threads"), COUNTS)
def test_threads_follow_from_network_batch_size_cores_and_device(
    network: nn.Module,
    inputs: tuple[int, ...],
    batch: int,
    cores: int,
    device: torch.device,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    assert choose_threads(Trainer(), network, inputs, batch, device) == (threads, "")
    assert choose_threads(Trainer(threads=3), network, inputs, batch, device) == (3, "")
    assert choose_threads(Trainer(threads=None), network, inputs, batch, device) == (cores, ""), "as it was before there was auto"


def test_a_rank_takes_threads_for_its_share_of_the_minibatch_and_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr("dnnkit.training.devices._cores", lambda: 64)
    network = mlp(784, 300, 100, 10)
    assert choose_threads(Trainer("ddp_cpu", devices=2), network, (784,), 128, CPU) == (3, "")
    assert choose_threads(Trainer("ddp_cpu", devices=32), mlp(784, 9000, 10), (784,), 1024, CPU) == (2, "")


class Deciding(nn.Module):
    """Its way depends on values, which a tensor without any does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return x if bool((x > 0).all()) else -x


def test_a_network_that_does_not_tell_its_work_gets_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    threads, reason = choose_threads(Trainer(), Deciding(), (3,), 8, CPU)
    assert threads == 4
    assert reason.startswith("how much work a minibatch is cannot be told without data (")


def test_a_run_whose_work_cannot_be_told_says_why_it_has_all_threads(
    workdir: Path, two_threads: None, unrecorded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untold(*_: object) -> list[int]:
        raise ValueError("its way depends on [values]")

    monkeypatch.setattr("dnnkit.training.devices.multiplications", untold)
    console = Console(file=io.StringIO(), width=80)
    result = dnnkit.train(dnnkit.compose([*QUIET]), console=console)
    reason = "how much work a minibatch is cannot be told without data (its way depends on [values])"
    for said in (console.file.getvalue(), (result.run_dir / "run.log").read_text()):  # type: ignore[attr-defined]
        assert f"2 CPU threads (trainer.threads=auto: {reason})" in said
    ranks = [*_how(replace(prepare_run(dnnkit.compose([*QUIET])), threads=2), Place(0, 2, 0, 0, 1))]
    assert ranks[1] == f"2 CPU threads: {reason}"


def test_a_batch_larger_than_the_data_is_as_much_work_as_the_data_are(two_threads: None) -> None:
    """300 · 100 multiply-adds in the second layer, for each of some hundred irises."""
    assert prepare_run(dnnkit.compose([*QUIET, "data=iris", "data.batch_size=100000"])).threads == 1


def test_before_the_network_is_known_one_thread_computes_so_that_its_digits_are_the_same_on_any_machine() -> None:
    assert threads_to_prepare(Trainer()) == 1
    assert threads_to_prepare(Trainer(threads=3)) == 3


def test_the_count_is_in_the_record_and_the_config_says_auto(workdir: Path, two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnnkit.training.devices._WORTH_A_THREAD", 100_000)
    cfg = dnnkit.compose([*QUIET])
    assert prepare_run(cfg).threads == 2
    result = dnnkit.train(cfg)
    assert torch.get_num_threads() == 2
    assert json.loads((result.run_dir / "environment" / "environment.json").read_text())["threads"] == 2
    assert "threads: auto" in (result.run_dir / "config" / "config.yaml").read_text()
    assert "2 CPU threads (trainer.threads=auto)" in (result.run_dir / "run.log").read_text()

    # A run is gone on with as it began, whatever the rule would say now, and however many there are.
    monkeypatch.setattr("dnnkit.training.devices._WORTH_A_THREAD", 10**12)
    assert prepare_run(cfg).threads == 1
    torch.set_num_threads(1)
    measuring = noted(monkeypatch, "dnnkit.training.evaluate._measure")
    assert evaluate(result.run_dir).metrics["loss"] == result.metrics["test/loss"]
    assert measuring == [2]
    training = noted(monkeypatch, "dnnkit.training.run._execute")
    resume(result.run_dir, ["trainer.max_epochs=2"])
    assert training == [2]
    assert json.loads((result.run_dir / "environment" / "environment.json").read_text())["threads"] == 2


def noted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """How many threads there are wherever the function of this name is called."""
    counts: list[int] = []
    function = pydoc.locate(name)
    assert callable(function)
    monkeypatch.setattr(name, lambda *given, **named: (counts.append(torch.get_num_threads()), function(*given, **named))[1])
    return counts


def test_the_one_thread_that_served_a_gpu_is_not_what_a_cpu_computes_with(
    workdir: Path, two_threads: None, unrecorded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = dnnkit.compose([*QUIET, "trainer.threads=auto"])
    result = dnnkit.train(cfg)
    monkeypatch.setattr("dnnkit.training.devices._WORTH_A_THREAD", 100_000)
    path = result.run_dir / "environment" / "environment.json"
    assert json.loads(path.read_text())["threads"] == recorded_threads(result.run_dir) == 1
    path.write_text(json.dumps({"device": "cuda:0", "threads": 1}))
    assert recorded_threads(result.run_dir) is None
    measuring, training = (noted(monkeypatch, f"dnnkit.training.{name}") for name in ("evaluate._measure", "run._execute"))
    evaluate(result.run_dir)
    resume(result.run_dir, ["trainer.max_epochs=2"])
    assert measuring == training == [2]
    assert recorded_threads(result.run_dir) == 2, "from here on it is a run on a CPU"


def test_data_are_prepared_with_one_thread_by_a_run_its_evaluation_and_its_other_ranks(
    workdir: Path, two_threads: None, unrecorded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnnkit.training.devices._WORTH_A_THREAD", 100_000)
    here, there = (noted(monkeypatch, f"dnnkit.training.{name}.load_data") for name in ("run", "evaluate"))
    result = dnnkit.train(dnnkit.compose([*QUIET]))
    evaluate(result.run_dir)
    assert here == there == [1]

    # A rank takes what the first one has written down, whatever the rule would say now.
    monkeypatch.setattr("dnnkit.training.devices._WORTH_A_THREAD", 10**12)
    given: list[int] = []
    for name in ("connect", "hear_verdict", "say_done", "signal.signal"):
        monkeypatch.setattr(f"dnnkit.worker.{name}", lambda *_: None)
    monkeypatch.setattr("dnnkit.worker.sharing", lambda threads: given.append(threads) or nullcontext())
    monkeypatch.setattr("dnnkit.training.fit.train_along", lambda *_: given.append(torch.get_num_threads()))
    for recorded, threads in ({"device": "cpu", "threads": 2}, 2), ({"device": "cuda:0", "threads": 2}, 1):
        (result.run_dir / "environment" / "environment.json").write_text(json.dumps(recorded))
        torch.set_num_threads(2)
        worker._work(result.run_dir, Place(1, 2, 1, 0, 1), None)  # type: ignore[arg-type]
        assert given == [threads, threads]
        given.clear()
    assert here == [1, 1, 1]


def objective(net: nn.Module, x: Tensor, y: Tensor) -> Outcome:
    output = net(x)
    loss = nn.functional.cross_entropy(output, y)
    return Outcome(loss, loss, output, None)


def traced(network: nn.Module, *shape: int) -> tuple[fx.GraphModule, Tensor, Tensor]:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    y = torch.arange(shape[0]) % 10
    return trace(network, objective, x, y, 1, nullcontext).module, x, y


def test_a_graph_gives_the_same_bits_in_a_crowd_and_fewer_operations_all_threads(
    two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = mlp(784, 300, 100, 10)
    module, x, y = traced(network, 128, 784)
    given: list[int] = []
    give = torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda count: (given.append(count), give(count)))
    run = program(module, Tensors.of(network).values())
    found = {}
    for here in (False, True):
        CROWD.here = here
        given.clear()
        with torch.no_grad():
            found[here] = [part.clone() for part in run(x, y)]
        assert (1 in given) == here
        assert torch.get_num_threads() == 2, "whoever comes after the graph has all threads again"
    assert all(map(torch.equal, found[False], found[True]))


def test_what_draws_random_numbers_changes_its_inputs_or_reads_whole_numbers_keeps_all_threads(two_threads: None) -> None:
    module, _, _ = traced(nn.Sequential(nn.Linear(6, 10), nn.Dropout(0.5), nn.BatchNorm1d(10)), 8, 6)
    verdicts = {str(node.target): steady(node, 2) for node in module.graph.nodes if node.op == "call_function"}
    for name, verdict in verdicts.items():
        if any(part in name for part in ("dropout", "bernoulli", "nll_loss", "add_.")):
            assert not verdict, name
    assert any(verdicts.values())


def test_an_operation_whose_bits_depend_on_the_threads_keeps_them(two_threads: None) -> None:
    """Here a sum that asks how many there are."""

    def counting(x: Tensor) -> Tensor:
        return x.sum() + torch.get_num_threads()

    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.ones(3)
    node = graph.call_function(torch.ops.aten.sum.default, (x,))
    assert steady(node, 2)
    library = torch.library.Library("dnnkit_test_threads", "DEF")
    library.define("counting(Tensor x) -> Tensor")
    library.impl("counting", counting, "CPU")
    assert not steady(graph.call_function(torch.ops.dnnkit_test_threads.counting.default, (x,)), 2)


@pytest.mark.parametrize(("rows", "verdict"), [(64, True), (128, True), (154, False), (129, False)])
def test_an_elementwise_operation_gives_way_where_its_parts_are_whole_vectors(rows: int, verdict: bool, two_threads: None) -> None:
    """300 numbers a row: 64 rows are too few to divide; half of 128 are 19,200 = 300 · 64 numbers, half of 129 are 19,350."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.ones(rows, 300)
    assert steady(graph.call_function(torch.ops.aten.elu.default, (x,)), 2) == verdict


STAT = "cpu  9 9 9 999 9 9\ncpu0 10 0 5 700 20 0\ncpu1 10 0 5 100 30 0\nintr 12\n"


def test_idle_time_is_that_of_the_cores_that_the_process_may_use() -> None:
    tick = os.sysconf("SC_CLK_TCK")
    assert idle_seconds(STAT, {0, 1}) == 850 / tick
    assert idle_seconds(STAT, {1}) == 130 / tick
    with pytest.raises(ValueError, match="not all of"):
        idle_seconds(STAT, {0, 7})


def test_free_are_the_cores_that_idled_and_those_that_the_process_had() -> None:
    before = Look(idle=10.0, own=5.0, at=100.0)
    assert Look(10.5, 6.0, 101.0).free_since(before) == pytest.approx(1.5)


def test_a_crowd_is_seen_at_once_and_gone_after_three_calm_looks() -> None:
    judge = Judge(threads=2)
    assert [judge.see(free) for free in (2.0, 1.7, 1.5, 1.9, 1.9, 1.7, 1.8, 1.8, 1.8, 1.8)] == [
        *(False, False, True, True, True, True, True, True, False, False)
    ]


@LINUX
def test_threads_sleep_while_a_team_is_held_and_it_goes_again() -> None:
    torch.ones(200_000).sum()  # PyTorch has its own team
    before = len(os.listdir("/proc/self/task"))
    sleepy = Sleepy()
    sleepy.be(True)
    for _ in range(200):
        if len(os.listdir("/proc/self/task")) >= before + (os.cpu_count() or 1):
            break
        threading.Event().wait(0.01)
    assert len(os.listdir("/proc/self/task")) == before + (os.cpu_count() or 1)
    sleepy.be(True)
    sleepy.be(False)
    for _ in range(200):
        if len(os.listdir("/proc/self/task")) == before:
            break
        threading.Event().wait(0.01)
    assert len(os.listdir("/proc/self/task")) == before


@LINUX
def test_who_is_alone_or_has_said_how_threads_wait_is_not_watched() -> None:
    def watched() -> bool:
        return any(thread.name == "dnnkit-crowd" for thread in threading.enumerate())

    with sharing(2, {}):
        assert watched()
    assert not watched()
    for threads, environ in ((1, {}), (2, {"OMP_WAIT_POLICY": "PASSIVE"}), (2, {"GOMP_SPINCOUNT": "7"})):
        with sharing(threads, environ):
            assert not watched()


class Told:
    """In the place of `Sleepy`: what it was told."""

    def __init__(self) -> None:
        self.words: list[bool] = []

    def be(self, wanted: bool) -> None:
        self.words.append(wanted)


def eventually(so: Callable[[], bool]) -> bool:
    return any(so() or threading.Event().wait(0.005) for _ in range(1000)) or so()


@LINUX
def test_the_watcher_says_when_others_take_the_cores_and_has_threads_sleep_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "_EVERY_S", 0.005)
    start, told = Look.now(), Told()
    looks = iter([start, *(replace(start, at=start.at + number) for number in range(1, 10_000))])  # nothing idle, nothing of our own
    monkeypatch.setattr(crowd.Look, "now", classmethod(lambda cls: next(looks)))
    monkeypatch.setattr(crowd, "Sleepy", lambda: told)
    with sharing(2, {}):
        assert eventually(lambda: CROWD.here and True in told.words)
    assert not CROWD.here
    assert told.words[-1] is False


@LINUX
def test_a_kernel_that_stops_telling_ends_the_watch_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(crowd, "_EVERY_S", 0.005)
    start, told, moments = Look.now(), Told(), iter((0.0, 0.0, 1.0))

    def now(cls: type[Look]) -> Look:
        try:
            return replace(start, at=start.at + next(moments))
        except StopIteration:
            raise OSError("no /proc/stat") from None

    monkeypatch.setattr(crowd.Look, "now", classmethod(now))
    monkeypatch.setattr(crowd, "Sleepy", lambda: told)
    with sharing(2, {}):
        assert eventually(lambda: not any(thread.name == "dnnkit-crowd" for thread in threading.enumerate()))
        assert not CROWD.here
    assert told.words == [True, False]
    assert capfd.readouterr().err == ""


def test_the_libgomp_is_pytorchs_and_no_other_packages() -> None:
    maps = "7f0 r-xp 0 fe:00 1  /env/site-packages/scikit_learn.libs/libgomp-e985.so.1.0.0\n7f1 r-xp 0 fe:00 2  {}\n"
    home = Path("/env/site-packages/torch")
    for ours in (f"{home}/lib/libgomp.so.1", f"{home}.libs/libgomp-a34b.so.1", "/usr/lib/x86_64-linux-gnu/libgomp.so.1.0.0"):
        assert torchs(maps.format(ours), home) == ours
    assert torchs(maps.format("/usr/lib/libc.so.6"), home) is None


def test_auto_is_a_word_of_the_config_and_others_are_refused() -> None:
    assert dnnkit.compose([]).values["trainer"]["threads"] == "auto"
    assert dnnkit.compose(["trainer.threads=null"]).values["trainer"]["threads"] is None
    with pytest.raises(dnnkit.errors.ConfigError, match=r"trainer\.threads.*auto"):
        dnnkit.compose(["trainer.threads=all"])
