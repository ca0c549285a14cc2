"""Which points of the rate and the momentum are recorded: a line through them shows the curve, from the first step on."""

from __future__ import annotations

import random
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger
from torch import nn

from dnnkit import plugins
from dnnkit.config.schedule import Watching
from dnnkit.data.resident import Batches
from dnnkit.loop import use_chunks
from dnnkit.module import Module, Recipe, Task
from dnnkit.module.pace import TOLERANCE, Pace, corners
from dnnkit.registry import REGISTRIES

X = torch.randn(44, 3, generator=torch.Generator().manual_seed(0))
EPOCH, EPOCHS = 11, 6
LOOPS = pytest.mark.parametrize("size", [None, 50], ids=["stock", "chunks"])


def through(values: list[float]) -> Any:
    """The straight lines from the first value over the corners to the last."""
    points = [0, *corners(values), len(values) - 1]
    return np.interp(range(len(values)), points, [values[point] for point in points])


@pytest.mark.parametrize("seed", range(20))
def test_a_line_through_the_corners_passes_near_every_value(seed: int) -> None:
    draw = random.Random(seed)
    values = [draw.random()]
    while len(values) < 300:
        slope = draw.choice([0, 0, 1e-5, -1e-3, 0.02])
        values += [values[-1] + slope * place**2 for place in range(draw.randint(1, 40))]
    assert np.abs(through(values) - values).max() <= TOLERANCE * np.abs(values).max() * (1 + 1e-9)
    for place in corners(values):
        assert 0 < place < len(values) - 1


def test_peaks_and_the_ends_of_pieces_are_exact() -> None:
    warm_up = [step / 5 for step in range(5)] + [1.0] * 40
    assert corners(warm_up) == [5]
    assert corners([1.0] * 30 + [0.1] * 30) == [29, 30]
    assert corners([0.5] * 50) == corners([float(step) for step in range(50)]) == []
    hill = [1 - (step - 21) ** 2 / 1000 for step in range(50)]
    assert 21 in corners(hill)
    assert corners([1 - 1e-4 * abs(step - 8) for step in range(17)]) == [8], "a peak too low to matter is exact all the same"


@pytest.mark.parametrize("cut", [1, 2, 7, 12])
def test_a_pace_that_was_saved_and_loaded_goes_on_with_the_same_rows(cut: int) -> None:
    given = [(0.1 * min(1, step / 4) / 3, 0.95 - step / 70) for step in range(13)]
    whole, begun = Pace(), Pace()
    for rate, momentum in given[:cut]:
        begun.add(rate, momentum)
    rest = Pace()
    rest.load_state_dict(begun.state_dict())
    for rate, momentum in given[cut:]:
        rest.add(rate, momentum)
    for rate, momentum in given:
        whole.add(rate, momentum)
    rows = whole.rows(20)
    assert rest.rows(20) == rows
    assert [step for step, _ in rows] == [12, 20]
    assert rows[-1][1] == {"lr": given[12][0], "momentum": given[12][1]}
    assert not whole.moved


class Kept(Logger):
    name, version = "kept", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, dict[int, float]] = {"lr": {}, "momentum": {}}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for key in self.rows.keys() & metrics.keys():
            assert step not in self.rows[key], "once"
            self.rows[key][step or 0] = metrics[key]

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


def run(schedule: Any, size: int | None, log_every: int = 50, **settings: Any) -> tuple[Kept, list[tuple[float, float]]]:
    """What was recorded, and the rate and the momentum that the optimizer had at each update."""
    kept, used = Kept(), []

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        made = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        made.register_step_pre_hook(lambda made, *_: used.append((made.param_groups[0]["lr"], made.param_groups[0]["momentum"])))
        return made

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=EPOCHS, logger=kept, log_every_n_steps=1, **quiet, **settings)
    if size is not None:
        use_chunks(trainer, size)
    module = Module(nn.Linear(3, 1), Task(nn.functional.mse_loss), Recipe(optimizer, schedule), log_every)
    trainer.fit(module, Batches(X, X[:, :1], 4, seed=0), Batches(X[:8], X[:8, :1], 8, seed=0, shuffle=False))
    return kept, used


@LOOPS
@pytest.mark.parametrize("name", ["one_cycle", "cosine", "step", "exponential", "constant"])
def test_what_is_recorded_of_a_run_shows_the_rate_of_every_update_from_the_first_on(name: str, size: int | None) -> None:
    plugins.load()
    kept, used = run(partial(REGISTRIES["scheduler"].get(name).function), size)
    for key, column in (("lr", 0), ("momentum", 1)):
        rows = kept.rows[key]
        if key == "momentum" and name != "one_cycle":
            assert not rows, "it is not cycled"
            continue
        values = np.array([used[0][column], *(given[column] for given in used)])
        assert (min(rows), max(rows)) == (0, len(used)) == (0, EPOCH * EPOCHS)
        assert list(rows) == sorted(rows)
        assert all(value == values[step] for step, value in rows.items()), "each is what the optimizer had"
        line = np.interp(range(len(values)), list(rows), list(rows.values()))
        assert np.abs(line - values).max() <= TOLERANCE * values.max() * (1 + 1e-9)
        assert max(rows.values()) == values.max()


@LOOPS
def test_a_warm_up_of_five_steps_can_be_seen_though_rows_are_fifty_steps_apart(size: int | None) -> None:
    kept, _ = run(lambda step, total: min(1.0, (step + 1) / 5), size)
    assert list(kept.rows["lr"].items())[:3] == [(0, pytest.approx(0.02)), (1, pytest.approx(0.02)), (5, 0.1)]
    assert all(value == 0.1 for step, value in kept.rows["lr"].items() if step >= 5)


class Halving:
    """Halves the rate at every measurement."""

    monitor = "val/loss"

    def __init__(self) -> None:
        self.times = 0

    def factor(self, step: int) -> float:
        return 0.5**self.times

    def observe(self, value: float) -> None:
        self.times += 1


@LOOPS
def test_a_rate_that_follows_a_metric_is_recorded_where_it_changes(size: int | None) -> None:
    """Validated after updates 11, 22, …: the row there is that of the update that was made, the next one that of the new rate."""
    kept, used = run(Watching(Halving()), size, limit_val_batches=1)
    rows = kept.rows["lr"]
    for end, following in pairwise(range(EPOCH, EPOCH * EPOCHS + 1, EPOCH)):
        assert rows[end + 1] == rows[end] / 2 == rows[following] == used[end][0]
