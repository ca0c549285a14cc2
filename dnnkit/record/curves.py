"""The curves of a journal of any length, in flat memory: what a figure could not show is left out while the rows are read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from dnnkit.record.journal import stream_journal

#: A panel is some 600 dots wide. With up to this many groups of neighbours each column of dots holds at least two groups.
MOST_GROUPS = 2400

Point = tuple[int, float]


class Curve:
    """Steps and values of one key, in the order of the journal; a value that is not finite is a gap (NaN).

    Up to `MOST_GROUPS` points are kept as they are. Of more, neighbours form groups of equal size, of each of which the first,
    the lowest, the highest and the last point are kept: a line through them fills the same dots as one through all, no peak
    is lost, and of equal extremes the earliest stays. When there are too many groups, neighbours are merged.
    """

    def __init__(self) -> None:
        self._size = 1  # points in a whole group
        self._groups: list[list[Point]] = []
        self._open: list[Point] = []

    def add(self, step: int, value: float) -> None:
        """Append one point."""
        self._open.append((step, value if math.isfinite(value) else math.nan))
        if len(self._open) >= self._size:
            self._groups.append(_outline(self._open))
            self._open = []
        if len(self._groups) > MOST_GROUPS:
            # An odd one at the end goes back to the open group, whose size it has reached half of.
            whole = len(self._groups) // 2 * 2
            self._open = [point for group in self._groups[whole:] for point in group] + self._open
            self._groups = [_outline(first + second) for first, second in zip(self._groups[:whole:2], self._groups[1:whole:2], strict=True)]
            self._size *= 2

    @property
    def points(self) -> list[Point]:
        """What is kept, at most four points of each group."""
        return [point for group in (*self._groups, self._open) for point in group]

    @property
    def steps(self) -> list[int]:
        """The optimizer steps of the points."""
        return [step for step, _ in self.points]

    @property
    def values(self) -> list[float]:
        """The values of the points."""
        return [value for _, value in self.points]


def read_curves(path: Path, keys: Iterable[str]) -> dict[str, Curve]:
    """The curve of each of the keys that a journal holds, in the order of `keys`; the journal is read once, as a stream."""
    curves = {key: Curve() for key in keys}
    for row in stream_journal(path):
        curve = curves.get(row.key)
        if curve is not None:
            curve.add(row.step, row.value)
    return {key: curve for key, curve in curves.items() if curve.points}


def _outline(points: Sequence[Point]) -> list[Point]:
    """The first, the lowest, the highest and the last point, in their order; all where they are four or fewer."""
    if len(points) <= 4:
        return list(points)
    finite = [index for index, (_, value) in enumerate(points) if not math.isnan(value)]
    ends = {0, len(points) - 1}
    extremes = {min(finite, key=lambda index: points[index][1]), max(finite, key=lambda index: points[index][1])} if finite else set()
    return [points[index] for index in sorted(ends | extremes)]
