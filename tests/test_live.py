"""Looking at a network while it trains: what is seen, that nothing else changes, and when it went wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

import dnnkit
from dnnkit import plugins
from dnnkit.checkpoint import load
from dnnkit.cli.main import main
from dnnkit.diagnostics import Divergence, Glance, Silence, as_live_metrics, find_divergence, glance, probe, timeline
from dnnkit.module import Outcome
from dnnkit.module.window import Window
from dnnkit.record import Row, read_journal
from dnnkit.registry import activations
from dnnkit.training import fit
from dnnkit.training.resume import resume

plugins.load()

QUICK = ("tracking=none", "trainer.progress_bar=false", "data.val_size=300", "trainer.limit_train_batches=20", "trainer.max_epochs=2")


def train(*overrides: str) -> Path:
    return dnnkit.train(dnnkit.compose([*QUICK, *overrides])).run_dir


def rows(run: Path, signal: bool) -> list[Row]:
    return [row for row in read_journal(run / "metrics.jsonl") if row.key.startswith("signal/") == signal]


def weights(run: Path) -> dict[str, Tensor]:
    held: dict[str, Tensor] = load(run / "checkpoints" / "last.ckpt")["state_dict"]
    return held


def dense(activation: Callable[[], nn.Module], *widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


def normalized() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 3))


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    shaped = nn.Unflatten(1, (2, 2, 2))
    return nn.Sequential(shaped, nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: dense(nn.ReLU, 8, 20, 20, 3),
    "sigmoid": lambda: dense(nn.Sigmoid, 8, 20, 3),
    "tanh": lambda: dense(nn.Tanh, 8, 20, 3),
    "normalized": normalized,
    "convolutional": convolutional,
    "deep": lambda: dense(nn.Sigmoid, 8, *[10] * 40, 3),  # gradients whose squares are zero in 32 bits
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_glance_sees_what_a_probe_of_the_same_examples_measures(name: str) -> None:
    net, draw = NETWORKS[name](), torch.Generator().manual_seed(1)
    x, y = torch.randn(30, 8, generator=draw), torch.randint(0, 3, (30,), generator=draw)
    seen, measured = glance(net, x, y, nn.functional.cross_entropy), probe(net, x, y, nn.functional.cross_entropy)
    assert [one.layer for one in seen] == [one.layer for one in measured]
    for one, other in zip(seen, measured, strict=True):
        for field in ("mean", "variance", "second_moment", "saturated", "delta_norm", "gradient_ratio"):
            expected, tolerance = getattr(other, field), 1e-9 if field == "mean" else 0
            assert getattr(one, field) == (None if expected is None else pytest.approx(expected, rel=1e-5, abs=tolerance)), field
        assert (None if one.silent is None else float(one.silent.double().mean())) == other.dead
        assert one.delta_ratio == pytest.approx(other.delta_norm / measured[-1].delta_norm, rel=1e-5)
    if name == "deep":
        assert 0 < seen[0].delta_norm < 1e-20


@pytest.mark.parametrize("name", ["normalized", "convolutional"])
def test_a_glance_leaves_everything_as_it_was(name: str) -> None:
    net = NETWORKS[name]().train()
    x, y = torch.randn(30, 8), torch.randint(0, 3, (30,))
    nn.functional.cross_entropy(net(x), y).backward()

    def state() -> list[Any]:
        tensors = [*net.state_dict().values(), *(p.grad for p in net.parameters()), torch.get_rng_state()]
        return [[t.clone() for t in tensors], [m.training for m in net.modules()], [dict(m._forward_hooks) for m in net.modules()]]

    before = state()
    glance(net, x, y, nn.functional.cross_entropy)
    after = state()
    assert all(torch.equal(one, other) for one, other in zip(before[0], after[0], strict=True))
    assert before[1:] == after[1:]


SETTINGS = {
    "captured": ("trainer.engine=captured",),
    "eager": ("trainer.engine=eager", "normalization=batch_norm", "activation=relu", "dropout=dropout"),
    "accumulated": ("trainer.accumulate_grad_batches=3", "clipping=norm", "trainer.chunk_size=4"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_journal_and_weights_are_those_of_a_run_that_nobody_looks_at(workdir: Path, name: str) -> None:
    looked, alone = train(*SETTINGS[name], "diagnostics.every=3"), train(*SETTINGS[name], "diagnostics.every=null")
    assert rows(looked, signal=False) == rows(alone, signal=False)
    assert all(torch.equal(value, weights(alone)[key]) for key, value in weights(looked).items())
    steps = max(row.step for row in rows(alone, signal=False))
    assert sorted({row.step for row in rows(alone, signal=True)}) == [0, steps]
    assert sorted({row.step for row in rows(looked, signal=True)}) == sorted({0, steps, *range(3, steps + 1, 3)})
    said = (looked / "run.log").read_text()
    assert f"signal: looked at {steps // 3} times while it trained" in said
    assert ("training steps run as a graph" in said) == (name == "captured")


def test_what_is_seen_does_not_depend_on_how_minibatches_are_run(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("diagnostics.every=4", "trainer.accumulate_grad_batches=2", "dropout=dropout", "activation=relu")
    chunked = train(*settings)
    monkeypatch.setattr(fit, "Bar", EveryMinibatch)
    stock = train(*settings)
    assert "one minibatch at a time" in (stock / "run.log").read_text()
    assert rows(stock, signal=True) == rows(chunked, signal=True)


class EveryMinibatch(pl.Callback):
    def __init__(self, console: object) -> None: ...

    def on_before_optimizer_step(self, *_: object) -> None: ...


def test_a_resumed_run_goes_on_counting_for_how_long_units_are_silent(workdir: Path) -> None:
    settings = ("diagnostics.every=1", "scheduler=constant", "activation=relu", "data.batch_size=64", "optimizer.lr=0.5")
    whole = train(*settings, "trainer.max_epochs=3")
    part = train(*settings)
    resume(part, ["trainer.max_epochs=3"])
    live = [[row for row in rows(run, signal=True) if row.key.endswith("/dead") and row.step not in (0, 36, 54)] for run in (part, whole)]
    assert live[0] == live[1]
    assert any(row.value > 0 for row in live[0])
    assert min(row.step for row in live[0]) == math.ceil(1000 / 64)


def one(layer: str, silent: list[bool] | None, samples: int = 400) -> Glance:
    mask = None if silent is None else torch.tensor(silent)
    return Glance(layer, samples, 0.0, 1.0, 1.0, None, mask, 1.0, math.nan, None)


def test_a_unit_is_dead_after_a_thousand_samples_of_silence() -> None:
    silence = Silence()
    for step, silent in ((10, [True, False, True]), (20, [True, True, False])):
        silence.look(step, [one("a", silent), one("b", None)])
        assert silence.dead() == {}
    silence.look(30, [one("a", [True, True, True])])
    assert silence.dead() == {"a": 1 / 3}
    assert silence.last_active("a", 1 / 3) == [-1]
    silence.look(40, [one("a", [True, True, True])])
    assert silence.dead() == {"a": 2 / 3}
    assert silence.last_active("a", 1) == [-1, 10, 20]
    assert silence.last_active("b", 1) == []
    other = Silence()
    other.load_state_dict(silence.state_dict())
    silence.look(50, [one("a", [True, True, False])])
    assert silence.dead() == {"a": 2 / 3}
    assert other.dead() == {"a": 2 / 3}
    other.look(50, [one("a", [False, True, True])])
    assert other.dead() == {"a": 2 / 3}
    assert other.last_active("a", 2 / 3) == [10, 20]


def test_what_is_not_finite_or_not_measured_is_no_metric() -> None:
    assert as_live_metrics([one("a", [True])], {"a": 0.25}) == {
        "signal/a/mean": 0.0,
        "signal/a/variance": 1.0,
        "signal/a/second_moment": 1.0,
        "signal/a/dead": 0.25,
    }


def test_the_timeline_says_when_a_verdict_began_to_hold_and_whether_it_still_does() -> None:
    series = {
        ("a", "delta_ratio"): [(0, 0.5), (10, 1e-4), (20, 1e-5), (30, 0.5), (40, 2e3)],
        ("a", "saturated"): [(0, 0.6), (10, 0.2), (20, 0.7), (30, 0.1), (40, 0.1)],
        ("b", "dead"): [(0, 0.1), (10, 0.05), (20, 0.3), (30, 0.4), (40, 0.3)],
    }
    silence = Silence()
    silence.look(10, [one("b", [False] * 10)])
    silence.look(30, [one("b", [True] * 3 + [False] * 7)])
    events = {(event.word, event.layers): event for event in timeline(series, ["a", "b"], silence)}
    assert {key: (event.first, event.last, event.lasting) for key, event in events.items()} == {
        ("vanishing", ("a", "b")): (10, 20, False),
        ("exploding", ("a", "b")): (40, 40, True),
        ("saturated", ("a",)): (0, 20, False),
        ("dead", ("b",)): (20, 40, True),
    }
    assert events["vanishing", ("a", "b")].text == "vanishing gradients from step 10 to 20: ‖∂L/∂z‖ of a was down to 1e-05 times that of b"
    assert "on and off" in events["saturated", ("a",)].text
    dead = "dead units, known from step 20 to the end: up to 40% of b; half of them were last seen active at step 10 or before"
    assert events["dead", ("b",)].text == dead
    assert timeline({}, ["a", "b"], Silence()) == []


def test_a_run_whose_units_die_says_when(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["trainer.max_epochs=3", "data.batch_size=64", "activation=relu", "optimizer.lr=3", "diagnostics.every=2", "tracking=none"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "during training: dead units, known from step " in said
    [run] = (workdir / "runs").iterdir()
    found = json.loads((run / "diagnostics" / "verdicts.json").read_text())
    deaths = [event for event in found["timeline"] if event["word"] == "dead"]
    assert {event["layers"][0] for event in deaths} <= {"00_dense", "01_dense"}
    assert all(event["lasting"] and event["first"] >= 16 for event in deaths)
    assert "dead" in {verdict["word"] for verdict in found["end"]}


# Divergence.


@pytest.mark.parametrize("engine", ["eager", "captured"])
def test_a_diverging_run_ends_at_that_step_with_the_weights_of_the_step_before(
    workdir: Path, capsys: pytest.CaptureFixture[str], engine: str
) -> None:
    code = main(["tracking=none", "optimizer.lr=1000", f"trainer.engine={engine}", "optimizer=sgd", "scheduler=constant"])
    assert code == 5
    said = capsys.readouterr().err
    [run] = (workdir / "runs").iterdir()
    step = int(said.partition(" at step ")[2].partition(";")[0])
    held = load(run / "checkpoints" / "last.ckpt")
    assert (held["global_step"], 1 < step < 40) == (step - 1, True)
    assert all(torch.isfinite(value).all() for value in held["state_dict"].values())
    journal = rows(run, signal=False)
    assert {row.step for row in journal if row.key == "train/loss"} == {step - 1}
    assert all(math.isfinite(row.value) for row in journal)
    [found] = json.loads((run / "diagnostics" / "verdicts.json").read_text())["diverged"]
    assert found["text"] in said
    assert str(run / "checkpoints" / "last.ckpt") in said
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["dnnkit_status"], record["exit_code"]) == ("FAILED", "diverged", 5)


@pytest.mark.parametrize(
    ("accumulate", "losses", "step"),
    [(1, [1.0, math.nan, 1.0], 9), (1, [1.0, 1.0, math.inf], 10), (2, [1.0, 1.0, 1.0, math.nan, 1.0], 9), (3, [1.0, 2.0, 3.0], 10)],
)
def test_a_window_says_which_of_its_updates_was_the_first_that_was_not_finite(accumulate: int, losses: list[float], step: int) -> None:
    window, first = Window(), 11 - math.ceil(len(losses) / accumulate)
    for place, loss in enumerate(losses):
        window.update = first + place // accumulate
        window.keep(Outcome(torch.tensor(loss), torch.tensor(loss), torch.zeros(4), None), torch.zeros(4), with_output=False)
    assert window.first_not_finite(10) == step


def wrong(network: nn.Sequential, x: Tensor, loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy) -> Divergence:
    return find_divergence(network, x, torch.zeros(len(x), dtype=torch.int64), loss)


def test_the_first_layer_that_is_not_finite_is_named() -> None:
    x = torch.randn(5, 8)
    assert wrong(dense(nn.ReLU, 8, 4, 4, 3), x.fill_diagonal_(math.nan)).layer is None
    assert "an example" in wrong(dense(nn.ReLU, 8, 4, 4, 3), x).text
    x = torch.randn(5, 8)
    broken = dense(nn.ReLU, 8, 4, 4, 3)
    with torch.no_grad():
        broken[2].bias[1] = math.inf
    assert wrong(broken, x) == Divergence("2", "weights of 2 were no longer finite")
    overflowing = dense(nn.Identity, 8, 4, 4, 3)
    with torch.no_grad():
        overflowing[2].weight.fill_(1e38)
        overflowing[0].bias.fill_(1e3)
    assert wrong(overflowing, x) == Divergence("2", "2 was the first layer to put out values that are not finite")
    endless = wrong(dense(nn.Tanh, 8, 4, 3), x, lambda prediction, target: prediction.sum() * math.inf)
    assert (endless.layer, "the loss of that was not" in endless.text) == (None, True)
    back = dense(nn.Tanh, 8, 4, 4, 3)
    back.insert(3, Poisonous())
    Poisonous.after = 0
    assert wrong(back.eval(), x) == Divergence("2", "on its way back the gradient was first not finite at 2")
    assert "random in training" in wrong(dense(nn.Tanh, 8, 4, 3), x).text


class _Poison(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * math.nan if Poisonous.after == 0 else gradient


class Poisonous(nn.Module):
    """tanh, whose gradient is not a number from a certain call on."""

    after = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            Poisonous.after -= 1
        y: Tensor = _Poison.apply(torch.tanh(x))
        return y


@pytest.mark.parametrize("clipping", ["none", "value", "norm"])
def test_a_gradient_that_is_not_finite_ends_the_run_before_the_update(
    workdir: Path, capsys: pytest.CaptureFixture[str], clipping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "poisonous" not in activations.names():
        activations.register("poisonous")(lambda: Poisonous())
    monkeypatch.setattr(Poisonous, "after", 7)
    words = ["tracking=none", "activation=poisonous", "model.hidden=[20]", "trainer.engine=eager", f"clipping={clipping}"]
    assert main([*words, "data=digits", "initializer=glorot_uniform"]) == 5
    said = capsys.readouterr().err
    assert "grad_norm is nan at step 7; " in said
    [run] = (workdir / "runs").iterdir()
    held = load(run / "checkpoints" / "last.ckpt")
    assert held["global_step"] == 6
    assert all(torch.isfinite(value).all() for value in held["state_dict"].values())
