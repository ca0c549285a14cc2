"""The data sources that need no files: bundled tables and drawn ones. Oracle: scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import datasets
from sklearn.linear_model import LinearRegression, LogisticRegression

from dnnkit import compose, plugins
from dnnkit.data import Source
from dnnkit.data.source import check
from dnnkit.errors import ConfigError
from dnnkit.registry import data_sources
from dnnkit.training.assemble import load_data

plugins.load()


def made(name: str, task: str = "auto", **settings: Any) -> Source:
    """What a source gives for its settings, checked as training checks it."""
    record = data_sources.get(name)
    offered = {"task": task} if "task" in record.offered else {}
    source: Source = record.function(None, **offered, **settings)
    check(name, source)
    return source


# Bundled

BUNDLED = {
    "breast_cancer": (569, 30, (212, 357)),
    "wine": (178, 13, (59, 71, 48)),
    "iris": (150, 4, (50, 50, 50)),
}


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_table_has_scikit_learn_s_numbers_names_and_class_sizes(name: str) -> None:
    rows, columns, sizes = BUNDLED[name]
    bunch, source = getattr(datasets, f"load_{name}")(), made(name)
    assert source.train.x.shape == (rows, columns)
    np.testing.assert_array_equal(source.train.x, bunch.data)
    np.testing.assert_array_equal(source.train.y, bunch.target)
    assert source.columns == tuple(bunch.feature_names)
    assert source.classes == tuple(bunch.target_names)
    assert tuple(source.train.y.bincount().tolist()) == sizes
    assert (source.kind, source.test, source.validation) == ("table", None, None)
    # The docstring says so too.
    assert str(rows) in data_sources.get(name).doc
    assert all(str(size) in data_sources.get(name).doc for size in sizes)


def test_diabetes_is_in_its_own_units() -> None:
    source = made("diabetes")
    x, y = datasets.load_diabetes(return_X_y=True, scaled=False)
    np.testing.assert_array_equal(source.train.x, x)
    np.testing.assert_array_equal(source.train.y, y)
    assert source.targets == ("progression",)
    assert source.columns is not None
    sex = source.train.x[:, source.columns.index("sex")]
    assert sex.unique().tolist() == [1, 2]
    assert (source.train.y.min(), source.train.y.max()) == (25, 346)


@pytest.mark.parametrize("name", [*BUNDLED, "diabetes", "digits", "synthetic"])
def test_data_that_needs_no_files_is_loaded_by_its_name(name: str, workdir: Path) -> None:
    data = load_data(compose([f"data={name}"]))
    assert data.task == ("regression" if name == "diabetes" else "classification")
    assert len(data.train.y) + len(data.validation.y) + len(data.test.y) == data.card["sizes"]["train"] + sum(
        data.card["sizes"][part] for part in ("validation", "test")
    )
    assert not list(workdir.iterdir())


# Drawn


def test_synthetic_classes_are_scikit_learn_s() -> None:
    source = made("synthetic", samples=200, features=6, informative=4, classes=3, noise=0.2, separation=1.5, seed=7)
    x, y = datasets.make_classification(200, 6, n_informative=4, n_redundant=0, n_classes=3, flip_y=0.2, class_sep=1.5, random_state=7)
    np.testing.assert_array_equal(source.train.x, x)
    np.testing.assert_array_equal(source.train.y, y)
    assert source.classes == ("class_0", "class_1", "class_2")
    assert source.columns == tuple(f"x{index}" for index in range(6))


def test_synthetic_values_are_scikit_learn_s_linear_functions_where_there_is_no_noise() -> None:
    source = made("synthetic", task="regression", samples=100, features=5, informative=3, targets=2, noise=0.0, seed=3)
    x, y = datasets.make_regression(100, 5, n_informative=3, n_targets=2, random_state=3)
    np.testing.assert_array_equal(source.train.x, x)
    np.testing.assert_allclose(source.train.y, y, rtol=1e-12)
    assert source.targets == ("y0", "y1")


@pytest.mark.parametrize("noise", [0.1, 0.5, 2.0])
def test_the_noise_of_synthetic_values_bounds_r2_as_documented(noise: float) -> None:
    source = made("synthetic", task="regression", samples=50_000, features=4, noise=noise)
    x, y = source.train.x.numpy(), source.train.y.numpy()
    assert LinearRegression().fit(x, y).score(x, y) == pytest.approx(1 / (1 + noise**2), abs=0.01)


def test_synthetic_classes_can_be_told_apart_and_noise_hides_their_share() -> None:
    def best(noise: float) -> float:
        source = made("synthetic", samples=4000, features=4, classes=2, separation=4.0, noise=noise)
        # Two clouds for each class at the corners of a square need the squares of the features to be told apart by planes.
        x = torch.cat([source.train.x, torch.einsum("ni,nj->nij", source.train.x, source.train.x).flatten(1)], 1)
        return float(LogisticRegression(max_iter=5000).fit(x, source.train.y).score(x, source.train.y))

    assert best(0.0) > 0.97
    assert best(0.5) == pytest.approx(0.75, abs=0.04)  # half of the labels are drawn, half of those are right by chance


def test_synthetic_data_depends_on_its_own_seed_alone() -> None:
    first, again, other = (made("synthetic", samples=20, seed=seed).train.x for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("settings", "where", "message"),
    [
        ({"informative": 21}, "data.informative", "at most data.features = 20, got 21"),
        ({"informative": 2}, "data.informative", "at least 3 for 3 classes, got 2"),
        ({"features": 2}, "data.features", "at least 3 for 3 classes, got 2"),
        ({"samples": 10, "classes": 10}, "data.samples", "at least 20 for 10 classes, got 10"),
        ({"noise": 1.5}, "data.noise", "at most 1, got 1.5"),
        ({"samples": 10**8}, "data.samples", "2000000000 values"),
    ],
)
def test_synthetic_settings_that_do_not_fit_together_are_config_errors(settings: dict[str, Any], where: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made("synthetic", **settings)
    assert [(problem.where, message in problem.message) for problem in caught.value.problems] == [(where, True)]
