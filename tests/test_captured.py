"""The captured step in a run: what changes between epochs, several devices, a resume, a compiled graph."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

import dnnkit
from dnnkit.checkpoint import load
from dnnkit.errors import ConfigError
from dnnkit.loop.captured import COMPILED_BOUND, CannotCapture, form
from dnnkit.loop.engine import in_form
from dnnkit.module import Module, Recipe, Task
from dnnkit.network.freezing import Freezing
from dnnkit.record import read_journal

Fit = Callable[..., SimpleNamespace]
Same = Callable[[Any, Any], None]

FEATURES, CLASSES, ROWS = 6, 3, 150  # 19 minibatches of 8, the last of 6
X = torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(4))
Y = (X[:, :CLASSES] + 0.5 * X[:, CLASSES:]).argmax(1)


class Penalty:
    """factor · Σw²; `grows`: by a tenth at each call, which is a state of its own."""

    def __init__(self, factor: float = 1e-3, grows: bool = False) -> None:
        self.factor, self.grows = factor, grows

    def __call__(self, net: nn.Module) -> Tensor:
        if self.grows:
            self.factor *= 1.1
        return self.factor * torch.stack([parameter.square().sum() for parameter in net.parameters()]).sum()


class Loss(nn.Module):
    """Cross-entropy with a setting, which a callback may change."""

    smoothing = 0.0

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(prediction, target, label_smoothing=self.smoothing)


def small_module(**recipe: Any) -> Module:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, CLASSES)
    )
    freezing = recipe.pop("freezing", Freezing())
    made = {"optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9), "schedule": lambda *_: 1.0, "seed": 3, **recipe}
    return Module(net, Task(Loss()), Recipe(**made), 7, freezing)


class AtEpochs(pl.Callback):
    """Does something to the module before each epoch but the first."""

    def __init__(self, act: Callable[[Module, pl.Trainer], object]) -> None:
        self.act = act

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch:
            self.act(pl_module, trainer)  # type: ignore[arg-type]


def rebind(module: Module) -> None:
    for parameter in module.net.parameters():
        parameter.data = parameter.data.clone()


def turn(module: Module) -> None:
    """The same memory, read in another order."""
    module.net[4].weight.data = module.net[4].weight.data.t()


def swap(module: Module) -> None:
    module.net[2] = nn.Tanh()


def anneal(module: Module) -> None:
    module.recipe.penalty.factor *= 10  # type: ignore[union-attr]


def another_penalty(module: Module) -> None:
    object.__setattr__(module.recipe, "penalty", Penalty(0.1))


def batches_of_twelve(trainer: pl.Trainer) -> None:
    trainer.train_dataloader.batch_size = 12
    trainer.fit_loop.max_batches = math.ceil(ROWS / 12)


#: What somebody does between two epochs, and how many graphs three epochs then take.
BETWEEN: dict[str, tuple[Callable[[Module, pl.Trainer], object], int]] = {
    "nothing": (lambda module, _: None, 1),
    "dropout": (lambda module, _: setattr(module.net[3], "p", module.net[3].p + 0.1), 3),
    "evaluation mode of a normalization": (lambda module, _: module.net[1].eval(), 2),
    "a weight is frozen": (lambda module, _: module.net[0].weight.requires_grad_(False), 2),
    "weights are bound anew": (lambda module, _: rebind(module), 3),
    "a weight is turned": (lambda module, _: turn(module), 2),
    "weights are halved": (lambda module, _: module.net[0].weight.data.mul_(0.5), 1),
    "a layer is exchanged": (lambda module, _: swap(module), 3),
    "the penalty grows": (lambda module, _: anneal(module), 3),
    "another penalty": (lambda module, _: another_penalty(module), 3),
    "the loss is smoothed": (lambda module, _: setattr(module.task.loss, "smoothing", 0.1), 2),
    "groups of minibatches": (lambda _, trainer: setattr(trainer, "accumulate_grad_batches", 3), 2),
    "larger minibatches": (lambda _, trainer: batches_of_twelve(trainer), 2),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_a_callback_changes_between_epochs_is_followed(name: str, fit: Fit, assert_same: Same) -> None:
    act, graphs = BETWEEN[name]
    runs = [fit(small_module(penalty=Penalty()), X, Y, engine, callbacks=[AtEpochs(act)], max_epochs=3) for engine in ("eager", "captured")]
    assert_same(*(run.state for run in runs))
    assert runs[1].graphs == graphs


def test_what_is_frozen_for_an_epoch_is_captured_anew_when_it_is_trained(fit: Fit, assert_same: Same) -> None:
    freezing = Freezing({"0.weight": 2, "0.bias": 2}, {"1": 3})
    eager, captured = (fit(small_module(freezing=freezing), X, Y, engine, max_epochs=4) for engine in ("eager", "captured"))
    assert_same(eager.state, captured.state)
    assert captured.graphs == 3


def less_and_less(module: Module, _: pl.Trainer) -> None:
    module.net[3].p += 0.01


def test_a_network_that_changes_all_the_time_is_captured_as_often_where_that_is_wanted(
    fit: Fit, assert_same: Same, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnnkit.loop.engine._WORTHWHILE", 3 * ROWS // 16)
    eager, captured = (
        fit(small_module(), X, Y, engine, callbacks=[AtEpochs(less_and_less)], max_epochs=11) for engine in ("eager", "captured")
    )
    assert_same(eager.state, captured.state)
    assert captured.graphs == 11
    assert len(captured.engine._graphs) == 8


def test_a_network_that_changes_all_the_time_ends_in_eager_where_graphs_do_not_pay(
    fit: Fit, assert_same: Same, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs = []
    monkeypatch.setattr("dnnkit.loop.race.TURN", math.inf)  # no eager turns: what takes the place of graphs here is their number
    for engine, worthwhile in (("eager", 0), ("auto", 0), ("auto", 3 * ROWS // 16)):
        monkeypatch.setattr("dnnkit.loop.engine._WORTHWHILE", worthwhile)
        runs.append(fit(small_module(), X, Y, engine, callbacks=[AtEpochs(less_and_less)], max_epochs=11))
    eager, paid, unpaid = runs
    assert_same(eager.state, paid.state)
    assert_same(eager.state, unpaid.state)
    assert (paid.graphs, unpaid.graphs) == (11, 8)
    assert "changed its modes, settings or tensors 8 times in" in caplog.text


def test_graphs_of_tensors_that_were_exchanged_are_let_go(fit: Fit) -> None:
    exchanged = []

    def exchange(module: Module, _: pl.Trainer) -> None:
        exchanged.append(weakref.ref(module.net[1].running_mean))
        module.net[1].running_mean = module.net[1].running_mean.clone()

    run = fit(small_module(), X, Y, "captured", callbacks=[AtEpochs(exchange)], max_epochs=4)
    assert run.graphs == 4
    assert [place() for place in exchanged] == [None] * 3


@pytest.mark.parametrize("accumulate", [1, 40])
def test_minibatches_that_an_augmentation_turns_in_memory_give_the_same_bits(accumulate: int, fit: Fit, assert_same: Same) -> None:
    images = torch.randn(ROWS, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    orders = set()

    def turned(x: Tensor, epoch: int, indices: Tensor) -> Tensor:
        x = x if int(indices[0]) % 2 else x.rot90(1, (2, 3))
        orders.add(x.stride())
        return x

    def module() -> Module:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, CLASSES))
        return Module(net, Task(Loss()), Recipe(partial(torch.optim.SGD, lr=0.05), lambda *_: 1.0, seed=3), 7)

    settings = {"augment": turned, "max_epochs": 6, "accumulate_grad_batches": accumulate}
    eager, captured = (fit(module(), images, Y, engine, **settings) for engine in ("eager", "captured"))
    assert len(orders) > 1
    assert_same(eager.state, captured.state)
    assert captured.graphs == 1


def test_a_minibatch_is_brought_into_the_order_that_a_graph_reads() -> None:
    x, y = torch.randn(5, 3, 4), torch.arange(5)
    given, target = in_form(form(x, y), x.transpose(1, 2).contiguous().transpose(1, 2), y)
    assert torch.equal(given, x)
    assert given.stride() == x.stride()
    assert target is y
    with pytest.raises(ConfigError, match=r"trainer\.engine: is not possible on several devices where an augmentation changes shapes"):
        in_form(form(x, y), x[:, :2], y)


@pytest.mark.parametrize("accumulate", [1, 2, 40])
def test_penalty_with_a_state_is_run_operation_by_operation_and_called_as_often(accumulate: int, fit: Fit, assert_same: Same) -> None:
    penalties = [Penalty(1e-6, grows=True) for _ in range(2)]
    eager, auto = (
        fit(small_module(penalty=penalty), X, Y, engine, accumulate_grad_batches=accumulate)
        for penalty, engine in zip(penalties, ("eager", "auto"), strict=True)
    )
    assert_same(eager.state, auto.state)
    assert penalties[0].factor == penalties[1].factor
    assert auto.graphs == 0


def test_callback_that_needs_every_minibatch_is_refused_beside_captured_steps(fit: Fit) -> None:
    from dnnkit.errors import ConfigError

    class Watches(pl.Callback):
        def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None: ...

    with pytest.raises(ConfigError, match="cannot be captured here: the callback Watches has on_after_backward") as caught:
        fit(small_module(), X, Y, "captured", callbacks=[Watches()])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("first", "second"), [("captured", "captured"), ("captured", "eager"), ("eager", "captured")])
def test_run_resumed_at_an_epochs_end_goes_on_as_if_it_had_not_stopped(
    first: str, second: str, fit: Fit, assert_same: Same, tmp_path: Path
) -> None:
    whole = {engine: fit(small_module(), X, Y, engine, max_epochs=3).state for engine in ("eager", "captured")}
    assert_same(whole["eager"], whole["captured"])
    part = fit(small_module(), X, Y, first, max_epochs=1)
    part.trainer.save_checkpoint(tmp_path / "end.ckpt")
    rest = fit(small_module(), X, Y, second, max_epochs=3, ckpt_path=tmp_path / "end.ckpt")
    for key in ("weights", "gradients", "optimizer", "steps", "random"):
        assert_same(whole["eager"][key], rest.state[key])
    later = [line for line in whole["eager"]["logged"] if line[0] is None or line[0] > part.state["steps"]]
    assert later == rest.state["logged"]


#: What a folder says of how steps were run: the words of the config, and `used` and `why`.
SAID: dict[str, tuple[tuple[str, ...], str, str]] = {
    "eager": (("trainer.engine=eager",), "eager", "it was asked for"),
    "captured": (("trainer.engine=captured",), "captured", "it was asked for"),
    "captured, a group longer than an epoch": (
        ("trainer.engine=captured", "data.batch_size=1000", "trainer.accumulate_grad_batches=20"), "captured", "it was asked for",
    ),
    "one chunk": (("data.batch_size=1000",), "eager", "training ended before the faster way was known"),
    "few minibatches": (("trainer.max_epochs=2",), "eager", "a graph would not pay"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_the_folder_says_how_steps_were_run_and_why(name: str, workdir: Path, unrecorded: None) -> None:
    words, used, why = SAID[name]
    report = reported(*words)
    assert report.pop("wanted") == (words[0].partition("=")[2] if "engine" in words[0] else "auto")
    assert report == {"used": used, "why": why}


def test_the_folder_says_why_steps_were_run_one_by_one(workdir: Path, unrecorded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnnkit.loop.epoch.reason_against_chunks", lambda trainer: "somebody looks at each")
    assert reported() == {"wanted": "auto", "used": "eager", "why": "somebody looks at each"}


def test_the_folder_says_why_a_graph_that_was_asked_for_could_not_be_had(
    workdir: Path, unrecorded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise CannotCapture("it cannot be held")

    monkeypatch.setattr("dnnkit.loop.engine.capture", refused)
    with pytest.raises(ConfigError, match="cannot be captured here: it cannot be held"):
        reported("trainer.engine=captured")
    assert report_in(workdir) == {"wanted": "captured", "used": "eager", "why": "it cannot be held"}


def reported(*words: str) -> dict[str, Any]:
    always = ("tracking=none", "trainer.progress_bar=false", "trainer.max_epochs=1", "model.hidden=[4]", "diagnostics.every=null")
    dnnkit.train(dnnkit.compose([*always, *words]))
    return report_in(Path())


def report_in(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("runs/*/environment/engine.json")
    report: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return report


# Several devices.

TWO = ("trainer=ddp_cpu", "trainer.devices=2", "tracking=none", "trainer.progress_bar=false", "trainer.max_epochs=1")
RANKS = {
    "accumulation and clipping": (
        *("data.batch_size=51", "trainer.accumulate_grad_batches=2", "clipping=norm", "clipping.max_norm=0.1"),
        *("normalization=layer_norm", "dropout=dropout", "optimizer=nadam", "metrics=[acc,f1]"),
    ),
    "an odd minibatch": ("data.batch_size=31", "normalization=batch_norm", "dropout=dropout", "regularizer=l2", "constraint=max_norm"),
}


def trained(folder: Path, *words: str) -> Path:
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "dnnkit", *TWO, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "runs").iterdir()
    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", RANKS)
def test_two_devices_end_in_the_same_bits_whether_captured_or_not(name: str, tmp_path: Path, assert_same: Same) -> None:
    runs = [trained(tmp_path / engine, f"trainer.engine={engine}", *RANKS[name]) for engine in ("eager", "captured")]
    states = [load(run / "checkpoints" / "last.ckpt") for run in runs]
    for key in ("state_dict", "optimizer_states"):
        assert_same(states[0][key], states[1][key])
    rows = [[(row.key, row.step, row.value) for row in read_journal(run / "metrics.jsonl")] for run in runs]
    assert rows[0] == rows[1]
    said = (runs[1] / "run.log").read_text()
    assert "training steps run as a graph" in said
    assert "are not" not in said, "of the weights of rank 1, which are compared at the end"


@pytest.mark.slow
def test_synchronised_statistics_on_two_devices_fall_back_with_a_reason(tmp_path: Path, assert_same: Same) -> None:
    words = ("normalization=batch_norm", "trainer.sync_batch_norm=true", "data.batch_size=31", "trainer.max_epochs=14")
    auto, eager = (trained(tmp_path / engine, f"trainer.engine={engine}", *words) for engine in ("auto", "eager"))
    assert "the devices exchange statistics within a forward pass" in (auto / "run.log").read_text()
    assert_same(*(load(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (auto, eager)))


# Compiled.


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="compiling needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_steps_stay_within_the_stated_bound_of_eager_ones(fit: Fit) -> None:
    """After one update: over many, rounding is amplified as by any other change of order."""
    weights = []
    for engine in ("eager", "compiled"):
        state = fit(small_module(), X, Y, engine, max_steps=1, max_epochs=1)
        weights.append(torch.cat([value.double().flatten() for value in state.state["weights"].values()]))
    start = torch.cat([value.double().flatten() for value in small_module().state_dict().values()])
    apart = torch.linalg.vector_norm(weights[1] - weights[0])
    assert apart <= COMPILED_BOUND * torch.linalg.vector_norm(weights[0] - start)
