"""Which rows of a journal MLflow is given: of the signal a few summaries, so that loss and accuracy come first on its page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

from dnnkit.record import Row
from dnnkit.record.identity import Signal

SIGNAL = "signal/"
_Layers = Mapping[str, Mapping[str, float]]  # measures by name, by layer in forward order


def _first(layers: _Layers, measure: str) -> list[float]:
    return [measures[measure] for measures in list(layers.values())[:1] if measure in measures]


def _every(layers: _Layers, measure: str) -> list[float]:
    return [measures[measure] for measures in layers.values() if measure in measures]


def _hidden(layers: _Layers, measure: str) -> list[float]:
    """Of all but the output layer, whose scale is that of the logits or values."""
    return _every(dict(list(layers.items())[:-1]), measure) if len(layers) > 1 else _every(layers, measure)


#: Each summary by its key: of which layers, which measure, and which of their values. MLflow sorts its charts by what stands before
#: a slash, and those without one come last: `signal/…` would be before `test/…`, `train/…` and `val/…`.
SUMMARIES: Mapping[str, tuple[Callable[[_Layers, str], list[float]], str, Callable[[list[float]], float]]] = {
    "signal_dead_max": (_every, "dead", max),
    "signal_saturated_max": (_every, "saturated", max),
    "signal_variance_min": (_hidden, "variance", min),
    "signal_variance_max": (_hidden, "variance", max),
    "signal_delta_ratio_first": (_first, "delta_ratio", max),
    "signal_gradient_ratio_max": (_every, "gradient_ratio", max),
}


class Shown:
    """The rows of one journal that MLflow is given, a pure function of the rows that came before: read again, they are the same.

    One look at the signal is a block of neighbouring rows `signal/<layer>/<measure>` of one step, each key once. `summary` gives the rows
    of `SUMMARIES` in its place, once the block is over: by another row, or because the run has ended. `layers` gives every row,
    `none` no row of the signal.
    """

    def __init__(self, signal: Signal) -> None:
        self._signal = signal
        self._step = -1
        self._block: dict[str, float] = {}

    def rows(self, rows: Iterable[Row]) -> Iterator[Row]:
        """What to give of the next rows of the journal."""
        for row in rows:
            if self._signal == "layers" or not row.key.startswith(SIGNAL):
                yield from self.rest()
                yield row
            elif self._signal == "summary":
                if row.step != self._step or row.key in self._block:
                    yield from self.rest()
                self._step, self._block[row.key] = row.step, row.value

    def rest(self) -> Iterator[Row]:
        """What to give of the block at hand, which is whole."""
        block, self._block = self._block, {}
        for key, value in summary(block).items():
            yield Row(self._step, key, value)

    def all(self, rows: Iterable[Row]) -> Iterator[Row]:
        """What to give of a journal that has ended."""
        yield from self.rows(rows)
        yield from self.rest()


def summary(block: Mapping[str, float]) -> dict[str, float]:
    """The rows of `SUMMARIES`, by key, of one look at the signal. A measure that no layer has gives none; NaN does not count.

    `dead_max` and `saturated_max` are the largest share among the layers, `variance_min` and `variance_max` the range over the
    hidden ones, `delta_ratio_first` is ‖∂L/∂z‖ of the first layer over that of the last (below .001 it vanishes, above 1000 it
    explodes), `gradient_ratio_max` the largest ‖∂L/∂W‖ / ‖W‖.
    """
    layers: dict[str, dict[str, float]] = {}
    for key, value in block.items():
        layer, _, measure = key.removeprefix(SIGNAL).rpartition("/")
        layers.setdefault(layer, {})[measure] = value
    found = {key: (_numbers(choose(layers, measure)), pick) for key, (choose, measure, pick) in SUMMARIES.items()}
    return {key: pick(values) for key, (values, pick) in found.items() if values}


def _numbers(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]
