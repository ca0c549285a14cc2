"""The config tree, enumerated: every experiment trains, and every registered component trains in its place."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

import dnnkit
from dnnkit import plugins
from dnnkit.cli.main import main
from dnnkit.config import Composer
from dnnkit.config.loader import shipped
from dnnkit.config.sections import GROUPS
from dnnkit.errors import ConfigError
from dnnkit.record import read_journal
from dnnkit.registry import REGISTRIES

FOLDER = shipped("conf") / "experiment"
EXPERIMENTS = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))
#: Those in folders are trained by tests of their own: the rows of the notes, the classics.
TRAINED = [name for name in EXPERIMENTS if "/" not in name]
IMAGES = ("mnist", "fashion_mnist")
FEW = (
    "tracking=none",
    "trainer.progress_bar=false",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=6",
    "trainer.limit_val_batches=1",
)
PARTS = [group for group in GROUPS if group not in ("data", "model")]

plugins.load()
COMPOSER = Composer()
COMPONENTS = [(group, name) for group in PARTS for name in REGISTRIES[group].names()]


def assert_trains(*overrides: str) -> dnnkit.Result:
    result = dnnkit.train(COMPOSER.one([*overrides, *FEW]))
    rows = read_journal(result.run_dir / "metrics.jsonl")
    assert rows[-1].step == 6
    assert all(math.isfinite(row.value) for row in rows)
    return result


def test_the_promised_experiments_are_there() -> None:
    assert set(EXPERIMENTS) >= {"selu_mnist", "selu_digits", "selu_fashion", "bn_elu_fashion", "relu_he_fashion"}
    assert set(EXPERIMENTS) >= {"cnn_fashion", "bn_net_a", "bn_net_b", "bn_net_b_literal", "autoencoder_fashion", "diabetes_mlp"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_begins_with_the_command_that_runs_it_and_says_what_to_expect(name: str) -> None:
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    assert re.match(rf"# python -m dnnkit \+experiment={name}( |$)", lines[0])
    comment = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    assert re.search(r"Expect a test (accuracy|r2) of about 0\.\d+|Expect a test mse of about \d", comment)


OTHERS = {
    "data": ("digits", "wine"),
    "augmentation": ("none", "flip"),
    "model": ("mlp", "resmlp"),
    "activation": ("selu", "gelu"),
    "initializer": ("auto", "orthogonal"),
    "normalization": ("none", "layer_norm"),
    "dropout": ("none", "alpha_dropout"),
    "regularizer": ("none", "l1_l2"),
    "constraint": ("none", "max_norm"),
    "clipping": ("none", "norm"),
    "loss": ("auto", "cross_entropy"),
    "optimizer": ("sgd", "adamw"),
    "scheduler": ("constant", "cosine"),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_group_has_another_choice_on_top_of_every_experiment(name: str) -> None:
    """All at once: a setting that an experiment makes for one component alone is unknown to any other, whatever else is chosen."""
    text = (FOLDER / f"{name}.yaml").read_text()
    chosen = {group: other if f"override /{group}: {one}\n" in text else one for group, (one, other) in OTHERS.items()}
    config = COMPOSER.one([f"+experiment={name}", *(f"{group}={choice}" for group, choice in chosen.items())]).values
    assert {group: config[group]["name"] for group in OTHERS} == chosen


# Experiments in folders

OWN = {
    "experiment/mine/base.yaml": "defaults:\n  - override /activation: tanh\nname: base\ndata:\n  val_size: 77\n",
    "experiment/mine/deep/er.yaml": "# Deeper. And so on.\ndefaults:\n  - ../base\nname: never\n",
    "experiment/mine/like.yaml": "defaults:\n  - base\n  - override /optimizer: sgd\nname: like\n",
    "experiment/mine/from_top.yaml": "defaults:\n  - /experiment/mine/base\n  - override /activation: elu\nname: from_top\n",
}


def test_an_experiment_of_ones_own_is_in_a_folder_and_builds_on_another(presets: Callable[[dict[str, str]], Path]) -> None:
    folder = str(presets({name: text for name, text in OWN.items() if "deep" not in name}))
    base, like, top = (dnnkit.compose([f"+experiment=mine/{name}"], config_dir=folder) for name in ("base", "like", "from_top"))
    assert [(cfg.name, cfg.activation.name, cfg.data.val_size) for cfg in (base, like, top)] == [
        ("base", "tanh", 77), ("like", "tanh", 77), ("from_top", "elu", 77),
    ]  # fmt: skip
    assert like.optimizer.name == "sgd"


def test_an_experiments_path_does_not_leave_its_folder(presets: Callable[[dict[str, str]], Path]) -> None:
    with pytest.raises(ConfigError) as raised:
        dnnkit.compose(["+experiment=mine/deep/er"], config_dir=str(presets(OWN)))
    assert any("../base" in str(problem) or "base" in problem.where for problem in raised.value.problems)


@pytest.mark.parametrize(
    ("typed", "right"),
    [
        ("+experiment=note_00/glorot_normal", "note_000/glorot_normal"),
        ("+experiment=note_000/glorot_norml", "note_000/glorot_normal"),
        ("+experiment=fashion/selu100", "fashion/selu_100"),
        ("experiment=note_000/elu", "+experiment=note_000/elu"),
        ("+experiment/note_000=elu", "+experiment=note_000/elu"),
    ],
)
def test_a_misspelt_experiment_in_a_folder_is_answered_with_the_right_one(typed: str, right: str) -> None:
    with pytest.raises(ConfigError) as raised:
        COMPOSER.one([typed])
    [problem] = raised.value.problems
    assert problem.nearest[0] == right


def test_a_folder_of_experiments_lists_what_is_in_it_and_other_names_the_folders() -> None:
    def told(name: str) -> str:
        with pytest.raises(ConfigError) as raised:
            COMPOSER.one([f"+experiment={name}"])
        return raised.value.problems[0].message

    assert "note_000/elu" in told("note_000")
    assert "note_001/fan_avg" not in told("note_000/x")
    assert "note_001/…" in told("something else".replace(" ", "_"))
    assert "note_001/fan_avg" not in told("something_else")


def test_list_and_describe_show_experiments_in_folders(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "experiment"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert set(EXPERIMENTS) <= listed
    assert main(["describe", "experiment", "note_000/elu"]) == 0
    assert "ELU with alpha 1" in capsys.readouterr().out


def test_a_sweep_runs_over_experiments_in_folders(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "+experiment=note_000/elu,note_003/leaky_relu_02", *FEW]) == 0
    names = sorted(folder.name.split("_", 2)[2].rpartition("_")[0] for folder in (workdir / "runs").iterdir())
    assert names == ["elu", "leaky_relu_02"]


def test_a_pattern_stands_for_the_experiments_of_a_folder() -> None:
    [override] = OverridesParser.create(COMPOSER.loader).parse_overrides(["+experiment=glob(note_003/*)"])
    assert set(override.sweep_string_iterator()) == {name for name in EXPERIMENTS if name.startswith("note_003/")}


def test_an_experiment_trains_and_is_recorded_under_its_name(workdir: Path) -> None:
    run = assert_trains("+experiment=selu_digits").run_dir
    assert run.name.split("_", 2)[2].startswith("selu_digits")
    assert all(picture.stat().st_size > 1000 for picture in (run / "figures").glob("*.png"))


@pytest.mark.usefixtures("unrecorded")
@pytest.mark.parametrize("name", TRAINED)
def test_every_experiment_trains_on_the_bundled_data(workdir: Path, name: str) -> None:
    bundled = COMPOSER.one([f"+experiment={name}"]).values["data"]["name"] not in IMAGES
    assert_trains(f"+experiment={name}", *([] if bundled else ["data=digits", "data.val_size=100"]))


@pytest.mark.slow
@pytest.mark.usefixtures("unrecorded", "data_root")
@pytest.mark.parametrize("name", TRAINED)
def test_every_experiment_trains_on_its_own_images(workdir: Path, name: str) -> None:
    if COMPOSER.one([f"+experiment={name}"]).values["data"]["name"] not in IMAGES:
        pytest.skip("has bundled data, on which it is trained already")
    assert_trains(f"+experiment={name}")


@pytest.mark.usefixtures("unrecorded")
@pytest.mark.parametrize(("group", "name"), COMPONENTS)
def test_every_component_trains_in_its_place(workdir: Path, group: str, name: str) -> None:
    tasks = REGISTRIES[group].get(name).facts.get("tasks", ["classification"])
    data = {"classification": "digits", "regression": "diabetes", "multi_label": "npz"}[tasks[0]]
    chosen = [f"{group}={name}", f"data={data}", "optimizer.lr=0.01"]
    if data == "npz":
        x = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
        np.savez(workdir / "labels.npz", x=x, y=(x[:, :3] > 0).astype(np.uint8))
        chosen.append("data.path=labels.npz")
    before = dnnkit.build(COMPOSER.one(chosen))
    after = assert_trains(*chosen).module
    assert any(not mine.equal(theirs) for mine, theirs in zip(before.parameters(), after.parameters(), strict=True))
