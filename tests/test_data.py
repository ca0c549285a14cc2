"""Splits, standardisation and the checks on a source. Oracles: NumPy, scikit-learn, exact fractions, published counts."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_wine
from sklearn.preprocessing import StandardScaler

from dnnkit import plugins
from dnnkit.data import DataSet, Examples, Source, prepare
from dnnkit.data.source import fingerprint
from dnnkit.data.split import divide, quotas
from dnnkit.errors import ConfigError, DataError
from dnnkit.registry import data_sources

plugins.load()

DEFAULTS: dict[str, Any] = {"val_size": 0.1, "test_size": 0.2, "split": "stratified", "standardize": "auto", "seed": 0}


def prepared(source: Source, **settings: Any) -> DataSet:
    return prepare("mine", source, **(DEFAULTS | settings))


def numbered(rows: int, classes: int = 3) -> Source:
    """A table whose only value is the row's number, so that a row can be recognised wherever it goes."""
    return Source(Examples(torch.arange(rows).unsqueeze(1), torch.arange(rows) % classes), None)


def row_numbers(examples: Examples) -> list[int]:
    return examples.x[:, 0].int().tolist()


def wine() -> Source:
    x, y = load_wine(return_X_y=True)
    return Source(Examples(torch.from_numpy(x), torch.from_numpy(y)), None)


def digits() -> Source:
    return data_sources.get("digits").function(None)


def largest_remainder(sizes: list[int], count: int) -> list[int]:
    """The method by exact fractions: the oracle for `quotas`."""
    shares = [Fraction(size * count, sum(sizes)) for size in sizes]
    quota = [int(share) for share in shares]
    by_remainder = sorted(range(len(sizes)), key=lambda label: (quota[label] - shares[label], label))
    for label in by_remainder[: count - sum(quota)]:
        quota[label] += 1
    return quota


# Splits


def test_a_stratified_split_is_exact_in_total_and_by_largest_remainder_in_each_class() -> None:
    draw = random.Random(0)
    for _ in range(500):
        sizes = [draw.randrange(0, 50) for _ in range(draw.randrange(1, 12))] + [1]
        count = draw.randrange(0, sum(sizes) + 1)
        assert quotas(torch.tensor(sizes), count).tolist() == largest_remainder(sizes, count)


def test_a_stratified_split_takes_those_quotas_of_the_digits() -> None:
    sizes = np.bincount(load_digits().target).tolist()
    balance = prepared(digits(), val_size=180, test_size=357).card["class_balance"]
    assert balance["test"] == largest_remainder(sizes, 357)
    left = [size - taken for size, taken in zip(sizes, balance["test"], strict=True)]
    assert balance["validation"] == largest_remainder(left, 180)
    assert sum(balance["test"]) == 357
    assert sum(balance["validation"]) == 180


@pytest.mark.parametrize("split", ["stratified", "random", "tail"])
def test_every_row_goes_to_exactly_one_split(split: str) -> None:
    data = prepared(numbered(101), split=split, standardize="none")
    parts = [row_numbers(examples) for examples in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [73, 8, 20]
    assert sorted([*parts[0], *parts[1], *parts[2]]) == list(range(101))
    for examples in (data.train, data.validation, data.test):
        assert examples.y.tolist() == [row % 3 for row in row_numbers(examples)]


def test_tail_takes_the_last_rows_for_test_and_those_before_them_for_validation() -> None:
    data = prepared(numbered(10), split="tail", test_size=3, val_size=2, standardize="none")
    assert [row_numbers(part) for part in (data.train, data.validation, data.test)] == [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]


@pytest.mark.parametrize("split", ["stratified", "random"])
def test_a_split_depends_on_its_seed_alone(split: str) -> None:
    torch.manual_seed(1)
    first = prepared(numbered(300), split=split, standardize="none")
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = prepared(numbered(300), split=split, standardize="none")
    other = prepared(numbered(300), split=split, standardize="none", seed=1)
    assert torch.equal(state, torch.get_rng_state())
    for part in ("train", "validation", "test"):
        assert row_numbers(getattr(first, part)) == row_numbers(getattr(again, part))
        assert row_numbers(getattr(first, part)) != row_numbers(getattr(other, part))


def test_the_test_rows_stay_when_the_validation_size_changes() -> None:
    tests = [row_numbers(prepared(numbered(300), val_size=size, standardize="none").test) for size in (1, 0.3)]
    assert tests[0] == tests[1]


def test_test_and_validation_are_drawn_independently_for_one_seed() -> None:
    y = torch.zeros(1000, dtype=torch.int64)
    drawn = [divide(y, 500, "random", purpose, 0)[1] for purpose in ("test", "validation")]
    assert not torch.equal(*drawn)


def test_splits_of_the_source_s_own_are_used_whole_and_in_order() -> None:
    source = replace(numbered(50), test=numbered(7).train, validation=numbered(5).train)
    data = prepared(source, standardize="none")
    assert [row_numbers(part) for part in (data.train, data.validation, data.test)] == [list(range(n)) for n in (50, 5, 7)]
    assert data.card["splits"] == {"test": "the source's own", "validation": "the source's own"}


def test_a_fraction_for_validation_is_of_the_rows_that_test_leaves() -> None:
    assert prepared(digits(), test_size=0.2, val_size=0.1).card["sizes"] == {"train": 1294, "validation": 144, "test": 359}


@pytest.mark.parametrize("size", [0.0001, 0.9999, 100, 101, 0, -1, 1.0, 1.5, 0.0, -0.1, float("nan"), float("inf"), True])
@pytest.mark.parametrize("setting", ["val_size", "test_size"])
def test_a_size_that_leaves_a_split_or_the_rest_empty_is_a_config_error(setting: str, size: float) -> None:
    source = numbered(100) if setting == "test_size" else replace(numbered(100), test=numbered(10).train)
    with pytest.raises(ConfigError) as caught:
        prepared(source, **{setting: size})
    [problem] = caught.value.problems
    assert problem.where == f"data.{setting}"
    assert repr(size) in problem.message


def test_every_problem_with_the_settings_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        prepared(wine(), val_size=0, test_size=1000, standardize="channel")
    assert {problem.where for problem in caught.value.problems} == {"data.val_size", "data.test_size", "data.standardize"}


# Standardisation


def test_feature_statistics_are_those_of_the_training_rows_and_the_population() -> None:
    data = prepared(wine(), split="tail", val_size=20, test_size=30)
    x = load_wine().data
    oracle = StandardScaler().fit(x[:-50])
    np.testing.assert_allclose(data.scaling.mean, oracle.mean_, rtol=1e-13)
    np.testing.assert_allclose(data.scaling.std, oracle.scale_, rtol=1e-12)
    for part, rows in ((data.train, x[:-50]), (data.validation, x[-50:-30]), (data.test, x[-30:])):
        assert part.x.dtype == torch.float32
        np.testing.assert_allclose(part.x, oracle.transform(rows), rtol=1e-6, atol=1e-6)


def test_images_have_one_mean_and_deviation_per_channel_over_all_training_pixels() -> None:
    raw = np.random.default_rng(0).integers(0, 256, (60, 3, 5, 4), dtype=np.uint8)
    raw[:, 1] //= 3
    source = Source(Examples(torch.from_numpy(raw), torch.zeros(60, dtype=torch.int64)), None, kind="image")
    data = prepared(source, split="tail", val_size=10, test_size=10)
    train = raw[:40].astype(np.float64)
    mean, std = train.mean((0, 2, 3)), train.std((0, 2, 3))
    assert data.scaling.mean.shape == (3, 1, 1)
    np.testing.assert_allclose(data.scaling.mean.flatten(), mean, rtol=1e-13)
    np.testing.assert_allclose(data.scaling.std.flatten(), std, rtol=1e-13)
    np.testing.assert_allclose(data.test.x, (raw[50:] - mean[:, None, None]) / std[:, None, None], rtol=1e-6, atol=1e-6)


def test_validation_and_test_rows_have_no_part_in_the_statistics() -> None:
    changed = wine()
    changed.train.x[-50:] *= 1000
    before, after = (prepared(source, split="tail", val_size=20, test_size=30) for source in (wine(), changed))
    assert torch.equal(before.scaling.mean, after.scaling.mean)
    assert torch.equal(before.train.x, after.train.x)


def test_auto_means_channel_for_images_and_feature_for_tables() -> None:
    assert prepared(digits()).card["standardize"] == "channel"
    assert prepared(wine()).card["standardize"] == "feature"
    assert prepared(digits(), standardize="feature").scaling.mean.shape == (1, 8, 8)


def test_none_leaves_the_values_alone() -> None:
    data = prepared(digits(), standardize="none", split="tail")
    np.testing.assert_array_equal(data.test.x[:, 0], load_digits().images[-359:])


def test_constant_features_become_zero_in_training_and_stay_finite_elsewhere() -> None:
    x = torch.rand(1000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 0.1  # its rounded mean is not 0.1
    x[900:, 1] = 7.0
    data = prepared(Source(Examples(x, torch.zeros(1000, dtype=torch.int64)), None), split="tail", test_size=50, val_size=50)
    assert (data.train.x[:, 1] == 0).all()
    np.testing.assert_allclose(data.test.x[:, 1], 6.9, rtol=1e-6)
    assert data.card["constant_features"] == 1


def test_a_constant_channel_stays_finite() -> None:
    x = torch.full((20, 1, 2, 2), 0.1, dtype=torch.float64)
    data = prepared(Source(Examples(x, torch.arange(20) % 2), None, kind="image"))
    assert (data.train.x == 0).all()


def test_a_small_spread_on_a_large_offset_keeps_its_digits() -> None:
    x = 1e8 + np.random.default_rng(0).normal(size=(400, 1))
    source = Source(Examples(torch.from_numpy(x), torch.zeros(400, dtype=torch.int64)), None)
    data = prepared(source, split="tail", val_size=50, test_size=50)
    np.testing.assert_allclose(data.scaling.std, x[:300].std(0), rtol=1e-9)
    assert abs(float(data.train.x.double().std(correction=0)) - 1) < 1e-6


def test_statistics_do_not_depend_on_how_the_rows_are_cut_into_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepared(wine())
    monkeypatch.setattr(sys.modules["dnnkit.data.preparation"], "_CHUNK", 40)
    pieces = prepared(wine())
    torch.testing.assert_close(pieces.scaling.mean, whole.scaling.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(pieces.scaling.std, whole.scaling.std, rtol=1e-13, atol=0)
    torch.testing.assert_close(pieces.train.x, whole.train.x, rtol=1e-6, atol=1e-6)


def test_an_outlier_beyond_float32_is_a_data_error_and_not_an_infinity() -> None:
    x = torch.rand(100, 1, dtype=torch.float64) * 1e-10
    x[-1] = 1e35
    with pytest.raises(DataError, match="not finite in float32"):
        prepared(Source(Examples(x, torch.zeros(100, dtype=torch.int64)), None), split="tail")


# Checks

ROWS = torch.zeros(10, dtype=torch.int64)
BROKEN = {
    "fewer labels than rows": (Examples(torch.rand(10, 2), ROWS[:9]), "must be x of shape"),
    "no features": (Examples(torch.rand(10), ROWS), "must be x of shape"),
    "labels as a matrix": (Examples(torch.rand(10, 2), ROWS.unsqueeze(1)), "y of integers .n,. for classes"),
    "no rows": (Examples(torch.rand(0, 2), ROWS[:0]), "at least one row"),
    "examples of no values": (Examples(torch.rand(10, 0), ROWS), "at least one row"),
    "a nan": (Examples(torch.tensor([[1.0], [2.0], [float("nan")]]), ROWS[:3]), "1 of 3 rows hold others, the first is row 2"),
    "an infinity": (Examples(torch.tensor([[1.0], [float("-inf")], [3.0]]), ROWS[:3]), "the first is row 1"),
    "a value too large for float32": (Examples(torch.tensor([[1.0], [1e39]], dtype=torch.float64), ROWS[:2]), "the first is row 1"),
    "complex values": (Examples(torch.rand(10, 2, dtype=torch.complex64), ROWS), "real x, and y of integers"),
    "fractional labels": (Examples(torch.rand(10, 2), ROWS.float()), "names 2 classes, but its targets are values"),
    "a negative label": (Examples(torch.rand(10, 2), ROWS - 1), "at least 0.*got -1 in row 0"),
    "a label beyond the classes": (Examples(torch.rand(10, 2), ROWS + 2), "less than 2, the number of classes, got 2 in row 0"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_source_with_unusable_tensors_is_refused_with_the_split_and_the_rule(fault: str) -> None:
    broken, message = BROKEN[fault]
    with pytest.raises(DataError, match=f"data=mine: the train split.*{message}") as caught:
        prepared(Source(broken, None, classes=("a", "b")))
    assert caught.value.exit_code == 4


def test_a_test_split_of_another_shape_is_refused() -> None:
    with pytest.raises(DataError, match=r"the test split must hold examples of shape \(1,\)"):
        prepared(replace(numbered(10), test=Examples(torch.rand(3, 2), ROWS[:3])))


# Identity and description


def test_the_fingerprint_changes_with_any_byte_dtype_shape_or_split() -> None:
    x, y = torch.arange(12).reshape(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])
    source = Source(Examples(x, y), None)
    others = [
        Source(Examples(x.clone().index_put_((torch.tensor(5), torch.tensor(1)), torch.tensor(12)), y), None),
        Source(Examples(x.view(torch.float64), y), None),  # the same bytes
        Source(Examples(x.reshape(6, 2, 1), y), None),
        Source(Examples(x, 1 - y), None),
        Source(Examples(x, y), Examples(x, y)),
        Source(Examples(x, y), None, Examples(x, y)),
    ]
    prints = [fingerprint(one) for one in (source, *others)]
    assert len(set(prints)) == len(prints)
    assert fingerprint(Source(Examples(x.t().contiguous().t(), y.clone()), None)) == prints[0]
    assert len(prints[0]) == 64


def test_the_fingerprint_is_of_the_raw_data_whatever_the_split() -> None:
    assert prepared(wine()).fingerprint == prepared(wine(), split="tail", seed=3, standardize="none").fingerprint


def test_the_card_is_json_and_adds_up() -> None:
    card = prepared(digits()).card
    assert json.loads(json.dumps(card)) == card
    assert sum(card["sizes"].values()) == 1797
    for part, size in card["sizes"].items():
        assert sum(card["class_balance"][part]) == size
    assert card["inputs"] == [1, 8, 8]
    assert card["outputs"] == 10


def test_outputs_count_the_classes_that_any_split_has() -> None:
    assert prepared(replace(numbered(20), test=Examples(torch.rand(3, 1), torch.tensor([0, 1, 6])))).outputs == 7


# The real sets


@pytest.mark.parametrize(("name", "pixels"), [("mnist", (0.1307, 0.3081)), ("fashion_mnist", (0.2860, 0.3530))])
def test_the_real_images_have_the_known_sizes_balance_and_statistics(name: str, pixels: tuple[float, float], data_root: Any) -> None:
    """Mean and deviation over the 60,000 training images, scaled to [0, 1], as commonly quoted, to four digits."""
    source = data_sources.get(name).function(data_root)
    assert source.train.x.shape == (60000, 1, 28, 28)
    assert source.train.x.dtype == torch.uint8
    data = prepare(name, replace(source, validation=source.test), **DEFAULTS)
    assert (round(float(data.scaling.mean) / 255, 4), round(float(data.scaling.std) / 255, 4)) == pixels
    mnist_test = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.card["class_balance"]["test"] == (mnist_test if name == "mnist" else [1000] * 10)
    assert abs(float(data.train.x.mean())) < 1e-4
