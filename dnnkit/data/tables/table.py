"""A table as a file holds it: named columns of cells, and the place of every row in that file."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dnnkit.data.tables.spelling import Floats, all_numbers
from dnnkit.errors import DataError, nearest

#: Names that a list in an override holds as they are; others need quotes, and those need some for the shell.
_PLAIN = re.compile(r"(?!(?:true|false|null|nan|inf)$)[A-Za-z_][A-Za-z0-9_]*", re.ASCII | re.IGNORECASE)

#: What a file says of a column: `cells` of a csv say nothing, Parquet names a type; `other` cannot be learned from.
Said = Literal["cells", "text", "integer", "floating", "boolean", "other"]


@dataclass(frozen=True, eq=False)
class Column:
    """One column as the file holds it, n rows.

    `texts` are the cells without the blanks around them, where the column is `cells` or `text`; otherwise `values` are
    float64, with false and true as 0 and 1; where float64 rounds some of them, `texts` are all of them in exact digits.
    `missing` of shape `(n,)` marks the rows without a value; what `texts` and
    `values` hold there means nothing. `type` is the name of the type in the file's own words.
    """

    name: str
    said: Said
    missing: NDArray[np.bool_]
    texts: Sequence[str] = ()
    values: Floats | None = None
    type: str = ""

    @cached_property
    def present(self) -> Sequence[str]:
        """The texts of the rows that have one."""
        if not self.missing.any():
            return self.texts
        return [text for text, gone in zip(self.texts, self.missing.tolist(), strict=True) if not gone]

    @cached_property
    def numbers(self) -> Floats:
        """Float64 of shape `(n,)`: NaN where a value is missing, and where a text is no number."""
        # One pattern of bits for every NaN, so that equal tables have equal fingerprints.
        values = np.full(len(self.missing), np.nan)
        values[~self.missing] = all_numbers(self.present) if self.values is None else self.values[~self.missing]
        return values


@dataclass(frozen=True, eq=False)
class Table:
    """The columns of one file, by name in its order; `rows` are the numbers by which a reader finds the rows in it.

    `unit` says what is counted: lines as a text editor does, the header's being 1, or rows from 1 where a file has none.
    `settled`: its columns were decided in a training that is over, so no setting can mend it.
    """

    path: Path
    columns: Mapping[str, Column]
    rows: Sequence[int]
    unit: Literal["line", "row"]
    settled: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, index: int) -> str:
        """Where the row of this index is found: `line 17`."""
        return f"{self.unit} {self.rows[index]}"

    def places(self, marked: NDArray[np.bool_]) -> str:
        """The rows that are marked, in words: `3 rows, the first is line 17`."""
        count = int(marked.sum())
        return self.at(int(marked.argmax())) if count == 1 else f"{count} rows, the first is {self.at(int(marked.argmax()))}"

    def column(self, name: str, why: str, cure: str = "") -> Column:
        """The column of this name; DataError with the nearest ones where there is none. `why` says who asks for it."""
        if name not in self.columns:
            alike = [other for other in self.columns if other.casefold() == name.casefold()]
            close = alike or nearest(name, self.columns)
            there = f"did you mean {' or '.join(map(repr, close))}?" if close else f"there are: {listed(list(self.columns))}"
            raise DataError(f"{self.path} has no column {name!r} ({why})", f"{there}\n  {cure}" if cure else there)
        return self.columns[name]


def counted(number: int, noun: str) -> str:
    """The number with its noun in the singular or plural: `1 row`, `2 rows`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def override(setting: str, name: str) -> str:
    """The override that puts one column into a list of names, as it is typed in a shell."""
    if _PLAIN.fullmatch(name):
        return f"{setting}=[{name}]"
    # Backslashes stand for themselves but before a quote.
    quoted = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), name)
    word = f"{setting}=['{quoted}']"
    return shlex.quote(word) if set(name) & set("\"$`!\\'") else f'"{word}"'


def listed(names: Sequence[str], most: int = 20) -> str:
    """The names, quoted, at most so many of them."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + rest


def check_names(path: Path, names: Sequence[str]) -> None:
    """DataError where two columns carry one name; columns without any are told apart by nobody and need not be."""
    repeated = [name for name in dict.fromkeys(names) if name and names.count(name) > 1]
    if repeated:
        where = "; ".join(f"{name!r} is columns {', '.join(_numbers(names, name))}" for name in repeated[:5])
        raise DataError(f"{path} has several columns of one name: {where}", "give each column a name of its own")


def _numbers(names: Sequence[str], name: str) -> list[str]:
    return [str(number) for number, other in enumerate(names, 1) if other == name]
