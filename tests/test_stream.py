"""Loaders: the same minibatches whether examples are resident or streamed, shared by devices, changed by augmentation."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dnnkit
from dnnkit.data import Examples, Source, memory, prepare
from dnnkit.data.augmentation import Augmentation
from dnnkit.data.loaders import evaluation_batches, training_batches
from dnnkit.data.memory import available, footprint, streams
from dnnkit.data.resident import Batches, epoch_order, share
from dnnkit.data.scaling import Scaling
from dnnkit.data.stored import StoredRows
from dnnkit.errors import DataError

N = 53
RAW = torch.randint(0, 256, (N, 1, 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N)
SCALING = Scaling(torch.tensor(100.0, dtype=torch.float64), torch.tensor(70.0, dtype=torch.float64))
RESIDENT, STORED = SCALING.apply(RAW), StoredRows(RAW, torch.arange(N), SCALING)


def noisy(example: Tensor, generator: torch.Generator) -> Tensor:
    return example + torch.randn(example.shape, generator=generator)


def epoch(loader: Batches, number: int, chunk: int = 0) -> Iterator[Any]:
    loader.set_epoch(number)
    loader.chunk = chunk
    for item in loader:
        yield from loader.minibatches(item) if chunk else [item]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("chunk", [0, 4])
@pytest.mark.parametrize("augment", [None, Augmentation(noisy, seed=3)])
def test_streamed_minibatches_are_the_resident_ones_bit_for_bit(workers: int, chunk: int, augment: Any) -> None:
    resident = training_batches(RESIDENT, Y, 8, 5, augment=augment)
    streamed = training_batches(STORED, Y, 8, 5, augment=augment, workers=workers)
    for number in (0, 1, 4):
        pairs = list(zip(epoch(resident, number), epoch(streamed, number, chunk), strict=True))
        assert len(pairs) == 7
        for mine, theirs in pairs:
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_a_stream_that_is_resumed_goes_on_with_the_next_minibatch() -> None:
    whole = list(epoch(training_batches(STORED, Y, 8, 5), 2))
    resumed = training_batches(STORED, Y, 8, 5)
    resumed.load_state_dict({"epoch": 2, "position": 3})
    rest = list(epoch(resumed, 2, chunk=2))
    assert len(rest) == 4
    assert all(torch.equal(mine[0], theirs[0]) for mine, theirs in zip(rest, whole[3:], strict=True))


def test_reading_a_stream_leaves_the_random_state_of_training_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(epoch(training_batches(STORED, Y, 8, 5), 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_streams_in_the_stored_order() -> None:
    whole = torch.cat([x for x, _ in evaluation_batches(STORED, Y, 10)])
    assert torch.equal(whole, RESIDENT)


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("x", [RESIDENT, STORED], ids=["resident", "streamed"])
def test_the_shares_of_all_devices_are_the_minibatch_and_their_weights_make_its_mean(world: int, x: Any) -> None:
    whole = list(epoch(training_batches(RESIDENT, Y, 8, 5), 1))
    parts = [list(epoch(training_batches(x, Y, 8, 5, rank=rank, world=world), 1, chunk=3)) for rank in range(world)]
    for minibatch, shares in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat([x for x, _, _ in shares]), minibatch[0])
        assert torch.equal(torch.cat([y for _, y, _ in shares]), minibatch[1])
        mean = sum(weight * float(y.double().mean()) for _, y, weight in shares) / world
        assert mean == pytest.approx(float(minibatch[1].double().mean()), rel=1e-12)


def test_shares_differ_by_one_at_most_and_leave_nothing_out() -> None:
    for count in range(20):
        for world in range(1, 6):
            taken = [share(count, rank, world) for rank in range(world)]
            assert [index for part in taken for index in range(count)[part]] == list(range(count))
            sizes = [part.stop - part.start for part in taken]
            assert max(sizes) - min(sizes) <= 1


def test_augmentation_is_a_function_of_seed_epoch_and_example_not_of_the_minibatch() -> None:
    def by_example(batch_size: int, seed: int, number: int) -> dict[int, Tensor]:
        loader = training_batches(RESIDENT, Y, batch_size, 5, augment=Augmentation(noisy, seed))
        return {int(label): example for x, y in epoch(loader, number) for example, label in zip(x, y, strict=True)}

    mine, other_batches = by_example(8, 0, 1), by_example(5, 0, 1)
    assert all(torch.equal(mine[index], other_batches[index]) for index in range(N))
    for changed in (by_example(8, 1, 1), by_example(8, 0, 2)):
        assert not any(torch.equal(mine[index], changed[index]) for index in range(N))
    noise = torch.stack([mine[index] - RESIDENT[index] for index in range(N)]).flatten(1)
    assert noise.unique(dim=0).shape[0] == N
    assert abs(float(noise.mean())) < 0.2


def test_augmented_validation_is_not_a_thing() -> None:
    assert all(torch.equal(x, RESIDENT[y]) for x, y in evaluation_batches(RESIDENT, Y, 10))


@pytest.mark.parametrize(
    ("loader", "needed", "streamed"), [("auto", 60, True), ("auto", 40, False), ("stream", 1, True), ("resident", 99, False)]
)
def test_what_would_take_more_than_its_share_of_memory_is_streamed(
    monkeypatch: pytest.MonkeyPatch, loader: str, needed: int, streamed: bool
) -> None:
    free = {"cpu": 100, "cuda": 100}
    monkeypatch.setattr(memory, "available", lambda device: free[device.type])
    assert streams(loader, needed, 0, 0.5, torch.device("cpu")) is streamed
    assert streams(loader, 0, needed, 0.5, torch.device("cuda")) is streamed
    assert streams(loader, needed, 0, 0.5, torch.device("cuda")) is streamed  # a GPU's data are prepared in CPU memory


@pytest.mark.parametrize(
    ("precision", "task", "device", "in_memory", "on_device"),
    [
        ("32", "classification", "cpu", 4, 0),
        ("bf16", "reconstruction", "cpu", 4, 0),
        ("32", "reconstruction", "cuda", 4, 8),
        ("64", "regression", "cpu", 4 + 8, 0),
        ("64", "reconstruction", "cuda", 4 + 16, 16),
    ],
)
def test_the_footprint_of_a_value_counts_every_copy(precision: str, task: str, device: str, in_memory: int, on_device: int) -> None:
    assert footprint(100, precision, task, torch.device(device)) == (100 * in_memory, 100 * on_device)


def test_an_augmentation_can_go_to_a_worker_process_that_is_not_forked() -> None:
    mine = pickle.loads(pickle.dumps(Augmentation(noisy, seed=3)))  # noqa: S301  what multiprocessing does by itself
    assert torch.equal(mine(RESIDENT, 1, Y), Augmentation(noisy, seed=3)(RESIDENT, 1, Y))


def test_the_worker_processes_of_a_stream_end_with_the_epoch() -> None:
    before = set(multiprocessing.active_children())
    loader = training_batches(STORED, Y, 8, 5, workers=2)
    for number in (0, 1):
        minibatches = epoch(loader, number, chunk=3)
        for _ in range(7):
            next(minibatches)  # as the loop does, which counts and never asks for an eighth
        assert set(multiprocessing.active_children()) == before


def test_a_streamed_value_that_would_be_infinite_is_found_before_training() -> None:
    x = torch.rand(100, 1, dtype=torch.float64) * 1e-10
    x[-1] = 1e35
    with pytest.raises(DataError, match="not finite in float32"):
        prepare(
            "mine", Source(Examples(x, torch.arange(100) % 2), None), stream=True,
            val_size=0.1, test_size=0.2, split="tail", standardize="auto", seed=0,
        )  # fmt: skip


def test_free_memory_is_a_sane_number_and_heeds_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**26 < available(torch.device("cpu")) < 2**50
    for name, text in (("memory.max", "5000\n"), ("memory.current", "4000\n"), ("memory.stat", "anon 10\ninactive_file 300\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert available(torch.device("cpu")) == 1300
    (tmp_path / "memory.max").write_text("max\n")
    assert available(torch.device("cpu")) > 2**26


RUN = ("tracking=none", "trainer.progress_bar=false", "trainer.max_epochs=2", "dropout=dropout")


def test_a_streamed_run_is_the_resident_one_byte_for_byte(workdir: Path) -> None:
    journals = [
        (dnnkit.train(dnnkit.compose([*RUN, f"data.loader={loader}"])).run_dir / "metrics.jsonl").read_bytes()
        for loader in ("resident", "stream")
    ]
    assert journals[0] == journals[1]


def test_data_that_do_not_fit_are_streamed_by_themselves(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    result = dnnkit.train(dnnkit.compose([*RUN]))
    assert "data: digits, stream" in (result.run_dir / "run.log").read_text()


def test_an_example_is_never_shown_twice_in_an_epoch() -> None:
    shown = torch.cat([y for _, y in epoch(training_batches(STORED, Y, 8, 5), 3)])
    assert torch.equal(shown, epoch_order(N, 5, 3))
