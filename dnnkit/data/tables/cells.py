"""From the cells of a column to numbers, truth values or texts; what does not fit is named by its row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dnnkit.data.tables.spelling import Floats, rounded, spelled
from dnnkit.data.tables.table import Column, Table, override
from dnnkit.errors import DataError

_TRUTH = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}
#: Training computes in float32: what is beyond its range is no better than an infinity.
_MOST = float(np.finfo(np.float32).max)


def numbers(table: Table, column: Column) -> Floats:
    """The column as float64, shape `(n,)`, NaN where a value is missing.

    Raises DataError naming the row of the first value that is no number, or that is not finite in float32.
    """
    _refuse_other(table, column)
    values = column.numbers
    wrong = np.isnan(values) & ~column.missing
    if wrong.any():
        text = column.texts[int(wrong.argmax())]
        raise DataError(f"{table.path}: column {column.name!r} holds numbers, but {text!r} in {table.places(wrong)}", _mend(table, column))
    infinite = np.abs(values) > _MOST
    if infinite.any():
        row = int(infinite.argmax())
        shown = repr(column.texts[row]) if column.texts else values[row]
        cause = f"{table.path}: column {column.name!r} must be finite in float32, got {shown} in {table.places(infinite)}"
        raise DataError(cause, _mend(table, column))
    return values


def _mend(table: Table, column: Column) -> str:
    if table.settled:
        return "mend it, or leave the cell empty where the value is missing"
    return f"mend it, add it to data.missing if it marks a missing value, or leave the column out: {override('data.ignore', column.name)}"


def exact_numbers(table: Table, column: Column) -> Floats:
    """As `numbers`; DataError naming the row of the first integer that float64 would round."""
    values = numbers(table, column)
    wrong = beyond_float64(column)
    if wrong.any():
        text = column.texts[int(wrong.argmax())]
        cause = f"{table.path}: column {column.name!r} holds integers that float64 rounds: {text} in {table.places(wrong)}"
        raise DataError(cause, "of classes, take task=classification; of values, subtract in the file what all have in common")
    return values


def beyond_float64(column: Column) -> NDArray[np.bool_]:
    """Where the column holds an integer beyond 2^53 that float64 rounds, shape `(n,)`."""
    if not column.texts or not (np.abs(column.numbers) >= 2.0**53).any():
        return np.zeros(len(column.missing), dtype=np.bool_)
    return np.fromiter(map(rounded, column.texts), np.bool_, len(column.texts)) & ~column.missing


def truths(table: Table, column: Column) -> Floats:
    """The column as 0 and 1, float64 of shape `(n,)`, NaN where a value is missing; true and false in any case, or 1 and 0.

    Raises DataError naming the row of the first other value.
    """
    _refuse_other(table, column)
    if column.values is None:
        values = np.array([_TRUTH.get(text.lower(), math.nan) for text in column.texts], dtype=np.float64)
        values[column.missing] = math.nan
    else:
        values = np.where(np.isin(column.values, (0.0, 1.0)) & ~column.missing, column.values, math.nan)
    wrong = np.isnan(values) & ~column.missing
    if wrong.any():
        row = int(wrong.argmax())
        shown = repr(column.texts[row]) if column.texts else column.values[row] if column.values is not None else ""
        cause = f"{table.path}: column {column.name!r} holds true and false, but {shown} in {table.places(wrong)}"
        raise DataError(cause, _mend(table, column))
    return values


def texts(table: Table, column: Column) -> Sequence[str]:
    """The column as texts, one per row; numbers in their shortest spelling (3, 2.5), truth values as true and false."""
    _refuse_other(table, column)
    if column.values is None or column.texts:
        return column.texts
    if column.said == "boolean":
        return ["true" if value else "false" for value in column.values.tolist()]
    return ["" if gone else spelled(value) for value, gone in zip(column.values.tolist(), column.missing.tolist(), strict=True)]


def _refuse_other(table: Table, column: Column) -> None:
    if column.said == "other":
        cause = f"{table.path}: column {column.name!r} has the type {column.type}; only numbers, truth values and texts can be used"
        left_out = "" if table.settled else f", or leave it out: {override('data.ignore', column.name)}"
        raise DataError(cause, f"make numbers or texts of it{left_out}")
