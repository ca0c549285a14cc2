"""From a source to a data set: check, split, standardise, describe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dnnkit.data.base_task import BaseTask
from dnnkit.data.scaling import Scaling
from dnnkit.data.source import DataSet, Source, Split, check, class_count, fingerprint, form_of, label_names
from dnnkit.data.split import divide, rows_asked, strata
from dnnkit.data.stored import StoredRows
from dnnkit.data.tasks import settled, task_named
from dnnkit.errors import ConfigError, DataError, Problem

#: Values converted to float64 at a time: 2 MiB, so that a large data set is never held in float64.
_CHUNK = 2**18


def prepare(
    name: str,
    source: Source,
    *,
    val_size: int | float,
    test_size: int | float,
    split: str,
    standardize: str,
    seed: int,
    train_size: int | float | None = None,
    task: str = "auto",
    standardize_target: bool = True,
    stream: bool = False,
) -> DataSet:
    """Split and standardise a source.

    `task`: the name of a registered one, which the targets have to fit, or `auto`: the one that takes them for its own.

    The test split is the source's own, or `test_size` of its training rows; then validation is its own, or `val_size` of
    the rows that are left. Both sizes are a count (an integer ≥ 1) or a fraction in (0, 1). `split` says which rows:
    `stratified` (by class; see `strata`), `random` or `tail`, a pure function of `seed`. `train_size` is a count or
    a fraction of the training rows that remain, a stratified choice whatever `split` is; the other splits do not change.

    `standardize`: `channel` has one mean and deviation per channel of an image, over all pixels; `feature` one per value
    of an example; `none` leaves the values alone; `auto` is `channel` for images and `feature` for tables. The deviation
    is the population's, computed in float64 over the training split only; where it is zero, it counts as one. Missing
    values become the training split's mean of their feature. `standardize_target` does the same for the values to
    predict, one by one. With `stream` the examples stay raw and are standardised as they are read.

    Raises DataError where the source's tensors are unusable, ConfigError where they do not fit the task, where a size
    leaves a split empty, or where `channel` is asked of something that has none.
    """
    source = check(name, source)
    source, task = settled(name, source, task)
    meaning = task_named(task)
    by = {"image": "channel", "table": "feature"}[source.kind] if standardize == "auto" else standardize
    rows, origins = _divide(source, val_size, test_size, split, seed, _standardize_problems(source, by))
    if train_size is not None:
        there = len(rows["train"].rows)
        rows["train"] = _fewer(rows["train"], train_size, seed)
        origins["train"] = f"{len(rows['train'].rows):,} of {there:,}, stratified"
    moments = _moments(source.train.x, rows["train"].rows, source.missing)
    scaling = _scaling(moments, by, source.missing)
    inputs = tuple(source.train.x.shape[1:])
    target_scaling = meaning.target_scaling(partial(_of_values, rows["train"], standardize_target), scaling, inputs)
    splits = {part: _split(name, taken, meaning, scaling, target_scaling, stream) for part, taken in rows.items()}
    outputs = meaning.outputs(source)
    how = {"splits": origins, "standardize": by, "loader": "stream" if stream else "resident"}
    card = _card(name, source, rows, task, outputs) | how | {"constant_features": _constant(moments, source.columns), **source.notes}
    return DataSet(
        **splits, task=task, scaling=scaling, target_scaling=target_scaling, inputs=inputs, outputs=outputs,
        classes=source.classes, kind=source.kind, fingerprint=card["fingerprint"], card=card,
        columns=source.columns, targets=source.targets, encoding=source.encoding,
    )  # fmt: skip


def _card(name: str, source: Source, rows: Mapping[str, _Rows], task: str, outputs: int) -> dict[str, Any]:
    card: dict[str, Any] = {
        "name": name,
        "kind": source.kind,
        "task": task,
        "origin": source.origin,
        "description": source.description,
        "fingerprint": fingerprint(source),
        "inputs": list(source.train.x.shape[1:]),
        "outputs": outputs,
        "classes": None if source.classes is None else list(source.classes),
        "columns": None if source.columns is None else list(source.columns),
        "sizes": {part: len(taken.rows) for part, taken in rows.items()},
    }
    if source.missing:
        missing = source.train.x.isnan().sum(0).flatten().tolist()
        names = source.columns or [str(index) for index in range(len(missing))]
        card["missing"] = {column: count for column, count in zip(names, missing, strict=True) if count}
    return card | _described(source, rows)


def _described(source: Source, rows: Mapping[str, _Rows]) -> dict[str, Any]:
    """What the targets are like, whatever the task makes of them."""
    form = form_of(source.train.y)
    if form == "values":
        return {"target": _target_card(source, rows["train"])}
    taken = {part: held.y[held.rows] for part, held in rows.items()}
    if form == "labels":
        names = label_names(source.targets, source.train.y.shape[1])
        return {"label_balance": {part: dict(zip(names, y.sum(0).tolist(), strict=True)) for part, y in taken.items()}}
    return {"class_balance": {part: y.bincount(minlength=class_count(source)).tolist() for part, y in taken.items()}}


def _target_card(source: Source, train: _Rows) -> dict[str, dict[str, float]]:
    """Mean, population deviation and range of each target value in the training split."""
    y = train.y[train.rows]
    names = source.targets or (["target"] if y.shape[1] == 1 else [f"target_{index}" for index in range(y.shape[1])])
    measured = zip(names, y.mean(0).tolist(), y.std(0, correction=0).tolist(), y.amin(0).tolist(), y.amax(0).tolist(), strict=True)
    return {name: {"mean": mean, "std": std, "min": low, "max": high} for name, mean, std, low, high in measured}


def _constant(moments: _Moments, columns: tuple[str, ...] | None) -> list[str] | int:
    """The features that are the same in every training row: by name where they have names, else how many there are."""
    constant = moments.constant.flatten().tolist()
    return sum(constant) if columns is None else [name for name, same in zip(columns, constant, strict=True) if same]


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
        rest, chosen = divide(strata(y[left]) if split == "stratified" else y[left], count, split, part, seed)
        taken[part], origins[part] = _Rows(x, y, left[chosen]), f"{split} from train"
        left = left[rest]
    return {"train": _Rows(x, y, left), "validation": taken["validation"], "test": taken["test"]}, origins


def _fewer(train: _Rows, size: int | float, seed: int) -> _Rows:
    """Some of the training rows, in their order. ConfigError where they would be none, or more than there are."""
    there = len(train.rows)
    count = size if isinstance(size, int) else round(size * there)
    if not 0 < count <= there:
        raise ConfigError([Problem("data.train_size", f"{size!r} takes {count} of the {there} rows that are left for training")])
    _, chosen = divide(strata(train.y[train.rows]), count, "stratified", "train", seed)
    return _Rows(train.x, train.y, train.rows[chosen])


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
        return ~(self.low < self.high)  # also of a feature that no row has


def _moments(x: Tensor, rows: Tensor, missing: bool = False) -> _Moments:
    """Two passes in float64: the sum of squares is taken about the mean, so that nothing cancels. NaN counts as no value."""
    mean, square = torch.zeros(x.shape[1:], dtype=torch.float64), torch.zeros(x.shape[1:], dtype=torch.float64)
    low, high = torch.full_like(mean, torch.inf), torch.full_like(mean, -torch.inf)
    count = torch.full_like(mean, len(rows))
    for _, chunk in _chunks(x, rows):
        if missing:
            unknown = chunk.isnan()
            count -= unknown.sum(0)
            low = torch.minimum(low, chunk.masked_fill(unknown, torch.inf).amin(0))
            high = torch.maximum(high, chunk.masked_fill(unknown, -torch.inf).amax(0))
            mean += chunk.masked_fill_(unknown, 0).sum(0)
        else:
            mean += chunk.sum(0)
            low, high = torch.minimum(low, chunk.amin(0)), torch.maximum(high, chunk.amax(0))
    count.clamp_(min=1)
    # The rounded mean of equal values may differ from them, and their variance from zero.
    mean = torch.where(low == high, low, mean / count)
    for _, chunk in _chunks(x, rows):
        chunk = chunk.sub_(mean).square_()
        square += (chunk.nan_to_num_(nan=0.0) if missing else chunk).sum(0)
    return _Moments(mean, square / count, low, high)


def _scaling(moments: _Moments, by: str, missing: bool) -> Scaling:
    mean, std = _statistics(moments, by)
    return Scaling(mean, std, moments.mean if missing else None)


def _of_values(train: _Rows, standardize: bool) -> Scaling:
    """The standardisation of the training targets one by one, or that which leaves them as they are."""
    moments = _moments(train.y, train.rows)
    if standardize:
        return _scaling(moments, "feature", missing=False)
    return Scaling(torch.zeros_like(moments.mean), torch.ones_like(moments.mean))


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


def _split(name: str, taken: _Rows, task: BaseTask, scaling: Scaling, target_scaling: Scaling | None, stream: bool) -> Split:
    x = _stored(name, taken, scaling) if stream else _standardized(name, taken, scaling)
    return Split(x, task.targets(x, taken.y[taken.rows], target_scaling))


def _stored(name: str, taken: _Rows, scaling: Scaling) -> StoredRows:
    if taken.x.is_floating_point():
        for _, chunk in _chunks(taken.x, taken.rows):
            _check_standardized(name, scaling.apply(chunk))
    return StoredRows(taken.x, taken.rows, scaling)


def _standardized(name: str, taken: _Rows, scaling: Scaling) -> Tensor:
    result = torch.empty((len(taken.rows), *taken.x.shape[1:]), dtype=torch.float32)
    for start, chunk in _chunks(taken.x, taken.rows):
        result[start : start + len(chunk)] = scaling.apply(chunk)
    if taken.x.is_floating_point():
        _check_standardized(name, result)
    return result


def _check_standardized(name: str, values: Tensor) -> None:
    if not values.isfinite().all():
        raise DataError(
            f"data={name}: a value is so many deviations away from the training mean that it is not finite in float32",
            "look for outliers in the data, or switch the standardisation off: data.standardize=none",
        )


def _chunks(x: Tensor, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Those rows of x as float64, a bounded number at a time, each with the position of its first."""
    size = max(1, _CHUNK // x[0].numel())
    for start in range(0, len(rows), size):
        yield start, x[rows[start : start + size]].to(torch.float64, copy=True)
