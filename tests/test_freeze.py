"""Freezing: what is frozen does not move, whatever would move it, and begins afresh when its time is over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

import dnnkit
from dnnkit import plugins
from dnnkit.checkpoint import load
from dnnkit.data.loaders import evaluation_batches
from dnnkit.data.resident import Batches, epoch_order
from dnnkit.errors import ConfigError
from dnnkit.loop import use_chunks
from dnnkit.module import Module, Recipe, Task
from dnnkit.module.groups import Groups
from dnnkit.network import component
from dnnkit.network.freezing import Freezing, freezing
from dnnkit.network.groups import Grouping
from dnnkit.registry import REGISTRIES
from dnnkit.schema import node
from dnnkit.training.resume import resume

plugins.load()
pytestmark = pytest.mark.filterwarnings("ignore:.*(in eval mode|does not have many workers|smaller than the logging interval)")
QUIET = ("tracking=none", "trainer.progress_bar=false", "trainer=cpu")
FEW = (*QUIET, "model.hidden=[12,8]", "trainer.limit_train_batches=5", "trainer.limit_val_batches=1")


def network() -> nn.Sequential:
    torch.manual_seed(3)
    layers = {
        "00_dense": nn.Linear(6, 8),
        "00_batch_norm": nn.BatchNorm1d(8),
        "00_dropout": nn.Dropout(0.2),
        "01_dense": nn.Linear(8, 7),
        "01_batch_norm": nn.BatchNorm1d(7, affine=False),
        "01_prelu": nn.PReLU(),
        "02_dense": nn.Linear(7, 3),
    }
    made = nn.Sequential()
    for name, layer in layers.items():
        made.add_module(name, layer)
    return made


def entries(*given: str | tuple[str, int]) -> list[dict[str, Any]]:
    return [{"match": e, "until": None} if isinstance(e, str) else {"match": e[0], "until": e[1]} for e in given]


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name.rpartition(".")[0] for name, tensor in before.items() if not torch.equal(tensor, after[name])}


# Which


@pytest.mark.parametrize(
    ("given", "frozen"),
    [
        (entries("00_*"), {"00_dense.weight", "00_dense.bias", "00_batch_norm.weight", "00_batch_norm.bias"}),
        (entries("output"), {"02_dense.weight", "02_dense.bias"}),
        (entries("slope", "norm"), {"01_prelu.weight", "00_batch_norm.weight", "00_batch_norm.bias"}),
        (entries("01_dense.weight"), {"01_dense.weight"}),
    ],
)
def test_an_entry_names_layers_parameters_and_roles(given: list[dict[str, Any]], frozen: set[str]) -> None:
    assert set(freezing(network(), given).frozen(1)) == frozen


def test_of_two_entries_that_match_the_first_counts_and_epochs_are_counted_from_one() -> None:
    found = freezing(network(), entries(("01_dense.weight", 3), "01_*", ("00_*", 2)))
    assert "01_dense.weight" in found.frozen(2)
    assert "01_dense.weight" not in found.frozen(3)
    assert {"01_dense.bias", "01_prelu.weight"} <= set(found.frozen(1000))
    assert "00_dense.weight" in found.frozen(1)
    assert "00_dense.weight" not in found.frozen(2)


def test_a_normalization_is_still_while_all_of_its_parameters_are_frozen_or_where_it_is_named() -> None:
    assert freezing(network(), entries("00_batch_norm.weight")).still(1) == []
    assert freezing(network(), entries("00_batch_norm.weight", ("00_batch_norm.bias", 3))).still(2) == ["00_batch_norm"]
    assert freezing(network(), entries("00_batch_norm.weight", ("00_batch_norm.bias", 3))).still(3) == []
    assert freezing(network(), entries("01_*")).still(9) == ["01_batch_norm"], "it has no parameters"
    assert set(freezing(network(), entries("norm")).still(1)) == {"00_batch_norm", "01_batch_norm"}
    assert freezing(network(), entries("weight")).still(1) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (entries("00_dens"), ["freeze[0]", "'00_dens' names no layer or role", "Did you mean '00_dense'"]),
        (entries("00_*", "00_dense"), ["freeze[1]", "only what an earlier entry freezes"]),
        (entries(("*", 2)), ["freezes every parameter"]),
        (entries("weight", "bias", "norm", "slope"), ["freezes every parameter"]),
    ],
)
def test_entries_that_name_nothing_or_everything_are_refused(given: list[dict[str, Any]], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        freezing(network(), given)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("freeze=00_dense", ["must be null or a list", "freeze=[00_dense]"]),
        ("freeze=[{match: 00_dense, until: 1}]", ["freeze[0].until", "at least 2", "got 1"]),
        ("freeze=[{match: 00_dense, untill: 2}]", ["freeze[0].untill", "Did you mean 'until'"]),
        ("freeze=[{until: 2}]", ["freeze[0].match", "has to be given"]),
        ("freeze=[3]", ["freeze[0]", "got 3"]),
    ],
)
def test_what_is_no_entry_is_told_when_the_config_is_composed(typed: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        dnnkit.compose([typed])
    for word in words:
        assert word in str(error.value)


def test_nothing_is_made_for_a_run_whose_entry_matches_nothing(workdir: Path) -> None:
    with pytest.raises(ConfigError, match="'07_dense' names no layer"):
        dnnkit.train(dnnkit.compose([*FEW, "freeze=[07_dense]"]))
    assert not list(workdir.iterdir())


# Optimizers


def optimizer_of(name: str, groups: Any, **settings: Any) -> torch.optim.Optimizer:
    values = node("optimizer", name)
    decays = {"weight_decay": 0.1} if "weight_decay" in values else {}
    make = component("optimizer", {**values, "lr": 0.1, **decays, **settings})
    assert make is not None
    made: torch.optim.Optimizer = make(groups)
    return made


@pytest.mark.parametrize("name", REGISTRIES["optimizer"].names())
def test_every_optimizer_leaves_frozen_parameters_alone_and_begins_afresh_with_them(name: str) -> None:
    # The oracle for what follows is another optimizer of the kind, made when the parameters are no longer frozen.
    generator = torch.Generator().manual_seed(0)
    trained, frozen = (nn.Parameter(torch.randn(4, 3, generator=generator)) for _ in range(2))
    before = frozen.detach().clone()
    frozen.requires_grad_(False)
    optimizer = optimizer_of(name, [{"params": [trained]}, {"params": [frozen]}])
    for _ in range(3):
        trained.grad = torch.randn(4, 3, generator=generator)
        optimizer.step()
    assert torch.equal(frozen, before), "neither moved nor decayed"
    fresh = nn.Parameter(before.clone())
    later = optimizer_of(name, [fresh])
    assert {key: value for key, value in optimizer.state[frozen].items() if not isinstance(value, Tensor) or value.count_nonzero()} == {
        key: value for key, value in later.state[fresh].items() if not isinstance(value, Tensor) or value.count_nonzero()
    } or all(torch.equal(optimizer.state[frozen][key], later.state[fresh][key]) for key in later.state[fresh])
    frozen.requires_grad_()
    for _ in range(4):
        trained.grad, gradient = (torch.randn(4, 3, generator=generator) for _ in range(2))
        frozen.grad, fresh.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        later.step()
        torch.testing.assert_close(frozen, fresh, rtol=0, atol=0)
    assert not torch.equal(frozen, before)


# Training


def samples(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, :3] + 0.5 * x[:, 3:]).argmax(1)


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01, fused=True)


def shrink(net: nn.Module) -> None:
    for parameter in net.parameters():
        parameter.mul_(0.99)


class Watch(Callback):
    """The state of the network at the end of each epoch's training, by epoch from 1."""

    def __init__(self) -> None:
        self.states: dict[int, dict[str, Tensor]] = {}
        self.modes: dict[int, dict[str, bool]] = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.states[trainer.current_epoch + 1] = state(pl_module.net)
        self.modes[trainer.current_epoch + 1] = {name: module.training for name, module in pl_module.net.named_modules()}


def quietly(**settings: Any) -> pl.Trainer:
    off = ("enable_progress_bar", "enable_model_summary", "logger", "enable_checkpointing")
    return pl.Trainer(accelerator="cpu", devices=1, max_epochs=4, num_sanity_val_steps=0, **dict.fromkeys(off, False), **settings)


def fitted(found: Freezing, folder: Path, chunk: int | None, recipe: dict[str, Any], **trainer: Any) -> tuple[Module, Watch]:
    net, watch = network(), Watch()
    found.apply(net, 1)
    grouping = Groups(Grouping(apart=found.later()), 0.05)
    whole = Recipe(momentum, lambda step, total: 1 - step / total, seed=3, groups=grouping, **recipe)
    module = Module(net, Task(nn.functional.cross_entropy), whole, log_every=4, freezing=found)
    made = quietly(callbacks=[watch], default_root_dir=folder, **trainer)
    if chunk is not None:
        use_chunks(made, chunk)
    made.fit(module, Batches(*samples(70), 8, seed=3), evaluation_batches(*samples(20, seed=9), batch_size=16))
    return module, watch


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "validation inside the epoch": {"val_check_interval": 3},
    "accumulation": {"accumulate_grad_batches": 2},
    "a constraint and a penalty": {
        "recipe": {"constrain": shrink, "penalty": lambda net: 0.01 * sum(p.square().sum() for p in net.parameters())}
    },
    "clipping": {"recipe": {"clip": lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.1)}},
}


@pytest.mark.parametrize("way", WAYS)
def test_frozen_layers_and_moving_statistics_stay_the_same_bits_until_their_epoch_under_both_loops(tmp_path: Path, way: str) -> None:
    settings = dict(WAYS[way])
    recipe = settings.pop("recipe", {})
    found = freezing(network(), entries("00_*", ("01_*", 3)))
    start = state(network())
    stock, chunked = (fitted(found, tmp_path, chunk, recipe, **settings) for chunk in (None, 5))
    for epoch in (1, 2):
        assert moved(start, stock[1].states[epoch]) == {"02_dense"}
    for epoch in (3, 4):
        assert moved(stock[1].states[epoch - 1], stock[1].states[epoch]) == {"01_dense", "01_batch_norm", "01_prelu", "02_dense"}
    for modes in stock[1].modes.values():
        assert modes["00_dropout"], "dropout goes on"
        assert not modes["00_batch_norm"]
    for epoch, states in stock[1].states.items():
        for name, tensor in states.items():
            assert torch.equal(tensor, chunked[1].states[epoch][name]), (epoch, name)


def test_training_across_an_unfreeze_is_that_of_two_optimizers_the_second_made_at_that_epoch(tmp_path: Path) -> None:
    # Written out: the order of the samples is the loader's, everything else plain PyTorch.
    def plain() -> nn.Sequential:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()

    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=0.01)

    (x, y), net = samples(40), plain()
    found = freezing(net, entries(("0", 3)))
    found.apply(net, 1)
    recipe = Recipe(adam, lambda step, total: 1.0, seed=7, groups=Groups(Grouping(apart=found.later()), 0.01))
    module = Module(net, Task(nn.functional.cross_entropy), recipe, freezing=found)
    trainer = use_chunks(quietly(precision="64-true", default_root_dir=tmp_path))
    trainer.fit(module, Batches(x.double(), y, 10, seed=7), evaluation_batches(x.double(), y))

    mine = plain()
    first, second = mine[0], adam(mine[2].parameters())
    optimizers = [second]
    for epoch in range(4):
        if epoch == 2:
            optimizers.append(adam(first.parameters()))
        order = epoch_order(40, 7, epoch)
        for rows in order.split(10):
            mine.zero_grad()
            nn.functional.cross_entropy(mine(x.double()[rows]), y[rows]).backward()
            for optimizer in optimizers:
                optimizer.step()
    for got, want in zip(module.net.parameters(), mine.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_max_norm_bounds_the_layers_that_train_and_leaves_frozen_ones_alone(workdir: Path) -> None:
    words = [*FEW, "trainer.max_epochs=1", "constraint=max_norm", "constraint.c=0.1"]
    before = dnnkit.build(dnnkit.compose(words)).net
    after = dnnkit.train(dnnkit.compose([*words, "freeze=[00_*]"])).module.net
    assert torch.equal(before.get_parameter("00_dense.weight"), after.get_parameter("00_dense.weight"))
    assert before.get_parameter("00_dense.weight").norm(dim=1).min() > 0.1
    assert after.get_parameter("01_dense.weight").norm(dim=1).max() <= 0.1 + 1e-6


@pytest.mark.parametrize("until", [3, 4])
def test_a_run_resumed_before_an_unfreeze_ends_in_the_bits_of_one_that_was_never_stopped(workdir: Path, until: int) -> None:
    words = [*FEW, "scheduler=constant", "normalization=batch_norm", "optimizer=adam", f"freeze=[{{match: 00_*, until: {until}}}]"]
    whole = dnnkit.train(dnnkit.compose([*words, "trainer.max_epochs=5", "name=whole"]))
    part = dnnkit.train(dnnkit.compose([*words, "trainer.max_epochs=2", "name=part"]))
    resumed = resume(part.run_dir, ["trainer.max_epochs=5"])
    ends = [load(run.run_dir / "checkpoints" / "last.ckpt") for run in (whole, resumed)]
    for name, tensor in ends[0]["state_dict"].items():
        assert torch.equal(tensor, ends[1]["state_dict"][name]), name
    first, second = (held["optimizer_states"][0] for held in ends)
    assert first["param_groups"] == second["param_groups"]
    for number, held in first["state"].items():
        assert all(torch.equal(held[key], second["state"][number][key]) for key in held)
    steps = {int(held["step"]) for held in first["state"].values()}
    assert steps == {25, 25 - 5 * (until - 1)}, "what was frozen has made only its own steps"


def test_the_terminal_and_the_log_say_what_is_frozen_and_for_how_long(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in FEW if "progress_bar" not in word]
    frozen = "freeze=[00_*,{match: 01_*, until: 2},{match: output, until: 9}]"
    with pytest.raises(ConfigError, match="every parameter"):
        dnnkit.train(dnnkit.compose([*words, frozen]))
    run = dnnkit.train(dnnkit.compose([*words, "trainer.max_epochs=2", "freeze=[00_*,{match: 01_*, until: 2}]"]))
    said = capsys.readouterr().out
    assert "frozen: 00_dense" in said
    assert "frozen until epoch 2: 01_dense" in said
    assert "90 of them trained" in said.replace(",", ""), "8 · 10 weights and 10 biases"
    assert "epoch 2: trained from here on: 01_dense.weight, 01_dense.bias" in (run.run_dir / "run.log").read_text()
    late = dnnkit.train(dnnkit.compose([*words, "trainer.max_epochs=1", "freeze=[{match: 01_*, until: 2}]"]))
    assert "frozen until epoch 2, which is after the last of 1: 01_dense" in (late.run_dir / "run.log").read_text()


@pytest.mark.slow
def test_two_devices_unfreeze_as_one_device_does(workdir: Path) -> None:
    words = (
        *("tracking=none", "trainer.precision=64", "trainer.max_epochs=3", "trainer.limit_train_batches=6", "model.hidden=[12,8]"),
        *("normalization=batch_norm", "trainer.sync_batch_norm=true", "constraint=max_norm", "constraint.c=0.5"),
        "freeze=[norm,{match: 00_*, until: 3}]",
    )
    ends = []
    for own in (("trainer=cpu",), ("trainer=ddp_cpu", "trainer.devices=2")):
        command = [sys.executable, "-m", "dnnkit", *words, *own, f"name={own[0][8:]}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=dict(os.environ))
        assert done.returncode == 0, done.stderr
        (run,) = Path("runs").glob(f"*_{own[0][8:]}_*")
        ends.append(load(run / "checkpoints" / "last.ckpt"))
    start = dnnkit.build(dnnkit.compose([*words, "trainer=cpu"])).net.double().state_dict()
    for name, value in ends[0]["state_dict"].items():
        torch.testing.assert_close(ends[1]["state_dict"][name], value, rtol=1e-9, atol=1e-12)
        if "batch_norm" in name:
            assert torch.equal(value, start[name.removeprefix("net.")]), name
    assert not torch.equal(ends[1]["state_dict"]["net.00_dense.weight"], start["00_dense.weight"])
    ranks = json.loads(next(Path("runs").glob("*_ddp_cpu_*/environment/ranks.json")).read_text())
    assert len(ranks) == 2


def test_a_frozen_normalization_stays_in_evaluation_mode_whoever_puts_the_module_into_training_mode() -> None:
    net = network()
    found = freezing(net, entries("00_*"))
    module = Module(net, Task(nn.functional.cross_entropy), Recipe(momentum, lambda step, total: 1.0), freezing=found)
    for mode in (True, False, True):
        module.train(mode)
        assert {name: child.training for name, child in net.named_children()} == dict.fromkeys(dict(net.named_children()), mode) | {
            "00_batch_norm": False
        }
