"""What a data source hands over, what training is given, and the checks between the two."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dnnkit.errors import DataError

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Examples(NamedTuple):
    """Examples and their labels: x of shape `(n, *shape)`, any numeric dtype; y of shape `(n,)`, class indices."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True, eq=False)
class Source:
    """A data set as it was found, in CPU memory, before it is split and standardised.

    `test` and `validation` are None where the source has no such split of its own. `classes` names the classes in the
    order of their indices. `origin` is the folder or the package that the data came from.
    """

    train: Examples
    test: Examples | None
    validation: Examples | None = None
    kind: Literal["image", "table"] = "table"
    classes: tuple[str, ...] | None = None
    origin: str = ""
    description: str = ""

    def splits(self) -> Iterator[tuple[str, Examples]]:
        """The splits that there are, by name, training first."""
        for name, examples in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            if examples is not None:
                yield name, examples


@dataclass(frozen=True, eq=False)
class DataSet:
    """Data ready for training: every x is float32, standardised with the statistics of the training split.

    `(raw − mean) / std` turns a raw example into a standardised one; both are float64 and broadcast against it.
    `inputs` is the shape of one example, `outputs` the number of classes. `fingerprint` identifies the raw data, before
    any split. `card` describes all of it in JSON values.
    """

    train: Examples
    validation: Examples
    test: Examples
    mean: Tensor
    std: Tensor
    inputs: tuple[int, ...]
    outputs: int
    classes: tuple[str, ...] | None
    kind: str
    fingerprint: str
    card: dict[str, Any]


def check(name: str, source: Source) -> Source:
    """The source with labels as int64; DataError naming the split and the rule where its tensors cannot be used."""
    shape = tuple(source.train.x.shape[1:])
    checked = {
        split: _check_split(f"data={name}: the {split} split", examples, shape, source.classes) for split, examples in source.splits()
    }
    return replace(source, train=checked["train"], test=checked.get("test"), validation=checked.get("validation"))


def _check_split(where: str, examples: Examples, shape: tuple[int, ...], classes: tuple[str, ...] | None) -> Examples:
    x, y = examples
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y):
        raise DataError(f"{where} must be x of shape (n, …) with y of shape (n,), got {tuple(x.shape)} with {tuple(y.shape)}")
    if len(x) == 0 or x[0].numel() == 0:
        raise DataError(f"{where} must hold at least one row and one value per row, got x of shape {tuple(x.shape)}")
    if tuple(x.shape[1:]) != shape:
        raise DataError(f"{where} must hold examples of shape {shape}, as the train split does, got {tuple(x.shape[1:])}")
    if x.is_complex() or y.dtype not in _INTEGERS:
        raise DataError(f"{where} must hold real x and integer y, got {x.dtype} and {y.dtype}")
    if x.is_floating_point():
        _check_finite(where, x)
    most = "" if classes is None else f" and less than {len(classes)}, the number of classes"
    outside = (y < 0) if classes is None else (y < 0) | (y >= len(classes))
    if outside.any():
        row = int(outside.nonzero()[0])
        raise DataError(f"{where}: labels must be at least 0{most}, got {int(y[row])} in row {row}")
    return Examples(x, y.long())


def _check_finite(where: str, x: Tensor) -> None:
    """Training computes in float32, so a float64 beyond its range is no better than an infinity."""
    most = torch.finfo(torch.float32).max
    usable = x.abs() <= most if x.dtype == torch.float64 else x.isfinite()
    if not usable.all():
        bad = (~usable).flatten(1).any(1).nonzero()[:, 0]
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
