"""The probe: its numbers against NumPy in float64 and closed forms, and that it leaves everything as it was."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import dnnkit
from dnnkit import plugins
from dnnkit.diagnostics import MEASURES, LayerSignal, as_metrics, evenly_spaced, probe
from dnnkit.registry import initializers
from dnnkit.training.run import prepare_run


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def stack(initializer: str, activation: Callable[[], nn.Module], width: int, depth: int, inputs: int | None = None) -> nn.Sequential:
    """`depth` layers of `width` units with zero biases, and their weights from a named initializer."""
    plugins.load()
    fill = initializers.get(initializer).function
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for index in range(depth):
            dense = nn.Linear((inputs or width) if index == 0 else width, width)
            fill(dense.weight.data)
            nn.init.zeros_(dense.bias)
            layers += [dense, activation()]
    return nn.Sequential(*layers)


def linear_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean over samples of Σ prediction · target: its gradient is target / n."""
    return (prediction * target).sum() / len(prediction)


# The numbers.


def test_a_two_layer_network_is_measured_as_by_hand_in_numpy() -> None:
    net = nn.Sequential(OrderedDict({"00_dense": nn.Linear(5, 7), "00_relu": nn.ReLU(), "01_dense": nn.Linear(7, 3)})).double()
    x, y = normal(40, 5), normal(40, 3, seed=1)
    first, second = probe(net, x, y, F.mse_loss)

    w0, b0, w1, b1 = (parameter.detach().numpy() for parameter in net.parameters())
    z0 = x.numpy() @ w0.T + b0
    a0 = np.maximum(z0, 0)
    z1 = a0 @ w1.T + b1
    d1 = 2 * (z1 - y.numpy()) / z1.size
    d0 = (d1 @ w1) * (z0 > 0)
    for found, out, delta, g, w in ((first, a0, d0, d0.T @ x.numpy(), w0), (second, z1, d1, d1.T @ a0, w1)):
        expected = {
            "mean": out.mean(),
            "variance": out.var(axis=0).mean(),
            "second_moment": (out**2).mean(),
            "delta_norm": np.sqrt((delta**2).sum()),
            "gradient_ratio": np.linalg.norm(g) / np.linalg.norm(w),
        }
        assert {name: getattr(found, name) for name in expected} == pytest.approx(expected, rel=1e-12)
    assert first.dead == (a0.max(axis=0) <= 0).mean()
    assert second.dead is None
    assert [(s.layer, s.samples, s.units) for s in (first, second)] == [("00_dense", 40, 7), ("01_dense", 40, 3)]


def test_a_unit_of_a_convolution_is_a_channel_and_its_pixels_are_samples() -> None:
    conv = nn.Conv2d(1, 2, 1, bias=False).double()
    conv.weight.data[:] = torch.tensor([2.0, -1.0]).reshape(2, 1, 1, 1)
    x = torch.arange(1.0, 25.0, dtype=torch.float64).reshape(6, 1, 2, 2)  # positive: the second channel is off for all
    net = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    (found,) = probe(net, x, torch.ones(6, 2, dtype=torch.float64), linear_loss)
    pixels = x.numpy().ravel()
    assert found.units == 2
    assert found.mean == pytest.approx(2 * pixels.mean() / 2)
    assert found.variance == pytest.approx((2 * pixels).var() / 2)
    assert found.second_moment == pytest.approx(((2 * pixels) ** 2).mean() / 2)
    assert found.dead == 0.5
    assert found.delta_norm == pytest.approx(math.sqrt(6 * (1 / 6) ** 2))  # one pixel of a window passes the maximum


@pytest.mark.parametrize("dead", [0, 1, 13, 50])
def test_units_that_are_off_for_every_sample_are_counted_exactly(dead: int) -> None:
    dense = nn.Linear(10, 50)
    x = normal(200, 10, dtype=torch.float32)
    dense.bias.data[:] = 0
    dense.bias.data[:dead] = -1000
    net = nn.Sequential(dense, nn.ReLU())
    assert [s.dead for s in probe(net, x, torch.zeros(200, 50), F.mse_loss)] == [pytest.approx(dead / 50)]


def test_one_sample_that_passes_keeps_a_unit_alive() -> None:
    dense = nn.Linear(1, 2, bias=False)
    dense.weight.data[:] = torch.tensor([[1.0], [-1.0]])
    x = torch.full((100, 1), -1.0)
    net = nn.Sequential(dense, nn.ReLU())
    assert probe(net, x, torch.zeros(100, 2), F.mse_loss)[0].dead == 0.5
    x[63] = 0.001
    assert probe(net, x, torch.zeros(100, 2), F.mse_loss)[0].dead == 0.0


@pytest.mark.parametrize("activation", [nn.LeakyReLU(), nn.ELU(), nn.SELU(), nn.Tanh(), nn.Identity()])
def test_units_that_learn_below_zero_are_not_counted(activation: nn.Module) -> None:
    dense = nn.Linear(4, 8)
    dense.bias.data[:] = -1000
    assert probe(nn.Sequential(dense, activation), normal(20, 4, dtype=torch.float32), torch.zeros(20, 8), F.mse_loss)[0].dead is None


@pytest.mark.parametrize("before", [True, False])
def test_dead_units_are_counted_at_the_activation_wherever_the_normalization_is(before: bool) -> None:
    dense, norm = nn.Linear(10, 4, bias=before), nn.BatchNorm1d(4)
    norm.bias.data[:] = torch.tensor([-1e6, 0, 0, 5.0])
    if not before:
        dense = nn.Linear(10, 4)
        dense.bias.data[:] = torch.tensor([-1e6, 0, 0, 0])
        norm.bias.data[0] = 7.0  # the output of the dead unit, positive
    parts = [dense, norm, nn.ReLU()] if before else [dense, nn.ReLU(), norm]
    assert probe(nn.Sequential(*parts), normal(99, 10, dtype=torch.float32), torch.zeros(99, 4), F.mse_loss)[0].dead == 0.25


def test_the_output_of_a_block_is_what_its_normalization_gives() -> None:
    net = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.BatchNorm1d(30, eps=1e-30), nn.Linear(30, 2)).double()
    found = probe(net, 9 * normal(300, 6), normal(300, 2), F.mse_loss)[0]
    assert found.dead == 0  # one that is off would give 0 / 0
    assert (found.mean, found.variance, found.second_moment) == pytest.approx((0, 1, 1), abs=1e-9)


def test_signals_and_gradients_too_small_to_be_squared_in_float32_are_measured() -> None:
    (found,) = probe(nn.Linear(2, 2, bias=False), torch.full((4, 2), 1e-30), torch.ones(4, 2), linear_loss)
    assert 0 < found.second_moment < 1e-59
    net = nn.Linear(2, 2)
    (found,) = probe(net, torch.ones(4, 2), torch.full((4, 2), 1e-30), linear_loss)
    assert found.delta_norm == pytest.approx(math.sqrt(8) * 1e-30 / 4, rel=1e-6)
    assert found.gradient_ratio == pytest.approx(2e-30 / float(net.weight.detach().norm()), rel=1e-6)


def test_what_is_not_finite_is_reported_as_it_is() -> None:
    dense = nn.Linear(2, 2)
    dense.weight.data[:] = math.inf
    found = probe(nn.Sequential(dense, nn.ReLU()), torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.zeros(2, 2), F.mse_loss)[0]
    assert math.isnan(found.second_moment)
    assert found.dead is None


# Orders of magnitude, from the theory of each initializer.


def test_selu_keeps_the_second_moment_near_one_through_20_layers_of_lecun() -> None:
    signals = probe(
        stack("lecun_normal", nn.SELU, 256, 20), normal(1000, 256, dtype=torch.float32), normal(1000, 256, seed=1).float(), linear_loss
    )
    assert len(signals) == 20
    assert all(0.7 < signal.second_moment < 1.4 for signal in signals)
    assert all(0.7 < signal.variance < 1.4 for signal in signals)
    # E[selu'²] = 1.0716 for each layer between
    assert signals[0].delta_norm / signals[-1].delta_norm == pytest.approx(1.0716 ** (19 / 2), rel=0.25)


def test_sigmoid_with_glorot_loses_three_quarters_of_the_gradient_per_layer() -> None:
    net = stack("glorot_uniform", nn.Sigmoid, 256, 20)
    signals = probe(net, normal(1000, 256, dtype=torch.float32), normal(1000, 256, seed=1).float(), linear_loss)
    measured = math.log(signals[0].delta_norm / signals[-1].delta_norm) / 19
    assert measured == pytest.approx(math.log(0.25), abs=0.1)


def test_sigmoid_under_standard_normal_weights_is_nearly_a_step_function() -> None:
    dense = nn.Linear(784, 300, bias=False)
    dense.weight.data = normal(300, 784, seed=2, dtype=torch.float32)
    found = probe(nn.Sequential(dense, nn.Sigmoid()), normal(1000, 784).float(), torch.zeros(1000, 300), F.mse_loss)[0]
    # z has deviation √784 = 28, and E[σ(1 − σ)] is about its density at 0
    assert found.second_moment == pytest.approx(0.5 - 1 / (28 * math.sqrt(2 * math.pi)), abs=0.01)


def test_relu_with_he_keeps_the_second_moment_and_half_the_units() -> None:
    net = stack("he_normal", nn.ReLU, 256, 10)
    signals = probe(net, normal(1000, 256, dtype=torch.float32), normal(1000, 256, seed=1).float(), linear_loss)
    # y is half a normal law of variance 2: mean 1/√π, second moment 1
    assert (signals[0].mean, signals[0].second_moment) == pytest.approx((1 / math.sqrt(math.pi), 1), rel=0.1)
    assert 0.3 < signals[-1].second_moment < 3


# What the mode does.


def test_dropout_is_off() -> None:
    plain = nn.Sequential(nn.Linear(6, 50), nn.SELU(), nn.Linear(50, 2))
    x, y = normal(30, 6).float(), normal(30, 2).float()
    expected = probe(plain, x, y, F.mse_loss)
    dropping = nn.Sequential(nn.Dropout(0.5), plain[0], plain[1], nn.AlphaDropout(0.5), plain[2])
    found = probe(dropping, x, y, F.mse_loss)
    assert [[getattr(s, name) for name in MEASURES] for s in found] == [[getattr(s, name) for name in MEASURES] for s in expected]


def test_batch_norm_normalizes_by_the_probed_examples_while_the_network_trains_and_by_moving_statistics_otherwise() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8, eps=1e-30)).double()
    x, y = 10 + normal(200, 3), torch.zeros(200, 8, dtype=torch.float64)
    trains = probe(net, x, y, F.mse_loss)[0]
    assert (trains.mean, trains.variance) == pytest.approx((0, 1), abs=1e-9)
    evaluates = probe(net.eval(), x, y, F.mse_loss)[0]  # nothing has moved: mean 0, variance 1
    z = x.numpy() @ net[0].weight.detach().numpy().T + net[0].bias.detach().numpy()
    assert (evaluates.mean, evaluates.variance) == pytest.approx((z.mean(), z.var(axis=0).mean()))


class Moody(nn.Module):
    """Draws from the random state in every mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


def test_equal_weights_give_equal_numbers_whatever_the_random_state() -> None:
    net = nn.Sequential(nn.Linear(6, 5), Moody(), nn.Dropout(), nn.Linear(5, 2))
    x, y = normal(30, 6).float(), normal(30, 2).float()
    first = probe(net, x, y, F.mse_loss)
    torch.rand(3)
    assert probe(net, x, y, F.mse_loss) == first


# What is left behind: nothing.


class Odd(nn.Module):
    """Moves its buffers in every mode, replaces one, makes one, and draws."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("replaced", torch.ones(2))
        self.register_buffer("spread", torch.zeros(1).expand(3))
        self.register_buffer("empty", None)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.spread.data[0] = 5
        self.replaced = self.replaced * 2
        self.empty = torch.rand(1)
        return x


def network() -> nn.Sequential:
    """With everything that a forward or backward pass might change; half of the gradients are there."""
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.PReLU(), nn.Dropout(), Odd(), nn.Linear(8, 8), nn.RReLU(inplace=True),
        nn.BatchNorm1d(8), parametrizations.spectral_norm(nn.Linear(8, 4)), nn.Linear(4, 2),
    )  # fmt: skip
    net[8].eval()
    net[6].weight.requires_grad_(False)
    net[1].weight.grad = normal(8, 6).float()
    return net


def state(net: nn.Module) -> dict[str, Any]:
    """Every bit that could differ: tensors by identity and bytes, modes, hooks, random states."""

    def held(tensor: Tensor | None) -> Any:
        return None if tensor is None else (id(tensor), tensor.dtype, tensor.detach().contiguous().numpy().tobytes())

    return {
        "parameters": {name: (held(p), held(p.grad), p.requires_grad) for name, p in net.named_parameters()},
        "buffers": [(name, held(b)) for module in net.modules() for name, b in module._buffers.items()],
        "modes": [module.training for module in net.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in net.modules()],
        "random": torch.get_rng_state().numpy().tobytes(),
        "grad": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("mode", [True, False])
def test_weights_gradients_buffers_modes_hooks_and_random_state_stay_bit_for_bit(mode: bool) -> None:
    net = network() if mode else network().eval()
    x, y = normal(30, 2, 3).float(), normal(30, 2).float()
    before = state(net)
    with torch.no_grad():
        assert len(probe(net, x, y, F.mse_loss)) == 4
    assert state(net) == before
    assert not x.requires_grad


def test_a_pass_that_raises_leaves_everything_as_it_was() -> None:
    net = network()
    before = state(net)

    def broken(prediction: Tensor, target: Tensor) -> Tensor:
        raise ArithmeticError("a broken loss")

    with pytest.raises(ArithmeticError, match="a broken loss"):
        probe(net, normal(30, 6).float(), normal(30, 2).float(), broken)
    assert state(net) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_numbers_agree_and_its_random_state_stays() -> None:
    net = network()
    x, y = normal(30, 6).float(), normal(30, 2).float()
    expected = [s.to_dict() for s in probe(net, x, y, F.mse_loss)]
    net = net.cuda()
    before = torch.cuda.get_rng_state()
    for found, wanted in zip(probe(net, x, y, F.mse_loss), expected, strict=True):
        assert found.to_dict() == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    assert torch.equal(torch.cuda.get_rng_state(), before)


# Which layers, which examples.


def test_layers_have_the_names_that_the_network_gives_them() -> None:
    run = prepare_run(dnnkit.compose(["model.hidden=[20,10]"]))
    signals = probe(run.network, run.data.train.x, run.data.train.y, F.cross_entropy)
    assert [(s.layer, s.units, s.samples) for s in signals] == [("00_dense", 20, 1000), ("01_dense", 10, 1000), ("02_dense", 10, 1000)]
    # a loss of log 10 before training, and δ of the logits: (softmax − one-hot) / n
    assert signals[2].delta_norm == pytest.approx(math.sqrt(0.9 / 1000), rel=0.3)


def test_a_network_that_is_one_layer_is_named_by_its_type() -> None:
    assert probe(nn.Linear(2, 2), torch.ones(3, 2), torch.ones(3, 2), F.mse_loss)[0].layer == "linear"


class Stranger(nn.Module):
    """A model of somebody else: layers out of order, one used twice, one never, one after a tuple, functions as activations."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 2)
        self.recurrent = nn.LSTM(4, 5, batch_first=True)
        self.unused = nn.Linear(9, 9)
        self.body = nn.ModuleDict({"twice": nn.Linear(4, 4), "aside": nn.Linear(4, 3)})
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.body["twice"](x))
        x = torch.tanh(self.body["twice"](x))
        self.body["aside"](x)
        return self.head(self.recurrent(x)[0][:, -1])


def test_any_module_is_probed_in_the_order_of_first_calls() -> None:
    net, x = Stranger().double(), normal(30, 7, 4)
    signals = {s.layer: s for s in probe(net, x, torch.zeros(30, 2), F.mse_loss)}
    assert list(signals) == ["body.twice", "body.aside", "head"]
    first_call = torch.relu(net.body["twice"](x)).detach().numpy()
    assert signals["body.twice"].second_moment == pytest.approx((first_call**2).mean())
    assert signals["body.twice"].units == 4
    assert (signals["body.aside"].delta_norm, signals["body.aside"].gradient_ratio) == (0, 0)


def test_a_network_without_weight_layers_has_no_signals() -> None:
    assert probe(nn.Flatten(), torch.ones(2, 3), torch.ones(2, 3), F.mse_loss) == []


def test_an_activation_that_works_in_place_changes_no_number() -> None:
    dense = nn.Linear(6, 9)
    x, y = normal(30, 6).float(), normal(30, 9).float()
    in_place, apart = (probe(nn.Sequential(dense, nn.ReLU(inplace=where)), x, y, F.mse_loss) for where in (True, False))
    assert in_place == apart
    of_output = 2 * (F.relu(dense(x)) - y).detach().norm() / y.numel()
    assert apart[0].delta_norm < 0.9 * float(of_output)


def test_a_frozen_weight_has_no_ratio_but_its_layer_a_gradient() -> None:
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 2))
    x, y = normal(30, 6).float(), normal(30, 2).float()
    free = probe(net, x, y, F.mse_loss)
    frozen = probe(net.requires_grad_(False), x, y, F.mse_loss)
    assert [s.gradient_ratio for s in frozen] == [None, None]
    assert [s.delta_norm for s in frozen] == [s.delta_norm for s in free]


def test_a_zero_weight_has_no_ratio() -> None:
    net = nn.Linear(6, 2)
    nn.init.zeros_(net.weight)
    assert probe(net, normal(30, 6).float(), normal(30, 2).float(), F.mse_loss)[0].gradient_ratio is None


def test_a_parametrized_weight_is_measured_as_the_pass_used_it() -> None:
    net = parametrizations.weight_norm(nn.Linear(6, 2, bias=False).double())
    x, y = normal(30, 6), normal(30, 2)
    (found,) = probe(net, x, y, linear_loss)
    w = net.weight.detach().numpy()
    assert found.gradient_ratio == pytest.approx(np.linalg.norm(y.numpy().T @ x.numpy() / 30) / np.linalg.norm(w))


def test_a_parametrization_is_no_part_of_the_signal_though_its_weight_have_the_shape_of_the_batch() -> None:
    first, second = nn.Linear(5, 3), nn.Linear(3, 4)
    x, y = normal(4, 5).float(), torch.zeros(4, 4)
    expected = probe(nn.Sequential(first, second), x, y, F.mse_loss)[0].second_moment
    nn.utils.parametrize.register_parametrization(second, "weight", nn.Softplus())
    assert probe(nn.Sequential(first, second), x, y, F.mse_loss)[0].second_moment == expected


def test_at_most_1000_examples_are_read_from_the_whole_of_the_data() -> None:
    seen = []

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        seen.append(target)
        return F.cross_entropy(prediction, target)

    sorted_labels = torch.arange(10).repeat_interleave(700)
    assert probe(nn.Linear(4, 10), torch.ones(7000, 4), sorted_labels, loss)[0].samples == 1000
    assert torch.bincount(seen[0]).tolist() == [100] * 10
    assert probe(nn.Linear(4, 10), torch.ones(999, 4), sorted_labels[:999], loss)[0].samples == 999


@pytest.mark.parametrize("n", [1, 2, 999, 1000, 1001, 1437, 55000])
def test_examples_are_evenly_spaced(n: int) -> None:
    rows = evenly_spaced(n, 1000).tolist()
    assert rows == [i * n // min(n, 1000) for i in range(min(n, 1000))]
    assert len(set(rows)) == min(n, 1000)
    assert rows[-1] < n


def test_data_are_brought_to_the_precision_of_the_network_and_labels_are_not() -> None:
    x, y = normal(30, 6).float(), torch.zeros(30, dtype=torch.int64)
    assert probe(nn.Linear(6, 3).double(), x, y, F.cross_entropy)[0].units == 3
    assert probe(nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 3)), torch.ones(30, 2, dtype=torch.int64), y, F.cross_entropy)


def test_no_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one example"):
        probe(nn.Linear(2, 2), torch.ones(0, 2), torch.ones(0, 2), F.mse_loss)


def test_metrics_are_named_by_layer_and_measure_and_leave_out_what_has_no_value() -> None:
    assert as_metrics(
        [
            LayerSignal("00_dense", 9, 10, 0.5, 2.0, 1.0, None, 0.5, 0.25),
            LayerSignal("01_dense", 9, 10, 0.5, 2.0, 0.0, None, 0.25, 0.25),
            LayerSignal("02_dense", 9, 1, 1.0, 2.0, 3.0, 0.5, 4.0, None),
        ]
    ) == {
        "signal/00_dense/mean": 0.5,
        "signal/00_dense/variance": 2.0,
        "signal/00_dense/second_moment": 1.0,
        "signal/00_dense/delta_norm": 0.5,
        "signal/00_dense/gradient_ratio": 0.25,
        "signal/01_dense/mean": 0.5,
        "signal/01_dense/variance": 2.0,
        "signal/01_dense/second_moment": 0.0,
        "signal/01_dense/delta_norm": 0.25,
        "signal/01_dense/gradient_ratio": 0.25,
        "signal/02_dense/mean": 1.0,
        "signal/02_dense/variance": 2.0,
        "signal/02_dense/second_moment": 3.0,
        "signal/02_dense/dead": 0.5,
        "signal/02_dense/delta_norm": 4.0,
        "signal/00_dense/delta_ratio": 0.125,
        "signal/01_dense/delta_ratio": 0.0625,
        "signal/02_dense/delta_ratio": 1.0,
    }
