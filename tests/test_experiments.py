"""The config tree, enumerated: every experiment trains, and every registered component trains in its place."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

import dnnkit
from dnnkit import plugins
from dnnkit.config.loader import shipped
from dnnkit.config.sections import GROUPS
from dnnkit.record import read_journal
from dnnkit.registry import REGISTRIES

EXPERIMENTS = sorted(path.stem for path in shipped("conf").glob("experiment/*.yaml"))
FEW = (
    "tracking=none",
    "trainer.progress_bar=false",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=6",
    "trainer.limit_val_batches=1",
)
PARTS = [group for group in GROUPS if group not in ("data", "model")]

plugins.load()
COMPONENTS = [(group, name) for group in PARTS for name in REGISTRIES[group].names()]


def assert_trains(*overrides: str) -> dnnkit.Result:
    result = dnnkit.train(dnnkit.compose([*overrides, *FEW]))
    rows = read_journal(result.run_dir / "metrics.jsonl")
    assert rows[-1].step == 6
    assert all(math.isfinite(row.value) for row in rows)
    return result


def test_the_promised_experiments_are_there() -> None:
    assert set(EXPERIMENTS) >= {"selu_mnist", "selu_digits", "selu_fashion", "bn_elu_fashion", "relu_he_fashion"}
    assert set(EXPERIMENTS) >= {"cnn_fashion", "bn_net_a", "bn_net_b", "bn_net_b_literal", "autoencoder_fashion", "diabetes_mlp"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_begins_with_the_command_that_runs_it_and_says_what_to_expect(name: str) -> None:
    lines = (shipped("conf") / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == f"# python -m dnnkit +experiment={name}"
    comment = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    assert re.search(r"Expect a test (accuracy|r2) of about 0\.\d+|Expect a test mse of about \d", comment)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_trains_on_the_bundled_data(workdir: Path, name: str) -> None:
    assert assert_trains(f"+experiment={name}", "data=digits", "data.val_size=100").run_dir.name.split("_", 2)[2].startswith(name)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_trains_on_its_own_data(workdir: Path, data_root: Path, name: str) -> None:
    assert_trains(f"+experiment={name}")


@pytest.mark.parametrize(("group", "name"), COMPONENTS)
def test_every_component_trains_in_its_place(workdir: Path, group: str, name: str) -> None:
    classes = "classification" in REGISTRIES[group].get(name).facts.get("tasks", ["classification"])
    chosen = [f"{group}={name}", f"data={'digits' if classes else 'diabetes'}"]
    before = dnnkit.build(dnnkit.compose(chosen))
    after = assert_trains(*chosen, "optimizer.lr=0.01").module
    assert any(not mine.equal(theirs) for mine, theirs in zip(before.parameters(), after.parameters(), strict=True))
