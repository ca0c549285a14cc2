"""How numbers, truth values and dates are spelled in the cells of a table."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_DIGITS = re.compile(r"\d+", re.ASCII)
_CODE = re.compile(r"0\d+", re.ASCII)
_COMMA = re.compile(r"[+-]?(\d+,\d+|\d{1,3}(\.\d{3})+(,\d+)?)")
_DATE = re.compile(r"\d{4}-\d\d?-\d\d?([T ].*)?|\d\d?[./]\d\d?[./]\d{2,4}( .*)?")
_LOOKS: tuple[tuple[Callable[[str], object], str], ...] = (
    (_COMMA.fullmatch, "they look like numbers with a decimal comma: write them with a point and nothing between thousands"),
    (_DATE.fullmatch, "they look like dates, which are not read: make numbers of them, such as a year or a count of days"),
    (_NUMBER.fullmatch, "they look like numbers that are stored as text: store them as numbers"),
)


def number(text: str) -> float:
    """The number that a text spells with digits, a point and an exponent, or as `inf`; NaN where it spells none.

    Rounded correctly, as Python's `float`, but without its underscores, foreign digits and `nan`.
    """
    return float(text) if _NUMBER.fullmatch(text) or _INFINITE.fullmatch(text) else math.nan


def all_numbers(cells: Sequence[str]) -> Floats:
    """`number` of every cell, shape `(n,)`."""
    whole = "".join(cells)
    # float() reads a few spellings that are no numbers here; the usual column has none and is read at its speed.
    read = float if whole.isascii() and "_" not in whole else number
    try:
        return np.fromiter(map(read, cells), np.float64, len(cells))
    except ValueError:  # there are texts among them
        return np.fromiter(map(number, cells), np.float64, len(cells))


def spelled(value: float) -> str:
    """A number in its shortest exact spelling, without a fraction where it has none."""
    return str(int(value)) if math.isfinite(value) and value == int(value) else repr(value)


def exactly(text: str) -> str:
    """The number that a text spells, in digits that tell it from every other integer; `spelled` where float64 holds it.

    Digits that begin with zeros (007) are left as they are: they are another code than 7.
    """
    if _CODE.fullmatch(text):
        return text
    if _INTEGER.fullmatch(text):
        return str(int(text))
    value = float(text)
    # Below this a float64 that is an integer was written as one, or differs from one by less than it can tell.
    if not math.isfinite(value) or abs(value) < _EXACT:
        return spelled(value)
    wide = Decimal(text)
    return str(int(wide)) if wide == wide.to_integral_value() else str(wide)


def rounded(text: str) -> bool:
    """Whether a text is an integer that float64 cannot hold: digits alone, beyond 2^53."""
    return len(text) > _EXACT_DIGITS and _INTEGER.fullmatch(text) is not None and int(float(text)) != int(text)


#: Float64 holds every integer up to this one, which has so many digits.
_EXACT = 2.0**53
_EXACT_DIGITS = 15


def codes(present: Iterable[str]) -> bool:
    """Whether texts are codes such as 007 or 02134: some are digits that begin with a zero, and no number has a sign or a point."""
    held = list(present)
    if not any(map(_CODE.fullmatch, held)):
        return False
    return not any(_NUMBER.fullmatch(text) and not _DIGITS.fullmatch(text) for text in held)


def dates(present: Sequence[str]) -> bool:
    """Whether every text looks like a date."""
    return len(present) > 0 and all(map(_DATE.fullmatch, present))


def integers(present: Iterable[str]) -> bool:
    """Whether every text is an integer: digits and perhaps a sign."""
    return all(map(_INTEGER.fullmatch, present))


def true_or_false(present: Iterable[str]) -> bool:
    """Whether every text is true or false, in any case."""
    return all(text.lower() in ("true", "false") for text in present)


def comma_numbers(present: Iterable[str]) -> bool:
    """Whether every text is a number with a decimal comma, or with points between its thousands."""
    return all(map(_COMMA.fullmatch, present))


def hint(present: Sequence[str]) -> str:
    """What texts that were meant as something else look like, or an empty string."""
    if present and integers(present) and codes(present):
        return "they have leading zeros, as codes have: if they are numbers, write them without"
    return next((words for matches, words in _LOOKS if present and all(map(matches, present))), "")
