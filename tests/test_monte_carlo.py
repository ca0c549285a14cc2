"""Monte-Carlo dropout: closed forms for mean and variance, numbers that depend on nothing beside the example, and untouched statistics."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dnnkit
from dnnkit import plugins
from dnnkit.cli.main import main
from dnnkit.data.loaders import evaluation_batches
from dnnkit.data.passes import pass_seed, reseeding
from dnnkit.errors import ConfigError
from dnnkit.module import Task
from dnnkit.module.monte_carlo import MonteCarlo
from dnnkit.network.stochastic import BLOCK, Spread, dropouts, passes, stochastic_dropout
from dnnkit.record import read_journal
from dnnkit.registry import REGISTRIES
from dnnkit.training.evaluate import evaluate
from dnnkit.training.finished import open_run
from dnnkit.training.predict import predict, predict_file, predict_spread

plugins.load()

CPU = torch.device("cpu")
LOWEST = 1.7580993408473766  # λα of SELU


@pytest.fixture(autouse=True)
def _the_same_weights_every_time() -> None:
    torch.manual_seed(0)


def ask(network: nn.Module, x: Tensor, samples: int, first: int = 0, summary: Callable[[Tensor], Spread] = Spread.of_values) -> Spread:
    with reseeding(0, CPU) as reseed:
        return passes(network, x, first, samples, reseed, summary)


# mean and variance


def moments(kind: str, z: np.ndarray, p: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of every element behind a dropout, in closed form; q is the chance to stay."""
    q = 1 - p
    if kind == "dropout":
        return z, z**2 * p / q
    a = (q * (1 + p * LOWEST**2)) ** -0.5
    return a * (q * z - p * LOWEST) + a * p * LOWEST, a**2 * p * q * (z + LOWEST) ** 2


@pytest.mark.parametrize("p", [0.2, 0.5])
@pytest.mark.parametrize("kind", ["dropout", "alpha_dropout"])
def test_many_passes_come_to_the_closed_form_of_a_linear_network(kind: str, p: float) -> None:
    """y = W·d(z) + b has mean W·E d + b and variance W²·Var d. Tolerance: 5 standard errors; that of a variance is at most √(3/n) of it.

    Each of 4 examples stands 25 times in a block, where all its copies are drawn by themselves.
    """
    n, copies, number = 4, 25, 800
    samples = copies * number
    layer = nn.Linear(6, 3).double()
    network = nn.Sequential(REGISTRIES["dropout"].get(kind).function(p), layer)
    z = torch.randn(n, 6, dtype=torch.float64)
    found = ask(network, z.repeat(copies, 1), number)
    means, squares = (part.reshape(copies, n, 3).mean(0).numpy() for part in (found.mean, found.std**2 + found.mean**2))
    mean, variance = moments(kind, z.numpy(), p)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    mean, variance = mean @ weight.T + bias, variance @ (weight.T**2)
    assert np.all(np.abs(means - mean) < 5 * np.sqrt(variance / samples))
    assert np.all(np.abs(squares - means**2 - variance) < 5 * variance * math.sqrt(3 / samples))


def test_entropy_and_mutual_information_are_those_of_the_definition() -> None:
    """Three passes over: sure and agreed; sure and apart; unsure and agreed. In NumPy, from the probabilities."""
    p = np.array([[[1 - 2e-9, 1e-9, 1e-9], [0.98, 0.01, 0.01], [1 / 3] * 3], [[1 - 2e-9, 1e-9, 1e-9], [0.01, 0.98, 0.01], [1 / 3] * 3]])
    found = Spread.of_logits(torch.tensor(np.log(p)) + 7)
    mean = p.mean(0)
    entropy = -(mean * np.log(mean)).sum(1)
    own = -(p * np.log(p)).sum(2).mean(0)
    assert found.entropy is not None
    assert found.mutual_information is not None
    assert found.log_mean is not None
    np.testing.assert_allclose(found.mean, mean, atol=1e-15)
    np.testing.assert_allclose(found.std, p.std(0), atol=1e-15)
    np.testing.assert_allclose(found.entropy, entropy, atol=1e-14)
    np.testing.assert_allclose(found.mutual_information, entropy - own, atol=1e-14)
    np.testing.assert_allclose(found.log_mean, np.log(mean), atol=1e-12)
    assert found.mutual_information[1] > 0.5
    assert found.mutual_information[[0, 2]].abs().max() < 1e-12
    assert float(found.entropy[2]) == pytest.approx(math.log(3))


def test_what_is_not_a_number_is_not_taken_for_certainty() -> None:
    found = Spread.of_logits(torch.full((3, 2, 4), torch.nan))
    assert found.entropy is not None
    assert found.mutual_information is not None
    assert found.entropy.isnan().all()
    assert found.mutual_information.isnan().all()


def test_a_probability_of_zero_is_no_trouble() -> None:
    found = Spread.of_logits(torch.tensor([[[2000.0, 0.0]], [[2000.0, 0.0]]]))
    assert found.entropy is not None
    assert found.log_mean is not None
    assert found.entropy.tolist() == [0.0]
    assert found.log_mean.isfinite().all()


# what is stochastic, and what is not


class Noisy(nn.Module):
    """A dropout that somebody else has written."""

    def forward(self, z: Tensor) -> Tensor:
        """Adds noise in training."""
        return z + torch.randn_like(z) if self.training else z


def busy() -> nn.Sequential:
    noisy = Noisy()
    noisy.__dict__["dnnkit_part"] = "dropout"
    layers = (nn.BatchNorm1d(4), nn.Dropout(), nn.RReLU(), nn.AlphaDropout(), nn.Linear(4, 4), noisy, nn.Dropout1d())
    return nn.Sequential(*layers)


def test_only_dropout_is_stochastic_and_all_modes_come_back() -> None:
    """Trap: `train()` would have batch normalization take the batch's statistics and move its own."""
    network = busy().train()
    network[0].eval()  # as a frozen one
    network[3].eval()
    modes = [module.training for module in network.modules()]
    with pytest.raises(ZeroDivisionError), stochastic_dropout(network):  # noqa: PT012
        assert [module.training for module in network] == [False, True, False, True, False, True, True]
        raise ZeroDivisionError
    assert [module.training for module in network.modules()] == modes
    assert list(dropouts(network)) == ["1", "3", "5", "6"]


def test_batch_normalization_keeps_its_statistics() -> None:
    network = busy().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    ask(network, torch.randn(30, 4) * 5 + 3, 20)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_network_without_dropout_has_no_spread() -> None:
    network = nn.Sequential(nn.BatchNorm1d(4), nn.RReLU(), nn.Linear(4, 2)).double()
    network[0].running_mean.fill_(1.0)
    x = torch.randn(7, 4, dtype=torch.float64)
    found = ask(network, x, 5)
    assert found.std.abs().max() < 1e-15
    with torch.no_grad():
        assert torch.allclose(found.mean, network.eval()(x), atol=1e-15)


# what it depends on


def test_an_example_is_told_the_same_whatever_is_beside_it() -> None:
    """By number 0 to 249: all at once, in batches that cut blocks in two, and one alone."""
    network = nn.Sequential(nn.Linear(5, 20), nn.Dropout(), nn.Linear(20, 3)).double()
    x = torch.randn(250, 5, dtype=torch.float64)
    whole = ask(network, x, 4)
    cut = Spread.joined([ask(network, x[first : first + 70], 4, first) for first in range(0, 250, 70)])
    assert torch.equal(whole.mean, cut.mean)
    assert torch.equal(whole.std, cut.std)
    assert torch.equal(ask(network, x[133:134], 4, first=133).mean, whole.mean[133:134])
    assert BLOCK == 100


def test_random_numbers_are_a_function_of_seed_pass_and_block_and_leave_no_trace() -> None:
    network, x = nn.Sequential(nn.Dropout(), nn.Linear(5, 3)), torch.randn(3, 5)
    one = ask(network, x, 3).mean
    torch.manual_seed(77)
    torch.rand(13)
    state = torch.get_rng_state()
    assert torch.equal(ask(network, x, 3).mean, one)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(ask(network, x, 3, first=100).mean, one)
    seeds = {pass_seed(seed, number, block) for seed in range(4) for number in range(4) for block in range(4)}
    assert len(seeds) == 64


# a run

QUICK = ("tracking=none", "trainer.progress_bar=false", "trainer.threads=1", "trainer.max_epochs=1")
LIST = "model.layers=[flatten,{dense: 50,activation: relu},{dropout: 0.3},{dense: auto}]"
WORDS: dict[str, tuple[str, ...]] = {
    "digits": ("normalization=batch_norm", "dropout=dropout", "dropout.p=0.4", "dropout.mc_samples=20", "model.hidden=[60]"),
    "list": ("model=sequential", LIST, "dropout.mc_samples=7"),
    "values": ("data=diabetes", "dropout=dropout", "dropout.mc_samples=9", "optimizer.lr=0.003"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("monte_carlo") / "runs"
    return {name: dnnkit.train(dnnkit.compose([*QUICK, f"tracking.runs={folder}", *words])).run_dir for name, words in WORDS.items()}


def journal(folder: Path) -> dict[str, float]:
    return {row.key: row.value for row in read_journal(folder / "metrics.jsonl") if row.key.startswith("test/")}


def digits(first: int = 0, count: int = 300) -> tuple[Tensor, np.ndarray]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.images[first : first + count])[:, None], found.target[first : first + count]


def test_a_run_records_what_many_passes_over_its_test_split_say(runs: dict[str, Path]) -> None:
    for name in ("digits", "list"):
        found = journal(runs[name])
        assert {"test/acc", "test/loss", "test/mc_acc", "test/mc_loss", "test/mc_std_right", "test/mc_std_wrong"} == set(found)
        assert found["test/mc_std_wrong"] > found["test/mc_std_right"] > 0
        assert abs(found["test/mc_acc"] - found["test/acc"]) < 0.1
    found = journal(runs["values"])
    assert {f"test/mc_{name}" for name in ("loss", "mse", "mae", "r2", "std")} < set(found)
    assert 0.5 < found["test/mc_std"] < 200  # of a target with a deviation of 77


def test_measured_again_the_numbers_are_the_journals_bit_for_bit(runs: dict[str, Path]) -> None:
    for folder in runs.values():
        found = evaluate(folder)
        assert found.metrics == found.recorded == {key.removeprefix("test/"): value for key, value in journal(folder).items()}


def test_what_is_measured_is_that_of_the_mean_probabilities_in_numpy(runs: dict[str, Path]) -> None:
    run = open_run(runs["digits"])
    data = dnnkit.training.assemble.load_data(run.cfg)
    raw = run.scaling.undo(data.test.x)
    found, y = predict_spread(run, raw, 20), data.test.y.numpy()
    p, chosen = found.mean.numpy(), found.mean.numpy().argmax(1)
    spread = found.std.numpy()[np.arange(len(y)), chosen]
    expected = {
        "mc_acc": (chosen == y).mean(),
        "mc_loss": -np.log(p[np.arange(len(y)), y]).mean(),
        "mc_std_right": spread[chosen == y].mean(),
        "mc_std_wrong": spread[chosen != y].mean(),
    }
    for name, value in expected.items():
        assert journal(runs["digits"])[f"test/{name}"] == pytest.approx(value, rel=1e-5)


def test_more_passes_change_the_spread_but_not_the_plain_metrics(runs: dict[str, Path]) -> None:
    plain, more = evaluate(runs["digits"]), evaluate(runs["digits"], mc_samples=40)
    assert plain.metrics["acc"] == more.metrics["acc"]
    assert plain.metrics["loss"] == more.metrics["loss"]
    assert plain.metrics["mc_loss"] != more.metrics["mc_loss"]
    assert set(more.recorded) == {"acc", "loss"}


def test_plain_metrics_beside_monte_carlo_are_those_of_one_pass_without_dropout(runs: dict[str, Path]) -> None:
    for name in ("digits", "list"):
        run = open_run(runs[name])
        data = dnnkit.training.assemble.load_data(run.cfg)
        p, y = predict(run, run.scaling.undo(data.test.x)).numpy(), data.test.y.numpy()
        assert journal(runs[name])["test/acc"] == pytest.approx((p.argmax(1) == y).mean(), rel=1e-6)
        assert journal(runs[name])["test/loss"] == pytest.approx(-np.log(p[np.arange(len(y)), y]).mean(), rel=1e-5)


def test_shares_of_three_devices_are_asked_what_one_would_be() -> None:
    """Of minibatches of 1000 and 210 examples; the shares begin and end inside blocks."""
    network = nn.Sequential(nn.Linear(5, 20), nn.Dropout(), nn.Linear(20, 3)).double()
    task = Task(nn.functional.cross_entropy, mc_samples=3)
    x, y = torch.randn(1210, 5, dtype=torch.float64), torch.randint(0, 3, (1210,))

    def kept(world: int) -> list[Tensor]:
        by_batch: list[list[Tensor]] = [[], []]
        for rank in range(world):
            asked = MonteCarlo(task, seed=3)
            for index, batch in enumerate(evaluation_batches(x, y, rank=rank, world=world)):
                asked.keep(network, batch, index, 3, rank, world)
            for parts, mean, spread in zip(by_batch, asked._means, asked._spreads, strict=True):
                parts.append(torch.cat([mean, spread[:, None]], 1))
        return [torch.cat(parts) for parts in by_batch]

    alone, shared = kept(1), kept(3)
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_a_share_without_examples_is_no_trouble() -> None:
    asked = MonteCarlo(Task(nn.functional.cross_entropy, mc_samples=3), seed=3)
    asked.keep(nn.Dropout(), (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 0.0), 0, 3, 2, 3)
    assert asked._means[0].shape == (0, 3)
    assert asked._spreads[0].shape == (0,)


@pytest.mark.slow
def test_two_devices_record_the_numbers_of_one(runs: dict[str, Path], workdir: Path) -> None:
    """Weights as after one step on one device would differ in the last digits; without a step they are equal."""
    words = ["trainer.limit_train_batches=1", "optimizer.lr=1e-30", "data=digits", "dropout=dropout", "dropout.mc_samples=5"]
    one = journal(dnnkit.train(dnnkit.compose([*QUICK, *words])).run_dir)
    two = journal(dnnkit.train(dnnkit.compose([*QUICK, *words, "trainer=ddp_cpu", "trainer.devices=2"])).run_dir)
    assert set(one) == set(two)
    for key, value in one.items():
        assert two[key] == pytest.approx(value, rel=1e-6)


# predict


def test_predict_writes_the_mean_and_how_sure_it_is(runs: dict[str, Path], tmp_path: Path) -> None:
    x, y = digits()
    np.savez(tmp_path / "in.npz", x=x.numpy(), y=y)
    found = predict_file(runs["digits"], tmp_path / "in.npz", tmp_path / "out.csv", mc_samples=6)
    predict_file(runs["digits"], tmp_path / "in.npz", tmp_path / "out.npz", mc_samples=6, batch_size=37)
    rows = list(csv.reader((tmp_path / "out.csv").read_text().splitlines()))
    p_names, std_names = ([f"{stem}_{digit}" for digit in range(10)] for stem in ("p", "std"))
    assert rows[0] == ["row", "prediction", *p_names, *std_names, "entropy", "mutual_information"]
    numbers = np.array(rows[1:], dtype=float)
    arrays = dict(np.load(tmp_path / "out.npz"))
    np.testing.assert_array_equal(numbers[:, 2:12], arrays["probabilities"])
    np.testing.assert_array_equal(numbers[:, 12:22], arrays["std"])
    np.testing.assert_array_equal(numbers[:, 22:].T, [arrays["entropy"], arrays["mutual_information"]])
    np.testing.assert_allclose(arrays["probabilities"].sum(1), 1)
    assert found.metrics["acc"] == pytest.approx((numbers[:, 1] == y).mean(), rel=1e-6)
    plain = predict(open_run(runs["digits"]), x)
    assert 0 < (plain - torch.tensor(arrays["probabilities"])).abs().mean() < 0.2


def test_predicted_values_and_their_deviations_are_in_the_targets_units(runs: dict[str, Path], tmp_path: Path) -> None:
    from sklearn.datasets import load_diabetes

    x = load_diabetes(scaled=False).data[:20]
    np.savez(tmp_path / "in.npz", x=x)
    words = ["--input", str(tmp_path / "in.npz"), "--output", str(tmp_path / "out.csv"), "--mc-samples", "50"]
    assert main(["predict", str(runs["values"]), *words]) == 0
    rows = list(csv.reader((tmp_path / "out.csv").read_text().splitlines()))
    run = open_run(runs["values"])
    target = run.state.targets[0] if run.state.targets else "value"
    assert rows[0] == ["row", target, f"std_{target}"]
    numbers = np.array(rows[1:], dtype=float)
    plain = predict(run, torch.tensor(x))[:, 0].numpy()
    assert np.corrcoef(plain, numbers[:, 1])[0, 1] > 0.5
    assert np.all((numbers[:, 2] > 1) & (numbers[:, 2] < 200))
    np.testing.assert_array_equal(predict_spread(run, torch.tensor(x), 50).std[:, 0], numbers[:, 2])


# what is refused


def test_passes_without_dropout_are_refused(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"dropout.mc_samples: 9 passes would all be the same: this network has no dropout"):
        dnnkit.build(dnnkit.compose([*QUICK, "dropout.mc_samples=9"]))
    with pytest.raises(ConfigError, match="mc_samples: must be an integer at least 0"):
        dnnkit.compose([*QUICK, "dropout=dropout", "dropout.mc_samples=-1"])
    monkeypatch.setattr("dnnkit.training.finished.dropouts", lambda network: {})
    with pytest.raises(ConfigError, match="the network of this run has no dropout"):
        evaluate(runs["list"], mc_samples=3)
    assert main(["evaluate", str(runs["list"]), "--mc-samples", "0"]) == 2


def test_a_dropout_in_a_layer_list_does_not_have_the_kinds_setting() -> None:
    words = ["model=sequential", "model.layers=[flatten,{dropout: 0.3, mc_samples: 5},{dense: auto}]"]
    with pytest.raises(ConfigError, match="mc_samples: unknown setting"):
        dnnkit.compose(words)
