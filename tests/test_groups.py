"""`optimizer.groups`: every parameter in one group, each group with its own rate and weight decay, clipped with its own kind."""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import dnnkit
from dnnkit.cli.main import main
from dnnkit.config import compose
from dnnkit.config.groups import Entry, entries
from dnnkit.data.loaders import evaluation_batches
from dnnkit.data.resident import Batches, epoch_order
from dnnkit.errors import ConfigError
from dnnkit.loop import use_chunks
from dnnkit.module import Module, Recipe, Task
from dnnkit.module.groups import Groups
from dnnkit.network import build_network
from dnnkit.network.freezing import freezing
from dnnkit.network.groups import Grouping, group_lines
from dnnkit.record import read_journal
from dnnkit.registry import REGISTRIES, models, optimizers
from dnnkit.training.assemble import check_groups, grouping
from dnnkit.training.evaluate import evaluate

QUICK = ("tracking=none", "trainer.progress_bar=false", "trainer.limit_train_batches=3", "trainer.max_epochs=1", "model.hidden=[6,5]")

X = torch.randn(22, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(22) % 3
TASK = Task(nn.functional.cross_entropy)
LOOPS = pytest.mark.parametrize("size", [None, 1, 50], ids=["stock", "chunks of 1", "chunks of 50"])


class Memory(Logger):
    name, version = "memory", 0

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[tuple[str, int | None], float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.lines |= {(key, step): value for key, value in metrics.items()}

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


def constant(step: int, total: int) -> float:
    return 1.0


def linear() -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(4, 3)


def network_of(*overrides: str) -> nn.Module:
    return build_network({**compose(list(overrides)).values, "task": "classification"}, (1, 8, 8), 3, 0)


def entry(index: int = 0, **given: Any) -> Entry:
    return Entry(f"optimizer.groups[{index}]", **given)


def fit(net: nn.Module, recipe: Recipe, size: int | None, task: Task = TASK, log_every: int = 1, **settings: Any) -> tuple[Module, Memory]:
    memory = Memory()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "log_every_n_steps": 1}
    trainer = pl.Trainer(accelerator="cpu", devices=1, **{"max_epochs": 1, "logger": memory, **quiet, **settings})
    if size is not None:
        use_chunks(trainer, size)
    module = Module(net, task, recipe, log_every)
    trainer.fit(module, Batches(X, Y, 5, seed=0), evaluation_batches(X[:9], Y[:9], 4))
    return module, memory


# The config


@pytest.mark.parametrize(
    ("groups", "where", "says"),
    [
        ("{match: bias, lr_scale: 2}", "optimizer.groups", "must be a list"),
        ("[3]", "optimizer.groups[0]", "must be a mapping, such as {match: output, lr_scale: 0.1}, got 3"),
        (
            "[{match: output, lr_scale: 0}]",
            "optimizer.groups[0].lr_scale",
            "must be greater than 0, got 0.0; layers that are not to be trained",
        ),
        ("[{match: output, lr_scale: -1}]", "optimizer.groups[0].lr_scale", "must be greater than 0, got -1"),
        ("[{match: output, lr_scale: fast}]", "optimizer.groups[0].lr_scale", "must be a finite number or null, got 'fast'"),
        ("[{match: output, lr_scale: inf}]", "optimizer.groups[0].lr_scale", "must be a finite number"),
        ("[{match: output, weight_decay: -0.1}]", "optimizer.groups[0].weight_decay", "at least 0 or null, got -0.1"),
        ("[{mach: output, lr_scale: 1}]", "optimizer.groups[0].mach", "has: match, role, depth, lr_scale, weight_decay, clipping"),
        ("[{match: 0, lr_scale: 1}]", "optimizer.groups[0].match", "must be text at least 1 long or null, got 0"),
        ("[{role: kernel, lr_scale: 1}]", "optimizer.groups[0].role", "must be one of weight, bias, norm, slope or null, got 'kernel'"),
        ("[{depth: -1, lr_scale: 1}]", "optimizer.groups[0].depth", "got -1"),
        ("[{depth: [3,0], lr_scale: 1}]", "optimizer.groups[0].depth", "the first and the last of a range as [0, 3], got [3, 0]"),
        ("[{depth: [1], lr_scale: 1}]", "optimizer.groups[0].depth", "got [1]"),
        ("[{depth: 1.5, lr_scale: 1}]", "optimizer.groups[0].depth", "got 1.5"),
        ("[{match: output}]", "optimizer.groups[0]", "it needs lr_scale, weight_decay or clipping"),
        ("[{lr_scale: 2}]", "optimizer.groups[0]", "it needs match, role or depth"),
        ("[{match: output, clipping: nrm}]", "optimizer.groups[0].clipping", "no clipping is called 'nrm'"),
        ("[{match: output, clipping: {name: nrm}}]", "optimizer.groups[0].clipping.name", "no clipping is called 'nrm'"),
        ("[{match: output, clipping: {max_norm: 1}}]", "optimizer.groups[0].clipping", "must be the name of a clipping"),
        (
            "[{match: output, clipping: {name: norm, max_norm: 0}}]",
            "optimizer.groups[0].clipping.max_norm",
            "must be a finite number greater than 0",
        ),
        ("[{match: output, clipping: {name: norm, mox: 0}}]", "optimizer.groups[0].clipping.mox", "unknown setting"),
        ("[{match: output, clipping: {name: none, max_norm: 1}}]", "optimizer.groups[0].clipping.max_norm", "none has no settings"),
    ],
)
def test_a_wrong_entry_is_told_of_by_its_path(groups: str, where: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([f"optimizer.groups={groups}"])
    (problem,) = caught.value.problems
    assert problem.where == where
    assert says in problem.message
    assert problem.origin.startswith("command line")


def test_all_wrong_entries_are_told_of_at_once_with_the_nearest_names() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["optimizer.lr=-1", "optimizer.groups=[{mach: output, lr_scale: 0}, {role: bas, lr_scale: 1}]"])
    found = {problem.where: problem.nearest for problem in caught.value.problems}
    assert found == {
        "optimizer.lr": (),
        "optimizer.groups[0].mach": ("match",),
        "optimizer.groups[0].lr_scale": (),
        "optimizer.groups[1].role": ("bias",),
    }


def test_weight_decay_of_an_optimizer_without_that_setting_is_refused_with_those_that_have_it(registries: None) -> None:
    def bare(params: Any, lr: float = 0.1) -> torch.optim.Optimizer:
        """Stochastic gradient descent."""
        return torch.optim.SGD(params, lr=lr)

    optimizers.register("bare")(bare)
    with pytest.raises(ConfigError) as caught:
        compose(["optimizer=bare", "optimizer.groups=[{match: output, weight_decay: 0.1}]"])
    (problem,) = caught.value.problems
    assert problem.where == "optimizer.groups[0].weight_decay"
    assert problem.message.startswith("optimizer=bare has no setting weight_decay; those that have it: ")
    assert "adamw" in problem.message.partition("those that have it: ")[2].split(", ")
    net = network_of("model.hidden=[3]")
    plan = Groups(grouping(compose(["optimizer=bare", "optimizer.groups=[{match: output, lr_scale: 0.5}]"]), net), 0.1)
    made = plan.parameters(net)
    assert [set(group) for group in made] == [{"params", "lr"}, {"params", "lr"}], "and no such key is passed"


def test_what_is_recorded_is_what_was_given_with_the_clippings_defaults() -> None:
    cfg = compose(["optimizer.groups=[{match: output, lr_scale: 2, clipping: value}, {depth: [0,3], clipping: none}]"])
    assert cfg.values["optimizer"]["groups"] == [
        {"match": "output", "lr_scale": 2.0, "clipping": {"name": "value", "threshold": 1.0}},
        {"depth": [0, 3], "clipping": {"name": "none"}},
    ]
    assert entries(cfg.values["optimizer"])[1] == entry(1, depth=(0, 3), clipping={"name": "none"})
    assert compose([f"optimizer.groups={'[]'}"]).values["optimizer"]["groups"] is None


WORDS = 'optimizer.groups=[{match: output, lr_scale: 0.1}, {match: bias, weight_decay: 0.001}, {match: "0[0-2]_*", lr_scale: .5}]'


def test_a_list_of_entries_is_written_on_the_command_line_and_in_a_file(presets: Callable[[dict[str, str]], Path]) -> None:
    text = """
optimizer:
  groups:
    - {match: output, lr_scale: 0.1}
    - match: bias
      weight_decay: 0.001
    - match: 0[0-2]_*
      lr_scale: 0.5
"""
    file = compose(["+experiment=grouped"], config_dir=str(presets({"experiment/grouped.yaml": text})))
    typed = compose([WORDS])
    assert file.values["optimizer"]["groups"] == typed.values["optimizer"]["groups"]
    assert [each.match for each in entries(typed.values["optimizer"])] == ["output", "bias", "0[0-2]_*"]


def test_a_pattern_in_brackets_without_quotes_is_told_how_to_be_written() -> None:
    with pytest.raises(ConfigError, match=re.escape('is written in quotes, such as {match: "0[0-2]_*"}')):
        compose(["optimizer.groups=[{match: 0[0-2]_*, lr_scale: .5}]"])


@pytest.mark.slow
def test_a_sweep_over_lists_of_entries_runs_each(workdir: Path) -> None:
    axis = 'optimizer.groups=[{match: output, lr_scale: 0.5}],[{match: "0[0-1]_*", lr_scale: .5},{role: bias, clipping: none}],null'
    assert main(["-m", *QUICK, axis]) == 0
    said = sorted((folder / "run.log").read_text() for folder in (workdir / "runs").iterdir())
    assert sorted(text.count("parameters: ") for text in said) == [0, 2, 4]


def test_check_finds_a_wrong_entry_without_data(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "data=csv", "data.path=nowhere.csv", "data.target=y", "optimizer.groups=[{match: output, lr_scale: 0}]"]) == 2
    assert "optimizer.groups[0].lr_scale" in capsys.readouterr().err


# The network


NORMED = ("model.hidden=[4,3]", "normalization=layer_norm", "normalization.position=post", "activation=relu")


@pytest.mark.parametrize(
    ("groups", "where", "says", "nearest"),
    [
        ("[{match: 01_dence, lr_scale: 2}]", "[0].match", "'01_dence' fits no parameter; the layers are: 01_dense, ", "01_dense"),
        ("[{match: ouput, lr_scale: 2}]", "[0].match", "00_dense, 00_layer_norm, 01_dense, 01_layer_norm, 02_dense", "output"),
        ("[{match: '*.wieght', lr_scale: 2}]", "[0].match", "fits no parameter", "weight"),
        ("[{match: slope, lr_scale: 2}]", "[0].match", "the network has no slope; it has: weight, bias, norm", None),
        ("[{role: slope, lr_scale: 2}]", "[0].role", "the network has no slope; it has: weight, bias, norm", None),
        ("[{depth: [3,9], lr_scale: 2}]", "[0].depth", "the weight layers have the depths 0 to 2, got [3, 9]", None),
        ("[{match: 0?_dense, role: norm, lr_scale: 2}]", "[0]", "match 0?_dense, role norm fits no parameter: each by itself does", None),
        (
            "[{match: 00_*, lr_scale: 2}, {match: 01_dense, lr_scale: 3}, {match: '0[01]_dense', lr_scale: 2}]",
            "[2]",
            "match 0[01]_dense fits only parameters that optimizer.groups[0] and optimizer.groups[1] took",
            None,
        ),
        ("[{match: '*_norm', weight_decay: 0.1}]", "[0].weight_decay", "fits none: name what else is to decay, as role: norm", None),
        ("[{depth: 0, match: '*.bias', weight_decay: 0.1}]", "[0].weight_decay", "as role: bias", None),
    ],
)  # fmt: skip
def test_an_entry_that_does_nothing_in_this_network_is_refused(groups: str, where: str, says: str, nearest: str | None) -> None:
    cfg = compose([*NORMED, f"optimizer.groups={groups}"])
    with pytest.raises(ConfigError) as caught:
        check_groups(cfg, network_of(*NORMED))
    (problem,) = caught.value.problems
    assert problem.where == f"optimizer.groups{where}"
    assert says in problem.message
    assert problem.nearest[:1] == (() if nearest is None else (nearest,))


def test_a_run_with_an_entry_that_fits_nothing_ends_before_anything_is_made(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "optimizer.groups=[{match: 09_*, lr_scale: 2},{match: 01_selu, lr_scale: 1}]"]) == 2
    said = capsys.readouterr().err
    assert "optimizer.groups[0].match: '09_*' fits no parameter; the layers are: 00_dense, 01_dense, 02_dense" in said
    assert "optimizer.groups[1].match" in said
    assert not (workdir / "runs").exists()


def test_of_many_layers_some_are_named() -> None:
    net = nn.Sequential(*(nn.Linear(1, 1) for _ in range(50)))
    (problem,) = Grouping([entry(match="nothing", lr_scale=2.0)]).problems(net)
    assert problem.message.endswith("18, 19, … (30 more)")


SEVERAL = (
    entry(0, match="output", lr_scale=0.1),
    entry(1, role="bias", depth=0, weight_decay=0.5),
    entry(2, match="norm", weight_decay=0.25, lr_scale=3.0),
    entry(3, depth=(0, 1), clipping={"name": "norm", "max_norm": 1.0}),
)


def assert_partition(grouping: Grouping, net: nn.Module, name: str = "") -> None:
    """Every trained parameter is in exactly one group and, where there are clippings, clipped with exactly one part."""
    names = [key for key, parameter in net.named_parameters() if parameter.requires_grad or key in grouping.apart]
    groups = grouping.groups(net)
    assert Counter(key for group in groups for key in group.names) == Counter(names), name
    assert len({(group.lr_scale, group.weight_decay, group.apart) for group in groups}) == len(groups), name
    given = Groups(grouping, 0.1).parameters(net)
    tensors = [parameter for item in given for parameter in (item["params"] if isinstance(item, dict) else [item])]
    assert Counter(map(id, tensors)) == Counter(id(dict(net.named_parameters())[key]) for key in names), name
    if any(each.clipping is not None for each in grouping.entries):
        assert Counter(key for part in grouping.clipped(net) for key in part.names) == Counter(names), name


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.middle, self.decoder = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight


def test_groups_partition_networks_with_shared_and_parametrized_weights() -> None:
    tied = Tied()
    net = nn.Sequential(tied, parametrizations.weight_norm(nn.Linear(4, 4)), nn.PReLU(), nn.Sequential(nn.Linear(4, 2), nn.PReLU()))
    net[3][1].weight = net[2].weight
    for decay in (None, 0.0, 0.01):
        assert_partition(Grouping(SEVERAL, decay), net)
        assert_partition(Grouping([entry(0, match="0.decoder", lr_scale=2.0), entry(1, match="0.encoder", lr_scale=3.0)], decay), net)
    first, second = Grouping([entry(0, match="0.decoder", lr_scale=2.0), entry(1, match="0.encoder", lr_scale=3.0)]).groups(net)[:2]
    assert first.names == ("0.encoder.weight", "0.decoder.bias"), "the shared weight is the first fitting entry's"
    assert second.names == ("0.encoder.bias",)


def settings_by_name(grouping: Grouping, net: nn.Module) -> dict[str, tuple[float, float | None]]:
    return {name: (group.lr_scale, group.weight_decay) for group in grouping.groups(net) for name in group.names}


def test_an_entrys_weight_decay_is_for_weights_unless_it_names_another_role() -> None:
    net = network_of("model.hidden=[4]", "normalization=layer_norm", "activation=prelu", "model.use_bias=true")

    def decays(*given: Entry) -> dict[str, float | None]:
        return {name: decay for name, (_, decay) in settings_by_name(Grouping(given, 0.01), net).items() if decay}

    assert decays() == {"00_dense.weight": 0.01, "01_dense.weight": 0.01}
    assert decays(entry(match="output", weight_decay=0.5)) == {"00_dense.weight": 0.01, "01_dense.weight": 0.5}
    assert decays(entry(match="*", weight_decay=0.0)) == {}
    assert decays(entry(match="output", role="bias", weight_decay=0.5))["01_dense.bias"] == 0.5
    assert decays(entry(match="bias", weight_decay=0.5)).keys() == {"00_dense.weight", "01_dense.weight", "00_dense.bias", "01_dense.bias"}
    assert decays(entry(match="norm", weight_decay=0.5)).keys() >= {"00_layer_norm.weight", "00_layer_norm.bias"}
    assert decays(entry(role="slope", weight_decay=0.5))["00_prelu.weight"] == 0.5
    assert decays(entry(match="00_*", lr_scale=2.0)) == decays(), "without a weight decay of its own an entry leaves it as it was"


def test_the_first_fitting_entry_counts_whole() -> None:
    net = network_of("model.hidden=[4]")
    found = settings_by_name(
        Grouping([entry(0, match="output", lr_scale=0.5), entry(1, match="*", lr_scale=2.0, weight_decay=0.1)], 0.0), net
    )
    assert found == {
        "00_dense.weight": (2.0, 0.1),
        "00_dense.bias": (2.0, 0.0),
        "01_dense.weight": (0.5, 0.0),
        "01_dense.bias": (0.5, 0.0),
    }


def test_without_entries_and_weight_decay_the_optimizer_gets_the_parameters_themselves() -> None:
    net = network_of(*NORMED)
    for decay in (None, 0.0):
        given = Groups(Grouping((), decay), 0.1).parameters(net)
        assert [id(parameter) for parameter in given] == [id(parameter) for parameter in net.parameters()]
    bare = network_of("model.hidden=[4]", "model.use_bias=false")
    assert all(isinstance(parameter, nn.Parameter) for parameter in Groups(Grouping((), 0.1), 0.1).parameters(bare)), "weights alone"


def test_frozen_parameters_are_in_no_group_unless_they_are_kept_apart_for_later() -> None:
    net = network_of("model.hidden=[4,3]")
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith("02_"))
    apart = {"01_dense.weight": "from epoch 3", "01_dense.bias": "from epoch 3"}
    assert_partition(Grouping((), 0.01, apart), net)
    groups = {(group.apart, group.weight_decay): group.names for group in Grouping((), 0.01, apart).groups(net)}
    assert groups == {
        ("from epoch 3", 0.01): ("01_dense.weight",),
        ("from epoch 3", 0.0): ("01_dense.bias",),
        (None, 0.01): ("02_dense.weight",),
        (None, 0.0): ("02_dense.bias",),
    }
    lines = group_lines(Grouping((), None, apart), net)
    assert lines == ["from epoch 3: 1 weight, 1 bias (01_dense)", "as configured: 1 weight, 1 bias (02_dense)"]


def test_keys_that_differ_keep_parameters_of_equal_settings_apart() -> None:
    net = network_of("model.hidden=[4]")
    apart = {"00_dense.weight": 2, "00_dense.bias": 3}
    assert [(group.apart, group.names) for group in Grouping((), None, apart).groups(net)] == [
        (2, ("00_dense.weight",)),
        (3, ("00_dense.bias",)),
        (None, ("01_dense.weight", "01_dense.bias")),
    ]


# The optimizers


@pytest.mark.parametrize("name", [record.name for record in compose([]) and REGISTRIES["optimizer"]])
def test_a_group_is_updated_as_an_optimizer_of_its_own_would(name: str) -> None:
    """Of every registered optimizer: two groups at once against two optimizers with those rates and decays, bit for bit."""
    record = optimizers.get(name)
    decays = [setting.name for setting in record.settings if setting.name == "weight_decay"]
    start = [torch.randn(3, 4, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(2)]
    together, alone = ([nn.Parameter(value.clone()) for value in start] for _ in range(2))
    own = [{"lr": 0.01, **dict.fromkeys(decays, 0.1)}, {"lr": 0.003, **dict.fromkeys(decays, 0.0)}]
    one = record.function([{"params": [together[i]], **own[i]} for i in range(2)], lr=0.5)
    two = [record.function([alone[i]], **own[i]) for i in range(2)]
    for step in range(5):
        for parameter in (*together, *alone):
            parameter.grad = torch.cos(parameter.detach() + step)
        for optimizer in (one, *two):
            optimizer.step()
    assert [group["lr"] for group in one.param_groups] == [0.01, 0.003]
    for mine, theirs in zip(together, alone, strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(together[0], start[0])


def gradients(net: nn.Module, part: Tensor) -> tuple[Tensor, Tensor]:
    weight, bias = torch.autograd.grad(nn.functional.cross_entropy(net(X[part]), Y[part]), list(net.parameters()))
    return weight, bias


@LOOPS
def test_a_scaled_rate_and_a_decay_of_weights_have_their_closed_form(size: int | None) -> None:
    net = linear()
    weight, bias = (parameter.detach().clone() for parameter in net.parameters())
    g, b = gradients(net, epoch_order(22, 0, 0)[:5])
    groups = Groups(Grouping([entry(role="bias", lr_scale=0.5)], 0.2), 0.1)
    _, memory = fit(net, Recipe(partial(torch.optim.SGD, lr=0.1, weight_decay=0.2), constant, groups=groups), size, limit_train_batches=1)
    torch.testing.assert_close(net.weight.detach(), weight - 0.1 * (g + 0.2 * weight), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(net.bias.detach(), bias - 0.05 * b, rtol=1e-6, atol=1e-7)
    assert memory.lines["lr", 1] == 0.1


@LOOPS
def test_the_journals_rate_is_the_base_rate_where_no_parameter_has_it_and_the_cycle_reaches_every_group(size: int | None) -> None:
    seen: list[list[tuple[float, float]]] = []

    class Look(pl.Callback):
        chunked = True

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            seen.append([(group["lr"], group["momentum"]) for group in trainer.optimizers[0].param_groups])

    def cycle(step: int, total: int) -> tuple[float, float]:
        return 1 - step / total, 0.9 - step / 100

    groups = Groups(Grouping([entry(0, role="bias", lr_scale=0.5), entry(1, match="*", lr_scale=4.0)], None), 0.2)
    recipe = Recipe(partial(torch.optim.SGD, lr=0.2, momentum=0.9), cycle, groups=groups)
    _, memory = fit(linear(), recipe, size, callbacks=[Look()])
    assert [memory.lines["lr", step] for step in range(1, 6)] == pytest.approx([0.2 * (1 - t / 5) for t in range(5)])
    assert seen[-1] == [(pytest.approx(0.8 / 5), pytest.approx(0.86)), (pytest.approx(0.1 / 5), pytest.approx(0.86))]


# Clipping


NORM = {"name": "norm", "max_norm": 1e-3}


def moved(net: nn.Module, before: Sequence[Tensor]) -> list[Tensor]:
    return [(parameter.detach() - value).double() for parameter, value in zip(net.parameters(), before, strict=True)]


@pytest.fixture
def clippings_loaded() -> None:
    compose([])


@LOOPS
@pytest.mark.usefixtures("clippings_loaded")
def test_an_entry_clips_its_parameters_by_themselves_and_the_config_all_others_together(size: int | None) -> None:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    before = [parameter.detach().clone() for parameter in net.parameters()]
    loss = nn.functional.cross_entropy(net(X[epoch_order(22, 0, 0)[:5]]), Y[epoch_order(22, 0, 0)[:5]])
    raw = [gradient.double() for gradient in torch.autograd.grad(loss, list(net.parameters()))]
    groups = Groups(Grouping([entry(match="1.weight", clipping=NORM), entry(1, match="1.bias", clipping={"name": "none"})]), 1.0)
    clip = partial(nn.utils.clip_grad_norm_, max_norm=2e-3)
    recipe = Recipe(partial(torch.optim.SGD, lr=1.0), constant, clip=clip, groups=groups)
    _, memory = fit(net, recipe, size, limit_train_batches=1)
    first_weight, first_bias, weight, bias = moved(net, before)
    torch.testing.assert_close(weight, -raw[2] / raw[2].norm() * 1e-3, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(bias, -raw[3], rtol=1e-5, atol=1e-7)
    rest = math.hypot(float(raw[0].norm()), float(raw[1].norm()))
    torch.testing.assert_close(first_weight, -raw[0] / rest * 2e-3, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(first_bias, -raw[1] / rest * 2e-3, rtol=1e-3, atol=1e-7)
    assert memory.lines["grad_norm", 1] == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in raw)), rel=1e-6)


@pytest.mark.usefixtures("clippings_loaded")
@pytest.mark.parametrize(
    "settings", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}], ids=["plain", "accumulated", "bf16"]
)
def test_clipping_by_groups_is_the_same_in_chunks_and_in_the_stock_loop(settings: dict[str, Any]) -> None:
    groups = Groups(Grouping([entry(match="weight", clipping=NORM), entry(1, match="bias", lr_scale=3.0)], 0.1), 0.5)
    ends = []
    for size in (None, 1, 50):
        net = linear()
        make = partial(torch.optim.SGD, lr=0.5, momentum=0.9, weight_decay=0.1)
        _, memory = fit(net, Recipe(make, constant, groups=groups), size, log_every=2, **settings)
        ends.append((net.state_dict(), memory.lines))
    for state, lines in ends[1:]:
        assert all(torch.equal(state[key], ends[0][0][key]) for key in state)
        assert lines == ends[0][1]
    _, bias = (parameter.detach() for parameter in linear().parameters())
    assert not torch.equal(ends[0][0]["bias"], bias)


@LOOPS
@pytest.mark.usefixtures("clippings_loaded")
def test_clipped_gradients_of_an_accumulated_group_are_clipped_once_at_its_end(size: int | None) -> None:
    net = linear()
    before = [parameter.detach().clone() for parameter in net.parameters()]
    groups = Groups(Grouping([entry(match="*", clipping=NORM)]), 1.0)
    recipe = Recipe(partial(torch.optim.SGD, lr=1.0), constant, groups=groups)
    fit(net, recipe, size, accumulate_grad_batches=3, limit_train_batches=3)
    assert math.sqrt(sum(float(part.square().sum()) for part in moved(net, before))) == pytest.approx(1e-3, rel=2e-3), (
        "1e-6 is added to the norm"
    )


# Runs


GROUPED = (
    "optimizer=adamw",
    "optimizer.groups=[{match: output, lr_scale: 0.5, clipping: norm},{match: bias, lr_scale: 2, weight_decay: 0.3},"
    "{depth: 0, clipping: none}]",
)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a run with groups and what it printed."""
    folder = tmp_path_factory.mktemp("grouped")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*QUICK[:1], *QUICK[2:], *GROUPED]) == 0
    (run,) = (folder / "runs").iterdir()
    return run, [line.strip() for line in printed.getvalue().splitlines()]


def test_a_run_says_its_groups_in_the_log_and_in_the_terminal(grouped: tuple[Path, list[str]]) -> None:
    expected = [
        "weight decay 0.01: 2 weights (00_dense, 01_dense)",
        "rate × 2, weight decay 0.3: 2 biases (00_dense, 01_dense)",
        "rate × 0.5, weight decay 0.01: 1 weight (02_dense)",
        "rate × 0.5, no weight decay: 1 bias (02_dense)",
        "not clipped: 1 weight (00_dense)",
        "not clipped: 1 weight, 2 biases (00_dense, 01_dense)",
        "clipped by themselves by norm (max_norm 1.0): 1 weight, 1 bias (02_dense)",
    ]
    run, printed = grouped
    assert [line for line in printed if line in expected] == expected
    logged = [line.partition("parameters: ")[2] for line in (run / "run.log").read_text().splitlines() if "parameters: " in line]
    assert logged == expected


def test_what_no_entry_clips_is_clipped_as_the_config_says() -> None:
    grouping, net = Grouping([entry(match="output", clipping=NORM)]), network_of("model.hidden=[3]")
    rest, _ = group_lines(grouping, net, clips=True)
    assert rest == "clipped as configured, together: 1 weight, 1 bias (00_dense)"
    rest, _ = group_lines(grouping, net, clips=False)
    assert rest == "not clipped: 1 weight, 1 bias (00_dense)"


def test_a_decay_that_all_groups_share_is_told_where_it_is_not_the_optimizers() -> None:
    net = network_of("model.hidden=[3]")
    both = [entry(0, match="weight", weight_decay=0.1), entry(1, match="bias", weight_decay=0.1)]
    assert group_lines(Grouping(both, 0.01), net) == ["weight decay 0.1: 2 weights, 2 biases (00_dense, 01_dense)"]
    assert group_lines(Grouping([entry(match="*", lr_scale=2.0)], 0.0), net) == ["rate × 2: 2 weights, 2 biases (00_dense, 01_dense)"]


def test_an_entry_for_frozen_parameters_alone_is_refused_unless_they_are_trained_later() -> None:
    words = ("model.hidden=[4,3]", "optimizer.groups=[{match: 00_*, lr_scale: 0.5}]")

    def check(freeze: str, *more: str) -> None:
        cfg = compose([*words, f"freeze={freeze}", *more])
        net = network_of("model.hidden=[4,3]")
        freezing(net, cfg.values["freeze"]).apply(net, epoch=1)
        check_groups(cfg, net)

    with pytest.raises(ConfigError, match=r"optimizer\.groups\[0\]: match 00_\* fits only frozen parameters \(freeze\)"):
        check("[00_*]")
    check("[{match: 00_*, until: 3}]")
    check("[00_dense.bias]")
    with pytest.raises(ConfigError, match=r"\[1\]: match 0\[01\]_\* fits only parameters that optimizer\.groups\[0\] took"):
        check("[01_*]", 'optimizer.groups=[{match: 00_*, lr_scale: 0.5},{match: "0[01]_*", lr_scale: 2}]')


def test_parameters_that_are_all_treated_alike_are_not_told_of() -> None:
    net = network_of(*NORMED)
    assert group_lines(Grouping((), 0.0), net) == group_lines(Grouping((), None), net) == []
    assert group_lines(Grouping([entry(match="*", lr_scale=2.0)]), net) == [
        "rate × 2: 3 weights, 3 biases, 4 norm parameters (00_dense … 02_dense)"
    ]


def test_a_run_with_groups_is_evaluated_as_it_was_tested(grouped: tuple[Path, list[str]]) -> None:
    """Going on with such a run is tests/test_resume.py's, on several devices tests/test_ranks.py's."""
    run, _ = grouped
    tested = {row.key.removeprefix("test/"): row.value for row in read_journal(run / "metrics.jsonl") if row.key.startswith("test/")}
    assert dict(evaluate(run).metrics) == tested
    assert len(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]) == 4


def test_somebodys_model_and_optimizer_are_grouped_like_ours(registries: None, workdir: Path) -> None:
    class Theirs(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.down = parametrizations.weight_norm(nn.Linear(inputs, 8))
            self.same, self.tied, self.slope = nn.Linear(8, 8), nn.Linear(8, 8), nn.PReLU(8)
            self.tied.weight = self.same.weight
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, outputs)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.slope(self.tied(self.same(self.down(x.flatten(1)))))))

    given: list[Any] = []

    def plus(params: Any, lr: float = 0.01, weight_decay: float = 0.1) -> torch.optim.Optimizer:
        """Stochastic gradient descent that remembers what it was given."""
        given.append(params)
        return torch.optim.SGD(params, lr=lr, weight_decay=weight_decay)

    models.register("theirs")(lambda inputs, outputs, parts: Theirs(math.prod(inputs), outputs))
    optimizers.register("plus")(plus)
    words = ["optimizer.groups=[{match: head, lr_scale: 0.1}, {match: tied, clipping: norm}]", "model=theirs", "optimizer=plus"]
    module = dnnkit.train(compose([*QUICK[:4], *words, "scheduler=constant"])).module
    (groups,) = given
    names = {id(parameter): name for name, parameter in module.net.named_parameters()}
    found = [({names[id(parameter)] for parameter in group["params"]}, group["lr"], group["weight_decay"]) for group in groups]
    weights = {"down.parametrizations.weight.original0", "down.parametrizations.weight.original1", "same.weight"}
    assert found == [
        ({"down.bias", "same.bias", "tied.bias", "slope.weight", "norm.weight", "norm.bias"}, 0.01, 0.0),
        (weights, 0.01, 0.1),
        ({"head.weight"}, 0.001, 0.1),
        ({"head.bias"}, 0.001, 0.0),
    ]
