"""A table of networks, and what has to be said of each before it is trained: these words and no others, by theory, for three seeds."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from dnnkit import plugins
from dnnkit.config import Composer
from dnnkit.diagnostics import probe, verdicts
from dnnkit.network import build_network
from dnnkit.training.assemble import load_data

plugins.load()
COMPOSER = Composer()
SEEDS = range(3)


@dataclass(frozen=True)
class Case:
    """A network by its overrides, `depth` hidden layers of `width` units where it has a depth, and the words that have to be said."""

    overrides: str
    words: str
    why: str
    depth: int | None = None
    width: int = 100
    inputs: tuple[int, ...] = (784,)

    @property
    def words_typed(self) -> list[str]:
        """The overrides, those of the shape first."""
        shape = [] if self.depth is None else [f"model.hidden=[{self.width}]", f"model.repeat={self.depth}"]
        return [*shape, *self.overrides.split()]


CASES = {
    # Sigmoids: a slope of 1/4 at most, and flat from about 3 on.
    "sigmoid, 2 layers": Case("activation=sigmoid", "", "1/4 twice is above 1/1000", 2, 300),
    "sigmoid, 20 layers": Case("activation=sigmoid", "vanishing", ".25^20 is 9e-13", 20),
    "sigmoid, N(0, 1)": Case("activation=sigmoid initializer=normal", "saturated", "sums of deviation 28, then 12: the large weights "
                             "carry the gradient that the flat units lose", 5, 300),
    "sigmoid, batch norm, 20 layers": Case("activation=sigmoid normalization=batch_norm", "", "γ = 1 makes up for most of the slope", 20),
    "softplus, 10 layers": Case("activation=softplus", "", "a slope of about a half to 2/3: .5^9 is 2e-3", 10),
    # Tanh and its like: a slope of 1 at 0.
    "tanh, 20 layers": Case("activation=tanh", "", "Glorot's weights keep the gradient's size", 20),
    "tanh, 100 layers": Case("activation=tanh", "", "the signal fades to .007 and the slope nears 1", 100),
    "tanh, orthogonal, 50 layers": Case("activation=tanh initializer=orthogonal", "", "an isometry where tanh is linear", 50),
    "tanh, N(0, 1)": Case("activation=tanh initializer=normal", "saturated", "sums of deviation 28", 2, 300),
    "softsign, 20 layers": Case("activation=softsign", "", "as tanh, flatter", 20),
    # SELU: a factor of 1.0716 on the square of the gradient for each layer.
    "selu, 100 layers": Case("activation=selu", "", "1.0716^50 is 32", 100),
    "selu, He, 100 layers": Case("activation=selu initializer=he_normal", "exploding collapsed", "each layer has more than 1 of "
                                 "variance, positive units are linear, and all samples go one way", 100),
    "selu, gain 3/4, 100 layers": Case("activation=selu initializer=variance_scaling initializer.scale=0.5625", "", "m2 .045, as "
                                       "torch's calculate_gain has it: not to be seen in gradients", 100),
    # ELU and the smooth ReLUs.
    "elu, He, 20 layers": Case("activation=elu", "", "its pairing", 20),
    "elu, He, 30 layers": Case("activation=elu initializer=he_normal", "", "a gradient of 10; m2 is 33 at 100 layers, no more", 30),
    "gelu, He, 20 layers": Case("activation=gelu initializer=he_normal", "", "stays near 1 for many layers", 20),
    "gelu, He, 100 layers": Case("activation=gelu initializer=he_normal", "vanishing", "m2 2.7e-22", 100),
    # ReLU: He's weights keep the gradient and lose the angles between samples.
    "relu, 2 layers": Case("activation=relu", "", "its pairing", 2, 300),
    "relu, He, 100 layers": Case("activation=relu initializer=he_normal", "dead collapsed", "effective rank 3.8; the gradient keeps its "
                                 "size, and half of the units are on one side of the only direction", 100),
    "relu, LeCun, 100 layers": Case("activation=relu initializer=lecun_normal", "vanishing dead collapsed", "2^-50 in the norm, though "
                                    "the gradients of the weights are all alike", 100),
    "relu, N(0, 1)": Case("activation=relu initializer=normal", "exploding", "√50 for each of 4 layers, and √10", 5),
    "relu, constant": Case("activation=relu initializer=constant initializer.value=0.01", "vanishing collapsed", "all units are one unit, "
                           "and equal weights of the classes cancel their gradients, which sum to 0", 2),
    "relu, zeros": Case("activation=relu initializer=zeros", "vanishing dead", "nothing goes in, nothing comes back", 2),
    "relu, batch norm, 20 layers": Case("activation=relu normalization=batch_norm", "", "√1.467 for each layer: 1.21^19 is 38", 20),
    "relu, batch norm, 100 layers": Case("activation=relu normalization=batch_norm", "exploding", "1.21^99 is 1.6e8 (Yang, Pennington, "
                                         "Rao, Sohl-Dickstein & Schoenholz 2019)", 100),
    # Without an activation.
    "linear, LeCun, 50 layers": Case("activation=identity initializer=lecun_normal", "", "variance 1/n is an isometry in the mean", 50),
    "linear, variance 4/n, 20 layers": Case("activation=identity initializer=variance_scaling initializer.scale=4", "exploding",
                                            "2^19", 20),
    # Other models.
    "resmlp": Case("model=resmlp activation=elu", "", "skip connections keep the gradient"),
    "resmlp, relu": Case("model=resmlp activation=relu", "", "and the angles"),
    "cnn": Case("model=cnn activation=elu", "", "three layers", inputs=(1, 12, 12)),
}  # fmt: skip
#: Those that take longer, all of which are deep.
DEEP = 50


def said(net: nn.Module, inputs: tuple[int, ...], seed: int) -> set[str]:
    """Of a network that is fed N(0, 1) and learns ten random classes."""
    draw = torch.Generator().manual_seed(seed + 100)
    x, y = torch.randn(300, *inputs, generator=draw), torch.randint(10, (300,), generator=draw)
    return {verdict.word for verdict in verdicts(probe(net, x, y, nn.functional.cross_entropy))}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * ((case.depth or 0) >= DEEP)) for name, case in CASES.items()]
)
def test_a_network_gets_the_verdicts_that_theory_gives_it_and_no_others(name: str) -> None:
    case = CASES[name]
    config = COMPOSER.one(case.words_typed).values
    for seed in SEEDS:
        assert said(build_network(config, case.inputs, 10, seed), case.inputs, seed) == set(case.words.split()), (seed, case.why)


def test_units_whose_bias_is_far_below_0_are_dead() -> None:
    for seed in SEEDS:
        net = build_network(COMPOSER.one(["activation=relu", "model.hidden=[100,100]"]).values, (784,), 10, seed)
        with torch.no_grad():
            net.get_submodule("01_dense").bias[:20] = -10.0
        assert said(net, (784,), seed) == {"dead"}


def test_relus_are_dead_after_ten_updates_at_rate_3_and_not_before_nor_at_a_rate_that_fits() -> None:
    """Nothing is wrong with the network: the first updates throw units to where no example reaches them. Digits, momentum."""
    cfg = COMPOSER.one(["activation=relu"])
    x, y = load_data(cfg).train
    for seed in SEEDS:
        before, after, slower = (trained(rate, build_network(cfg.values, (1, 8, 8), 10, seed), x, y) for rate in (0.0, 3.0, 0.01))
        assert before == slower == set()
        assert "dead" in after


def trained(rate: float, net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> set[str]:
    """What is said after ten updates."""
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
    for rows in torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split(32)[:10]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return {verdict.word for verdict in verdicts(probe(net, x, y, nn.functional.cross_entropy))}
