"""How the rows of a table became numbers: decided once, in training, and applied to every later file in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnnkit.data.tables.arrow import MAGIC, parse_parquet
from dnnkit.data.tables.cells import exact_numbers, numbers, texts, truths
from dnnkit.data.tables.comma import MISSING, parse_csv
from dnnkit.data.tables.files import at_home, read_bytes
from dnnkit.data.tables.spelling import Floats, exactly, spelled
from dnnkit.data.tables.table import Column, Table, counted, listed
from dnnkit.errors import DataError

_VERSION = 1


@dataclass(frozen=True)
class ColumnEncoding:
    """One column of features: a number, a truth value as 0 or 1, or a category as one value for each of `categories`."""

    name: str
    kind: Literal["number", "boolean", "category"]
    categories: tuple[str, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the values that this column becomes."""
        return tuple(f"{self.name}={category}" for category in self.categories) if self.kind == "category" else (self.name,)


@dataclass(frozen=True)
class TargetEncoding:
    """The column to predict: an index into `classes`, or, where there are none, the number itself.

    `kind` says what the column holds; a class of numbers is named by its shortest spelling, with all digits of an integer
    however long it is; of truth values true or false.
    """

    name: str
    kind: Literal["number", "boolean", "text"]
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class TableEncoding:
    """Everything that turns a row of a file into raw features, and its target into a class or a number.

    `missing` are the cells of delimited text that mark a missing value; `ignored` are columns that training left out;
    `complete` are columns in which training missed no value. `more` are the columns of the target after the first, where it is a
    row of values or labels; None where it is one class or value. A label is there where its column holds the second of two classes.
    """

    columns: tuple[ColumnEncoding, ...]
    target: TargetEncoding
    missing: tuple[str, ...] = MISSING
    ignored: tuple[str, ...] = ()
    complete: tuple[str, ...] = ()
    more: tuple[TargetEncoding, ...] | None = None

    @property
    def targets(self) -> tuple[TargetEncoding, ...]:
        """Every column of the target."""
        return (self.target, *(self.more or ()))

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes, where the target is one class."""
        return self.target.classes if self.more is None else None

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the values of an encoded row, in order; a category's are `column=category`."""
        return tuple(name for column in self.columns for name in column.features)

    def to_dict(self) -> dict[str, Any]:
        """JSON values that `from_dict` reads back."""
        # Through lists, because JSON has no tuples and the two must compare equal after a round trip.
        columns = [{**asdict(column), "categories": list(column.categories)} for column in self.columns]
        target, *more = ({**asdict(one), "classes": None if one.classes is None else list(one.classes)} for one in self.targets)
        whole = {"columns": columns, "target": target, "missing": list(self.missing), "ignored": list(self.ignored)}
        # Only where it says something: the encodings of runs that were before it compare equal to those of today.
        rows = {} if self.more is None else {"more": more}
        return {"kind": "table", "version": _VERSION, **whole, "complete": list(self.complete), **rows}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TableEncoding:
        """The encoding that `to_dict` wrote; DataError where these values are not one."""
        from pydantic import TypeAdapter, ValidationError

        kept = {key: value for key, value in values.items() if key not in ("kind", "version")}
        if values.get("kind") != "table" or values.get("version") != _VERSION:
            other = f"kind {values.get('kind')!r}, version {values.get('version')!r}"
            raise DataError(f"this is not the encoding of a table that this version of dnnkit can read: {other}")
        try:
            found = TypeAdapter(cls).validate_python(kept)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise DataError(f"the encoding of a table is damaged at {where!r}: {error.errors()[0]['msg']}") from error
        if found.to_dict() != {"complete": [], **values}:
            raise DataError("the encoding of a table is damaged: it holds more than it should, or values of another type")
        return found


@dataclass(frozen=True, eq=False)
class EncodedRows:
    """The examples of a file as training would have had them, before they are standardised.

    `x` of a table is float64 of shape `(n, features)`, NaN where a number or a truth value is missing; of arrays it is
    `(n, *inputs)` in the dtype of the file. `target` is int64 (class indices, labels) or float64 `(n, …)`, None where the file has
    no usable one. `rows` are the numbers by which the rows are found in the file, counted in `unit`s: lines of a text file,
    the header's being 1, else rows from 1. `notices` are sentences for the user.
    """

    x: Tensor
    target: Tensor | None
    rows: tuple[int, ...]
    unit: str
    notices: tuple[str, ...]


def read_table(path: Path, encoding: TableEncoding) -> Table:
    """A file of either format, told apart by its first bytes."""
    content = read_bytes(path)
    if content.startswith(MAGIC):
        return parse_parquet(path, content)
    return parse_csv(path, content, "auto", encoding.missing, [column.name for column in encoding.columns])


def encode_file(path: Path | str, encoding: TableEncoding) -> EncodedRows:
    """The rows of a new csv or Parquet file, encoded exactly as those of training.

    Columns may stand in any order. The target may be absent; it is left out, with a notice, where a row lacks it or holds
    what training had not. A column that training did not have is ignored with a notice; a category that it did not have
    sets none of the column's values, with a notice. Raises DataError for a file that cannot be read, for a column that is
    missing (with the nearest name), and for a value that does not fit its column, naming the row.
    """
    table = replace(read_table(at_home(path), encoding), settled=True)
    x, notices = encode(table, encoding)
    target = None
    if all(one.name in table.columns for one in encoding.targets):
        try:
            target = torch.from_numpy(encode_targets(table, encoding))
        except DataError as error:
            notices.append(f"the target is not used: {error.cause}")
    return EncodedRows(torch.from_numpy(x), target, tuple(table.rows), table.unit, tuple(notices))


def encode(table: Table, encoding: TableEncoding) -> tuple[Floats, list[str]]:
    """The features as float64 of shape `(n, features)` with NaN for what is missing, and what the user should know."""
    columns = {column.name for column in encoding.columns}
    known = {*columns, *(target.name for target in encoding.targets), *encoding.ignored}
    extra = [name for name in table.columns if name not in known]
    notices = [f"not among the columns of training, ignored: {listed(extra)}"] if extra else []
    x = np.empty((len(table), len(encoding.features)), dtype=np.float64)
    start = 0
    for column in encoding.columns:
        width = len(column.features)
        x[:, start : start + width] = _encoded(table, column, notices)
        gone = table.columns[column.name].missing
        if column.name in encoding.complete and gone.any():
            notices.append(_gap(table, column, gone))
        start += width
    return x, notices


def _encoded(table: Table, encoding: ColumnEncoding, notices: list[str]) -> Floats:
    """The values of one column, shape `(n, its features)`."""
    column = table.column(encoding.name, "training had it")
    if encoding.kind != "category":
        return (numbers if encoding.kind == "number" else truths)(table, column)[:, None]
    position = {category: index for index, category in enumerate(encoding.categories)}
    found = np.array([position.get(text, -1) for text in texts(table, column)])
    found[column.missing] = -1
    unseen = (found < 0) & ~column.missing
    if unseen.any():
        notices += _unseen(table, encoding, unseen)
    return np.asarray(found[:, None] == np.arange(len(position)), dtype=np.float64)


def _gap(table: Table, encoding: ColumnEncoding, gone: NDArray[np.bool_]) -> str:
    """A sentence on missing values where training had none: the column, how many, and where first."""
    done = "it sets none of the categories" if encoding.kind == "category" else "the training mean is put there"
    where = f"{table.path}: column {encoding.name!r} has no value in {table.places(gone)}"
    return f"{where}; training missed none there: {done}"


def _unseen(table: Table, encoding: ColumnEncoding, unseen: NDArray[np.bool_]) -> list[str]:
    """One sentence for each category that training had not: the column, the value, how often and where first."""
    held = texts(table, table.columns[encoding.name])
    rows: dict[str, list[int]] = {}
    for row in unseen.nonzero()[0].tolist():
        rows.setdefault(held[row], []).append(row)
    where = f"{table.path}: column {encoding.name!r}"
    said = [
        f"{where}: {text!r} is no category of training, so none is set ({counted(len(at), 'row')}, the first is {table.at(at[0])})"
        for text, at in rows.items()
    ]
    return [*said[:5], *([f"{where}: and {len(said) - 5} other categories that training had not"] if len(said) > 5 else [])]


def encode_targets(table: Table, encoding: TableEncoding) -> NDArray[Any]:
    """The target as `encode_target` gives it, shape `(n,)`; where it is a row, shape `(n, its columns)`."""
    held = [encode_target(table, target) for target in encoding.targets]
    return held[0] if encoding.more is None else np.stack(held, 1)


def encode_target(table: Table, target: TargetEncoding) -> NDArray[Any]:
    """The target, shape `(n,)`: int64 indices of classes, or float64 numbers.

    Raises DataError naming the rows where it is missing, is no number, or is a class that training had not.
    """
    column = table.column(target.name, "the target")
    if column.missing.any():
        cause = f"{table.path}: the target {target.name!r} is missing in {table.places(column.missing)}"
        raise DataError(cause, "fill it in, or take these rows out of the file")
    if target.classes is None:
        return (truths if target.kind == "boolean" else exact_numbers)(table, column)
    labels = class_labels(table, column, target.kind)
    position = {name: index for index, name in enumerate(target.classes)}
    y = np.array([position.get(label, -1) for label in labels], dtype=np.int64)
    if (y < 0).any():
        row = int((y < 0).argmax())
        cause = f"{table.path}: the target {target.name!r} is {labels[row]!r} in {table.places(y < 0)}"
        raise DataError(cause, f"the classes of training are: {listed(target.classes)}")
    return y


def class_labels(table: Table, column: Column, kind: str) -> Sequence[str]:
    """The class of every row by name, for a target of this kind; see `TargetEncoding`."""
    if kind == "number":
        values = numbers(table, column)
        if not column.texts:
            return [spelled(value) for value in values.tolist()]
        names = {text: exactly(text) for text in set(column.texts)}
        return [names[text] for text in column.texts]
    if kind == "boolean":
        return ["true" if value else "false" for value in truths(table, column).tolist()]
    return texts(table, column)
