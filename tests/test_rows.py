"""The rows of the five source notes: each is one command in docs/experiments.md, and each does what its row says."""

from __future__ import annotations

import itertools
import json
import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import dnnkit
from dnnkit.config import Composer
from dnnkit.config.loader import shipped, sweep_files
from dnnkit.network import roles
from dnnkit.record import read_journal

PAGE = Path(__file__).resolve().parent.parent / "docs" / "experiments.md"
NOTES = shipped("conf") / "experiment"
IMAGES = ("mnist", "fashion_mnist")
FEW = ("trainer.max_epochs=1", "trainer.limit_train_batches=6", "trainer.limit_val_batches=1")
QUIET = ("tracking=none", "trainer.progress_bar=false", "trainer.threads=1")

#: What the notes hold, written out by hand, by note; each is the first cell of a row of the table.
ROWS = {
    "note_000": (
        "Glorot normal", "Glorot uniform", "He", "LeCun", "the table of activations and initializers", "ReLU with a dead-unit check",
        "leaky ReLU, α = .02", "RReLU, training and evaluation", "PReLU", "ELU", "SELU Dense(10) with lecun_normal",
        "the four conditions of SELU, checked", "a verdict on vanishing gradients", "a verdict on exploding gradients",
    ),
    "note_001": (
        "sigmoid with N(0, 1) weights", "Xavier from n_in and n_out, normal", "Xavier from n_in and n_out, uniform",
        "Dense 784→300 ReLU with He", "mode fan_avg",
    ),
    "note_002": (
        "Glorot, normal", "Glorot, uniform", "He", "ReLU", "leaky ReLU, α = .01", "RReLU", "PReLU", "ELU", "SELU", "L1 breaks SELU",
        "L2 breaks SELU", "dropout breaks SELU", "a network that is not sequential breaks SELU", "the ranking of activations",
        "the ranking: SELU", "the ranking: ELU", "the ranking: leaky ReLU", "the ranking: ReLU", "the ranking: tanh",
        "the ranking: logistic", "ELU where the network cannot normalize itself", "leaky ReLU where latency counts",
        "batch norm before the activation", "batch norm after the activation", "SGD with clipvalue 1 and mse", "gradient descent",
        "SGD(.001, momentum .9)", "Nesterov", "RMSProp, β = .9", "Adam", "Nadam", "power scheduling", "exponential scheduling",
        "performance scheduling, every N steps by a factor λ", "1cycle", "L1", "Dense 100 ELU he_normal L2(.01)", "dropout",
    ),
    "note_003": (
        "glorot_uniform by default", "he_uniform", "he_normal, Dense 10", "VarianceScaling(2, fan_avg, uniform) with sigmoid",
        "leaky ReLU, α = .01", "leaky ReLU, α = .2", "ELU",
    ),
    "note_004": (
        "Dense 10 ReLU he_normal", "Dense 10 and leaky ReLU, α = .2", "Dense 10 and ELU, α = .1", "SELU with LeCun", "net A", "net B",
        "net B, literally", "γ and β are trained, moving statistics are not", "batch norm, momentum .9", "batch norm, momentum .99",
        "batch norm, momentum .999", "fusing batch norm after training", "gradient clipping by value", "gradient clipping by norm",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A line of the table: what the note has, the command, what it shows."""

    note: str
    label: str
    command: str
    shows: str

    @property
    def words(self) -> list[str]:
        """The words after `python -m dnnkit`, or after `dnnkit`."""
        given = shlex.split(self.command)
        return given[3:] if given[:3] == ["python", "-m", "dnnkit"] else given[1:]


def rows() -> Iterator[Row]:
    note = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        note = line.split()[1] if line.startswith("### note_") else "" if line.startswith("#") else note
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if note and line.startswith("| ") and len(cells) == 3 and "`" in cells[1]:
            yield Row(note, cells[0], cells[1].strip("`"), cells[2])


TABLE = list(rows())
COMPOSER = Composer()
NAMED = {name for row in TABLE for name in re.findall(r"\+experiment=(note_\S+)", row.command)}


def jobs(row: Row) -> list[list[str]]:
    """The overrides of every run that the command starts."""
    words = [word for word in row.words if word != "-m"]
    studies = [word.partition("=")[2] for word in words if word.startswith("+sweeps=")]
    axes = {word.partition("=")[0]: word.partition("=")[2].split(",") for word in words if not word.startswith("+sweeps=")}
    for study in studies:
        params = yaml.safe_load(sweep_files()[study].read_text())["hydra"]["sweeper"]["params"]
        axes |= {key: str(values).split(",") for key, values in params.items()}
    assert len(axes) == len(words) - len(studies) + (len(params) if studies else 0)
    return [[f"{key}={value}" for key, value in zip(axes, job, strict=True)] for job in itertools.product(*axes.values())]


def verdicts_of(result: dnnkit.Result) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = json.loads((result.run_dir / "diagnostics" / "verdicts.json").read_text())
    return found


def train(*overrides: str) -> dnnkit.Result:
    return dnnkit.train(COMPOSER.one([*overrides, *QUIET]))


# The table


def test_every_row_of_the_notes_is_in_the_table_and_nothing_else() -> None:
    assert {note: tuple(row.label for row in TABLE if row.note == note) for note in ROWS} == ROWS


def test_every_experiment_of_the_notes_is_in_the_table() -> None:
    files = {str(path.relative_to(NOTES).with_suffix("")) for path in NOTES.glob("note_*/*.yaml")}
    assert files == NAMED
    assert all(row.shows for row in TABLE)


def test_a_row_is_about_an_experiment_of_its_own_note() -> None:
    assert [row.label for row in TABLE if f"+experiment={row.note}/" not in row.command] == []


# Every row, for a few steps


@pytest.mark.usefixtures("unrecorded")
@pytest.mark.parametrize("row", TABLE, ids=[f"{row.note}-{row.label}" for row in TABLE])
def test_every_row_trains_for_a_few_steps(workdir: Path, request: pytest.FixtureRequest, row: Row) -> None:
    every = [COMPOSER.one([*job, *QUIET, *FEW]) for job in jobs(row)]
    if every[0].values["data"]["name"] in IMAGES:
        request.getfixturevalue("data_root")
    for cfg in every[:: max(1, len(every) - 1)]:  # of a sweep the first and the last
        written = read_journal(dnnkit.train(cfg).run_dir / "metrics.jsonl")
        assert written[-1].step == 6
        assert all(math.isfinite(line.value) for line in written)


# What a row is named for, where a few steps tell


def starts(experiment: str) -> list[str]:
    return [verdict["word"] for verdict in verdicts_of(train(f"+experiment={experiment}", *FEW))["start"]]


@pytest.mark.usefixtures("unrecorded")
def test_twenty_sigmoids_vanish_and_twenty_relus_with_standard_normal_weights_explode(workdir: Path) -> None:
    assert starts("note_000/vanishing") == ["vanishing"]
    assert "exploding" in starts("note_000/exploding")


BREAKS = {
    "note_000/selu_conditions": [],
    "note_002/selu": [],
    "note_002/selu_with_l1": ["undisturbed"],
    "note_002/selu_with_l2": ["undisturbed"],
    "note_002/selu_with_dropout": ["undisturbed"],
    "note_002/selu_with_skips": ["sequential"],
}


@pytest.mark.usefixtures("unrecorded")
@pytest.mark.parametrize("experiment", BREAKS)
def test_selus_check_names_what_breaks_it(workdir: Path, experiment: str) -> None:
    conditions = verdicts_of(train(f"+experiment={experiment}", *FEW))["selu"]
    assert len(conditions) >= 4
    assert [condition["name"] for condition in conditions if not condition["holds"]] == BREAKS[experiment]


def built(experiment: str, *overrides: str) -> nn.Module:
    return dnnkit.build(COMPOSER.one([f"+experiment={experiment}", *overrides, *QUIET])).net


def parts(net: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [module for module in net.modules() if isinstance(module, kind)]


@pytest.mark.parametrize(
    ("experiment", "shape", "deviation"),
    [
        ("note_000/glorot_normal", (300, 64), math.sqrt(2 / 364)),
        ("note_000/glorot_uniform", (300, 64), math.sqrt(2 / 364)),
        ("note_000/he_normal", (300, 64), math.sqrt(2 / 64)),
        ("note_000/lecun_normal", (300, 64), math.sqrt(1 / 64)),
        ("note_001/sigmoid_standard_normal", (300, 64), 1.0),
        ("note_001/xavier_normal", (300, 64), math.sqrt(2 / 364)),
        ("note_001/fan_avg", (300, 64), math.sqrt(4 / 364)),
        ("note_003/default_glorot_uniform", (300, 64), math.sqrt(2 / 364)),
        ("note_003/he_uniform", (300, 64), math.sqrt(2 / 64)),
        ("note_003/variance_scaling_sigmoid", (10, 64), math.sqrt(4 / 74)),
    ],
)
def test_the_first_layer_has_the_shape_and_the_deviation_of_its_row(experiment: str, shape: tuple[int, int], deviation: float) -> None:
    weight = parts(built(experiment), nn.Linear)[0].weight.detach()
    assert weight.shape == shape
    # Four standard errors of a deviation that is estimated from so many normal numbers.
    assert float(weight.std()) == pytest.approx(deviation, rel=4 / math.sqrt(2 * weight.numel()))
    assert all(not layer.bias.any() for layer in parts(built(experiment), nn.Linear))


@pytest.mark.parametrize(
    ("experiment", "at", "value"),
    [
        ("note_000/leaky_relu_002", -1.0, -0.02),
        ("note_002/leaky_relu", -1.0, -0.01),
        ("note_003/leaky_relu_02", -1.0, -0.2),
        ("note_004/dense_10_leaky_relu_02", -1.0, -0.2),
        ("note_004/dense_10_elu_01", -2.0, 0.1 * math.expm1(-2)),
        ("note_000/elu", -2.0, math.expm1(-2)),
        ("note_000/selu_dense_10", -2.0, 1.0507009873554805 * 1.6732632423543772 * math.expm1(-2)),
        ("note_000/prelu", -1.0, -0.25),
    ],
)
def test_the_activation_has_the_value_of_its_row(experiment: str, at: float, value: float) -> None:
    net = built(experiment)
    [activation, *_] = [module for module in net.modules() if module.__dict__.get("dnnkit_part") == "activation"]
    assert float(activation(torch.tensor([at])).detach()) == pytest.approx(value, rel=1e-6)


def test_rrelu_is_random_in_training_and_its_mean_in_evaluation(workdir: Path) -> None:
    rrelu = parts(built("note_000/rrelu"), nn.RReLU)[0]
    z = torch.full((1000,), -1.0)
    drawn = -rrelu.train()(z)
    assert float(drawn.min()) >= 1 / 8
    assert float(drawn.max()) <= 1 / 3
    assert len(drawn.unique()) > 900
    assert rrelu.eval()(z).unique().tolist() == pytest.approx([-(1 / 8 + 1 / 3) / 2])


def test_the_settings_of_the_optimizer_rows_are_those_of_the_note() -> None:
    def node(name: str, group: str = "optimizer") -> dict[str, Any]:
        values = COMPOSER.one([f"+experiment=note_002/{name}"]).values
        assert group != "optimizer" or values["scheduler"]["name"] == "constant"
        found: dict[str, Any] = values[group]
        return found

    assert (node("momentum")["name"], node("momentum")["lr"], node("momentum")["momentum"]) == ("momentum", 0.001, 0.9)
    assert (node("nesterov")["name"], node("nesterov")["lr"], node("nesterov")["momentum"]) == ("nesterov", 0.001, 0.9)
    assert (node("rmsprop")["name"], node("rmsprop")["alpha"]) == ("rmsprop", 0.9)
    assert (node("clipvalue_mse", "clipping")["threshold"], node("clipvalue_mse", "loss")["name"]) == (1.0, "mse")
    assert node("dense_100_elu_l2", "regularizer")["factor"] == 0.01


COUNTS = {
    "net_a": ([3136, 235500, 1200, 30100, 400, 1010], 271346, 268978),
    "net_b": ([3136, 235200, 1200, 30000, 400, 1010], 270946, 268578),
    "net_b_literal": ([3136, 235200, 1200, 30000, 400, 1010], 270946, 268578),
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_nets_of_the_last_note_have_its_parameters_layer_by_layer(data_root: Path, name: str) -> None:
    net = built(f"note_004/{name}")
    own = [
        [*module.parameters(recurse=False), *(b for b in module.buffers(recurse=False) if b.is_floating_point())]
        for module in net.modules()
    ]
    by_layer = [sum(tensor.numel() for tensor in tensors) for tensors in own if tensors]
    trained = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    assert (by_layer, sum(by_layer), trained) == COUNTS[name]
    assert sum(1 for role in roles(net).values() if role == "norm") == 6  # γ and β of three
    normalizations = parts(net, nn.BatchNorm1d)
    assert [(layer.momentum, layer.eps) for layer in normalizations] == [(0.01, 0.001)] * 3
    for layer in normalizations:  # in Keras the moving variance takes the biased variance
        x = torch.randn(5, layer.num_features, generator=torch.Generator().manual_seed(0))
        layer.train()(x)
        assert torch.allclose(layer.running_var, 0.99 + 0.01 * x.var(0, correction=0), rtol=1e-6)


@pytest.mark.parametrize(("keras", "name"), [(0.9, "09"), (0.99, "099"), (0.999, "0999")])
def test_a_batch_norm_of_kerass_momentum_moves_its_mean_by_the_rest(keras: float, name: str) -> None:
    layer = parts(built(f"note_004/batch_norm_momentum_{name}"), nn.BatchNorm1d)[0].train()
    x = torch.randn(50, layer.num_features, generator=torch.Generator().manual_seed(0)) + 3
    layer(x)
    assert torch.allclose(layer.running_mean, (1 - keras) * x.mean(0), rtol=1e-5)


def test_batch_norm_of_the_fusing_row_folds_into_its_layers(workdir: Path) -> None:
    from dnnkit.training.fuse import fuse_run

    result = train("+experiment=note_004/batch_norm_to_fuse", *FEW)
    fused = fuse_run(str(result.run_dir))
    assert len(fused.folds) == 2
    assert not fused.refusals


# What takes whole runs


@pytest.mark.slow
@pytest.mark.parametrize("experiment", sorted(NAMED))
def test_an_experiment_of_the_notes_ends_about_where_its_comment_says(
    workdir: Path, request: pytest.FixtureRequest, experiment: str
) -> None:
    lines = (NOTES / f"{experiment}.yaml").read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    found = re.search(r"Expect a test (acc|r2)\w* of about (\d\.\d+)", comment)
    assert found
    if COMPOSER.one([f"+experiment={experiment}"]).values["data"]["name"] in IMAGES:
        request.getfixturevalue("data_root")
    assert train(f"+experiment={experiment}").metrics[f"test/{found[1]}"] == pytest.approx(float(found[2]), abs=0.03)


@pytest.mark.slow
def test_at_a_high_rate_relu_units_die_and_leaky_ones_do_not(workdir: Path) -> None:
    ends = {
        name: [verdict["word"] for verdict in verdicts_of(train("+experiment=note_000/relu_dead_units", f"activation={name}"))["end"]]
        for name in ("relu", "leaky_relu")
    }
    assert "dead" in ends["relu"]
    assert "dead" not in ends["leaky_relu"]


@pytest.mark.slow
def test_l1_drives_weights_to_zero_that_are_not_so_without_it(workdir: Path) -> None:
    def small(*overrides: str) -> float:
        layers = parts(train("+experiment=note_002/l1", *overrides).module.net, nn.Linear)
        weights = torch.cat([layer.weight.detach().flatten() for layer in layers])
        return float((weights.abs() < 1e-3).float().mean())

    assert small() > 3 * small("regularizer=none")


def test_a_sigmoid_with_standard_normal_weights_grows_its_variance_in_the_first_layers(workdir: Path) -> None:
    """z = W·x of n inputs with mean square q has variance n·q: far above the inputs' own, where Glorot keeps it near theirs."""

    def grown(*overrides: str) -> float:
        net = built("note_001/sigmoid_standard_normal", *overrides)
        kept: list[torch.Tensor] = []
        for layer in parts(net, nn.Linear)[:-1]:
            layer.register_forward_hook(lambda _m, _i, z: kept.append(z.detach()))
        net(torch.randn(1000, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
        return min(float(z.std()) for z in kept)

    assert grown() > 5
    assert grown("initializer=glorot_normal") < 2
