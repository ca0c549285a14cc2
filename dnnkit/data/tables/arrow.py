"""Reading Parquet: columns with the types that the file itself declares."""

from __future__ import annotations

import io
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from dnnkit.data.tables.files import read_bytes
from dnnkit.data.tables.spelling import Floats, exactly
from dnnkit.data.tables.table import Column, Said, Table, check_names, listed
from dnnkit.errors import DataError

#: The first bytes of every Parquet file.
MAGIC = b"PAR1"


def read_parquet(path: Path) -> Table:
    """The table in a Parquet file: numbers, truth values and texts; a null and, among numbers, a NaN is missing.

    A column of another type (a date, a list, a structure) is kept by name and refused where it is needed. Raises DataError
    for a file that is not Parquet, is damaged, or holds no rows.
    """
    return parse_parquet(path, read_bytes(path))


def parse_parquet(path: Path, content: bytes) -> Table:
    """`read_parquet` of a file whose bytes are known."""
    import pyarrow
    from pyarrow import parquet

    try:
        found = parquet.ParquetFile(io.BytesIO(content)).read()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        cure = "put an intact one in its place" if content.startswith(MAGIC) else "delimited text is read with data=csv"
        raise DataError(f"{path} is not a Parquet file that can be read ({_first_line(error)})", cure) from error
    names = [str(name).strip() for name in found.column_names]
    check_names(path, names)
    if found.num_rows == 0:
        raise DataError(f"{path} has no rows: its columns are {listed(names)}", "it needs at least one")
    columns = {name: _column(name, found.column(index)) for index, name in enumerate(names)}
    return Table(path, columns, range(1, found.num_rows + 1), "row")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _column(name: str, found: Any) -> Column:
    """One column of an Arrow table; a dictionary stands for its values."""
    import pyarrow

    kind = found.type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
        found = found.cast(kind)
    missing = found.is_null().to_numpy()
    said = _said(kind)
    if said == "text":
        texts = [str(text).strip() for text in found.to_pylist()]
        return Column(name, said, missing, texts, type=str(kind))
    if said == "other":
        return Column(name, said, missing, type=str(kind))
    values = found.cast(pyarrow.int8() if said == "boolean" else kind).cast(pyarrow.float64(), safe=False)
    numbers = np.array(values.to_numpy(), dtype=np.float64)
    return Column(name, said, missing | np.isnan(numbers), _digits(found, numbers), numbers, str(kind))


def _digits(found: Any, values: Floats) -> Sequence[str]:
    """The integers and decimals of a column in exact digits, where float64 may have rounded one of them; else nothing."""
    from pyarrow import types

    exact = types.is_integer(found.type) or types.is_decimal(found.type)
    if not exact or not (np.abs(values) >= 2.0**53).any():
        return ()
    return ["" if value is None else exactly(f"{value:f}" if isinstance(value, Decimal) else str(value)) for value in found.to_pylist()]


def _said(kind: Any) -> Said:
    from pyarrow import types

    if types.is_boolean(kind):
        return "boolean"
    if types.is_integer(kind):
        return "integer"
    # A column of nulls alone has a type of its own.
    if types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind):
        return "floating"
    return "text" if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) else "other"
