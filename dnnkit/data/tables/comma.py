"""Reading delimited text strictly: every row has as many values as the header, or the line is named that has not."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dnnkit.data.tables.files import read_bytes
from dnnkit.data.tables.table import Column, Table, check_names, listed
from dnnkit.errors import DataError

if TYPE_CHECKING:
    from _csv import Reader

#: Delimiters by what a config calls them; where several fit a header equally, the first does.
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
#: Cells that mark a missing value unless the config says otherwise.
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "None", "?")

_BOM = b"\xef\xbb\xbf"
_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_csv(path: Path, delimiter: str = "auto", missing: Collection[str] = MISSING, expected: Collection[str] = ()) -> Table:
    """The table in a file of delimited text, UTF-8 with or without a byte-order mark, plain or gzipped.

    The first line names the columns. Quotes are `"`, doubled inside; a quoted value may hold line breaks. Blanks around
    a value are dropped and empty lines are skipped. `delimiter=auto` takes the one under which the header has most of
    the `expected` names, then the one under which it has most names.

    Raises DataError for a file that cannot be read or holds no rows, and, naming the line, for text that is not UTF-8, a
    NUL byte, a quote that is never closed, and a row with more or fewer values than the header.
    """
    return parse_csv(path, read_bytes(path), delimiter, missing, expected)


def parse_csv(path: Path, content: bytes, delimiter: str, missing: Collection[str], expected: Collection[str]) -> Table:
    """`read_csv` of a file whose bytes are known."""
    text = _decoded(path, content)
    chosen = _detected(text, expected) if delimiter == "auto" else DELIMITERS[delimiter]
    names, rows, lines = _rows(path, text, chosen)
    check_names(path, names)
    if not rows:
        raise DataError(f"{path} has a header and no rows: its columns are {listed(names)}", "give it at least one row below the header")
    marks, columns = frozenset(missing), {}
    for name, values in zip(names, zip(*rows, strict=True), strict=True):
        cells = list(map(str.strip, values))
        columns[name] = Column(name, "cells", np.fromiter((cell in marks for cell in cells), np.bool_, len(cells)), cells)
    return Table(path, columns, lines, "line")


def _decoded(path: Path, content: bytes) -> str:
    if content.startswith(b"PAR1"):
        raise DataError(f"{path} is a Parquet file, not delimited text", "read it with data=parquet")
    for mark, name in _ENCODINGS.items():
        if content.startswith(mark):
            raise DataError(f"{path} is text in {name}, it must be UTF-8: its first bytes, at offset 0, are {mark.hex(' ')}", _UTF8)
    start = len(_BOM) if content.startswith(_BOM) else 0
    nul = content.find(b"\0")
    if nul >= 0:
        raise DataError(f"{path}: line {_line_of(content, nul)} holds a NUL byte (offset {nul})", "it is damaged, or no text file")
    try:
        text = content[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        at = start + error.start
        raise DataError(f"{path}: line {_line_of(content, at)} is not UTF-8: byte 0x{content[at]:02x} at offset {at}", _UTF8) from error
    if not text.strip():
        raise DataError(f"{path} is empty", "its first line must name the columns")
    return text


_UTF8 = "save it as UTF-8"


def _line_of(content: bytes, offset: int) -> int:
    """The number of the line with this byte; lines end with \\n, \\r or both."""
    before = content[:offset]
    return before.count(b"\n") + before.count(b"\r") - before.count(b"\r\n") + 1


def _detected(text: str, expected: Collection[str]) -> str:
    def fit(delimiter: str) -> tuple[int, int]:
        try:
            names = [name.strip() for name in next((row for row in _reader(text, delimiter) if row), [])]
        except csv.Error:
            return 0, 0
        return len(set(expected) & set(names)), len(names)

    return max(DELIMITERS.values(), key=fit)


def _reader(text: str, delimiter: str) -> Reader:
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)


def _rows(path: Path, text: str, delimiter: str) -> tuple[list[str], list[list[str]], list[int]]:
    """The header, the rows, and the line in which each row begins."""
    reader = _reader(text, delimiter)
    names: list[str] = []
    rows, lines, line = [], [], 1
    try:
        for row in reader:
            if not row:
                pass  # an empty line
            elif not names:
                names = [name.strip() for name in row]
            elif len(row) != len(names):
                raise _ragged(path, line, row, names)
            else:
                rows.append(row)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise _malformed(path, line, reader.line_num, str(error)) from error
    return names, rows, lines


def _ragged(path: Path, line: int, row: Sequence[str], names: Sequence[str]) -> DataError:
    cause = f"{path}: line {line} has {len(row)} {'value' if len(row) == 1 else 'values'}, the header has {len(names)} columns"
    if len(row) > len(names):
        return DataError(cause, f'take out what is too much, or quote a value that holds the delimiter ("{row[len(names) - 1]},…")')
    return DataError(cause, f"give it a value for each column, empty where it is missing; the first without one is {names[len(row)]!r}")


def _malformed(path: Path, first: int, last: int, reason: str) -> DataError:
    where = f"line {first}" if first == last else f"lines {first} to {last}"
    if "unexpected end" in reason:
        return DataError(f'{path}: a quote (") that opens in the row of line {first} is never closed', "close it, or take it out")
    if "field larger" in reason:
        cause = f"a value in the row of line {first} has more than {csv.field_size_limit()} letters"
        return DataError(f"{path}: {cause}", 'a quote (") that opens there is probably never closed')
    return DataError(f"{path}: {where}: {reason}", 'a value with a quote in it is written "…""…"')
