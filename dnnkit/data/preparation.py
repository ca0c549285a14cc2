"""From a source to a data set: check, split, standardise, describe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dnnkit.data.source import DataSet, Examples, Source, check, fingerprint
from dnnkit.data.split import divide, rows_asked
from dnnkit.errors import ConfigError, DataError, Problem

#: Values converted to float64 at a time: 2 MiB, so that a large data set is never held in float64.
_CHUNK = 2**18


def prepare(
    name: str, source: Source, *, val_size: int | float, test_size: int | float, split: str, standardize: str, seed: int
) -> DataSet:
    """Split and standardise a source.

    The test split is the source's own, or `test_size` of its training rows; then validation is its own, or `val_size` of
    the rows that are left. Both sizes are a count (an integer ≥ 1) or a fraction in (0, 1). `split` says which rows:
    `stratified`, `random` or `tail`, a pure function of `seed`.

    `standardize`: `channel` has one mean and deviation per channel of an image, over all pixels; `feature` one per value
    of an example; `none` leaves the values alone; `auto` is `channel` for images and `feature` for tables. The deviation
    is the population's, computed in float64 over the training split only; where it is zero, it counts as one.

    Raises DataError where the source's tensors are unusable, ConfigError where a size leaves a split empty or where
    `channel` is asked of something that has none.
    """
    source = check(name, source)
    by = {"image": "channel", "table": "feature"}[source.kind] if standardize == "auto" else standardize
    rows, splits = _divide(source, val_size, test_size, split, seed, _standardize_problems(source, by))
    moments = _moments(source.train.x, rows["train"].rows)
    mean, std = _statistics(moments, by)
    examples = {part: Examples(_standardized(name, taken, mean, std), taken.y[taken.rows]) for part, taken in rows.items()}
    outputs = len(source.classes) if source.classes is not None else max(int(given.y.max()) for _, given in source.splits()) + 1
    card = _card(name, source, examples, outputs) | {"splits": splits, "standardize": by, "constant_features": int(moments.constant.sum())}
    inputs = tuple(source.train.x.shape[1:])
    return DataSet(
        **examples, mean=mean, std=std, inputs=inputs, outputs=outputs, classes=source.classes, kind=source.kind,
        fingerprint=card["fingerprint"], card=card,
    )  # fmt: skip


def _card(name: str, source: Source, examples: Mapping[str, Examples], outputs: int) -> dict[str, Any]:
    return {
        "name": name,
        "kind": source.kind,
        "origin": source.origin,
        "description": source.description,
        "fingerprint": fingerprint(source),
        "inputs": list(source.train.x.shape[1:]),
        "outputs": outputs,
        "classes": None if source.classes is None else list(source.classes),
        "sizes": {part: len(found.y) for part, found in examples.items()},
        "class_balance": {part: found.y.bincount(minlength=outputs).tolist() for part, found in examples.items()},
    }


@dataclass(frozen=True, eq=False)
class _Rows:
    """Some rows of a split of the source, not yet copied out of it."""

    x: Tensor
    y: Tensor
    rows: Tensor


def _divide(
    source: Source, val_size: int | float, test_size: int | float, split: str, seed: int, problems: list[Problem]
) -> tuple[dict[str, _Rows], dict[str, str]]:
    """The rows of the three splits, and where those of validation and test come from."""
    x, y = source.train
    test = 0 if source.test is not None else rows_asked("data.test_size", test_size, len(y), problems)
    val = 0 if source.validation is not None else rows_asked("data.val_size", val_size, len(y) - test, problems)
    if problems:
        raise ConfigError(problems)
    left, taken, origins = torch.arange(len(y)), {}, {}
    for part, given, count in (("test", source.test, test), ("validation", source.validation, val)):
        if given is not None:
            taken[part], origins[part] = _Rows(given.x, given.y, torch.arange(len(given.y))), "the source's own"
            continue
        rest, chosen = divide(y[left], count, split, part, seed)
        taken[part], origins[part] = _Rows(x, y, left[chosen]), f"{split} from train"
        left = left[rest]
    return {"train": _Rows(x, y, left), "validation": taken["validation"], "test": taken["test"]}, origins


def _standardize_problems(source: Source, by: str) -> list[Problem]:
    if by not in ("channel", "feature", "none"):
        return [Problem("data.standardize", f"must be one of auto, channel, feature, none, got {by!r}")]
    if by == "channel" and source.train.x.ndim < 3:
        shape = tuple(source.train.x.shape[1:])
        return [Problem("data.standardize", f"channel needs examples of shape (channels, …), these have {shape}; use feature")]
    return []


@dataclass(frozen=True)
class _Moments:
    """Per feature, over rows: mean, variance and extremes in float64, and which features never change."""

    mean: Tensor
    var: Tensor
    low: Tensor
    high: Tensor

    @property
    def constant(self) -> Tensor:
        return self.low == self.high


def _moments(x: Tensor, rows: Tensor) -> _Moments:
    """Two passes in float64: the sum of squares is taken about the mean, so that nothing cancels."""
    mean, square = torch.zeros(x.shape[1:], dtype=torch.float64), torch.zeros(x.shape[1:], dtype=torch.float64)
    low, high = torch.full_like(mean, torch.inf), torch.full_like(mean, -torch.inf)
    for _, chunk in _chunks(x, rows):
        mean += chunk.sum(0)
        low, high = torch.minimum(low, chunk.amin(0)), torch.maximum(high, chunk.amax(0))
    # The rounded mean of equal values may differ from them, and their variance from zero.
    mean = torch.where(low == high, low, mean / len(rows))
    for _, chunk in _chunks(x, rows):
        square += chunk.sub_(mean).square_().sum(0)
    return _Moments(mean, square / len(rows), low, high)


def _statistics(moments: _Moments, by: str) -> tuple[Tensor, Tensor]:
    """Mean and deviation, shaped to broadcast against one example."""
    if by == "none":
        return torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    if by == "feature":
        return moments.mean, _deviation(moments.var)
    pixels = tuple(range(1, moments.mean.ndim))
    low, high = moments.low.amin(pixels, keepdim=True), moments.high.amax(pixels, keepdim=True)
    mean = torch.where(low == high, low, moments.mean.mean(pixels, keepdim=True))
    # The law of total variance: the mean of the pixels' variances plus the variance of their means.
    var = moments.var.mean(pixels, keepdim=True) + (moments.mean - mean).square().mean(pixels, keepdim=True)
    return mean, _deviation(var)


def _deviation(var: Tensor) -> Tensor:
    """The root, and 1 where it is zero: what is constant in training stays finite, and keeps its unit elsewhere."""
    std = var.sqrt()
    return torch.where(std > 0, std, 1.0)


def _standardized(name: str, taken: _Rows, mean: Tensor, std: Tensor) -> Tensor:
    result = torch.empty((len(taken.rows), *taken.x.shape[1:]), dtype=torch.float32)
    for start, chunk in _chunks(taken.x, taken.rows):
        result[start : start + len(chunk)] = chunk.sub_(mean).div_(std)
    if taken.x.is_floating_point() and not result.isfinite().all():
        raise DataError(
            f"data={name}: a value is so many deviations away from the training mean that it is not finite in float32",
            "look for outliers in the data, or switch the standardisation off: data.standardize=none",
        )
    return result


def _chunks(x: Tensor, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Those rows of x as float64, a bounded number at a time, each with the position of its first."""
    size = max(1, _CHUNK // x[0].numel())
    for start in range(0, len(rows), size):
        yield start, x[rows[start : start + size]].to(torch.float64, copy=True)
