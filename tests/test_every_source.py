"""Every registered data source trains, for every task that its targets allow, resident and streamed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dnnkit
from dnnkit import plugins
from dnnkit.errors import ConfigError
from dnnkit.record import read_journal
from dnnkit.registry import REGISTRIES

plugins.load()
FEW = (
    "tracking=none",
    "trainer.progress_bar=false",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=3",
    "data.batch_size=8",
    "model.hidden=[8]",
    "optimizer.lr=0.001",
)
CLASSES, VALUES = "classification", "regression"


def table(folder: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "height": rng.normal(170, 10, 120).round(1),
        "colour": rng.choice(["red", "green", "blue"], 120),
        "species": rng.choice(["cat", "dog"], 120),
        "weight": rng.normal(60, 9, 120).round(2),
    }


def csv_file(folder: Path) -> list[str]:
    columns = table(folder)
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    (folder / "animals.csv").write_text("\n".join(lines) + "\n")
    return ["data.path=animals.csv"]


def parquet_file(folder: Path) -> list[str]:
    import pandas

    pandas.DataFrame(table(folder)).to_parquet(folder / "animals.parquet")
    return ["data.path=animals.parquet"]


def npz_file(folder: Path, task: str) -> list[str]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 5)).astype(np.float32)
    y = rng.integers(0, 3, 100) if task == CLASSES else rng.normal(size=(100, 2))
    np.savez(folder / "mine.npz", x=x, y=y)
    return ["data.path=mine.npz"]


def image_files(folder: Path) -> list[str]:
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "pictures" / name).mkdir(parents=True)
        for index in range(30):
            Image.fromarray(rng.integers(0, 255, (6, 5), dtype=np.uint8)).save(folder / "pictures" / name / f"{index}.png")
    return ["data.path=pictures"]


#: What each source needs besides its name, for each task that its targets are for.
CASES: dict[tuple[str, str], Callable[[Path], list[str]]] = {
    **{(name, CLASSES): lambda folder: [] for name in ("digits", "mnist", "fashion_mnist", "breast_cancer", "wine", "iris", "synthetic")},
    **{(name, VALUES): lambda folder: [] for name in ("diabetes", "synthetic")},
    ("csv", CLASSES): lambda folder: [*csv_file(folder), "data.target=species"],
    ("csv", VALUES): lambda folder: [*csv_file(folder), "data.target=weight"],
    ("parquet", CLASSES): lambda folder: [*parquet_file(folder), "data.target=species"],
    ("parquet", VALUES): lambda folder: [*parquet_file(folder), "data.target=weight"],
    ("npz", CLASSES): lambda folder: npz_file(folder, CLASSES),
    ("npz", VALUES): lambda folder: npz_file(folder, VALUES),
    ("image_folder", CLASSES): image_files,
}
ON_DISK = ("mnist", "fashion_mnist")


def test_every_registered_source_has_its_case() -> None:
    assert {name for name, _ in CASES} == set(REGISTRIES["data"].names())


def trains(*overrides: str) -> bytes:
    result = dnnkit.train(dnnkit.compose([*overrides, *FEW]))
    rows = read_journal(result.run_dir / "metrics.jsonl")
    assert rows[-1].step == 3
    assert all(math.isfinite(row.value) for row in rows)
    return (result.run_dir / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_source_trains_for_the_task_of_its_targets_and_for_reconstruction(
    workdir: Path, request: pytest.FixtureRequest, name: str, task: str
) -> None:
    if name in ON_DISK:
        request.getfixturevalue("data_root")
    overrides = [f"data={name}", *CASES[name, task](workdir)]
    resident = trains(*overrides, f"task={task}")
    assert trains(*overrides, f"task={task}", "data.loader=stream") == resident
    if name not in ON_DISK:
        trains(*overrides, "task=reconstruction")


@pytest.mark.parametrize(("name", "task"), [("digits", VALUES), ("iris", VALUES), ("diabetes", CLASSES)])
def test_a_source_whose_targets_are_of_another_kind_refuses_the_task(name: str, task: str) -> None:
    with pytest.raises(ConfigError, match=f"task: data={name} has"):
        dnnkit.build(dnnkit.compose([f"data={name}", f"task={task}"]))
