"""The learning-rate finder: rates that theory gives, losses that a plain loop gives, and of a ramp nothing that stays."""

from __future__ import annotations

import copy
import json
import math
import random
import shlex
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import dnnkit
from dnnkit import plugins
from dnnkit.cli.main import main
from dnnkit.data.resident import Batches, epoch_order, minibatch_seed
from dnnkit.diagnostics.ramp import Ramp, geometric_rates
from dnnkit.errors import PluginError
from dnnkit.module import Recipe
from dnnkit.module.groups import Groups
from dnnkit.network.freezing import Freezing
from dnnkit.network.groups import Grouping
from dnnkit.registry import REGISTRIES, optimizers
from dnnkit.training.lr_finder import climb, find_rate
from dnnkit.training.run import prepare_run

plugins.load()


def ramp(losses: list[float], diverged: bool = False) -> Ramp:
    made = Ramp(diverged=diverged)
    for rate, loss in zip(geometric_rates(), losses, strict=False):
        made.add(rate, loss)
    return made


def noise(count: int, seed: int) -> list[float]:
    return [2.3 + 0.3 * value for value in torch.randn(count, generator=torch.Generator().manual_seed(seed)).tolist()]


# Numbers.


def test_the_rates_are_fifty_for_every_factor_of_ten() -> None:
    rates = geometric_rates()
    assert len(rates) == 401
    assert rates[::50] == pytest.approx([10.0**power for power in range(-7, 2)], rel=1e-12)
    assert [b / a for a, b in pairwise(rates)] == pytest.approx([10 ** (1 / 50)] * 400, rel=1e-12)


def test_the_smoothed_loss_is_the_mean_whose_weights_fall_by_a_constant_factor() -> None:
    losses = noise(300, 0)
    weights = 0.98 ** np.arange(300)[::-1]
    for count in (1, 2, 50, 300):
        wanted = np.average(losses[:count], weights=weights[300 - count :])
        assert ramp(losses[:count]).smoothed[-1] == pytest.approx(wanted, rel=1e-12)


def test_a_tenth_of_the_rate_at_the_lowest_smoothed_loss_is_suggested_in_two_digits() -> None:
    found = ramp([2.0] * 200 + [1.0] * 100 + [20.0] * 5)
    assert (found.turn, found.rates[299]) == (299, pytest.approx(0.0954993, rel=1e-5))
    assert found.suggest().rate == 0.0095
    best = 1 + (0.98**100 - 0.98**300) / (1 - 0.98**300)
    assert found.suggest().reason == f"the smoothed loss falls from 2 to {best:.3g} and climbs from a rate of 0.095 on"


def test_a_loss_that_becomes_infinite_has_begun_to_climb() -> None:
    falling = [2.0] * 100 + [1.0] * 100
    assert ramp(falling).suggest().rate is None
    assert ramp(falling, diverged=True).suggest().rate == float(f"{geometric_rates()[199] / 10:.2g}")


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([], "the loss is not finite with the initial weights"),
        ([2.3], "the loss is not finite after one update at the first rate, 1e-07"),
        ([0.1 + 0.2] * 401, "the loss falls at no rate from 1e-07 to 10 by more than its noise"),
        ([1.0] * 100 + [1.0 + 0.1 * i for i in range(100)], "the loss falls at no rate from 1e-07 to 0.00095 by more than its noise"),
        ([3.0 - i / 200 for i in range(401)], "the smoothed loss falls from 2.88 to 1.24 and climbs at no rate from 1e-07 to 10"),
    ],
)
def test_where_a_ramp_suggests_no_rate_it_says_why(losses: list[float], said: str) -> None:
    suggestion = ramp(losses, diverged=len(losses) < 2).suggest()
    assert (suggestion.rate, suggestion.reason) == (None, said)


def test_noise_alone_is_no_fall_and_no_climb() -> None:
    assert [seed for seed in range(100) if ramp(noise(401, seed)).suggest().rate is not None] == []
    lower = [[loss - 2 * (index > 150) for index, loss in enumerate(noise(401, seed))] for seed in range(100)]
    assert sum(ramp(losses).suggest().rate is not None for losses in lower) == 0


def test_a_ramp_is_over_at_four_times_the_best_smoothed_loss() -> None:
    found = ramp([2.0] * 60 + [0.4] * 200)
    assert not found.over
    for rate in geometric_rates()[260:]:
        found.add(rate, 9.0)
        assert found.over == (found.smoothed[-1] > 4 * min(found.smoothed))
        if found.over:
            break
    assert found.over
    assert len(found.losses) < 280


@pytest.mark.parametrize("low", [1e-6, 0.0, -1e-6, -3.0])
def test_noise_about_a_loss_near_zero_or_below_does_not_end_a_ramp(low: float) -> None:
    found = Ramp()
    for index, rate in enumerate(geometric_rates()[:300]):
        found.add(rate, (2.0 if index < 60 else low) + 0.01 * (-1) ** index)
        assert not found.over
    for rate in geometric_rates()[300:400]:
        found.add(rate, 50.0)
    assert found.over


# A loss that is known.


class Bowl(nn.Module):
    """Puts out c + ½ Σ λᵢ · (wᵢ − xᵢ)² of each example; at first, where x is 0, each term is ½."""

    def __init__(self, curvatures: list[float], floor: float) -> None:
        super().__init__()
        self.register_buffer("curvatures", torch.tensor(curvatures, dtype=torch.float64))
        self.weight = nn.Parameter(self.curvatures.rsqrt())
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:
        return self.floor + 0.5 * (self.curvatures * (self.weight - x).square()).sum(1, keepdim=True)


def mean_output(prediction: Tensor, _target: Tensor) -> Tensor:
    return prediction.mean()


def constant(step: int, total: int) -> float:
    return 1.0


def in_bowl(curvatures: list[float], floor: float, momentum: float = 0.0, spread: float = 0.0) -> Ramp:
    """`spread`: the deviation of the examples, in that of the weights at first."""
    recipe = Recipe(partial(torch.optim.SGD, lr=0.1, momentum=momentum), constant)
    x = torch.randn(200, len(curvatures), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = spread * (x - x.mean(0)) * torch.tensor(curvatures, dtype=torch.float64).rsqrt()
    return climb(Bowl(curvatures, floor), recipe, mean_output, Batches(x, torch.zeros(200), 5, seed=0))


@pytest.mark.parametrize("curvature", [0.5, 3.0, 40.0])
def test_the_loss_of_a_parabola_climbs_from_twice_its_inverse_curvature_on(curvature: float) -> None:
    found = in_bowl([curvature], floor=0.0)
    climbing = [later > earlier for earlier, later in pairwise(found.losses)]
    assert climbing == [rate > 2 / curvature for rate in found.rates[:-1]]
    assert any(climbing)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("steepest", [2.0, 60.0])
def test_what_is_suggested_for_a_noisy_bowl_is_a_tenth_of_its_critical_rate(steepest: float, momentum: float) -> None:
    # Polyak 1964: gradient descent on a quadratic is stable up to 2 (1 + momentum) / λ.
    critical = 2 * (1 + momentum) / steepest
    found = in_bowl([steepest, steepest / 5, steepest / 30], 1.0, momentum, spread=0.3)
    assert 0.5 * critical < found.rates[found.turn] < 1.5 * critical
    assert found.suggest().rate == float(f"{found.rates[found.turn] / 10:.2g}")


def test_a_bowl_too_steep_for_any_rate_gets_none() -> None:
    assert in_bowl([1e9], floor=0.0).suggest().reason.startswith("the loss falls at no rate from 1e-07 to ")
    found = in_bowl([1e300], floor=0.0)
    assert (found.diverged, found.suggest().rate) == (True, None)
    assert in_bowl([1e300], floor=math.inf).suggest().reason == "the loss is not finite with the initial weights"


def test_a_bowl_too_flat_for_any_rate_gets_none() -> None:
    assert in_bowl([1e-3], floor=0.0).suggest().reason.endswith("climbs at no rate from 1e-07 to 10")


# Training, as a run does it.


def test_the_losses_are_those_of_a_plain_loop_with_every_part_of_a_recipe() -> None:
    words = ["data=iris", "data.batch_size=13", "model.hidden=[8]", "activation=relu", "normalization=batch_norm", "dropout=dropout"]
    words += ["dropout.p=0.3", "regularizer=l2", "regularizer.factor=0.02", "constraint=max_norm", "constraint.c=1.1", "clipping=norm"]
    words += ["clipping.max_norm=0.3", "optimizer=momentum", "optimizer.groups=[{match: output, lr_scale: 0.25}]", "seed=3"]
    words += ["trainer.accumulate_grad_batches=2", "trainer.precision=64", "scheduler=one_cycle"]
    found = find_rate(dnnkit.compose(words))
    run = prepare_run(dnnkit.compose(words))
    net = run.network.double().train()
    x, y = run.data.train.x.double(), run.data.train.y
    kernels = [layer.weight for layer in net.modules() if isinstance(layer, nn.Linear)]
    *hidden, weight, bias = net.parameters()
    groups = [{"params": hidden}, {"params": [weight, bias]}]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    losses, number, epoch = [], 0, 0
    while len(losses) < len(found.losses):
        minibatches = epoch_order(len(x), 3, epoch).split(13)
        for together in [minibatches[start : start + 2] for start in range(0, len(minibatches), 2)][: len(found.losses) - len(losses)]:
            optimizer.zero_grad()
            # The mean over the examples of both minibatches, or of the one that is left, and the penalty.
            total = sum(0.02 * kernel.square().sum() for kernel in kernels)
            for rows in together:
                torch.manual_seed(minibatch_seed(3, number, 0))
                number += 1
                total = total + nn.functional.cross_entropy(net(x[rows]), y[rows], reduction="sum") / sum(map(len, together))
            total.backward()
            losses.append(float(total.detach()))
            nn.utils.clip_grad_norm_(net.parameters(), 0.3)
            for group, part in zip(optimizer.param_groups, (1, 0.25), strict=True):
                group["lr"] = part * 1e-7 * 10 ** ((len(losses) - 1) / 50)
            optimizer.step()
            for kernel in kernels:
                kernel.data = kernel.data.renorm(2, 0, 1.1)
        epoch += 1
    assert len(losses) > 300
    assert found.losses == pytest.approx(losses, rel=1e-8)


def test_groups_keep_their_part_of_the_rate_whatever_the_configs_rate_is() -> None:
    seen: list[list[float]] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    parts = dnnkit.compose(["optimizer.groups=[{match: weight, lr_scale: 0.5},{match: bias, lr_scale: 4}]"])
    from dnnkit.config.groups import entries

    recipe = Recipe(partial(Watched, lr=0.02), constant, groups=Groups(Grouping(entries(parts.values["optimizer"])), 0.02))
    rates = [1e-3, 1e-2, 1e-1]
    climb(net, recipe, nn.functional.cross_entropy, Batches(torch.ones(3, 2), torch.tensor([0, 1, 1]), 2, 0), rates)
    assert seen == [pytest.approx([0.5 * rate, 4 * rate]) for rate in rates]


def test_the_config_s_own_rate_changes_nothing() -> None:
    words = ["data=iris", "model.hidden=[10]", "optimizer=adam"]
    one, other = (find_rate(dnnkit.compose([*words, f"optimizer.lr={rate}"])) for rate in (1e-5, 0.5))
    assert one.to_dict() == other.to_dict()


def test_what_is_frozen_stays_as_it_is_and_the_constraint_acts_on_the_rest() -> None:
    seen: list[list[Tensor]] = []

    def halve(module: nn.Module) -> None:
        seen.append([parameter.detach().clone() for parameter in module.parameters()])
        for parameter in module.parameters():
            parameter.mul_(0.5)

    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    batches = Batches(torch.ones(3, 2), torch.tensor([0, 1, 1]), 2, 0)
    recipe = Recipe(partial(torch.optim.SGD, lr=1.0, weight_decay=0.1), constant, constrain=halve)
    climb(net, recipe, nn.functional.cross_entropy, batches, [0.1] * 4, frozen=Freezing({"0.weight": None, "0.bias": None}))
    start = list(net.parameters())
    assert len(seen) == 4
    for weights in seen:
        assert all(map(torch.equal, weights[:2], start[:2]))
    assert seen[3][2].norm() < 0.3 * start[2].norm()


# Nothing stays.


class Restless(nn.Module):
    """Dropout and moving statistics, and a layer that draws from every generator and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.still = nn.BatchNorm1d(3).eval()
        self.register_buffer("calls", torch.zeros(()))
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.calls += 1
        return self.still(self.layers(x)) + self.frozen + random.random() * 1e-3 + float(np.random.rand()) * 1e-3


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def state_of(net: Restless, optimizer: torch.optim.Optimizer, batches: Batches) -> list[Any]:
    """Everything that a ramp could disturb, to be compared to the last bit."""
    numpy = np.random.get_state()
    optimizers = [(key, bits(value)) for state in optimizer.state.values() for key, value in state.items()]
    return [
        {name: (bits(value), value.data_ptr(), value._version) for name, value in net.state_dict(keep_vars=True).items()},
        [None if p.grad is None else (id(p.grad), bits(p.grad)) for p in net.parameters()],
        [p.requires_grad for p in net.parameters()],
        [module.training for module in net.modules()],
        [list(vars(module)["_buffers"]) for module in net.modules()],
        net.count,
        (optimizers, [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]),
        (bits(torch.get_rng_state()), random.getstate(), numpy[0], numpy[1].tobytes(), numpy[2:]),
        (batches.state_dict(), bits(batches.x), bits(batches.y), torch.is_grad_enabled()),
    ]


@pytest.mark.parametrize("raising", [False, True], ids=["to the end", "raising"])
def test_a_ramp_leaves_everything_as_it_was_to_the_last_bit(raising: bool) -> None:
    torch.manual_seed(5)
    net = Restless()
    batches = Batches(torch.randn(20, 4), torch.arange(20) % 3, 8, seed=1)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.01)
    for x, y in batches:
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    calls: list[int] = []

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        if raising and len(calls) == 5:
            raise RuntimeError("in the middle")
        return nn.functional.cross_entropy(prediction, target)

    before = copy.deepcopy(state_of(net, optimizer, batches))
    recipe = Recipe(partial(torch.optim.Adam, lr=0.01), constant)
    if raising:
        with pytest.raises(RuntimeError, match="in the middle"):
            climb(net, recipe, loss, batches)
    else:
        assert len(climb(net, recipe, loss, batches).losses) > 200
    assert state_of(net, optimizer, batches) == before


def test_two_ramps_of_one_network_are_equal_to_the_last_bit() -> None:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    batches = Batches(torch.randn(20, 4), torch.arange(20) % 3, 8, seed=1)
    recipe = Recipe(partial(torch.optim.Adam, lr=0.01), constant)
    first = climb(net, recipe, nn.functional.cross_entropy, batches)
    torch.rand(7)
    assert climb(net, recipe, nn.functional.cross_entropy, batches) == first


def test_a_network_that_cannot_be_copied_is_refused() -> None:
    net = nn.Linear(2, 2)
    net.note = net.weight * 2  # type: ignore[assignment]  # torch copies no tensor that was computed
    with pytest.raises(PluginError, match="cannot be copied"):
        climb(net, Recipe(partial(torch.optim.SGD, lr=1.0), constant), mean_output, Batches(torch.ones(2, 2), torch.ones(2), 2, 0))


# What is suggested trains.


def accuracy(*overrides: str) -> float:
    quick = ["tracking=none", "trainer.progress_bar=false"]
    return dnnkit.train(dnnkit.compose([*overrides, *quick])).metrics["test/acc"]


DEEP = f"model.hidden=[{','.join(['100'] * 20)}]"


@pytest.mark.parametrize(
    "words",
    [
        ["optimizer=sgd"],
        ["optimizer=momentum"],
        ["optimizer=adam", "activation=relu"],
        ["optimizer=nadam", "activation=relu", "normalization=batch_norm"],
        ["optimizer=adam", DEEP],
    ],
    ids=" ".join,
)
def test_what_is_suggested_trains_well_and_a_hundredth_of_it_does_not(words: list[str], workdir: Path, unrecorded: None) -> None:
    rate = find_rate(dnnkit.compose(words)).suggest().rate
    assert rate is not None
    quick = [*words, "trainer.max_epochs=4", "scheduler=constant"]
    good, slow = (accuracy(*quick, f"optimizer.lr={value:.2g}") for value in (rate, rate / 100))
    assert good > 0.92
    assert good > slow + 0.02


def test_what_is_suggested_trains_well_on_mnist(data_root: Path, workdir: Path, unrecorded: None) -> None:
    words = ["data=mnist", f"data.root={data_root}", "data.train_size=15000", "optimizer=momentum"]
    rate = find_rate(dnnkit.compose(words)).suggest().rate
    # A tenth of it comes to 86 %, thirty times as much to 17 %.
    assert accuracy(*words, f"optimizer.lr={rate}", "trainer.max_epochs=1") > 0.91


@pytest.mark.parametrize("name", REGISTRIES["optimizer"].names())
def test_every_optimizer_gets_a_rate_between_its_extremes(name: str) -> None:
    rate = find_rate(dnnkit.compose([f"optimizer={name}", "model.hidden=[30]"])).suggest().rate
    assert rate is not None
    assert 1e-4 < rate < 0.5


@pytest.mark.parametrize(
    "words",
    [
        ["data=diabetes"],
        ["data=diabetes", "data.batch_size=10000"],
        ["data=digits", "model=autoencoder", "model.hidden=[20]"],
        ["data=digits", "model=cnn", "model.channels=[4]", "model.hidden=[20]", "data.train_size=300"],
        ["data=iris", "normalization=batch_norm", "model.hidden=[20]", "trainer.precision=64"],
        ["data=iris", "model.hidden=[20]", "trainer.precision=bf16"],
    ],
    ids=" ".join,
)
def test_every_kind_of_network_and_task_gets_a_rate(words: list[str]) -> None:
    found = find_rate(dnnkit.compose(words))
    assert found.suggest().rate is not None, found.suggest().reason
    assert all(map(math.isfinite, found.losses))


# The command.


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_the_overrides_to_paste_are_the_user_s_and_the_rate(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data=iris", "name=mine", "model.hidden=[10]", "optimizer.groups=[{match: output, lr_scale: 0.5}]", "optimizer.lr=7"]
    assert main(["doctor", "--lr", *words]) == 0
    ramped, fall, introduced, pasted, last = lines(capsys)
    assert ramped.endswith("; the scheduler plays no part")
    assert fall.startswith("the smoothed loss falls from ")
    assert introduced == "a tenth of that, to be pasted:"
    assert shlex.split(pasted)[:-1] == words
    held = workdir / "doctor" / "mine" / "diagnostics"
    numbers = json.loads((held / "lr.json").read_text())
    assert (
        dnnkit.compose(shlex.split(pasted)).values["optimizer"]["lr"] == numbers["suggested"] == pytest.approx(numbers["turn"] / 10, 0.05)
    )
    assert last == "numbers and figure: doctor/mine/diagnostics"
    assert sorted(path.name for path in held.iterdir()) == ["lr.json", "lr.png"]
    assert [path.name for path in workdir.iterdir()] == ["doctor"]


def test_the_numbers_are_json_and_hold_the_whole_ramp(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data=iris", "model.hidden=[10]"]
    assert main(["doctor", *words, "--json", "--lr", "--output", "there"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("overrides") == [*words, f"optimizer.lr={printed['suggested']:g}"]
    assert printed == json.loads((workdir / "there" / "diagnostics" / "lr.json").read_text())
    assert len(printed["rates"]) == len(printed["losses"]) == len(printed["smoothed"]) > 200
    assert printed["rates"] == geometric_rates()[: len(printed["rates"])]


def test_presets_of_the_user_s_own_are_part_of_what_is_pasted(
    workdir: Path, presets: Callable[[dict[str, str]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = presets({"experiment/mine.yaml": "data:\n  batch_size: 50\n"})
    assert main(["doctor", "--lr", "+experiment=mine", "data=iris", "--config-dir", str(folder)]) == 0
    assert shlex.split(lines(capsys)[3])[-2:] == ["--config-dir", str(folder)]


def test_where_no_rate_is_found_none_is_made_up(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zeros = "model.layers=[flatten,{dense: 50, activation: relu, initializer: zeros},{dense: auto, initializer: zeros}]"
    words = ["model=sequential", zeros, "freeze=[{match: bias}]", "--output", "there"]
    assert main(["doctor", "--lr", *words]) == 0
    *_, reason, none, _ = lines(capsys)
    assert (reason, none) == ("the loss falls at no rate from 1e-07 to 10 by more than its noise", "no rate is suggested")
    numbers = json.loads((workdir / "there" / "diagnostics" / "lr.json").read_text())
    assert (numbers["suggested"], numbers["turn"]) == (None, None)


def test_the_figure_shows_both_losses_and_the_suggested_rate_on_a_logarithmic_axis(workdir: Path, drawn: list[Figure]) -> None:
    from dnnkit.record.figures import ramp as draw

    found = ramp([2.0] * 200 + [1.0] * 100 + [2000.0] * 5)
    path = draw(workdir, found)
    assert path == workdir / "diagnostics" / "lr.png"
    [axes] = drawn[0].axes
    curves = {str(line.get_label()): line for line in axes.get_lines()}
    assert list(curves) == ["each minibatch", "smoothed", "lowest at 0.095", "suggested: 0.0095"]
    assert list(curves["each minibatch"].get_ydata()) == found.losses
    assert list(curves["smoothed"].get_ydata()) == found.smoothed
    assert set(curves["suggested: 0.0095"].get_xdata()) == {0.0095}
    assert axes.get_xscale() == "log"
    low, high = axes.get_ylim()
    assert 0.8 < low < 1 < 2 < high < 3  # the explosion is cut, what comes before it is not
    assert draw(workdir, ramp([2.0])) is None


@pytest.mark.parametrize("words", [["-m"], ["--cfg"], ["--output"], ["activaton=relu"], ["--no-such"], ["activation=selu,relu"]])
def test_what_the_finder_cannot_do_is_refused_and_nothing_is_made(
    words: list[str], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--lr", *words]) == 2
    assert capsys.readouterr().err.startswith("1 problem ")
    assert list(workdir.iterdir()) == []


def test_an_optimizer_that_cannot_be_made_or_keeps_its_rate_elsewhere_is_refused(
    registries: None, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @optimizers.register("broken")
    def broken(params: Any, lr: float = 0.1) -> torch.optim.Optimizer:
        """Fails."""
        raise ValueError("no such parameters")

    @optimizers.register("elsewhere")
    def elsewhere(params: Any, lr: float = 0.1) -> torch.optim.Optimizer:
        """Has its rate under another name."""
        made = torch.optim.SGD(params, lr=lr)
        made.defaults.pop("lr")
        return made

    assert main(["doctor", "--lr", "optimizer=broken"]) == 2
    assert "optimizer: it cannot be made (ValueError: no such parameters)" in capsys.readouterr().err
    assert main(["doctor", "--lr", "optimizer=elsewhere"]) == 2
    assert "optimizer: its SGD has no lr, so that there is no rate to look for" in capsys.readouterr().err
    assert list(workdir.iterdir()) == []
