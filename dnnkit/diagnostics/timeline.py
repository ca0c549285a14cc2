"""When it went wrong: what was seen of a network's signal while it trained, as a course of events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dnnkit.diagnostics.glance import Glance
from dnnkit.diagnostics.probe import MOST_SAMPLES
from dnnkit.diagnostics.verdicts import DEAD, EXPLODING, SATURATED, VANISHING, Word

#: Layer and measure of a journal key, to its steps and values.
Series = Mapping[tuple[str, str], Sequence[tuple[int, float]]]


@dataclass(frozen=True)
class Event:
    """A verdict over time: `word` held at the looks from step `first` to step `last`; `lasting` if that was the last look of all."""

    word: Word
    layers: tuple[str, ...]
    first: int
    last: int
    lasting: bool
    text: str

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, in JSON values."""
        return asdict(self) | {"layers": list(self.layers)}


class Silence:
    """For how long the units of each layer have been ≤ 0 on everything that was looked at.

    A unit is dead once that were at least 1000 samples, which takes several minibatches.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._since: dict[str, Tensor] = {}  # samples since a unit was last positive
        self._active: dict[str, Tensor] = {}  # the step at which it was last positive, -1 for never

    def look(self, step: int, glances: Sequence[Glance]) -> None:
        """Take in a minibatch that was looked at after `step` updates."""
        self.samples += glances[0].samples if glances else 0
        for glance in glances:
            if glance.silent is None:
                continue
            silent = glance.silent.cpu()
            since, active = self._since.get(glance.layer), self._active.get(glance.layer)
            if since is None or active is None:
                since, active = torch.zeros(len(silent), dtype=torch.int64), torch.full((len(silent),), -1)
            self._since[glance.layer] = torch.where(silent, since + glance.samples, 0)
            self._active[glance.layer] = torch.where(silent, active, step)

    def dead(self) -> dict[str, float]:
        """The share of each layer's units that are dead; nothing before 1000 samples were seen."""
        if self.samples < MOST_SAMPLES:
            return {}
        return {layer: float((since >= MOST_SAMPLES).double().mean()) for layer, since in self._since.items()}

    def last_active(self, layer: str, share: float) -> list[int]:
        """When each unit of the `share` of a layer's that has been silent longest was last positive, in order; -1: never."""
        since = self._since.get(layer)
        if since is None:
            return []
        longest = since.argsort(descending=True, stable=True)[: round(share * len(since))]
        return sorted(self._active[layer][longest[since[longest] > 0]].tolist())

    def state_dict(self) -> dict[str, Any]:
        """Tensors and a number that `load_state_dict` takes back."""
        return {"samples": self.samples, "since": dict(self._since), "active": dict(self._active)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.samples, self._since, self._active = int(state["samples"]), dict(state["since"]), dict(state["active"])


def timeline(series: Series, layers: Sequence[str], silence: Silence) -> list[Event]:
    """The events in a run whose `signal/` rows are `series`; `layers` in forward order.

    Judged by the bounds of the verdicts: a gradient by the first layer's `delta_ratio`, saturation and dead units layer by layer.
    """
    return [*_of_gradients(series, layers), *_of_layers(series, layers, silence)]


def _of_gradients(series: Series, layers: Sequence[str]) -> Iterator[Event]:
    if not layers:
        return
    ends, ratios = (layers[0], layers[-1]), series.get((layers[0], "delta_ratio"), ())
    down, up = _Spell.of(ratios, lambda ratio: ratio < VANISHING), _Spell.of(ratios, lambda ratio: ratio > EXPLODING)
    text = f"‖∂L/∂z‖ of {ends[0]} was {{}} {{:.2g}} times that of {ends[1]}"
    if down is not None:
        yield down.event("vanishing", ends, f"vanishing gradients {down.when}: {text.format('down to', min(down.held))}")
    if up is not None:
        yield up.event("exploding", ends, f"exploding gradients {up.when}: {text.format('up to', max(up.held))}")


def _of_layers(series: Series, layers: Sequence[str], silence: Silence) -> Iterator[Event]:
    for layer in layers:
        found = _Spell.of(series.get((layer, "saturated"), ()), lambda share: share > SATURATED)
        if found is not None:
            text = f"saturated units {found.when}: up to {max(found.held):.0%} of what {layer} put out was where its activation is flat"
            yield found.event("saturated", (layer,), text)
        found = _Spell.of(series.get((layer, "dead"), ()), lambda share: share > DEAD)
        if found is not None:
            deaths = _deaths(silence.last_active(layer, found.held[-1])) if found.lasting else ""
            text = f"dead units, known {found.when}: up to {max(found.held):.0%} of {layer}{deaths}"
            yield found.event("dead", (layer,), text)


@dataclass(frozen=True)
class _Spell:
    """The looks at which something was wrong: their first and last step, how many of all, the values."""

    first: int
    last: int
    lasting: bool
    whole: bool
    held: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[tuple[int, float]], wrong: Callable[[float], bool]) -> _Spell | None:
        """None where nothing was wrong."""
        found = [place for place, (_, value) in enumerate(values) if wrong(value)]
        if not found:
            return None
        first, last = found[0], found[-1]
        held = tuple(values[place][1] for place in found)
        return cls(values[first][0], values[last][0], last == len(values) - 1, len(found) == last - first + 1, held)

    @property
    def when(self) -> str:
        """In words."""
        mostly = "" if self.whole else ", on and off"
        if self.lasting:
            return f"from step {self.first} to the end{mostly}"
        return f"at step {self.first}" if self.first == self.last else f"from step {self.first} to {self.last}{mostly}"

    def event(self, word: Word, layers: tuple[str, ...], text: str) -> Event:
        """It, as an event."""
        return Event(word, layers, self.first, self.last, self.lasting, text)


def _deaths(last_active: Sequence[int]) -> str:
    """When the dead units of a layer were last seen alive, the middle one of them."""
    if not last_active:
        return ""
    middle = last_active[len(last_active) // 2]
    return "; half of them were never seen active" if middle < 0 else f"; half of them were last seen active at step {middle} or before"
