"""What the numbers of a probe mean, in words that hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dnnkit.diagnostics.probe import LayerSignal

#: ‖∂L/∂z‖ of the first layer over that of the last one, below which a gradient vanishes and above which it explodes.
VANISHING, EXPLODING = 1e-3, 1e3
#: The share of a layer's units that are zero on every sample, beyond which it is said.
DEAD = 0.1
#: The share of a layer's outputs where its activation is flat, and the mean cosine between two samples, beyond which it is said.
SATURATED, COLLAPSED = 0.5, 0.95


Word = Literal["vanishing", "exploding", "saturated", "dead", "collapsed", "diverging"]


@dataclass(frozen=True)
class Verdict:
    """One finding: `word` as a reader searches for it, `layers` that it is about, `text` with the numbers that it rests on.

    All but `diverging`, which is about updates and not about layers, are found by `verdicts`.
    """

    word: Word
    layers: tuple[str, ...]
    text: str

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, in JSON values."""
        return asdict(self) | {"layers": list(self.layers)}


def verdicts(signals: Sequence[LayerSignal]) -> list[Verdict]:
    """What is wrong with the signal of a network, its layers in forward order; empty where nothing is.

    Vanishing: ‖∂L/∂z‖ of the first layer is less than 1/1000 of that of the last; exploding: more than 1000 times, or not
    finite. The ratio of the weights' gradients says nothing of the kind: in a deep ReLU network with LeCun's weights it is
    near 1 while every gradient is about 1e-15. Saturated: more than half of what a layer puts out is where its activation is
    flat. Dead: more than a tenth of a layer's units are ≤ 0 on all samples. Collapsed: the last hidden layer gives all samples
    nearly the same direction, a mean cosine above .95, which the second moment does not show.
    """
    return [*_of_gradients(signals), *_of_activations(signals), *_of_units(signals), *_of_samples(signals)]


def _of_gradients(signals: Sequence[LayerSignal]) -> Iterator[Verdict]:
    if len(signals) < 2 or signals[-1].delta_norm == 0:
        return  # nothing comes back at all: the loss does not depend on the network, or is at its minimum
    first, last = signals[0], signals[-1]
    if not all(math.isfinite(signal.delta_norm) for signal in signals):
        broken = next(signal.layer for signal in reversed(signals) if not math.isfinite(signal.delta_norm))
        yield Verdict("exploding", (broken,), f"exploding gradients: ‖∂L/∂z‖ is not finite at {broken}")
        return
    ratio = first.delta_norm / last.delta_norm
    way = f"‖∂L/∂z‖ goes from {last.delta_norm:.2g} at {last.layer} to {first.delta_norm:.2g} at {first.layer}"
    if ratio < VANISHING:
        yield Verdict("vanishing", (first.layer, last.layer), f"vanishing gradients: {way}")
    elif ratio > EXPLODING:
        yield Verdict("exploding", (first.layer, last.layer), f"exploding gradients: {way}")


def _of_activations(signals: Sequence[LayerSignal]) -> Iterator[Verdict]:
    found = [(signal.layer, signal.saturated) for signal in signals if signal.saturated is not None and signal.saturated > SATURATED]
    if found:
        worst, share = max(found, key=lambda pair: pair[1])
        more = f"; more than half does so in {len(found)} layers" if len(found) > 1 else ""
        text = f"saturated units: {share:.0%} of what {worst} puts out is where its activation is flat{more}"
        yield Verdict("saturated", tuple(layer for layer, _ in found), text)


def _of_samples(signals: Sequence[LayerSignal]) -> Iterator[Verdict]:
    if len(signals) < 2:
        return
    last = signals[-2]
    if last.cosine is not None and last.cosine > COLLAPSED:
        text = f"collapsed signal: {last.layer} gives all samples nearly the same direction, a mean cosine of {last.cosine:.3f}"
        yield Verdict("collapsed", (last.layer,), text)


def _of_units(signals: Sequence[LayerSignal]) -> Iterator[Verdict]:
    found = [(signal.layer, signal.dead, signal.samples) for signal in signals if signal.dead is not None and signal.dead > DEAD]
    if found:
        shares = ", ".join(f"{dead:.0%} of {layer}" for layer, dead, _ in found)
        text = f"dead units, zero on all of {found[0][2]} training examples: {shares}"
        yield Verdict("dead", tuple(layer for layer, _, _ in found), text)
