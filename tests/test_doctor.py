"""The doctor: measures that are known exactly, verdicts that theory gives, and overrides that mend what is broken."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

import dnnkit
from dnnkit import plugins
from dnnkit.cli.main import main
from dnnkit.diagnostics import LayerSignal, probe, verdicts
from dnnkit.diagnostics.measures import cosine, effective_rank, quantiles, saturated
from dnnkit.errors import DivergedError
from dnnkit.network import build_network
from dnnkit.training.doctor import examine

plugins.load()


def layers(width: int, count: int) -> str:
    return f"model.hidden=[{','.join([str(width)] * count)}]"


# Measures.


def test_saturation_is_counted_where_an_activation_is_flat() -> None:
    y = torch.tensor([[0.0, 0.04, 0.05, 0.5], [0.95, 0.96, 1.0, 0.3]])
    assert saturated(nn.Sigmoid(), y) == 4 / 8
    assert saturated(nn.Tanh(), torch.tensor([-1.0, -0.97, 0.0, 0.98])) == 2 / 4
    assert saturated(nn.ReLU(), y) is None


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    draw = torch.Generator().manual_seed(0)
    y = torch.randn(20, 3, 4, generator=draw)
    rows = nn.functional.normalize(y.flatten(1).double())
    pairs = rows @ rows.T
    assert cosine(y) == pytest.approx((float(pairs.sum()) - 20) / (20 * 19), abs=1e-6)
    assert cosine(torch.ones(5, 3)) == pytest.approx(1, abs=1e-6)
    assert cosine(torch.eye(4) * 1e-30) == pytest.approx(0, abs=1e-6)
    assert cosine(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])) == pytest.approx(-1, abs=1e-6)
    assert cosine(torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]])) == pytest.approx(1, abs=1e-6)  # zeros have no direction
    assert cosine(torch.zeros(5, 3)) is None
    assert cosine(torch.ones(1, 3)) is None
    assert cosine(torch.tensor([[math.inf, 1.0], [1.0, 1.0]])) is None


def test_the_effective_rank_is_that_of_roy_and_vetterli() -> None:
    assert effective_rank(torch.eye(6)) == pytest.approx(6)
    assert effective_rank(torch.ones(9, 4) * 1e-20) == pytest.approx(1, abs=1e-5)
    draw = torch.Generator().manual_seed(0)
    for shape in ((50, 7), (7, 50)):
        y = torch.randn(*shape, generator=draw)
        share = torch.linalg.svdvals(y.double())
        share /= share.sum()
        assert effective_rank(y) == pytest.approx(float(torch.exp(-(share * share.log()).sum())), rel=1e-6)
    assert effective_rank(torch.zeros(3, 3)) is None
    assert effective_rank(torch.tensor([[math.nan]])) is None


def test_quantiles_are_those_of_all_values() -> None:
    assert quantiles(torch.arange(101.0).reshape(101, 1)) == pytest.approx((5, 25, 50, 75, 95))


def test_a_constructed_network_is_reported_exactly() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.Sigmoid(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        for index in (0, 2, 4):
            net[index].weight.zero_()
            net[index].bias.zero_()
        net[0].bias.copy_(torch.tensor([10.0, -10.0, 10.0, 0.0]))
        net[2].bias.copy_(torch.tensor([1.0, 2.0, -1.0, -1.0, 0.5]))
        net[4].weight.fill_(1.0)
    first, second, last = probe(net, torch.randn(40, 2), torch.zeros(40, dtype=torch.long), nn.functional.cross_entropy, whole=True)
    assert (first.saturated, first.dead, first.cosine) == (0.75, 0.0, None)  # a sigmoid's offset is all that a cosine would see
    assert (second.saturated, second.dead) == (None, 0.4)
    assert second.cosine == pytest.approx(1, abs=1e-6)
    assert second.effective_rank == pytest.approx(1, abs=1e-5)
    assert second.quantiles == pytest.approx((0, 0, 0.5, 1, 2))
    assert (last.saturated, last.dead) == (None, None)
    assert [verdict.word for verdict in verdicts([first, second, last])] == ["vanishing", "saturated", "dead", "collapsed"]


def test_what_takes_longer_is_measured_only_where_it_is_asked_for() -> None:
    [signal] = probe(nn.Sequential(nn.Linear(2, 2)), torch.randn(9, 2), torch.zeros(9, dtype=torch.long), nn.functional.cross_entropy)
    assert signal.effective_rank is signal.quantiles is None
    assert signal.cosine is not None


# Verdicts.


def signal(layer: str, saturated: float | None = None, cosine: float | None = None) -> LayerSignal:
    return LayerSignal(layer, 1000, 10, 0.0, 1.0, 1.0, None, 1.0, 1.0, saturated, cosine)


def test_saturated_is_said_beyond_half_of_a_layer_and_collapsed_of_the_last_hidden_one() -> None:
    def words(*signals: LayerSignal) -> list[str]:
        return [verdict.word for verdict in verdicts(signals)]

    assert words(signal("a", 0.5), signal("b", 0.1), signal("c")) == []
    [verdict] = verdicts([signal("a", 0.6), signal("b", 0.9), signal("c")])
    assert (verdict.word, verdict.layers) == ("saturated", ("a", "b"))
    assert verdict.text == "saturated units: 90% of what b puts out is where its activation is flat; more than half does so in 2 layers"
    assert words(signal("a", cosine=0.99), signal("b", cosine=0.95), signal("c", cosine=0.99)) == []
    [verdict] = verdicts([signal("a", cosine=0.1), signal("b", cosine=0.96), signal("c")])
    assert (verdict.word, verdict.layers) == ("collapsed", ("b",))


def found(*overrides: str, inputs: int = 256) -> set[str]:
    """The verdicts on a network with its initial weights, fed N(0, 1), which learns ten random classes."""
    net = build_network(dnnkit.compose(overrides).values, (inputs,), 10, 0)
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(1000, inputs, generator=draw), torch.randint(10, (1000,), generator=draw)
    return {verdict.word for verdict in verdicts(probe(net, x, y, nn.functional.cross_entropy))}


#: A network by its overrides, the verdicts that have to be among those found, and those that must not.
KNOWN = [
    ([layers(256, 20), "activation=sigmoid"], {"vanishing"}, {"saturated", "exploding", "dead"}),
    ([layers(300, 5), "activation=sigmoid", "initializer=normal"], {"saturated"}, {"vanishing", "dead"}),
    ([layers(256, 100), "activation=selu"], set(), {"vanishing", "exploding", "saturated", "dead", "collapsed"}),
    ([layers(256, 100), "activation=selu", "initializer=he_normal"], {"exploding"}, {"vanishing"}),
    ([layers(256, 100), "activation=relu"], {"collapsed"}, {"vanishing", "exploding", "saturated"}),
    ([layers(256, 100), "activation=relu", "initializer=lecun_normal"], {"vanishing"}, {"exploding"}),
    ([layers(300, 2), "activation=sigmoid"], set(), {"vanishing", "exploding", "saturated", "dead", "collapsed"}),
    ([layers(300, 2), "activation=tanh", "initializer=normal"], {"saturated"}, {"vanishing", "dead"}),
    ([layers(300, 2), "activation=relu"], set(), {"vanishing", "exploding", "saturated", "dead", "collapsed"}),
    ([layers(256, 20), "activation=tanh"], set(), {"vanishing", "exploding", "saturated", "dead", "collapsed"}),
    ([layers(256, 20), "activation=elu"], set(), {"vanishing", "saturated", "dead"}),
]


@pytest.mark.parametrize(("overrides", "said", "not_said"), KNOWN)
def test_known_networks_get_the_verdicts_that_theory_gives_them(overrides: list[str], said: set[str], not_said: set[str]) -> None:
    words = found(*overrides, inputs=784 if "300" in overrides[0] else 256)
    assert said <= words
    assert not words & not_said


# The command.


def test_the_doctor_shows_every_layer_and_writes_numbers_and_figures(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "name=mine"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("1000 training examples, once forward and once back\n")
    assert [line.split()[0] for line in said.splitlines()[1:5]] == ["layer", "00_dense", "01_dense", "02_dense"]
    assert "nothing is wrong with the signal or the config" in said
    for word in ("vanishing", "exploding", "saturated units", "dead units", "collapsed"):
        assert word not in said
    held = workdir / "doctor" / "mine" / "diagnostics"
    assert sorted(path.name for path in held.iterdir()) == ["activations.png", "lint.json", "signal.json", "signal.png", "verdicts.json"]
    assert not (workdir / "runs").exists()


def test_the_doctors_numbers_are_json(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--output", "there", "data=iris", "dropout=dropout"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["samples"] == report["layers"][0]["samples"] < 150
    assert [finding["rule"] for finding in report["findings"]] == ["selu_dropout"]
    assert (report["fix"], report["cured"]) == (["dropout=alpha_dropout", "dropout.p=0.2"], True)
    assert (workdir / "there" / "diagnostics" / "signal.json").is_file()


@pytest.mark.parametrize("words", [["-m"], ["--cfg"], ["--output"], ["activaton=relu"], ["--no-such"]])
def test_what_the_doctor_cannot_do_is_refused_and_nothing_is_made(
    words: list[str], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *words]) == 2
    assert capsys.readouterr().err.startswith("1 problem ")
    assert list(workdir.iterdir()) == []


BROKEN = {
    "deep sigmoid": ["activation=sigmoid", "optimizer.lr=0.01", layers(100, 10)],
    "SELU with raw inputs, He's weights and dropout": [
        "data.standardize=none",
        "initializer=he_normal",
        "dropout=dropout",
        "dropout.p=0.05",
        "optimizer.lr=0.02",
        layers(100, 8),
    ],
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_the_doctor_offers_makes_a_broken_network_learn(name: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *BROKEN[name]]) == 0
    said = capsys.readouterr().out.splitlines()
    [offered] = [
        shlex.split(said[index + 1]) for index, line in enumerate(said) if line.startswith("with these overrides, which were tried")
    ]
    assert offered[: len(BROKEN[name])] == BROKEN[name]
    assert accuracy(*BROKEN[name]) < 0.75
    assert accuracy(*offered) > 0.9


def accuracy(*overrides: str) -> float:
    """After five epochs; none of a run that diverges."""
    quick = ["tracking=none", "trainer.progress_bar=false", "trainer.max_epochs=5"]
    try:
        return dnnkit.train(dnnkit.compose([*overrides, *quick])).metrics["test/acc"]
    except DivergedError:
        return 0.0


def test_what_nothing_mends_is_said_so(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=sequential", "model.layers=[flatten,{dense: 50, activation: relu, initializer: zeros},{dense: auto}]"]
    report = examine(dnnkit.compose(words), dnnkit.compose)
    assert report.verdicts
    assert (report.fix, report.cured) == ((), False)
    assert main(["doctor", *words]) == 0
    assert "of what was tried nothing mends all of it" in capsys.readouterr().out
