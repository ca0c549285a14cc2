"""New examples for a trained network: read from a file, checked, and in the raw units that training began with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnnkit.checkpoint import RunState
from dnnkit.data.tables import EncodedRows, TableEncoding, encode_file, read_csv, read_parquet
from dnnkit.data.tables.cells import numbers
from dnnkit.data.tables.files import read_bytes
from dnnkit.data.tasks import task_named
from dnnkit.errors import DataError, nearest

#: The endings of a file of examples.
TABLES = (".csv", ".tsv", ".txt", ".parquet", ".pq", ".gz")
ARRAYS = ".npz"


def read_examples(path: Path, state: RunState) -> EncodedRows:
    """The examples in a file, as the run's training would have had them before they were standardised.

    A table (csv or Parquet, plain or gzipped) is encoded as training encoded its own, or its columns are taken by name; an
    .npz has them under the key x, and may have targets under y. Raises DataError naming file, row and column or key.
    """
    if path.suffix.lower() in (*TABLES, ARRAYS) and not path.exists():
        raise _nowhere(path)
    if path.suffix.lower() == ARRAYS:
        found = _arrays(path, state)
    elif path.suffix.lower() in TABLES:
        found = _encoded(path, state) if state.encoding is not None else _columns(path, state)
    else:
        known = "csv and Parquet tables (.csv .tsv .txt .parquet .pq, each also with .gz) and arrays (.npz)"
        ending = f"with the ending {path.suffix}" if path.suffix else "without an ending"
        raise DataError(f"{path}: examples cannot be read from a file {ending}", f"give one of: {known}")
    _check_present(path, found, state)
    return found


def _nowhere(path: Path) -> DataError:
    if not path.parent.is_dir():
        return DataError(f"there is no file {path}, and no folder {path.parent}")
    close = nearest(path.name, sorted(entry.name for entry in path.parent.iterdir() if entry.is_file()))
    hint = f"did you mean {' or '.join(str(path.with_name(name)) for name in close)}?" if close else ""
    return DataError(f"there is no file {path}", hint)


def _encoded(path: Path, state: RunState) -> EncodedRows:
    assert state.encoding is not None
    return encode_file(path, TableEncoding.from_dict(state.encoding))


def _columns(path: Path, state: RunState) -> EncodedRows:
    """The columns of a bundled table, by name: numbers all of them."""
    if state.columns is None:
        shape = "(n, " + ", ".join(map(str, state.inputs)) + ")"
        cause = f"{path}: the run was not trained on a table: its examples have no columns"
        raise DataError(cause, f"give an .npz with x of shape {shape}")
    table = read_parquet(path) if read_bytes(path).startswith(b"PAR1") else read_csv(path, expected=state.columns)
    table = replace(table, settled=True)
    wanted = [table.column(name, "training had it") for name in state.columns]
    x = torch.stack([torch.from_numpy(numbers(table, column)) for column in wanted], dim=1).reshape(len(table), *state.inputs)
    named = state.targets is not None and all(name in table.columns for name in state.targets)
    target = None
    if state.targets is not None and named:
        target = torch.stack([torch.from_numpy(numbers(table, table.columns[name])) for name in state.targets], dim=1)
    extra = [name for name in table.columns if name not in {*state.columns, *(state.targets or ())}]
    notices = [f"not among the columns of training, ignored: {', '.join(map(repr, extra[:20]))}"] if extra else []
    if target is not None and target.isnan().any():
        notices.append("the target is not used: it is missing in some rows")
        target = None
    return EncodedRows(x, target, tuple(table.rows), table.unit, tuple(notices))


def _arrays(path: Path, state: RunState) -> EncodedRows:
    from dnnkit.data.npz import missing_key, read_npz

    arrays, unused = read_npz(path, {"x": ("x",), "y": ("y",)})
    if "x" not in arrays:
        raise missing_key(path, "x", [*arrays, *unused])
    x = _as_examples(path, arrays["x"], state)
    notices = [f"key {key!r} is not used" for key in unused]
    target = None
    if "y" in arrays:
        try:
            target = _as_target(path, arrays["y"], len(x), state)
        except DataError as error:
            notices.append(f"the target is not used: {error.cause}")
    return EncodedRows(x, target, tuple(range(1, len(x) + 1)), "row", tuple(notices))


def _as_examples(path: Path, array: Any, state: RunState) -> Tensor:
    """Examples of shape `(n, *inputs)`; images may come without their one channel, or with their channels last."""
    inputs, shape = state.inputs, tuple(array.shape[1:])
    if array.dtype.kind not in "buif":
        raise DataError(f"{path}: key 'x' must hold real numbers, got {array.dtype}")
    if array.ndim == 0 or len(array) == 0:
        raise DataError(f"{path}: key 'x' holds no example, its shape is {array.shape}")
    if shape != inputs and len(inputs) == 3:
        if inputs[0] == 1 and shape == inputs[1:]:
            array = array[:, None]
        elif shape == (*inputs[1:], inputs[0]):
            array = array.transpose(0, 3, 1, 2)
    if tuple(array.shape[1:]) != inputs:
        wanted = ", ".join(map(str, inputs))
        raise DataError(f"{path}: key 'x' must have shape (n, {wanted}), as the run's examples, got {(len(array), *shape)}")
    return _tensor(array)


def _tensor(array: Any) -> Tensor:
    """The same values in a dtype that torch computes with."""
    import numpy as np

    kind, size = array.dtype.kind, array.dtype.itemsize
    wanted = {"b": np.uint8, "u": np.uint8 if size == 1 else np.int64, "i": np.int64}.get(kind, np.float32 if size <= 4 else np.float64)
    return torch.from_numpy(np.ascontiguousarray(array, dtype=wanted))


def _as_target(path: Path, array: Any, rows: int, state: RunState) -> Tensor:
    """Class indices `(n,)`, of names or of indices; or values, or labels of 0 and 1, `(n, outputs)`. Raises DataError."""
    if array.ndim == 0 or len(array) != rows:
        raise DataError(f"{path}: key 'y' must hold as many rows as 'x', {rows}, got shape {array.shape}")
    form = task_named(state.task).form
    if form == "classes":
        return _as_classes(path, array, rows, state)
    return _as_labels(path, array, rows, state) if form == "labels" else _as_values(path, array, rows, state)


def _as_values(path: Path, array: Any, rows: int, state: RunState) -> Tensor:
    if array.dtype.kind not in "iuf" or array.size != rows * state.outputs:
        raise DataError(f"{path}: key 'y' must hold {state.outputs} numbers for each row, got {array.dtype} of shape {array.shape}")
    y = _tensor(array).double().reshape(rows, state.outputs)
    if not y.isfinite().all():
        raise DataError(f"{path}: key 'y' must be finite, row {int((~y.isfinite()).any(1).nonzero()[0]) + 1} is not")
    return y


def _as_labels(path: Path, array: Any, rows: int, state: RunState) -> Tensor:
    if array.dtype.kind not in "biuf" or array.shape != (rows, state.outputs):
        wanted = f"0 and 1 in rows of {state.outputs}"
        raise DataError(f"{path}: key 'y' must hold {wanted}, got {array.dtype} of shape {array.shape}")
    y = _tensor(array)
    wrong = ((y != 0) & (y != 1)).any(1)
    if wrong.any():
        raise DataError(f"{path}: key 'y' must hold 0 and 1 for labels, row {int(wrong.nonzero()[0]) + 1} has others")
    return y.long()


def _as_classes(path: Path, array: Any, rows: int, state: RunState) -> Tensor:
    if array.dtype.kind not in "iubUS" or array.size != rows:
        raise DataError(f"{path}: key 'y' must hold one class for each row, got {array.dtype} of shape {array.shape}")
    given = array.reshape(-1).tolist()
    names = {name: index for index, name in enumerate(task_named(state.task).class_names(state.outputs, state.classes))}
    said = [value.decode("utf-8", "replace").strip() if isinstance(value, bytes) else str(value).strip() for value in given]
    if all(text in names for text in said):
        return torch.tensor([names[text] for text in said])
    if array.dtype.kind in "iu" and min(given) >= 0 and max(given) < len(names):
        return torch.tensor(given)
    row = next(row for row, text in enumerate(said) if text not in names)
    raise DataError(f"{path}: key 'y' must hold classes of training, got {said[row]!r} in row {row + 1}")


def _check_present(path: Path, found: EncodedRows, state: RunState) -> None:
    """Every value is finite in float32, or missing where training knew missing values. Raises DataError naming row and column."""
    x = found.x.reshape(len(found.x), -1)
    if not x.is_floating_point():
        return
    wrong = ~(x.abs() <= torch.finfo(torch.float32).max)
    if state.fill is not None:
        wrong &= ~x.isnan()
    if wrong.any():
        row, place = (int(index) for index in wrong.nonzero()[0])
        column = f"column {state.columns[place]!r}" if state.columns is not None else f"value {place} of the example"
        value = float(x[row, place])
        what, cure = f"is {value}", "it must be finite in float32"
        if value != value:
            what, cure = "is missing", "training had no missing values, so there is nothing to fill one with"
        raise DataError(f"{path}: {column} {what} in {found.unit} {found.rows[row]}", cure)
