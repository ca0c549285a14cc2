"""What a probe's numbers are called, and whether SELU's conditions hold: on networks whose trouble is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import dnnkit
from dnnkit import plugins
from dnnkit.diagnostics import Condition, LayerSignal, probe, selu_conditions, selu_line, verdicts
from dnnkit.network import build_network
from dnnkit.training.assemble import load_data

plugins.load()


def signal(layer: str, delta_norm: float, dead: float | None = None) -> LayerSignal:
    return LayerSignal(layer, 1000, 10, 0.0, 1.0, 1.0, dead, delta_norm, 1.0)


def words(*deltas: float) -> list[str]:
    return [verdict.word for verdict in verdicts([signal(f"{index:02}_dense", delta) for index, delta in enumerate(deltas)])]


def test_the_gradient_vanishes_below_a_thousandth_and_explodes_above_a_thousand_times() -> None:
    assert words(1.01e-3, 5.0, 1.0) == []
    assert words(0.99e-3, 5.0, 1.0) == ["vanishing"]
    assert words(0.0, 0.0, 1.0) == ["vanishing"]
    assert words(999.0, 5.0, 1.0) == []
    assert words(1001.0, 5.0, 1.0) == ["exploding"]
    assert words(math.inf, 5.0, 1.0) == words(math.nan, math.nan, 1.0) == ["exploding"]
    assert words() == words(1.0) == words(0.0, 0.0) == []


def test_dead_units_are_said_beyond_a_tenth_of_a_layer() -> None:
    [verdict] = verdicts([signal("00_dense", 1.0, 0.1), signal("01_dense", 1.0, 0.25), signal("02_dense", 1.0)])
    assert (verdict.word, verdict.layers) == ("dead", ("01_dense",))
    assert "1000 training examples" in verdict.text
    assert "25% of 01_dense" in verdict.text


def found(*overrides: str, seed: int = 0) -> list[str]:
    """The verdicts on a deep network with its initial weights, fed N(0, 1), which learns ten random classes."""
    config = dnnkit.compose(overrides).values
    net = build_network(config, (256,), 10, seed)
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(1000, 256, generator=draw), torch.randint(10, (1000,), generator=draw)
    return [verdict.word for verdict in verdicts(probe(net, x, y, nn.functional.cross_entropy))]


DEEP = "model.hidden=[256,256,256,256,256,256,256,256,256,256,256,256,256,256,256,256,256,256,256,256]"


def test_known_networks_get_the_verdict_that_theory_gives_them() -> None:
    # A sigmoid's slope is at most 1/4: 4^-20 is about 1e-12. SELU keeps the gradient's size, up to 1.0716^(depth / 2).
    assert found(DEEP, "activation=sigmoid") == ["vanishing"]
    assert found(DEEP, "activation=selu") == []
    # ReLU with He's weights keeps the size too, but all samples come to point the same way, and units are zero on all of them.
    assert found(DEEP, "activation=relu") == ["dead"]
    # With variance 4/n a linear layer doubles the norm of signal and gradient: 2^19 over nineteen layers.
    doubled = ["initializer=variance_scaling", "initializer.scale=4", "activation=identity"]
    assert found(DEEP, *doubled) == ["exploding"]


def test_layers_whose_units_all_give_zero_are_dead() -> None:
    net = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    with torch.no_grad():
        net[0].bias[:5] = -1000.0
        net[0].bias[5:] = 1000.0
    dead, collapsed = verdicts(probe(net, torch.randn(100, 4), torch.zeros(100, dtype=torch.long), nn.functional.cross_entropy))
    assert (dead.word, collapsed.word) == ("dead", "collapsed")
    assert "50% of 0" in dead.text


def conditions(*overrides: str) -> dict[str, Condition]:
    cfg = dnnkit.compose(overrides)
    data = load_data(cfg)
    net = build_network({**cfg.values, "task": data.task}, data.inputs, data.outputs, 0)
    return {condition.name: condition for condition in selu_conditions(net, data.train.x[:], cfg.values)}


@pytest.mark.parametrize("data", ["digits", "wine", "breast_cancer"])
def test_the_default_network_meets_every_condition_of_selu(data: str) -> None:
    met = conditions(f"data={data}", "dropout=alpha_dropout")
    assert list(met) == ["inputs standardised", "LeCun's weights", "sequential", "dense", "undisturbed"]
    assert all(condition.holds for condition in met.values())
    assert selu_line(list(met.values())).startswith("SELU normalizes itself: inputs standardised (")


@pytest.mark.parametrize(
    ("overrides", "broken"),
    [
        (["data.standardize=none"], {"inputs standardised"}),
        (["data=wine", "data.standardize=none"], {"inputs standardised"}),
        (["initializer=glorot_normal"], {"LeCun's weights"}),
        (["initializer=he_normal"], {"LeCun's weights"}),
        (["model=resmlp"], {"sequential"}),
        (["model=cnn"], {"dense"}),
        (["dropout=dropout"], {"undisturbed"}),
        (["normalization=batch_norm"], {"undisturbed"}),
        (["regularizer=l1"], {"undisturbed"}),
        (["regularizer=l2"], {"undisturbed"}),
        (["constraint=max_norm"], {"undisturbed"}),
        (["optimizer=adamw"], {"undisturbed"}),
        (["optimizer.groups=[{role: weight, weight_decay: 0.1}]"], {"undisturbed"}),
    ],
)
def test_each_condition_of_selu_is_found_broken_by_what_breaks_it(overrides: list[str], broken: set[str]) -> None:
    met = conditions(*overrides)
    assert {name for name, condition in met.items() if not condition.holds} == broken
    assert selu_line(list(met.values())).startswith("SELU does not normalize itself here: ")


def test_the_line_names_what_breaks_it() -> None:
    line = selu_line(list(conditions("data.standardize=none", "normalization=batch_norm", "initializer=he_normal").values()))
    assert "inputs are not standardised (mean 4.8" in line
    assert "the weights of 00_dense have 1.4" in line
    assert line.endswith("disturbed by 00_batch_norm")


def test_ten_dead_units_of_a_hundred_are_not_more_than_a_tenth() -> None:
    net = nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 2))
    with torch.no_grad():
        net[0].bias[:10] = -1000.0
        net[0].bias[10:] = 1000.0
    [first, _] = probe(net, torch.randn(100, 4), torch.zeros(100, dtype=torch.long), nn.functional.cross_entropy)
    assert first.dead == 0.1
    assert "dead" not in [verdict.word for verdict in verdicts([first, first])]


def test_a_network_without_selu_has_no_conditions_to_meet() -> None:
    assert conditions("activation=elu") == {}


def test_a_run_writes_its_verdicts(workdir: Path) -> None:
    quick = ["tracking=none", "trainer.progress_bar=false", "trainer.max_epochs=1", "trainer.limit_train_batches=2"]
    result = dnnkit.train(dnnkit.compose([DEEP.replace("256", "50"), "activation=sigmoid", *quick]))
    held = json.loads((result.run_dir / "diagnostics/verdicts.json").read_text("utf-8"))
    assert [[verdict["word"] for verdict in held[when]] for when in ("start", "end")] == [["vanishing"], ["vanishing"]]
    assert held["selu"] == []
    assert "before training: vanishing gradients" in (result.run_dir / "run.log").read_text("utf-8")
