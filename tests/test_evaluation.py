"""Evaluation: how many examples at a time, and that the numbers do not depend on it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

import dnnkit
from dnnkit.data.loaders import EVALUATION_BATCH, evaluation_batches
from dnnkit.data.resident import Batches
from dnnkit.data.sizing import bytes_per_example, evaluation_batch
from dnnkit.loop import use_chunks
from dnnkit.module import Module, Recipe, Task
from dnnkit.module.monte_carlo import MonteCarlo
from dnnkit.training.evaluate import evaluate

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
MIB = 1 << 20
QUIET = ("tracking=none", "trainer.progress_bar=false", "trainer.max_epochs=1", "trainer.limit_train_batches=2")


SILENT: dict[str, Any] = {
    "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False,
}  # fmt: skip


def error_rate(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction.argmax(1) != target).double().mean()


def module_of(net: nn.Module) -> Module:
    recipe = Recipe(lambda parameters: torch.optim.SGD(parameters, lr=0.0), lambda step, total: 1.0)
    return Module(net, Task(nn.functional.cross_entropy, {"error": error_rate}), recipe)


class Calling(nn.Module):
    """A network whose forward is any function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.function(x)
        return output


@pytest.mark.parametrize(
    ("network", "shape", "values"),
    [
        (nn.Linear(784, 300), (784,), 784),  # the input is the largest
        (nn.Linear(10, 5000), (10,), 5000),
        (nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.Flatten(), nn.Linear(16 * 28 * 28, 10)), (1, 28, 28), 16 * 28 * 28),
        (nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20), nn.Dropout(), nn.Linear(20, 3)), (10,), 20),
        (Calling(lambda x: x[:, :, None] * x[:, None, :]), (30,), 900),  # an operation that belongs to no layer
        (nn.utils.parametrizations.weight_norm(nn.Linear(1000, 1000)), (1000,), 1000),  # makes its weights anew in each pass
    ],
)
def test_what_an_example_needs_is_the_size_of_the_largest_tensor_made_of_it(
    network: nn.Module, shape: tuple[int, ...], values: int
) -> None:
    assert bytes_per_example(network, shape, torch.float32) == 4 * values
    assert bytes_per_example(network, shape, torch.float64) == 8 * values


def test_asking_what_an_example_needs_leaves_network_and_random_state_alone() -> None:
    calls: list[int] = []
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), Calling(lambda x: x + torch.rand(8).to(x.device)))
    network[0].register_forward_hook(lambda *_: calls.append(1))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    assert bytes_per_example(network, (4,), torch.float64) == 8 * 8
    assert network.training
    assert not calls
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(tensor.dtype == before[name].dtype for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("width", "cpu", "gpu"), [(784, 3200, 51_200), (12_544, 200, 3200), (100_000, 25, 400), (1 << 20, 4, 50), (1 << 24, 1, 4)]
)
def test_a_batch_is_what_fits_into_16_mib_of_the_cpu_and_256_of_a_gpu(width: int, cpu: int, gpu: int) -> None:
    """25 · 2^k rows of `width` float32, or fewer than 25, but one at least: at 784, 16 MiB hold 5349, which is 25 · 2^7.7."""
    for device, rows, budget in ((CPU, cpu, 16 * MIB), (GPU, gpu, 256 * MIB)):
        assert evaluation_batch(nn.Identity(), (width,), torch.float32, device) == rows
        assert rows == 1 or rows * width * 4 <= budget


@pytest.mark.parametrize("look", [lambda x: x * float(x.mean()), lambda x: x if x.sum() > 0 else -x, lambda x: x[x[:, 0] > 0]])
def test_a_network_that_looks_at_values_is_asked_about_a_thousand_and_the_log_says_why(look: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "dnnkit"):
        assert evaluation_batch(Calling(look), (4,), torch.float32, CPU) == EVALUATION_BATCH == 1000
    assert "cannot be told without data (" in caplog.text


@pytest.mark.parametrize(("limit", "rows"), [(1, 1000), (7, 1000), (0.5, 1000), (1.0, 51_200)])
def test_a_limit_counts_minibatches_of_a_thousand_on_every_device(limit: int | float, rows: int) -> None:
    assert evaluation_batch(nn.Identity(), (784,), torch.float32, GPU, limit) == rows


class Pass:
    """What runs validated and tested: rows of each minibatch, and whether in inference mode."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.inference: list[bool] = []
        step = Module.validation_step

        def spy(module: Module, batch: Any, batch_idx: int) -> None:
            step(module, batch, batch_idx)
            self.rows.append(len(batch[1]))
            self.inference.append(module._passing[-1][0].is_inference())

        monkeypatch.setattr(Module, "validation_step", spy)


def test_a_limited_validation_is_of_a_thousand_examples(workdir: Path, unrecorded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Pass(monkeypatch)
    module = dnnkit.train(dnnkit.compose([*QUIET, "data.val_size=1100", "trainer.limit_val_batches=1"])).module
    assert seen.rows == [1000, len(module.evaluations["test"].target)]
    assert len(module.evaluations["val"].target) == 1000


def test_a_run_and_evaluate_ask_about_all_at_once_with_the_same_bits(
    workdir: Path, unrecorded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Test and evaluate in inference mode. Not validation while training: a network may keep a tensor for later, see below."""
    seen = Pass(monkeypatch)
    run = dnnkit.train(dnnkit.compose([*QUIET, "data.val_size=1100"])).run_dir
    found = evaluate(run, split="validation")
    assert seen.rows == [1100, seen.rows[1], 1100]
    assert seen.inference == [False, True, True]
    assert found.metrics == found.recorded != {}


class Keeping(nn.Module):
    """Makes a tensor the first time that it is asked, and uses it from then on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.kept = nn.Linear(3, 2), None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = torch.ones(2) * 2
        output: Tensor = self.linear(x) * self.kept
        return output


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_what_a_network_keeps_from_a_validation_can_be_trained_with() -> None:
    module, x, y = module_of(Keeping()), torch.randn(12, 3), torch.arange(12) % 2
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=2, num_sanity_val_steps=1, **SILENT)
    use_chunks(trainer).fit(module, Batches(x, y, 4, seed=0), evaluation_batches(x, y))
    assert trainer.global_step == 6


def measured(net: nn.Module, x: Tensor, y: Tensor, size: int) -> dict[str, float]:
    trainer = pl.Trainer(accelerator="cpu", devices=1, precision="64-true" if x.dtype is torch.float64 else "32-true", **SILENT)
    trainer.validate(module_of(net), evaluation_batches(x, y, size), verbose=False)
    return {key: float(value) for key, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_loss_and_metrics_are_those_of_a_thousand_at_a_time_to_rounding(dtype: torch.dtype, bound: float) -> None:
    """Measured of all predictions at once; these differ in the last digits, as a matrix product does with its number of rows."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 300), nn.SELU(), nn.Linear(300, 100), nn.SELU(), nn.Linear(100, 10))
    x, y = torch.randn(3300, 64, dtype=dtype), torch.randint(0, 10, (3300,))
    thousand = measured(net, x, y, 1000)
    for size in (3200, 3300, 400, 7):
        other = measured(net, x, y, size)
        assert other["val/error"] == thousand["val/error"]
        assert other["val/loss"] == pytest.approx(thousand["val/loss"], rel=bound)


def test_a_pass_of_one_batch_keeps_what_the_network_gave_but_lends_nobody_the_data_themselves() -> None:
    module = module_of(nn.Linear(3, 2))
    y = torch.zeros(5, dtype=torch.int64)
    module.validation_step((torch.randn(5, 3), y), 0)
    given = module._passing[0][0]
    prediction, target = module._whole_pass()
    assert prediction.data_ptr() == given.data_ptr()
    assert target.data_ptr() != y.data_ptr()
    assert not module._passing


def test_monte_carlo_dropout_says_the_same_in_any_batches_of_whole_blocks_or_not() -> None:
    network = nn.Sequential(nn.Linear(5, 20), nn.Dropout(), nn.Linear(20, 3)).double()
    x, y = torch.randn(1210, 5, dtype=torch.float64), torch.randint(0, 3, (1210,))

    def asked(size: int, rank: int = 0, world: int = 1) -> Tensor:
        kept = MonteCarlo(Task(nn.functional.cross_entropy, mc_samples=3), seed=3)
        for index, batch in enumerate(evaluation_batches(x, y, size, rank=rank, world=world)):
            kept.keep(network, batch, index, 3, rank, world)
        return torch.cat([torch.cat(kept._means), torch.cat(kept._spreads)[:, None]], 1)

    thousand = asked(1000)
    assert all(torch.equal(asked(size), thousand) for size in (25, 400, 1600, 33))
    shares = [evaluation_batches(torch.arange(1210.0)[:, None], y, 400, rank=rank, world=3) for rank in range(3)]
    for rank, share in enumerate(shares):
        rows = torch.cat([numbers for numbers, *_ in share]).flatten().long()  # type: ignore[misc]
        assert torch.equal(asked(400, rank, 3), thousand[rows])
