"""What a GPU needs: nothing inside a chunk waits for it, and copies to it overlap with the work. Checked on the CPU where it can be."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import dnnkit
from dnnkit.data import stream
from dnnkit.data.lanes import Ahead, OwnMemory, SideStream, lane_to
from dnnkit.data.loaders import training_batches
from dnnkit.data.resident import Batches, epoch_order
from dnnkit.data.scaling import Scaling
from dnnkit.data.stored import StoredRows
from dnnkit.loop import epoch as loop
from dnnkit.loop import use_chunks
from dnnkit.module import Module, Recipe, Task

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of NVIDIA or AMD")
#: Operations whose result, or its shape, the CPU has to have before it goes on.
WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::masked_select", "aten::_unique2",
    "aten::unique_dim", "aten::unique_consecutive", "aten::bincount", "aten::repeat_interleave.Tensor",
}  # fmt: skip


class WaitsForTheDevice(AssertionError):
    """An operation inside a chunk would let the CPU wait."""


class NeverWait(TorchDispatchMode):
    """Refuses what would let the CPU wait if the tensors were on a GPU. On the CPU, where all of them are, this is a stand-in."""

    allowed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masked = func._schema.name in ("aten::index", "aten::index_put_") and any(
            part is not None and part.dtype in (torch.bool, torch.uint8) for part in args[1]
        )
        if not self.allowed and (func._schema.name in WAITING or masked):
            raise WaitsForTheDevice(func._schema.name)
        return func(*args, **(kwargs or {}))


@contextmanager
def chunks_must_not_wait(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Gives the sizes of the chunks that were watched: all but the first, in which a graph is made and compared.

    A flush waits, by design: it is the last thing in a chunk.
    """
    run_chunk, flush, mode, watched = loop.run_chunk, Module._flush, NeverWait(), []

    def run(module: Module, schedule: Any, execute: Any, chunk: Any, minibatches: Any, number: int) -> Any:
        if number == 0:
            return run_chunk(module, schedule, execute, chunk, minibatches, number)
        watched.append(chunk.size)
        with mode:
            return run_chunk(module, schedule, execute, chunk, minibatches, number)

    def flush_unwatched(module: Module, step: int) -> None:
        mode.allowed = True
        flush(module, step)
        mode.allowed = False

    with monkeypatch.context() as patched:
        patched.setattr(loop, "run_chunk", run)
        patched.setattr(Module, "_flush", flush_unwatched)
        yield watched


RUN = (
    "tracking=none", "trainer.progress_bar=false", "trainer.max_epochs=1", "trainer.limit_train_batches=24", "trainer.chunk_size=6",
    "trainer.log_every_n_steps=9", "data.batch_size=20", "dropout=dropout", "normalization=batch_norm", "clipping=norm",
    "regularizer=l2", "constraint=max_norm",
)  # fmt: skip


@pytest.mark.parametrize("engine", ["eager", "captured"])
@pytest.mark.parametrize("more", [(), ("trainer.accumulate_grad_batches=2",)], ids=["alone", "accumulated"])
def test_nothing_inside_a_chunk_waits_for_the_device(
    engine: str, more: tuple[str, ...], workdir: Path, unrecorded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SGD: other optimizers count their updates on the CPU whatever the device, which this cannot tell from waiting."""
    monkeypatch.setattr("dnnkit_plugins.clippings._norms", lambda gradients: None)  # as of gradients that are on a GPU
    monkeypatch.setattr("dnnkit.module.guard.costs_nothing", lambda device: False)
    with chunks_must_not_wait(monkeypatch) as watched:
        dnnkit.train(dnnkit.compose([*RUN, *more, f"trainer.engine={engine}"]))
    assert sum(watched) == 24 - 6
    assert max(watched) > 1


SILENT: dict[str, Any] = {
    "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*Trying to infer the `batch_size`")
@pytest.mark.parametrize(
    "waiting",
    [
        lambda p, y: nn.functional.cross_entropy(p, y) * float(y.max()),
        lambda p, y: nn.functional.cross_entropy(p[y > 0], y[y > 0]),
        lambda p, y: nn.functional.cross_entropy(p, y) if (y >= 0).all() else p.sum(),
    ],
)
def test_a_loss_that_waits_is_found(waiting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in itself: it would let nothing of this kind through."""
    recipe = Recipe(lambda parameters: torch.optim.SGD(parameters, lr=0.1), lambda step, total: 1.0)
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, limit_val_batches=0, **SILENT)
    loader = Batches(torch.randn(30, 4), torch.arange(30) % 3, 3, seed=0)
    with chunks_must_not_wait(monkeypatch), pytest.raises(WaitsForTheDevice):
        use_chunks(trainer, 2, "eager").fit(Module(nn.Linear(4, 3), Task(waiting), recipe), loader, loader)


class FakeLane:
    """A way to a device that is the CPU: notes what is sent and received, and knows what may be used."""

    ahead = 1

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.count = 0

    def send(self, parts: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        self.count += 1
        self.events.append(("send", self.count))
        # Until it is received a copy holds something else.
        return [torch.full_like(part, -7) for part in parts], (self.count, [part.clone() for part in parts])

    def receive(self, parts: list[Tensor], sent: Any) -> list[Tensor]:
        number, values = sent
        self.events.append(("receive", number))
        for part, value in zip(parts, values, strict=True):
            part.copy_(value)
        return parts


def test_each_minibatch_is_sent_before_the_one_before_it_is_handed_out() -> None:
    lane = FakeLane()
    pairs = [[torch.full((2,), float(number)), torch.tensor([number])] for number in range(4)]
    arrived = list(Ahead(iter(pairs), lane))
    assert all(torch.equal(a, b) for mine, theirs in zip(arrived, pairs, strict=True) for a, b in zip(mine, theirs, strict=True))
    steps = [("send", 1), ("send", 2), ("receive", 1), ("send", 3), ("receive", 2), ("send", 4), ("receive", 3), ("receive", 4)]
    assert lane.events == steps


def test_on_the_cpu_nothing_is_read_before_it_is_needed() -> None:
    read: list[int] = []

    def feed() -> Iterator[list[Tensor]]:
        for number in range(3):
            read.append(number)
            yield [torch.tensor(number)]

    ahead = Ahead(feed(), lane_to(torch.device("cpu")))
    assert int(next(ahead)[0]) == 0
    assert read == [0]
    assert isinstance(lane_to(torch.device("cpu")), OwnMemory)


RAW = torch.randint(0, 256, (53, 1, 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SCALING = Scaling(torch.tensor(100.0, dtype=torch.float64), torch.tensor(70.0, dtype=torch.float64))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_sent_ahead_is_the_resident_minibatch_bit_for_bit(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lanes: list[FakeLane] = []
    monkeypatch.setattr(stream, "lane_to", lambda device: lanes.append(FakeLane()) or lanes[-1])
    before = set(multiprocessing.active_children())
    y = torch.arange(53)
    resident = training_batches(SCALING.apply(RAW), y, 8, 5)
    streamed = training_batches(StoredRows(RAW, y, SCALING), y, 8, 5, workers=workers)
    for number in (0, 3):
        for loader in (resident, streamed):
            loader.set_epoch(number)
        streamed.chunk = 3
        arrived = [pair for indices in streamed for pair in streamed.minibatches(indices)]  # type: ignore[arg-type]
        for mine, theirs in zip(arrived, resident, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))  # type: ignore[call-overload]
        assert lanes[-1].events.index(("send", 2)) < lanes[-1].events.index(("receive", 1))
    assert set(multiprocessing.active_children()) == before, "the worker processes end with the epoch"


def test_a_run_whose_minibatches_are_sent_ahead_is_the_resident_one_byte_for_byte(
    workdir: Path, unrecorded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "lane_to", lambda device: FakeLane())
    words = ("tracking=none", "trainer.progress_bar=false", "trainer.max_epochs=1", "dropout=dropout", "trainer.val_check_interval=0.5")
    journals = [
        (dnnkit.train(dnnkit.compose([*words, f"data.loader={loader}"])).run_dir / "metrics.jsonl").read_bytes()
        for loader in ("resident", "stream")
    ]
    assert journals[0] == journals[1]


class FakeCuda:
    """The calls of `torch.cuda` that a side stream makes, in their order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = self.calls = []  # type: list[str]

        class Stream:
            def __init__(self, name: Any) -> None:
                self.name = name if isinstance(name, str) else "side"

            def record_event(self) -> str:
                calls.append(f"event on {self.name}")
                return "event"

            def wait_event(self, event: str) -> None:
                calls.append(f"{self.name} waits for {event}")

        @contextmanager
        def entered(stream: Stream) -> Iterator[None]:
            calls.append(f"enter {stream.name}")
            yield
            calls.append(f"leave {stream.name}")

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", entered)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("working"))
        to = Tensor.to

        def copied(tensor: Tensor, *args: Any, **keywords: Any) -> Tensor:
            calls.append("copy" if keywords == {"non_blocking": True} else "blocking copy")
            return to(tensor, *args, **keywords)

        monkeypatch.setattr(Tensor, "to", copied)
        monkeypatch.setattr(Tensor, "record_stream", lambda _, stream: calls.append(f"kept for {stream.name}"))


def test_a_side_stream_copies_without_waiting_and_the_work_waits_for_that_copy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    lane = SideStream(torch.device("cpu"))
    sent = lane.send([torch.ones(2), torch.zeros(2)])
    assert cuda.calls == ["enter side", "copy", "copy", "event on side", "leave side"]
    cuda.calls.clear()
    lane.receive(*sent)
    assert cuda.calls == ["working waits for event", "kept for working", "kept for working"]


@contextmanager
def the_cpu_may_not_wait() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@ON_GPU
@pytest.mark.parametrize("engine", ["eager", "captured", "compiled"])
@pytest.mark.parametrize("loader", ["resident", "stream"])
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_on_a_gpu_nothing_inside_a_chunk_waits_for_it(
    engine: str, loader: str, precision: str, workdir: Path, unrecorded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_chunk, flush, sizes = loop.run_chunk, Module._flush, []

    def run(module: Module, schedule: Any, execute: Any, chunk: Any, minibatches: Any, number: int) -> Any:
        if number == 0:
            return run_chunk(module, schedule, execute, chunk, minibatches, number)
        sizes.append(chunk.size)
        with the_cpu_may_not_wait():
            return run_chunk(module, schedule, execute, chunk, minibatches, number)

    def flush_unwatched(module: Module, step: int) -> None:
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        flush(module, step)
        torch.cuda.set_sync_debug_mode(mode)

    monkeypatch.setattr(loop, "run_chunk", run)
    monkeypatch.setattr(Module, "_flush", flush_unwatched)
    words = ("trainer=gpu", "optimizer=nadam", f"trainer.precision={precision}", f"data.loader={loader}", f"trainer.engine={engine}")
    dnnkit.train(dnnkit.compose([*RUN, *words]))
    assert sum(sizes) == 24 - 6


@ON_GPU
@pytest.mark.parametrize("x", [SCALING.apply(RAW), StoredRows(RAW, torch.arange(53), SCALING)], ids=["resident", "streamed"])
def test_on_a_gpu_an_epoch_begins_without_waiting_and_has_the_order_and_values_of_the_cpu(x: Any) -> None:
    loader = training_batches(x, torch.arange(53), 8, 5).to("cuda")
    loader.set_epoch(2)
    loader.chunk = 3
    arrived = []
    with the_cpu_may_not_wait():
        for indices in loader:
            arrived += loader.minibatches(indices)  # type: ignore[arg-type]
    assert all(part.is_cuda for pair in arrived for part in pair)  # type: ignore[union-attr]
    order = epoch_order(53, 5, 2)
    assert torch.equal(torch.cat([pair[1] for pair in arrived]).cpu(), order)
    assert torch.equal(torch.cat([pair[0] for pair in arrived]).cpu(), SCALING.apply(RAW)[order])
