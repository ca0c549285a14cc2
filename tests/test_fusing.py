"""Batch normalization after training: folded into a layer where that changes no output, refused with the reason where it would.

The oracle is the network before fusing, in evaluation mode and float64, with statistics, scales and offsets far from their start.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dnnkit
from dnnkit import plugins
from dnnkit.checkpoint import load, save
from dnnkit.cli.main import main
from dnnkit.errors import CheckpointError, ConfigError, DataError
from dnnkit.network.fusing import Fused, apply_structure, fuse, normalizations
from dnnkit.registry import REGISTRIES
from dnnkit.training.evaluate import evaluate
from dnnkit.training.finished import open_run
from dnnkit.training.fuse import fuse_run
from dnnkit.training.predict import predict, predict_file
from dnnkit.training.resume import resume

plugins.load()

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@pytest.fixture(autouse=True)
def _the_same_weights_every_time() -> None:
    torch.manual_seed(0)


def as_if_trained(network: nn.Module, positive: bool = False) -> nn.Module:
    """In float64, with every batch normalization away from the identity; scales of both signs unless `positive`."""
    generator = torch.Generator().manual_seed(1)
    for module in network.double().modules():
        if isinstance(module, BATCH_NORMS):
            if module.running_mean is None or module.running_var is None:
                continue
            for tensor in (module.running_mean, module.weight, module.bias):
                if tensor is not None:
                    tensor.data.copy_(torch.randn(len(tensor), generator=generator))
            module.running_var.copy_(torch.rand(len(module.running_var), generator=generator) * 3 + 0.05)
            if positive and module.weight is not None:
                module.weight.data.abs_()
    return network


def error(network: nn.Module, fused: Fused, inputs: tuple[int, ...]) -> float:
    """The greatest difference of the outputs over the greatest output."""
    x = torch.randn(64, *inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before, after = network.eval()(x), fused.network(x)
    return float((before - after).abs().max() / before.abs().max())


def reasons(fused: Fused) -> dict[str, str]:
    return {refusal.normalization: refusal.reason for refusal in fused.refusals}


def folds(fused: Fused) -> dict[str, str]:
    return {fold.normalization: f"{fold.side} {fold.into}" for fold in fused.folds}


def built(*words: str) -> nn.Module:
    return dnnkit.build(dnnkit.compose(["normalization=batch_norm", *words])).net


# what folds


@pytest.mark.parametrize("activation", ["selu", "relu", "prelu", "rrelu", "tanh", "identity"])
@pytest.mark.parametrize("position", ["pre", "post"])
def test_all_three_placements_fold_without_a_trace_in_the_outputs(position: str, activation: str) -> None:
    network = as_if_trained(
        built(f"normalization.position={position}", "normalization.on_input=true", f"activation={activation}", "dropout=dropout")
    )
    fused = fuse(network, (1, 8, 8))
    assert not fused.refusals
    where = {"pre": "before", "post": "after"}[position]
    if activation != "identity":
        after = {"pre": ("00", "01"), "post": ("01", "02")}[position]
        expected = {"input_batch_norm": "after 00_dense"} | {
            f"0{index}_batch_norm": f"{where} {into}_dense" for index, into in enumerate(after)
        }
        assert folds(fused) == expected
    assert error(network, fused, (1, 8, 8)) < 1e-12
    assert not any(isinstance(module, BATCH_NORMS) for module in fused.network.modules())


@pytest.mark.parametrize(
    ("words", "stays"),
    [
        (["model=cnn"], []),
        (["model=cnn", "normalization.on_input=true"], ["input_batch_norm"]),
        (["model=cnn", "normalization.position=post"], ["00_batch_norm"]),
        (["model=cnn", "normalization.position=post", "model.pool=avg", "model.kernel=1", "normalization.on_input=true"], []),
        (["model=resmlp", "normalization.on_input=true"], []),
        (["model=resmlp", "normalization.position=post"], ["00_batch_norm", "block_1.02_batch_norm", "block_2.04_batch_norm"]),
        (["model=autoencoder", "normalization.position=post", "normalization.on_input=true"], []),
        (["normalization.unbiased=false", "normalization.on_input=true"], []),
    ],
)
def test_every_model_computes_the_same_after_fusing(words: list[str], stays: list[str]) -> None:
    network = as_if_trained(built(*words), positive=True)
    fused = fuse(network, (1, 8, 8))
    assert sorted(reasons(fused)) == stays
    assert error(network, fused, (1, 8, 8)) < 1e-12
    left = [module for module in fused.network.modules() if isinstance(module, BATCH_NORMS)]
    assert len(left) == len(stays)


#: The notes' two networks: batch normalization after the activation, and before it with dense layers that have no bias.
NET_A = """[flatten,{normalization: batch_norm},{dense: 300,activation: elu},{normalization: batch_norm},
    {dense: 100,activation: elu},{normalization: batch_norm},{dense: auto}]"""
NET_B = """[flatten,{normalization: batch_norm},{dense: 300,use_bias: false},{normalization: batch_norm},{activation: elu},
    {dense: 100,use_bias: false},{normalization: batch_norm},{activation: elu},{dense: auto}]"""


@pytest.mark.parametrize("layers", [NET_A, NET_B])
def test_the_classic_networks_shrink_to_their_dense_layers(layers: str) -> None:
    """A has 271346 numbers, B 270946; without batch normalization, and a bias in each dense layer, both have 266610."""
    cfg = dnnkit.compose([f"model.layers={' '.join(layers.split())}", "model=sequential"])
    from dnnkit.network import build_network

    network = as_if_trained(build_network({**cfg.values, "task": "classification"}, (1, 28, 28), 10, 0))
    fused = fuse(network, (1, 28, 28))
    assert not fused.refusals
    assert sum(parameter.numel() for parameter in fused.network.parameters()) == 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10 == 266610
    assert error(network, fused, (1, 28, 28)) < 1e-12


def chain(*layers: nn.Module) -> nn.Module:
    return as_if_trained(nn.Sequential(*layers))


def positive(*layers: nn.Module) -> nn.Module:
    return as_if_trained(nn.Sequential(*layers), positive=True)


FOLDABLE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, str]]] = {
    "a convolution with padding, into itself": (
        lambda: chain(nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4)), (3, 7, 7), {"1": "before 0"},
    ),
    "into the next convolution without padding": (
        lambda: chain(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, bias=False)), (3, 7, 7), {"1": "after 2"},
    ),
    "into a convolution that pads with its own border": (
        lambda: chain(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")), (3, 7, 7), {"0": "after 1"},
    ),
    "into a convolution with groups": (lambda: chain(nn.BatchNorm2d(6), nn.Conv2d(6, 9, 3, groups=3)), (6, 7, 7), {"0": "after 1"}),
    "into a convolution along time": (lambda: chain(nn.BatchNorm1d(6), nn.Conv1d(6, 4, 3)), (6, 9), {"0": "after 1"}),
    "through flattening, pixel by pixel": (
        lambda: chain(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 20, 5)), (3, 4, 5), {"0": "after 2"},
    ),
    "through dropout and averages": (
        lambda: chain(nn.BatchNorm2d(3), nn.Dropout(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 5)), (3, 4, 4), {"0": "after 4"},
    ),
    "through maxima, with scales above zero": (
        lambda: positive(nn.BatchNorm2d(3), nn.MaxPool2d(3, 2, padding=1), nn.Conv2d(3, 2, 2)), (3, 6, 6), {"0": "after 2"},
    ),
    "backwards through dropout and averages": (
        lambda: chain(nn.Conv2d(3, 4, 3), nn.Dropout2d(), nn.AvgPool2d(2), nn.BatchNorm2d(4), nn.Tanh()), (3, 6, 6), {"3": "before 0"},
    ),
    "two after another, forwards": (
        lambda: chain(nn.ReLU(), nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.Linear(4, 3)), (4,), {"1": "after 3", "2": "after 3"},
    ),
    "two after another, backwards": (
        lambda: chain(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.ReLU()), (4,), {"1": "before 0", "2": "before 0"},
    ),
    "one on each side of a layer": (
        lambda: chain(nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 3), nn.BatchNorm1d(3)), (4,), {"1": "after 2", "3": "before 2"},
    ),
    "without scale and offset": (lambda: chain(nn.BatchNorm1d(4, affine=False), nn.Linear(4, 3)), (4,), {"0": "after 1"}),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDABLE)
def test_whatever_commutes_with_an_affine_map_is_passed_through(name: str) -> None:
    make, inputs, expected = FOLDABLE[name]
    network = make()
    fused = fuse(network, inputs)
    assert folds(fused) == expected
    assert not fused.refusals
    assert error(network, fused, inputs) < 1e-12


# what is refused, and why


class Branches(nn.Module):
    """A residual branch that ends in batch normalization, and weights that are used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.second, self.late = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        """Gives z + late(relu(second(z))) of z = norm(first(x))."""
        z = self.norm(self.first(x))
        kept: Tensor = z + self.late(torch.relu(self.second(z)))
        return kept


class Tied(nn.Module):
    """Decodes with the transposed weights of its encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.encode = nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Gives Wᵀ·(W·norm(x) + b)."""
        return nn.functional.linear(self.encode(self.norm(x)), self.encode.weight.t())


class Around(nn.Module):
    """What is normalized also goes around the normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        """Gives z + norm(z) of z = dense(x)."""
        z = self.dense(x)
        kept: Tensor = z + self.norm(z)
        return kept


class Undecided(nn.Module):
    """What it calls depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dense = nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Gives dense(norm(x)), or dense(x)."""
        result: Tensor = self.dense(self.norm(x)) if x.sum() > 0 else self.dense(x)
        return result


class Shifted(nn.BatchNorm1d):
    """Not what its base class computes."""

    def forward(self, input: Tensor) -> Tensor:
        """Adds 1."""
        return super().forward(input) + 1


def twice(norm: nn.Module | None = None) -> nn.Module:
    layer = nn.Linear(4, 4)
    return chain(layer, norm or nn.BatchNorm1d(4), nn.ReLU(), layer)


def one_norm_twice() -> nn.Module:
    norm = nn.BatchNorm1d(4)
    return chain(nn.Linear(4, 4), norm, nn.ReLU(), norm)


def hooked() -> nn.Module:
    network = chain(nn.Linear(4, 4), nn.BatchNorm1d(4))
    network[0].register_forward_hook(lambda module, given, output: output * 2)  # type: ignore[index]
    return network


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, str]] = {
    "layer norm": (lambda: chain(nn.Linear(4, 4), nn.LayerNorm(4)), (4,), "1", "statistics from each example"),
    "group norm": (lambda: chain(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4)), (4, 2, 2), "1", "statistics from each example"),
    "rms norm": (lambda: chain(nn.Linear(4, 4), nn.RMSNorm(4)), (4,), "1", "statistics from each example"),
    "instance norm": (lambda: chain(nn.Conv2d(4, 4, 1), nn.InstanceNorm2d(4)), (4, 3, 3), "1", "statistics from each example"),
    "no moving statistics": (
        lambda: chain(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)), (4,), "1", "no moving statistics",
    ),
    "zero padding next": (
        lambda: chain(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)), (3, 6, 6), "0", "surrounds its input with zeros",
    ),
    "padding=same next": (
        lambda: chain(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding="same")), (3, 6, 6), "0", "surrounds its input with zeros",
    ),
    "a padding layer next": (lambda: chain(nn.BatchNorm2d(3), nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3)), (3, 6, 6), "0", "pads with zeros"),
    "averages over padding": (
        lambda: chain(nn.BatchNorm2d(3), nn.AvgPool2d(2, padding=1), nn.Conv2d(3, 4, 1)), (3, 6, 6), "0", "pads with zeros",
    ),
    "maxima, with scales below zero": (
        lambda: chain(nn.BatchNorm2d(3), nn.MaxPool2d(2), nn.Conv2d(3, 4, 1)), (3, 6, 6), "0", "scales are not positive",
    ),
    "before an activation that follows no layer": (
        lambda: chain(nn.ReLU(), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)), (4,), "1", "no weight layer is directly before it, but 0",
    ),
    "at the end of a residual branch": (lambda: as_if_trained(Branches()), (4,), "late", "goes to add"),
    "what goes around it": (lambda: as_if_trained(Around()), (4,), "norm", "the output of dense, also goes to add"),
    "a layer called twice": (twice, (4,), "1", "0 is called 2 times"),
    "a normalization called twice": (one_norm_twice, (4,), "1", "it is called 2 times"),
    "tied weights": (lambda: as_if_trained(Tied()), (4,), "norm", "shares its weights"),
    "an order that depends on the data": (lambda: as_if_trained(Undecided()), (4,), "norm", "order of calls in this network is not known"),
    "a subclass that computes something else": (lambda: chain(nn.Linear(4, 4), Shifted(4)), (4,), "1", "does not compute in evaluation"),
    "hooks": (hooked, (4,), "1", "has hooks"),
    "a dense layer along another dimension": (
        lambda: chain(nn.BatchNorm1d(4), nn.Linear(4, 2)), (4, 4), "0", "acts on another dimension",
    ),
    "units along another dimension": (lambda: chain(nn.Linear(4, 4), nn.BatchNorm1d(4)), (4, 4), "1", "more than one value of each unit"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_folded_stays_with_its_reason(name: str) -> None:
    make, inputs, norm, reason = REFUSED[name]
    network = make()
    fused = fuse(network, inputs)
    assert reason in reasons(fused)[norm]
    assert type(fused.network.get_submodule(norm)) is type(network.get_submodule(norm))
    if name != "no moving statistics":
        assert error(network, fused, inputs) < 1e-12 or "hooks" in name


def test_a_branch_folds_what_it_can() -> None:
    fused = fuse(network := as_if_trained(Branches()), (4,))
    assert folds(fused) == {"norm": "before first"}
    assert error(network, fused, (4,)) < 1e-12


def test_a_network_stays_as_it_was() -> None:
    network = as_if_trained(nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Dropout())).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fuse(network, (4,))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert network[0].bias is None  # type: ignore[index]
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_folding_is_done_in_float64_and_rounded_once() -> None:
    """With a mean of 1000 that cancels against the bias: in float32 the offset β − mean·s would lose three digits."""
    network = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1, eps=0.0)).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, 3.0]]))
        network[0].bias.fill_(1000.0)
        network[1].running_mean.fill_(1000.0)
        network[1].running_var.fill_(0.3)
        network[1].weight.fill_(0.7)
        network[1].bias.fill_(0.1)
    layer = fuse(network, (2,)).network[0]  # type: ignore[index]
    gamma, beta, var = (float(np.float32(value)) for value in (0.7, 0.1, 0.3))
    scale = gamma / np.sqrt(var)
    assert layer.weight.tolist() == np.float32([[scale, 3 * scale]]).tolist()
    assert layer.bias.tolist() == [float(np.float32(scale * 1000 + (beta - 1000 * scale)))]


@pytest.mark.parametrize("record", [record.name for record in REGISTRIES["normalization"]])
def test_every_normalization_is_seen(record: str) -> None:
    """A new one is folded, or refused; never overlooked."""
    cfg = dnnkit.compose([f"normalization={record}"])
    network = as_if_trained(dnnkit.build(cfg).net)
    assert len(normalizations(network)) == 2
    fused = fuse(network, (1, 8, 8))
    assert len(fused.folds) + len(fused.refusals) == 2
    assert error(network, fused, (1, 8, 8)) < 1e-12


def test_a_structure_that_the_network_does_not_have_is_refused() -> None:
    for wrong in ({"1": "2"}, {"0": "1"}, {"9": "0"}):
        with pytest.raises(KeyError):
            apply_structure(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()), wrong)


# a run

QUICK = ("tracking=none", "trainer.progress_bar=false", "trainer.max_epochs=1", "normalization=batch_norm", "trainer.threads=1")
WORDS: dict[str, tuple[str, ...]] = {
    "32": ("normalization.on_input=true", "dropout=dropout"),
    "64": ("trainer.precision=64", "model=cnn", "normalization.on_input=true", "trainer.limit_train_batches=10"),
    "layer_norm": ("normalization=layer_norm", "trainer.limit_train_batches=2"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("fusing") / "runs"
    return {name: dnnkit.train(dnnkit.compose([*QUICK, f"tracking.runs={folder}", *words])).run_dir for name, words in WORDS.items()}


@pytest.fixture
def copied(runs: dict[str, Path], workdir: Path) -> Callable[[str], Path]:
    """A copy of a run's folder under runs/ of the working folder."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(runs[name], workdir / "runs" / runs[name].name))

    return copy


@pytest.mark.parametrize(("name", "tolerance"), [("32", 1e-5), ("64", 1e-13)])
def test_a_fused_run_predicts_and_measures_the_same(name: str, tolerance: float, copied: Callable[[str], Path]) -> None:
    folder = copied(name)
    found = fuse_run(folder)
    assert found.relative < tolerance
    assert found.compared == 144
    assert found.compared_on == "validation examples"
    assert found.fused_parameters < found.parameters
    assert found.time_ratio > 0
    x = torch.rand(50, 1, 8, 8, dtype=torch.float64) * 16
    before, after = (predict(open_run(folder, checkpoint), x) for checkpoint in ("best", "fused"))
    assert torch.allclose(before, after, rtol=0, atol=10 * tolerance)
    network = open_run(folder, "fused").network()
    assert sum(isinstance(module, BATCH_NORMS) for module in network.modules()) == (name == "64")
    assert {p.dtype for p in network.parameters()} == {torch.float64 if name == "64" else torch.float32}
    measured = evaluate(folder, checkpoint="fused").metrics
    assert measured["acc"] == evaluate(folder).metrics["acc"]
    assert measured["loss"] == pytest.approx(evaluate(folder).metrics["loss"], rel=10 * tolerance)


@pytest.mark.slow
def test_a_classifier_of_clothes_is_as_good_without_its_normalizations(workdir: Path, data_root: Path) -> None:
    few = ("trainer.max_epochs=1", "trainer.limit_train_batches=300", "trainer.threads=1")
    folder = dnnkit.train(dnnkit.compose(["+experiment=fashion/bn_before", "tracking=none", "trainer.progress_bar=false", *few])).run_dir
    found = fuse_run(folder)
    assert [fold.normalization for fold in found.folds] == ["00_batch_norm", "01_batch_norm"]
    assert not found.refusals
    assert found.relative < 1e-5
    assert found.compared_on == "validation examples"
    # Of 300 and 100 units γ, β and two moving statistics are gone, and the dense layers have the biases that they had no need of.
    assert (found.parameters, found.fused_parameters) == (266610 - 400 + 4 * 400, 266610)
    before, after = (evaluate(folder, checkpoint=checkpoint).metrics for checkpoint in ("best", "fused"))
    assert after["acc"] == before["acc"] > 0.7
    assert after["loss"] == pytest.approx(before["loss"], rel=1e-5)
    print(f"{found.time_ratio:.2f} of the time; outputs differ by {found.relative:.1e} of the greatest")


def test_a_run_without_its_data_is_compared_on_random_inputs(copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise DataError("there is no file own.npz")

    monkeypatch.setattr("dnnkit.training.evaluate.load_data", gone)
    found = fuse_run(copied("32"))
    assert (found.compared_on, found.compared) == ("random standardised inputs", 1000)
    assert "there is no file own.npz" in found.notices[0]
    assert found.relative < 1e-5


def test_partly_fused_is_said_and_loads(copied: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied("64")
    assert main(["fuse", folder.name]) == 0
    said = capsys.readouterr().out
    assert "input_batch_norm stays: " in said
    assert "surrounds its input with zeros" in said
    assert "00_batch_norm is now in 00_conv, the layer before it" in said
    assert evaluate(folder, checkpoint="fused").metrics["acc"] == evaluate(folder).metrics["acc"]


def test_the_command_refuses_to_overwrite_and_tells_all_as_json(copied: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied("32")
    assert main(["fuse", folder.name, "--checkpoint", "last", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [fold["into"] for fold in said["folds"]] == ["00_dense", "00_dense", "01_dense"]
    path = folder / "checkpoints" / "fused.ckpt"
    assert said["output"] == str(path)
    before = path.read_bytes()
    assert main(["fuse", folder.name]) == 2
    refused = f"  - --overwrite: is not given, and there is already {path}; add --overwrite to replace it."
    assert capsys.readouterr().err.splitlines() == ["1 problem on the command line:", refused]
    assert path.read_bytes() == before
    assert main(["fuse", folder.name, "--overwrite"]) == 0
    assert load(path)["fused_from"] == "best"
    assert main(["fuse", folder.name, "--checkpoint", "fused"]) == 2
    assert main(["fuse", "--help"]) == 0
    assert main(["fuse", folder.name, "trainer.max_epochs=3"]) == 2


def test_nothing_to_fuse_is_exit_code_6_with_every_reason(
    copied: Callable[[str], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied("layer_norm")
    assert main(["fuse", folder.name]) == 6
    assert "01_layer_norm: LayerNorm takes its statistics from each example" in capsys.readouterr().err
    monkeypatch.setattr("dnnkit.training.fuse.fuse", lambda network, inputs: Fused(network, (), ()))
    assert main(["fuse", folder.name]) == 6
    assert "has no normalization" in capsys.readouterr().err
    assert not (folder / "checkpoints" / "fused.ckpt").exists()


def test_a_fold_that_changed_an_output_would_not_be_written(copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from dnnkit.network import fusing

    folder = copied("32")
    right = fusing._fold_before
    monkeypatch.setattr(fusing, "_fold_before", lambda layer, affine: right(layer, fusing._Affine(affine.scale * 1.01, affine.shift)))
    with pytest.raises(CheckpointError, match="not the same: its outputs differ by up to"):
        fuse_run(folder)
    assert not (folder / "checkpoints" / "fused.ckpt").exists()


def test_a_fused_network_is_trained_no_more(copied: Callable[[str], Path], workdir: Path) -> None:
    folder = copied("32")
    fuse_run(folder)
    path = folder / "checkpoints" / "fused.ckpt"
    with pytest.raises(CheckpointError, match="is fused, for evaluation alone"):
        dnnkit.build(dnnkit.compose([*QUICK, *WORDS["32"], f"init_from={path}"]))
    for name in ("last.ckpt", "epoch.ckpt"):
        shutil.copy(path, folder / "checkpoints" / name)
    with pytest.raises(CheckpointError, match="is fused, for evaluation alone"):
        resume(folder, ["trainer.max_epochs=3"])


def test_a_fused_checkpoint_of_weights_that_are_no_more_is_told(copied: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    folder = copied("32")
    fuse_run(folder)
    open_run(folder, "fused")
    assert not caplog.records
    best = folder / "checkpoints" / "best.ckpt"
    save({**load(best), "global_step": 999}, best)
    open_run(folder, "fused")
    assert "which are those of step 999 by now: fuse the run again" in caplog.text


def test_without_a_fused_checkpoint_the_command_that_makes_it_is_named(copied: Callable[[str], Path], workdir: Path) -> None:
    folder = copied("32")
    with pytest.raises(CheckpointError, match=f"dnnkit fuse {folder.name}"):
        open_run(folder, "fused")


def test_a_checkpoint_from_before_fusing_still_loads(copied: Callable[[str], Path]) -> None:
    folder = copied("32")
    path = folder / "checkpoints" / "best.ckpt"
    held = load(path)
    assert held["dnnkit"].pop("folded") == {}
    save(held, path)
    assert not open_run(folder).state.fused


def test_monte_carlo_dropout_of_a_fused_network_is_refused(copied: Callable[[str], Path], workdir: Path) -> None:
    """dropout(s·x + t) is not s·dropout(x) + t: what was folded through dropout assumed that it is the identity."""
    folder = copied("32")
    fuse_run(folder)
    np.savez(workdir / "x.npz", x=np.zeros((2, 8, 8), np.float32))
    with pytest.raises(ConfigError, match="takes dropout as the identity"):
        evaluate(folder, checkpoint="fused", mc_samples=3)
    with pytest.raises(ConfigError, match="takes dropout as the identity"):
        predict_file(folder, workdir / "x.npz", workdir / "y.npz", checkpoint="fused", mc_samples=3)
