"""How fast the optimizer went: rate and momentum from update to update, and which of them a curve needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

#: So far may a line through the recorded points be from what it stands for, as a part of the greatest value.
TOLERANCE = 5e-3

Given = tuple[float, float | None]
"""The rate, and the momentum where the schedule cycles it."""


class Pace:
    """Rate and momentum of the updates since they were last recorded, after those of the update that was recorded then.

    The values at step s are those that the optimizer holds there, before the schedule moves on: they made the update that led to
    s; at step 0 they are about to make the first one.
    """

    __slots__ = ("_given",)

    def __init__(self) -> None:
        self._given: list[Given] = []

    def clear(self) -> None:
        """Forget everything."""
        self._given = []

    @property
    def begun(self) -> bool:
        """Whether anything was recorded or taken over."""
        return bool(self._given)

    @property
    def moved(self) -> bool:
        """Whether an update was made since they were recorded."""
        return len(self._given) > 1

    def add(self, rate: float, momentum: float | None) -> None:
        """Of one update more; of the first one of a run, before it is made."""
        self._given.append((rate, momentum))

    def rows(self, step: int) -> list[tuple[int, dict[str, float]]]:
        """What to record once `step` updates are made: where the curves turn, and `step` itself, as (step, values by key)."""
        given, first = self._given, step + 1 - len(self._given)
        parts = zip(*given, strict=True)
        turns = {place for part in parts if None not in part for place in corners(part)}
        self._given = given[-1:]
        return [(first + place, _values(*given[place])) for place in sorted(turns | {len(given) - 1})]

    def state_dict(self) -> dict[str, Any]:
        """A tensor `(updates, 2)` that `load_state_dict` takes back to the last bit; NaN stands for no momentum."""
        rows = [(rate, math.nan if momentum is None else momentum) for rate, momentum in self._given]
        return {"given": torch.tensor(rows, dtype=torch.float64)} if rows else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put a saved one in the place of this one."""
        rows = state["given"].tolist() if state else []
        self._given = [(rate, None if math.isnan(momentum) else momentum) for rate, momentum in rows]


def _values(rate: float, momentum: float | None) -> dict[str, float]:
    return {"lr": rate} if momentum is None else {"lr": rate, "momentum": momentum}


def corners(values: Sequence[float], tolerance: float = TOLERANCE) -> list[int]:
    """At which places, both ends aside, a line from point to point has to turn to stay near all values.

    That is within `tolerance` of the greatest absolute value. Wherever the values begin to rise, to fall or to stay is among
    them, so that peaks and the end of a warm-up are exact; between those, the value that is furthest from the line, until none
    is too far. Ramer 1972, Douglas & Peucker 1973.
    """
    if len(values) < 3 or min(values) == max(values):
        return []
    curve = np.array(values)
    ways = np.sign(np.diff(curve))
    found: list[int] = (np.flatnonzero(ways[1:] != ways[:-1]) + 1).tolist()
    pieces, slack = list(pairwise([0, *found, len(values) - 1])), tolerance * np.abs(curve).max()
    while pieces:
        first, last = pieces.pop()
        away = np.abs(curve[first] + (curve[last] - curve[first]) / (last - first) * np.arange(last - first + 1) - curve[first : last + 1])
        furthest = int(away.argmax())
        if away[furthest] > slack:
            found.append(first + furthest)
            pieces += [(first, first + furthest), (first + furthest, last)]
    return sorted(found)
