from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dnnkit.data.loaders import evaluation_batches
from dnnkit.data.resident import Batches, default_generator, epoch_order, minibatch_seed, splitmix64
from dnnkit.errors import DataError


def rows(n: int, width: int = 3) -> tuple[Tensor, Tensor]:
    return torch.arange(n * width, dtype=torch.float32).view(n, width), torch.arange(n)


def order_of(batches: Batches) -> list[int]:
    return [int(y) for _, ys in batches for y in ys]  # type: ignore[misc]


def test_splitmix64_gives_the_published_sequence() -> None:
    gamma, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [splitmix64(1234567 + k * gamma & mask) for k in range(5)] == published
    assert splitmix64(0) == 0xE220A8397B1DCDAF


def test_minibatch_seed_is_pure_and_separates_minibatches_ranks_and_seeds() -> None:
    seeds = [minibatch_seed(seed, minibatch, rank) for seed in range(4) for rank in range(4) for minibatch in range(100)]
    assert seeds == [minibatch_seed(seed, minibatch, rank) for seed in range(4) for rank in range(4) for minibatch in range(100)]
    assert len({value % 2**32 for value in seeds}) == len(seeds), "torch's CPU generator takes the low 32 bits"
    assert all(0 <= value < 2**64 for value in seeds)


def test_neighbouring_minibatch_seeds_differ_in_half_of_their_bits() -> None:
    flips = [(minibatch_seed(0, k, 0) ^ minibatch_seed(0, k + 1, 0)).bit_count() for k in range(1000)]
    assert abs(sum(flips) / 1000 - 32) < 4 * 4 / math.sqrt(1000)  # 64 fair bits: mean 32, deviation 4; four standard errors


@pytest.mark.parametrize("seed", [0, 1, 2**63, 12345678901234567890])
def test_any_64_bit_seed_is_taken(seed: int) -> None:
    default_generator(torch.device("cpu")).manual_seed(minibatch_seed(seed, 10**9, 7))
    assert sorted(epoch_order(5, seed, 0).tolist()) == [0, 1, 2, 3, 4]


def test_order_is_a_permutation_that_depends_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    order = epoch_order(100, 0, 3)
    assert torch.equal(state, torch.get_rng_state()), "draws nothing from the default generator"
    torch.manual_seed(6)
    assert torch.equal(order, epoch_order(100, 0, 3))
    assert sorted(order.tolist()) == list(range(100))
    assert not torch.equal(order, epoch_order(100, 0, 4))
    assert not torch.equal(order, epoch_order(100, 1, 3))


@pytest.mark.parametrize(("n", "batch_size"), [(10, 3), (9, 3), (2, 5), (1, 1)])
def test_length_is_the_number_of_minibatches_the_ragged_last_included(n: int, batch_size: int) -> None:
    batches = Batches(*rows(n), batch_size, seed=0)
    assert len(batches) == math.ceil(n / batch_size)
    sizes = [len(y) for _, y in batches]  # type: ignore[misc]
    assert sizes == [batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0)


@pytest.mark.parametrize("shuffle", [True, False])
def test_pairs_belong_together_and_every_sample_comes_once(shuffle: bool) -> None:
    x, y = rows(10)
    batches = Batches(x, y, 3, seed=0, shuffle=shuffle)
    for xs, ys in batches:
        assert torch.equal(xs, x[ys])  # type: ignore[arg-type]
    assert sorted(order_of(batches)) == list(range(10))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("width", [3, 16])  # minibatches of 4 rows start off, and on, 64-byte lines
def test_chunks_hold_the_same_minibatches_in_the_same_order_as_pairs(width: int, shuffle: bool) -> None:
    batches = Batches(*rows(22, width), 4, seed=0, shuffle=shuffle)
    pairs = list(batches)
    chunked, iterator = [], iter(batches)
    for size in (1, 3, 50):
        batches.chunk = size
        chunked += batches.minibatches(next(iterator))  # type: ignore[arg-type]
    assert len(chunked) == len(pairs) == 6
    for pair, other in zip(pairs, chunked, strict=True):
        assert torch.equal(pair[0], other[0])
        assert torch.equal(pair[1], other[1])


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("width", [3, 16])
def test_every_minibatch_starts_on_a_64_byte_line(width: int, shuffle: bool) -> None:
    batches = Batches(*rows(22, width), 4, seed=0, shuffle=shuffle)
    assert all(x.data_ptr() % 64 == 0 for x, _ in [*batches.minibatches(torch.arange(22)), *batches])  # type: ignore[misc]


def test_each_epoch_has_its_own_order() -> None:
    batches = Batches(*rows(30), 4, seed=8)
    for epoch in (0, 1, 5):
        batches.set_epoch(epoch)
        assert order_of(batches) == epoch_order(30, 8, epoch).tolist()


@pytest.mark.parametrize("position", range(5))
@pytest.mark.parametrize("epoch", [0, 2])
def test_any_minibatch_of_any_epoch_can_be_the_first_after_a_resume(epoch: int, position: int) -> None:
    whole = Batches(*rows(10), 3, seed=1)
    whole.set_epoch(epoch)
    iterator = iter(whole)
    for _ in range(position):
        next(iterator)
    state = whole.state_dict() if position else {"epoch": epoch, "position": 0}
    assert state == {"epoch": epoch, "position": position}
    rest = Batches(*rows(10), 3, seed=1)
    rest.load_state_dict(state)
    rest.set_epoch(epoch)
    whole.set_epoch(epoch)
    assert order_of(rest) == order_of(whole)[position * 3 :]
    assert order_of(rest) == order_of(whole), "only the first pass is a resumed one"


def test_state_of_another_epoch_does_not_shorten_the_next() -> None:
    batches = Batches(*rows(10), 3, seed=1)
    batches.load_state_dict({"epoch": 0, "position": 4})
    batches.set_epoch(1)
    assert sorted(order_of(batches)) == list(range(10))


def test_state_loaded_after_iter_still_counts() -> None:
    batches = Batches(*rows(10), 3, seed=1)
    iterator = iter(batches)
    batches.load_state_dict({"epoch": 2, "position": 3})
    batches.set_epoch(2)
    assert len(list(iterator)) == 1


def test_evaluation_batches_keep_the_stored_order() -> None:
    x, y = rows(7)
    batches = evaluation_batches(x, y, batch_size=3)
    batches.set_epoch(5)
    assert order_of(batches) == list(range(7))
    assert torch.equal(torch.cat([xs for xs, _ in batches]), x)  # type: ignore[misc]


def test_to_moves_both_tensors() -> None:
    batches = Batches(*rows(4), 2, seed=0).to("meta")
    assert batches.x.device.type == batches.y.device.type == "meta"


@pytest.mark.parametrize(("x", "y", "batch_size"), [(3, 2, 1), (0, 0, 1), (2, 2, 0)])
def test_tensors_that_do_not_fit_are_refused(x: int, y: int, batch_size: int) -> None:
    with pytest.raises(DataError, match="at least 1"):
        Batches(torch.zeros(x, 2), torch.zeros(y), batch_size, seed=0)


def test_device_without_a_default_generator_is_refused() -> None:
    with pytest.raises(DataError, match="meta"):
        default_generator(torch.device("meta"))
