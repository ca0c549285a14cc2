"""From the arrays of a user's file to examples: what x is, what y is, and what that was decided from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dnnkit.data.npz import missing_key, read_npz
from dnnkit.data.source import Examples, Source
from dnnkit.data.tasks import form_asked, usual
from dnnkit.errors import DataError

Array = NDArray[Any]

#: Keys with the spellings that a file may use; Keras has its sets as `x_train`.
KEYS: Mapping[str, Sequence[str]] = {
    "x": ("x", "x_train"),
    "y": ("y", "y_train"),
    "x_val": ("x_val",),
    "y_val": ("y_val",),
    "x_test": ("x_test",),
    "y_test": ("y_test",),
}
#: Of an image, as its first or last dimension after the row.
CHANNELS = (1, 3, 4)
#: More different whole numbers than these, and fewer than two rows for each, are hardly classes.
FEW = 20


def array_source(path: Path, task: str) -> Source:
    """The examples in an .npz file; see `data=npz` for what its arrays may be, and for the errors."""
    arrays, unused = read_npz(path, KEYS)
    splits = _splits(path, arrays, [*arrays, *unused], task)
    said = [f"key {key!r} is not used" for key in unused]
    x, kind = _examples(path, {split: pair[0] for split, pair in splits.items()}, said)
    if form_asked(task) == "itself" and not {"y" if split == "train" else f"y_{split}" for split in splits} <= set(arrays):
        said.append(f"no y for every split: none is used, a {task} needs none")
        y, classes = {split: torch.zeros(len(pair[0]), dtype=torch.int64) for split, pair in splits.items()}, None
    else:
        y, classes = _targets(path, {split: pair[1] for split, pair in splits.items()}, task, said)
    parts = {split: Examples(x[split], y[split]) for split in splits}
    train = parts["train"]
    return Source(
        train, parts.get("test"), parts.get("val"), kind=kind, classes=classes, origin=str(path.absolute()),
        description=f"{len(train.x)} arrays of shape {tuple(train.x.shape[1:])}", notes={"decisions": said},
    )  # fmt: skip


def _splits(path: Path, arrays: Mapping[str, Array], keys: Sequence[str], task: str) -> dict[str, tuple[Array, Array]]:
    """The arrays x and y of each split, of equal lengths. Where the examples are their own targets, y need not be there."""
    needless = form_asked(task) == "itself"
    found: dict[str, tuple[Array, Array]] = {}
    for split, end in (("train", ""), ("val", "_val"), ("test", "_test")):
        pair = (f"x{end}", f"y{end}")
        if split != "train" and not any(key in arrays for key in pair):
            continue
        for key in pair:
            if key not in arrays and not (key == pair[1] and needless):
                raise missing_key(path, key, keys, "task=reconstruction needs no targets" if key == pair[1] else "")
        x = arrays[pair[0]]
        y = arrays.get(pair[1], np.zeros(len(x) if x.ndim else 0, dtype=np.int64))
        _check_shapes(path, pair, x, y)
        found[split] = x, y
    return found


def _check_shapes(path: Path, keys: tuple[str, str], x: Array, y: Array) -> None:
    for key, array in zip(keys, (x, y), strict=True):
        if array.ndim == 0 or array.size == 0:
            raise DataError(f"{path}: key {key!r} must hold at least one row and one value per row, got shape {array.shape}")
    if x.ndim < 2:
        cure = "one value per row is x.reshape(-1, 1)"
        raise DataError(f"{path}: key {keys[0]!r} must have shape (rows, …), got {x.shape}", cure)
    if len(x) != len(y):
        raise DataError(f"{path}: keys {keys[0]!r} and {keys[1]!r} must have equally many rows, got {len(x)} and {len(y)}")


def _examples(path: Path, arrays: Mapping[str, Array], said: list[str]) -> tuple[dict[str, torch.Tensor], Literal["image", "table"]]:
    """Tensors of raw x, images with their channels first."""
    shape = arrays["train"].shape[1:]
    for split, array in arrays.items():
        if array.shape[1:] != shape:
            raise DataError(f"{path}: key {_key('x', split)!r} must hold examples of shape {shape}, as 'x' does, got {array.shape[1:]}")
    found = {split: _numbers(path, _key("x", split), array) for split, array in arrays.items()}
    if len(shape) == 2:
        said.append(f"x of shape (n, {shape[0]}, {shape[1]}): images of one channel")
        found = {split: array[:, None] for split, array in found.items()}
    elif len(shape) == 3 and shape[0] not in CHANNELS and shape[2] in CHANNELS:
        said.append(f"x of shape (n, {', '.join(map(str, shape))}): images; the last dimension, their channels, was moved to the second")
        found = {split: np.moveaxis(array, -1, 1) for split, array in found.items()}
    elif len(shape) == 3 and shape[0] in CHANNELS:
        said.append(f"x of shape (n, {shape[0]}, {shape[1]}, {shape[2]}): images of {shape[0]} channels")
    image = len(shape) == 2 or (len(shape) == 3 and (shape[0] in CHANNELS or shape[2] in CHANNELS))
    return {split: torch.from_numpy(np.ascontiguousarray(array)) for split, array in found.items()}, "image" if image else "table"


def _numbers(path: Path, key: str, array: Array) -> Array:
    """The array with a dtype that torch computes with; DataError for what is not real and finite."""
    kind = array.dtype.kind
    if kind not in "buif":
        raise DataError(f"{path}: key {key!r} must hold real numbers, got {array.dtype}", "encode texts and dates as numbers first")
    if kind == "f":
        wide = array.astype(np.float32 if array.dtype.itemsize <= 4 else np.float64, copy=False)
        with np.errstate(invalid="ignore"):
            wrong = ~(np.abs(wide) <= np.finfo(np.float32).max)
        if wrong.any():
            row = int(np.argwhere(wrong)[0][0])
            rows = int(wrong.reshape(len(wrong), -1).any(1).sum())
            more = f" ({rows} such rows, counted from 1)" if rows > 1 else " (counted from 1)"
            cause = f"{path}: key {key!r} must be finite in float32, got {wide[row][wrong[row]].flat[0]} in row {row + 1}{more}"
            raise DataError(cause, "fill or drop such rows")
        return wide
    if kind == "u" and array.dtype.itemsize > 1:
        if array.dtype.itemsize == 8 and array.max() > np.iinfo(np.int64).max:
            raise DataError(f"{path}: key {key!r} must be below 2^63, got {array.max()}", "save it as floating numbers")
        return array.astype(np.int64)
    return array.astype(np.uint8) if kind == "b" else array.astype(array.dtype.newbyteorder("="), copy=False)


def _targets(path: Path, arrays: Mapping[str, Array], task: str, said: list[str]) -> tuple[dict[str, torch.Tensor], tuple[str, ...] | None]:
    """Class indices with the names of the classes; or values, or labels, with None."""
    y, form = arrays["train"], form_asked(task)
    for split, array in arrays.items():
        if array.dtype.kind != y.dtype.kind and {array.dtype.kind, y.dtype.kind} - set("iu"):
            raise DataError(f"{path}: key {_key('y', split)!r} must hold what 'y' does, {y.dtype}, got {array.dtype}")
    kind = y.dtype.kind
    if kind not in "buifUS":
        raise DataError(f"{path}: key 'y' must hold whole numbers or texts for classes, or floating numbers for values, got {y.dtype}")
    if form == "labels" or (form in (None, "itself") and _like_labels(y)):
        return _labels(path, arrays, said), None
    if kind == "f" or (kind in "iu" and form == "values"):
        values = {split: _numbers(path, _key("y", split), array) for split, array in arrays.items()}
        if form != "classes":
            return _values(path, values, kind, task, said), None
        arrays = {split: _whole(path, _key("y", split), array, task) for split, array in values.items()}
        said.append(f"y holds floating numbers, all of them whole: taken as classes, as task={task} asks")
    return _classes(path, {split: _column(path, _key("y", split), array) for split, array in arrays.items()}, task, said)


def _like_labels(y: Array) -> bool:
    """Whether whole numbers or truth values are a 1 for each label that a row has, and can hardly be one class in each row."""
    return y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind in "bui" and bool(((y == 0) | (y == 1)).all()) and not _one_hot(y)


def _labels(path: Path, arrays: Mapping[str, Array], said: list[str]) -> dict[str, torch.Tensor]:
    """A 1 for each label that a row has, as int64 of shape `(rows, labels)`."""
    y = arrays["train"]
    for split, array in arrays.items():
        key = _key("y", split)
        if array.ndim != 2 or array.shape[1] != y.shape[1] or array.dtype.kind not in "buif":
            rule = "must hold 0 and 1 in rows of labels, shape (rows, labels), the same for all splits"
            cause = f"{path}: key {key!r} {rule}, got {array.dtype} of shape {array.shape}"
            raise DataError(cause, f"task={usual('classes')} takes one class for each row")
        wrong = ~((array == 0) | (array == 1))
        if wrong.any():
            row = int(np.argwhere(wrong)[0][0])
            raise DataError(f"{path}: key {key!r} must hold 0 and 1 for labels, got {array[row][wrong[row]].flat[0]} in row {row + 1}")
    said.append(f"y holds 0 and 1 in rows of {y.shape[1]}: labels")
    return {split: torch.from_numpy(array.astype(np.int64)) for split, array in arrays.items()}


def _values(path: Path, arrays: Mapping[str, Array], kind: str, task: str, said: list[str]) -> dict[str, torch.Tensor]:
    y = arrays["train"]
    for split, array in arrays.items():
        if array.ndim > 2 or array.shape[1:] != y.shape[1:]:
            cause = (
                f"{path}: key {_key('y', split)!r} must have shape (rows,) or (rows, values), the same for all splits, got {array.shape}"
            )
            raise DataError(cause)
    if kind != "f":
        for split, array in arrays.items():
            _exact(path, _key("y", split), array)
        said.append(f"y holds whole numbers: taken as values, as task={task} asks")
    elif _one_hot(y):
        said.append("y holds one-hot rows of floating numbers: values of a regression; for a classification save y.argmax(1)")
    elif y[:1].size == 1 and len(few := np.unique(y)) <= FEW and (few == np.round(few)).all():
        other = usual("classes")
        said.append(f"y holds floating numbers: values of a regression; task={other} would take its {len(few)} whole ones as classes")
    else:
        said.append("y holds floating numbers: values of a regression")
    return {split: torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64)) for split, array in arrays.items()}


def _exact(path: Path, key: str, values: Array) -> None:
    """DataError where float64 rounds a whole number."""
    if max(int(values.max()), -int(values.min())) <= 2**53:
        return
    wrong = values.astype(np.float64).astype(object) != values.astype(object)
    if wrong.any():
        row = int(np.argwhere(wrong)[0][0])
        cause = f"{path}: key {key!r} holds whole numbers that float64 rounds: {values[wrong].flat[0]} in row {row + 1}"
        raise DataError(cause, "of classes, take task=classification; of values, subtract what all have in common")


def _whole(path: Path, key: str, values: Array, task: str) -> Array:
    wrong = (values != np.round(values)) | (np.abs(values) > 2**53)
    if wrong.any():
        row = int(np.argwhere(wrong)[0][0])
        cause = f"{path}: key {key!r} must hold whole numbers for task={task}, got {values[wrong].flat[0]} in row {row + 1}"
        raise DataError(cause, f"task={usual('values')} predicts such values")
    return values.astype(np.int64)


def _column(path: Path, key: str, y: Array) -> Array:
    """One label for each row."""
    column = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if column.ndim == 1:
        return column
    one_class = f"it looks one-hot: save y.argmax(1), or take task={usual('labels')} if a row may have several labels"
    cure = one_class if _one_hot(y) else "several values per row are a regression: save them as floating numbers"
    raise DataError(f"{path}: key {key!r} must hold one label for each row, shape (rows,), got {y.shape}", cure)


def _one_hot(y: Array) -> bool:
    shape = y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind in "biuf"
    return bool(shape and (np.sort(y, 1)[:, :-1] == 0).all() and (y.max(1) == 1).all())


def _classes(path: Path, arrays: Mapping[str, Array], task: str, said: list[str]) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Indices into the sorted labels of all splits, each class named by its label."""
    if len({array.dtype for array in arrays.values()}) > 1 and all(array.dtype.kind in "iu" for array in arrays.values()):
        # NumPy joins signed and unsigned integers as float64, which rounds beyond 2^53.
        arrays = {split: _numbers(path, _key("y", split), array).astype(np.int64) for split, array in arrays.items()}
    labels = np.unique(np.concatenate([np.unique(array) for array in arrays.values()]))
    y, texts = arrays["train"], arrays["train"].dtype.kind in "US"
    here = len(np.unique(y))
    if here < 2 and form_asked(task) != "itself":
        raise DataError(f"{path}: key 'y' must hold at least two classes, got {_name(y[0])!r} in all {len(y)} rows")
    if task == "auto" and here > FEW and 2 * here > len(y):
        what = "texts" if texts else "whole numbers"
        cure = f"task={usual('classes')} takes them as classes" + ("" if texts else f", task={usual('values')} as values")
        raise DataError(f"{path}: key 'y' holds {here} different {what} in {len(y)} rows, hardly classes", cure)
    names = tuple(map(_name, labels))
    if len(set(names)) < len(names):
        raise DataError(f"{path}: key 'y' holds labels that differ in blanks alone", "make them equal")
    what = "texts" if texts else "truth values" if y.dtype.kind == "b" else "whole numbers"
    consecutive = not texts and labels.tolist() == list(range(len(labels)))
    said.append(f"y holds {what}: {len(labels)} classes" + ("" if consecutive else ", in sorted order"))
    return {split: torch.from_numpy(np.searchsorted(labels, array)) for split, array in arrays.items()}, names


def _name(label: Any) -> str:
    """A class's name: a text as it is, a number in digits, a truth value as true or false."""
    if isinstance(label, np.bool_):
        return str(bool(label)).lower()
    return (label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label)).strip() or "(empty)"


def _key(name: str, split: str) -> str:
    return name if split == "train" else f"{name}_{split}"
