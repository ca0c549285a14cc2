"""What a data source hands over, what training is given, and the checks between the two."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dnnkit.data.scaling import Scaling
from dnnkit.data.stored import StoredRows
from dnnkit.errors import DataError

Form = Literal["classes", "values", "labels", "itself"]
"""What targets are: class indices, values, labels each of which is 0 or 1, or the example itself, which needs none."""

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Examples(NamedTuple):
    """Examples and their targets.

    x of shape `(n, *shape)`, any numeric dtype. y of an integer dtype and shape `(n,)` holds class indices, of shape
    `(n, labels)` a 1 for each label that an example has, and 0; y of a floating dtype and shape `(n,)` or `(n, values)` holds
    the values of a regression.
    """

    x: Tensor
    y: Tensor


class Split(NamedTuple):
    """What is trained or measured on: standardised x `(n, *shape)`, and y: class indices `(n,)`, or values or labels `(n, outputs)`.

    Where the data are streamed, x (and y, where it is x again) are `StoredRows`, which are standardised as they are read.
    """

    x: Tensor | StoredRows
    y: Tensor | StoredRows


@dataclass(frozen=True, eq=False)
class Source:
    """A data set as it was found, in CPU memory, before it is split and standardised.

    `test` and `validation` are None where the source has no such split of its own. `classes` names the classes in the
    order of their indices, `columns` the features of a table, one for each value of an example, `targets` the values of a
    regression, or the labels. `origin` is the folder or the package that the data came from.

    `missing`: NaN in x is a missing value, which is filled with the training split's mean of that feature; otherwise x has
    to be finite. `encoding` says in JSON values how raw rows became x, so that new rows can become it too; `notes` are
    added to the card.
    """

    train: Examples
    test: Examples | None
    validation: Examples | None = None
    kind: Literal["image", "table"] = "table"
    classes: tuple[str, ...] | None = None
    origin: str = ""
    description: str = ""
    columns: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    missing: bool = False
    encoding: Mapping[str, Any] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    def splits(self) -> Iterator[tuple[str, Examples]]:
        """The splits that there are, by name, training first."""
        for name, examples in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            if examples is not None:
                yield name, examples


@dataclass(frozen=True, eq=False)
class DataSet:
    """Data ready for training: every x is float32, standardised with the statistics of the training split.

    `scaling` turns a raw example into a standardised one. `target_scaling` does the same for the values of a regression or
    a reconstruction; it is None for classes. `task` is a registered name. `inputs` is the shape of one example, `outputs` how
    many numbers the network has to give for it. `fingerprint` identifies the raw data, before any split. `card` describes all of
    it in JSON values.
    """

    train: Split
    validation: Split
    test: Split
    task: str
    scaling: Scaling
    target_scaling: Scaling | None
    inputs: tuple[int, ...]
    outputs: int
    classes: tuple[str, ...] | None
    kind: str
    fingerprint: str
    card: dict[str, Any]
    columns: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    encoding: Mapping[str, Any] | None = None


def form_of(y: Tensor) -> Form:
    """What the targets of a checked source are."""
    if y.is_floating_point():
        return "values"
    return "classes" if y.ndim == 1 else "labels"


def class_count(source: Source) -> int:
    """How many classes a source of class indices has: those that are named, else up to the highest index."""
    return len(source.classes) if source.classes is not None else max(int(given.y.max()) for _, given in source.splits()) + 1


def label_names(targets: tuple[str, ...] | None, count: int) -> tuple[str, ...]:
    """The labels by name, or by number where they have none."""
    return targets or tuple(f"label_{index}" for index in range(count))


def check(name: str, source: Source) -> Source:
    """The source with classes and labels as int64, or values as float64 `(n, values)`.

    Raises DataError naming the split and the rule where its tensors cannot be used.
    """
    checked = {split: _check_split(f"data={name}: the {split} split", examples, source) for split, examples in source.splits()}
    if len({(examples.y.dtype, examples.y.shape[1:]) for examples in checked.values()}) > 1:
        found = ", ".join(f"{split} {examples.y.dtype} {tuple(examples.y.shape)}" for split, examples in checked.items())
        raise DataError(f"data={name}: the splits must have targets of one kind, got {found}")
    _check_names(name, source, checked["train"])
    return replace(source, train=checked["train"], test=checked.get("test"), validation=checked.get("validation"))


def _check_names(name: str, source: Source, train: Examples) -> None:
    if source.classes is not None and train.y.is_floating_point():
        raise DataError(f"data={name}: the train split names {len(source.classes)} classes, but its targets are values, not class indices")
    width = train.x[0].numel()
    if source.columns is not None and len(source.columns) != width:
        raise DataError(f"data={name}: {len(source.columns)} columns are named, but an example holds {width} values")
    values = train.y.shape[1] if train.y.ndim == 2 else 0
    if source.targets is not None and len(source.targets) != values:
        raise DataError(f"data={name}: {len(source.targets)} targets are named, but y holds {values or 'class indices'}")


def _check_split(where: str, examples: Examples, source: Source) -> Examples:
    x, y = examples
    shape = tuple(source.train.x.shape[1:])
    if x.ndim < 2 or y.ndim not in (1, 2) or len(x) != len(y):
        message = f"{where} must be x of shape (n, …) with y of shape (n,) or (n, values), got {tuple(x.shape)} with {tuple(y.shape)}"
        raise DataError(message)
    if len(x) == 0 or x[0].numel() == 0 or y[0].numel() == 0:
        raise DataError(f"{where} must hold at least one row and one value per row, got x of shape {tuple(x.shape)}")
    if tuple(x.shape[1:]) != shape:
        raise DataError(f"{where} must hold examples of shape {shape}, as the train split does, got {tuple(x.shape[1:])}")
    if x.is_complex() or not (y.is_floating_point() or (y.dtype in _INTEGERS and (y.ndim == 1 or source.classes is None))):
        message = "must hold real x, and y of integers (n,) for classes or of floating numbers for values"
        raise DataError(f"{where} {message}, got {x.dtype} and {y.dtype} {tuple(y.shape)}")
    if x.is_floating_point():
        _check_finite(where, x, missing=source.missing)
    if y.is_floating_point():
        _check_finite(f"{where}: the targets", y)
        return Examples(x, y.double().reshape(len(y), -1))
    if y.ndim == 1:
        _check_classes(where, y, source.classes)
    else:
        _check_labels(where, y)
    return Examples(x, y.long())


def _check_labels(where: str, y: Tensor) -> None:
    outside = (y != 0) & (y != 1)
    if outside.any():
        row, column = outside.nonzero()[0].tolist()
        cause = f"{where}: integers of shape {tuple(y.shape)} are labels, each 0 or 1, got {int(y[row, column])} in row {row}"
        raise DataError(cause, "several values for each example are a regression: floating numbers")


def _check_classes(where: str, y: Tensor, classes: tuple[str, ...] | None) -> None:
    most = "" if classes is None else f" and less than {len(classes)}, the number of classes"
    outside = (y < 0) if classes is None else (y < 0) | (y >= len(classes))
    if outside.any():
        row = int(outside.nonzero()[0])
        raise DataError(f"{where}: labels must be at least 0{most}, got {int(y[row])} in row {row}")


def _check_finite(where: str, x: Tensor, missing: bool = False) -> None:
    """Training computes in float32, so a float64 beyond its range is no better than an infinity."""
    most = torch.finfo(torch.float32).max
    usable = x.abs() <= most if x.dtype == torch.float64 else x.isfinite()
    if missing:
        usable |= x.isnan()
    if not usable.all():
        bad = (~usable).flatten(1).any(1).nonzero()[:, 0] if x.ndim > 1 else (~usable).nonzero()[:, 0]
        rows = f"{len(bad)} of {len(x)} rows hold others, the first is row {int(bad[0])}"
        raise DataError(f"{where}: values must be finite in float32; {rows}")


def fingerprint(source: Source) -> str:
    """SHA-256 (hex) over the names, dtypes, shapes and bytes of the source's tensors."""
    digest = hashlib.sha256()
    for name, examples in source.splits():
        for part, tensor in (("x", examples.x), ("y", examples.y)):
            digest.update(f"{name}.{part} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            # Some dtypes have no NumPy twin; their bytes have.
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
