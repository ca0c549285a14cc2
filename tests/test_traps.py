"""Thirteen traps of deep learning code, each with a test from the config to the trained weights that a fall into it would fail."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger
from torch import Tensor, nn

from dnnkit.config import Config, compose
from dnnkit.data.loaders import evaluation_batches, training_batches
from dnnkit.errors import ConfigError
from dnnkit.loop import use_chunks
from dnnkit.network import build_network, component, remarks
from dnnkit.network.stochastic import stochastic_dropout
from dnnkit.training.assemble import assemble, check_batches, load_data
from dnnkit.training.fit import PRECISIONS, quiet
from dnnkit.training.run import prepare_run

#: A small network on the bundled digits, 10 minibatches of 32 an epoch.
SMALL = ("trainer.limit_train_batches=10", "trainer.log_every_n_steps=1", "trainer.max_epochs=1", "trainer=cpu")


class Journal(Logger):
    name, version = "journal", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[tuple[str, int | None], float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows |= {(key, step): value for key, value in metrics.items()}

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def of(self, key: str) -> list[float]:
        return [value for (name, _), value in sorted(self.rows.items(), key=lambda row: row[0][1] or 0) if name == key]


def trained(*overrides: str, test: bool = False) -> tuple[nn.Module, nn.Module, Journal]:
    """The network that a config describes before and after its training, by the parts that a run is made of, and the journal."""
    model = () if "model=sequential" in overrides else ("model.hidden=[16,8]",)
    cfg = compose([*SMALL, *model, *overrides])
    run, settings, journal = prepare_run(cfg), cfg.values["trainer"], Journal()
    before, module = copy.deepcopy(run.network), assemble(run.cfg, run.network, run.data)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=journal, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        log_every_n_steps=1, **{key: settings[key] for key in ("max_epochs", "limit_train_batches", "accumulate_grad_batches")},
        precision=PRECISIONS[settings["precision"]],
    )  # fmt: skip
    use_chunks(trainer, settings["chunk_size"])
    train, validation = run.data.train, run.data.validation
    batches = training_batches(train.x, train.y, cfg.values["data"]["batch_size"], cfg.values["seed"])
    with quiet():
        trainer.fit(module, batches, evaluation_batches(validation.x, validation.y))
        if test:
            trainer.test(module, evaluation_batches(validation.x, validation.y), verbose=False)
    return before, module.net, journal


def network(cfg: Config) -> nn.Module:
    return build_network({**cfg.values, "task": "classification"}, (1, 28, 28), 10, 0)


def test_trap_01_selu_layers_have_variance_one_over_fan_in_and_not_torchs_gain_of_three_quarters() -> None:
    assert torch.nn.init.calculate_gain("selu") == 0.75, "the trap"
    for initializer in ("auto", "lecun_normal", "lecun_uniform"):
        net = network(compose(["activation=selu", f"initializer={initializer}", "model.hidden=[300,300]"]))
        for layer in (net.get_submodule("00_dense"), net.get_submodule("01_dense")):
            assert float(layer.weight.detach().std()) * math.sqrt(layer.in_features) == pytest.approx(1, rel=0.02)


@pytest.fixture(scope="module")
def accumulated() -> Journal:
    """One cycle over 3 epochs of 10 minibatches in groups of 4: 3 updates an epoch, the last of a shorter group, 9 in all."""
    return trained("trainer.accumulate_grad_batches=4", "trainer.max_epochs=3", "scheduler=one_cycle", "optimizer=sgd", "optimizer.lr=0.1")[
        2
    ]


def torchs_cycle(total: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    settings: dict[str, Any] = {"pct_start": 0.45, "div_factor": 10, "final_div_factor": 1000, "three_phase": True}
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total, anneal_strategy="linear", **settings)
    rates = []
    for _ in range(total):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


def test_trap_02_a_schedule_moves_at_every_step_and_not_at_every_epoch(accumulated: Journal) -> None:
    assert accumulated.of("lr")[1:] == pytest.approx(torchs_cycle(9), rel=1e-6), "from the first update on"
    assert len(set(accumulated.of("lr")[1:4])) == 3, "within the first epoch already"


def test_trap_03_a_schedule_ends_with_the_last_update_where_gradients_are_accumulated(accumulated: Journal) -> None:
    assert sorted({step for key, step in accumulated.rows if key == "lr"}) == list(range(10)), "not 3 epochs × 10 minibatches"
    assert accumulated.of("lr")[-1] == pytest.approx(0.1 * 1e-4)


@pytest.mark.parametrize("limit", [4, 10])
def test_trap_04_a_rate_that_changes_every_few_steps_counts_the_runs_steps_and_not_the_epochs_minibatches(limit: int) -> None:
    words = ["scheduler=step", "scheduler.steps=3", "scheduler.factor=0.5", "optimizer=sgd", "optimizer.lr=0.1", "trainer.max_epochs=3"]
    _, _, journal = trained(*words, f"trainer.limit_train_batches={limit}")
    assert journal.of("lr")[1:] == pytest.approx([0.1 * 0.5 ** (step // 3) for step in range(3 * limit)])


def test_trap_05_performance_scheduling_refuses_a_metric_that_is_not_measured_and_acts_on_one_that_is() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["scheduler=performance", "scheduler.monitor=val/f1", "metrics=[acc]"])
    (problem,) = caught.value.problems
    assert problem.where == "scheduler.monitor"
    assert "val/acc" in problem.message
    # A rate so small that nothing improves by a tenth: every validation after the first one halves it.
    words = [
        "scheduler=performance",
        "scheduler.monitor=val/loss",
        "scheduler.patience=0",
        "scheduler.factor=0.5",
        "scheduler.threshold=0.1",
    ]
    _, _, journal = trained(*words, "optimizer=sgd", "optimizer.lr=1e-6", "trainer.max_epochs=3", "trainer.limit_train_batches=2")
    assert journal.of("lr")[1:] == pytest.approx([1e-6, 1e-6, 1e-6, 1e-6, 0.5e-6, 0.5e-6])


def test_trap_06_a_fused_optimizer_is_clipped_in_mixed_precision() -> None:
    words = [
        "trainer.precision=bf16",
        "clipping=norm",
        "clipping.max_norm=0.001",
        "optimizer=sgd",
        "optimizer.lr=1.0",
        "scheduler=constant",
    ]
    before, after, journal = trained(*words, "trainer.limit_train_batches=1")
    fused = component("optimizer", compose(words).values["optimizer"])(list(after.parameters()))
    assert fused.defaults["fused"], "otherwise there is no trap here"
    change = math.sqrt(
        sum(float((new - old).detach().square().sum()) for new, old in zip(after.parameters(), before.parameters(), strict=True))
    )
    assert journal.of("grad_norm")[0] > 0.1
    assert change == pytest.approx(0.001, rel=0.01)


def test_trap_07_monte_carlo_dropout_leaves_the_statistics_of_batch_normalization_alone() -> None:
    """The samples of a prediction are tests/test_monte_carlo.py's."""
    words = ("normalization=batch_norm", "dropout=dropout", "activation=relu")
    _, tested, _ = trained(*words, "dropout.mc_samples=3", test=True)
    _, never, _ = trained(*words)
    assert all(torch.equal(value, never.state_dict()[name]) for name, value in tested.state_dict().items())
    x, before = torch.randn(50, 1, 8, 8), copy.deepcopy(tested.state_dict())
    with stochastic_dropout(tested), torch.no_grad():
        one, other = tested(x), tested(x)
        alone = tested(x[:1])  # which batch normalization in training mode would refuse
    assert not torch.equal(one, other)
    assert alone.shape == (1, 10)
    assert all(torch.equal(value, before[name]) for name, value in tested.state_dict().items())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_trap_08_weight_decay_shrinks_kernels_and_neither_biases_nor_normalizations_nor_slopes(optimizer: str) -> None:
    """By one update of the same gradient with and without it: 1 − lr · decay is all that it may do, and only to kernels."""
    words = [f"optimizer={optimizer}", "optimizer.lr=0.1", "scheduler=constant", "normalization=layer_norm", "activation=prelu"]
    words += ["model.use_bias=true", "trainer.limit_train_batches=1", "trainer.precision=64"]
    start, plain, _ = trained(*words, "optimizer.weight_decay=0.0")
    _, decayed, _ = trained(*words, "optimizer.weight_decay=0.5")
    first, without, values = start.state_dict(), plain.state_dict(), decayed.state_dict()
    kernels = [f"{name}.weight" for name, layer in plain.named_modules() if isinstance(layer, nn.Linear)]
    assert len(kernels) == 3
    for name, value in values.items():
        expected = without[name] - (0.1 * 0.5 * first[name].double() if name in kernels else 0)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-15, msg=name)


def test_trap_09_batch_normalization_never_meets_a_minibatch_of_one() -> None:
    """That its statistics are those of the whole minibatch on several devices is tests/test_ranks.py's `synchronised` pair."""
    rows = len(load_data(compose([])).train.y)
    size = next(size for size in range(2, rows) if rows % size == 1)
    words = ["normalization=batch_norm", f"data.batch_size={size}"]
    with pytest.raises(ConfigError, match="leaves a minibatch of 1 out of"):
        prepare_run(compose(words))
    # On two devices a minibatch of three leaves one of them a single example, unless they normalize together.
    size = next(size for size in range(4, rows) if rows % size == 3)
    several = ["normalization=batch_norm", f"data.batch_size={size}", "trainer=ddp_cpu", "trainer.devices=2"]
    cfg = compose(several)
    data = load_data(compose([f"data.batch_size={size}"]))
    net = build_network({**cfg.values, "task": "classification"}, data.inputs, data.outputs, 0)
    with pytest.raises(ConfigError, match="two examples on each device"):
        check_batches(cfg, data, net)
    check_batches(compose([*several, "trainer.sync_batch_norm=true"]), data, net)


def test_trap_10_a_softmax_at_the_end_of_a_layer_list_is_not_taken_twice() -> None:
    layers = "model.layers=[flatten,{dense: 16, activation: relu},{dense: auto, activation: softmax}]"
    _, net, one = trained("model=sequential", layers, "trainer.limit_train_batches=3")
    _, _, other = trained("model=sequential", layers.replace(", activation: softmax", ""), "trainer.limit_train_batches=3")
    assert one.rows == other.rows, "the loss is that of the logits"
    assert any("softmax" in remark for remark in remarks(net).values()), "and it is said"
    logits = net(torch.randn(5, 1, 8, 8))
    assert not torch.allclose(logits.sum(1), torch.ones(5))


def test_trap_11_the_data_are_standardised_by_the_training_rows_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, (100, 4)), np.arange(100) % 2
    x[60:] = rng.normal(1000, 500, (40, 4))  # what is validated and tested on is far away
    np.savez(tmp_path / "data.npz", x=x, y=y)
    data = load_data(
        compose(["data=npz", f"data.path={tmp_path / 'data.npz'}", "data.split=tail", "data.val_size=20", "data.test_size=20"])
    )
    assert len(data.train.y) == 60
    seen = data.train.x[:].double().numpy()
    np.testing.assert_allclose(seen.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(seen.std(0), 1, atol=1e-6)
    expected = (x[60:80] - x[:60].mean(0)) / x[:60].std(0)
    validation = np.concatenate([data.validation.x[:].numpy(), data.test.x[:].numpy()])
    np.testing.assert_allclose(
        np.sort(validation, 0), np.sort(np.concatenate([expected, (x[80:] - x[:60].mean(0)) / x[:60].std(0)]), 0), rtol=1e-4
    )


def test_trap_12_a_frozen_batch_normalization_neither_learns_nor_moves() -> None:
    before, after, _ = trained("normalization=batch_norm", "activation=relu", "freeze=[00_*]", "constraint=max_norm", "constraint.c=0.5")
    first, last = before.state_dict(), after.state_dict()
    moved = {name for name, value in last.items() if not torch.equal(value, first[name])}
    assert not {name for name in moved if name.startswith("00_")}
    assert {"01_batch_norm.running_mean", "01_batch_norm.running_var", "01_batch_norm.weight", "01_dense.weight"} <= moved


def gradient_of(norm: float) -> list[nn.Parameter]:
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    parameter.grad = torch.tensor([0.6, 0.8], dtype=torch.float64) * norm
    return [parameter]


def clipped(name: str, norm: float, max_norm: float) -> tuple[float, Tensor]:
    parameters = gradient_of(norm)
    clip = component("clipping", {"name": name, "max_norm": max_norm})
    assert clip is not None
    before = clip(parameters)
    assert parameters[0].grad is not None
    return float(parameters[0].grad.norm()), before


def test_trap_13_the_millionth_that_torch_adds_to_a_norm_is_only_where_it_is_documented() -> None:
    compose([])
    tiny = 1e-6
    length, before = clipped("norm", tiny, tiny)
    assert length == pytest.approx(tiny / 2), "a gradient at the bound is halved: what the docstring says"
    assert float(before) == pytest.approx(tiny, rel=1e-12), "the norm that is told is exact"
    length, before = clipped("per_parameter_norm", tiny, tiny)
    assert length == pytest.approx(tiny, rel=1e-12)
    assert float(before) == pytest.approx(tiny, rel=1e-12)
    assert clipped("norm", 100.0, 1.0)[0] == pytest.approx(1, rel=2e-8)
