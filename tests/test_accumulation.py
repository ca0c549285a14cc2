"""Gradients that are added up over minibatches are those of the mean over a group's examples, whatever the group.

The oracle is a linear network's training written out in NumPy, in 64 bits: it knows no minibatches, only which examples an
update is about.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

import dnnkit
from dnnkit.data.loaders import evaluation_batches
from dnnkit.data.resident import Batches, epoch_order
from dnnkit.data.stream import StreamedBatches
from dnnkit.loop import engine_report, use_chunks
from dnnkit.loop.strategy import RankStrategy
from dnnkit.module import Module, Recipe, Task
from dnnkit.module.accumulation import Portion, portion, portion_of_epoch, sizes_of

RATE, MOMENTUM, DECAY, EPOCHS, SEED = 0.1, 0.9, 0.01, 2, 7
EXACT = {"rtol": 1e-9, "atol": 1e-12}


class Case(NamedTuple):
    rows: int
    batch: int
    accumulate: int
    penalised: bool
    limit: int | None  # of minibatches in an epoch

    @property
    def minibatches(self) -> int:
        whole = math.ceil(self.rows / self.batch)
        return min(whole, self.limit or whole)

    @property
    def groups(self) -> list[slice]:
        """Which places in an epoch's order each update is about."""
        every = self.batch * self.accumulate
        end = min(self.rows, self.minibatches * self.batch)
        return [slice(start, min(start + every, end)) for start in range(0, end, every)]

    @property
    def uneven(self) -> bool:
        """Whether an epoch ends in a group that is shorter, or that holds a shorter minibatch."""
        return self.groups[-1].stop - self.groups[-1].start < self.batch * self.accumulate


def cases() -> list[Case]:
    draw = random.Random(24)
    found = []
    for _ in range(60):
        rows, batch = draw.randint(4, 70), draw.randint(2, 20)
        limit = draw.choice([None, None, None, max(1, math.ceil(rows / batch) - 1)])
        found.append(Case(rows, batch, draw.randint(2, 9), draw.random() < 0.5, limit))
    return found


CASES = cases()


def data(rows: int) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 3, generator=made, dtype=torch.float64), torch.randn(rows, 2, generator=made, dtype=torch.float64)


def linear() -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(3, 2).double()


def by_examples(case: Case) -> tuple[Any, Any, int]:
    """Weight, bias and the number of updates, by w ← w − rate · v, v ← momentum · v + the mean gradient over the update's examples."""
    x, y = (part.numpy() for part in data(case.rows))
    start = linear()
    w, b = start.weight.detach().numpy().copy(), start.bias.detach().numpy().copy()
    v, u, steps = np.zeros_like(w), np.zeros_like(b), 0
    for epoch in range(EPOCHS):
        order = epoch_order(case.rows, SEED, epoch).numpy()
        for group in case.groups:
            of = order[group]
            slope = 2 * (x[of] @ w.T + b - y[of]) / (len(of) * 2)  # of the mean over examples and both outputs
            v = MOMENTUM * v + slope.T @ x[of] + (2 * DECAY * w if case.penalised else 0)
            u = MOMENTUM * u + slope.sum(0)
            w, b, steps = w - RATE * v, b - RATE * u, steps + 1
    return w, b, steps


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=RATE, momentum=MOMENTUM)


def squares(net: nn.Module) -> Tensor:
    weight = net.weight
    assert isinstance(weight, Tensor)
    return DECAY * weight.square().sum()


class Outputs(pl.Callback):
    """What a callback is given at the end of each epoch's last minibatch."""

    chunked = True

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == trainer.num_training_batches:
            self.seen[trainer.current_epoch] = float(outputs["loss"])


def trained(
    case: Case, chunk: int | None, engine: str = "eager", rank: int | None = None, kind: type[Batches] = Batches, **settings: Any
) -> tuple[Module, Outputs]:
    net, outputs = linear(), Outputs()
    recipe = Recipe(sgd, lambda step, total: 1.0, penalty=squares if case.penalised else None, seed=SEED)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    if rank is not None:
        settings |= {"strategy": RankStrategy(rank, 2, rank, 0), "use_distributed_sampler": False}
    trainer = pl.Trainer(
        accelerator="cpu", devices=1 if rank is None else 2, max_epochs=EPOCHS, accumulate_grad_batches=case.accumulate,
        precision="64-true", limit_train_batches=case.limit, limit_val_batches=0, callbacks=[outputs], **quiet, **settings,
    )  # fmt: skip
    if chunk is not None:
        use_chunks(trainer, chunk, engine)  # type: ignore[arg-type]
    module = Module(net, Task(nn.functional.mse_loss), recipe)
    world = {} if rank is None else {"rank": rank, "world": 2}
    trainer.fit(module, kind(*data(case.rows), case.batch, seed=SEED, **world), evaluation_batches(*data(4)))
    return module, outputs


def assert_right(module: Module, case: Case) -> None:
    w, b, steps = by_examples(case)
    assert module.trainer.global_step == steps
    torch.testing.assert_close(module.net.weight.detach(), torch.from_numpy(w), **EXACT, msg=str(case))
    torch.testing.assert_close(module.net.bias.detach(), torch.from_numpy(b), **EXACT, msg=str(case))


def test_the_cases_hold_groups_of_every_kind() -> None:
    last = [case.minibatches % case.accumulate for case in CASES]
    ragged = [case.rows % case.batch > 0 and case.limit is None for case in CASES]
    assert sum(case.uneven for case in CASES) > 40
    assert sum(short > 0 and not odd for short, odd in zip(last, ragged, strict=True)) > 8, "shorter, of equal minibatches"
    assert sum(short == 0 and odd for short, odd in zip(last, ragged, strict=True)) > 3, "whole, with a shorter minibatch"
    assert sum(case.minibatches < case.accumulate for case in CASES) > 8, "more than an epoch"


@pytest.mark.parametrize("part", range(4))
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_both_loops_take_the_mean_over_the_examples_of_every_group(part: int) -> None:
    for number, case in list(enumerate(CASES))[part::4]:
        stock, given = trained(case, None)
        chunked, same = trained(case, (1, 3, 50)[number % 3])
        assert_right(stock, case)
        for ours, theirs in zip(chunked.parameters(), stock.parameters(), strict=True):
            assert torch.equal(ours, theirs), case
        assert given.seen == same.seen, "and what callbacks are given"


def used(module: Module) -> str:
    return str(engine_report(module.trainer)["used"])


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2))])
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_captured_steps_and_streamed_data_do_too(part: int) -> None:
    for number, case in enumerate(CASES[part::3]):
        module, _ = trained(case, 50, "captured", kind=StreamedBatches if number % 2 else Batches)
        assert_right(module, case)
        assert used(module) == "captured", case


InTwo = Callable[[Callable[[int], dict[str, Any]]], list[dict[str, Any]]]
#: The sizes of chunks, None for Lightning's own loop, and the engines.
WAYS: dict[str, tuple[int | None, str]] = {"stock": (None, "eager"), "chunks": (50, "eager"), "graph": (3, "captured")}
#: The cases whose minibatches have an example for each of two devices, in a small part and a large one.
SHARED = [case for case in CASES if case.rows % case.batch != 1 or case.limit is not None]
FEW, OTHERS = SHARED[2::5], [case for place, case in enumerate(SHARED) if place % 5 != 2]


def _few(rank: int) -> dict[str, Any]:
    return _rank(rank, FEW)


def _others(rank: int) -> dict[str, Any]:
    return _rank(rank, OTHERS)


def _rank(rank: int, cases: list[Case]) -> dict[str, Any]:
    """What a rank ended with, by the number of the case and the way."""
    found: dict[str, Any] = {}
    for number, case in enumerate(cases):
        for way, (chunk, engine) in WAYS.items():
            module, _ = trained(case, chunk, engine, rank)
            held = {"steps": module.trainer.global_step, **module.net.state_dict()}
            found[f"{number} {way}"] = held | ({} if chunk is None else {"used": used(module)})
    return found


@pytest.mark.parametrize(("target", "cases"), [(_few, FEW), pytest.param(_others, OTHERS, marks=pytest.mark.slow)], ids=["few", "others"])
def test_two_devices_take_the_mean_over_the_examples_of_both(
    target: Callable[[int], dict[str, Any]], cases: list[Case], in_two_processes: InTwo
) -> None:
    ranks = in_two_processes(target)
    assert len(FEW) + len(OTHERS) > 50
    one_group = [case for case in cases if case.limit is None and case.minibatches <= case.accumulate]
    assert any(case.batch - case.rows % case.batch == 1 for case in one_group), "one rank has as much of a smaller minibatch"
    for number, case in enumerate(cases):
        w, b, steps = by_examples(case)
        for way, (chunk, engine) in WAYS.items():
            first, second = (found[f"{number} {way}"] for found in ranks)
            assert first["steps"] == second["steps"] == steps
            if chunk is not None:
                assert first["used"] == second["used"] == engine, case
            for name, value in (("weight", w), ("bias", b)):
                torch.testing.assert_close(first[name], torch.from_numpy(value), **EXACT, msg=str(case))
                assert torch.equal(first[name], second[name])


@pytest.mark.parametrize("accumulate", [1, 2, 3, 7, 10, 49, 365])
def test_a_whole_group_of_equal_minibatches_weighs_exactly_one(accumulate: int) -> None:
    """So that nothing is multiplied, and its bits are those of a plain sum."""
    assert {portion(size, size * accumulate, accumulate, accumulate) for size in range(1, 600)} == {Portion(1.0, 1.0)}


def test_what_a_loader_of_another_make_tells_of_its_sizes_is_used() -> None:
    """Of 22 examples in minibatches of 5, four to a group, the fifth minibatch is a group of its own; of 18, the fourth holds 3."""
    rows = torch.utils.data.TensorDataset(*data(18))
    assert sizes_of(torch.utils.data.DataLoader(rows, 5)) == sizes_of(Batches(*data(18), 5, seed=0)) == (5, 18)
    of_their_own = torch.utils.data.DataLoader(rows, batch_sampler=[[0, 1], [2]])
    assert sizes_of(of_their_own) is None
    assert portion_of_epoch(4, 5, 4, (5, 22)) == Portion(1.0, 4.0)
    assert [portion_of_epoch(index, 4, 4, (5, 18)) for index in (0, 3)] == [Portion(4 * 5 / 18, 1.0), Portion(4 * 3 / 18, 1.0)]
    assert portion_of_epoch(4, 6, 4, None) == Portion(1.0, 2.0), "where sizes are unknown minibatches count alike"


def test_twenty_minibatches_to_a_group_train_as_the_full_batch_does(workdir: Path) -> None:
    """An epoch has two minibatches of 54: divided by 20 as before, the test accuracy was .100; the full batch had .733."""
    words = ["data=iris", "model.hidden=[8]", "trainer.max_epochs=5", "scheduler=constant", "optimizer=sgd", "optimizer.lr=0.1"]
    words += ["tracking=none", "trainer.threads=1", "trainer.progress_bar=false"]
    whole = dnnkit.train(dnnkit.compose([*words, "data.batch_size=108"])).metrics
    for accumulate in (2, 20):
        parts = dnnkit.train(dnnkit.compose([*words, "data.batch_size=54", f"trainer.accumulate_grad_batches={accumulate}"])).metrics
        assert parts["test/acc"] == whole["test/acc"] > 0.7
        assert parts["test/loss"] == pytest.approx(whole["test/loss"], rel=1e-4)
