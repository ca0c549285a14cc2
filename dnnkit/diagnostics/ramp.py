"""A ramp of the learning rate as numbers: its rates, its smoothed loss, where that turns, and the rate that this suggests."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

#: The first and the last rate, and how many there are: 50 for every factor of ten.
FIRST, LAST, COUNT = 1e-7, 10.0, 401
#: What is left of a loss in the smoothed one an update later, and what the rate of the turn is divided by.
BETA, BELOW_TURN = 0.98, 10.0
#: The smoothed loss that ends a ramp, in times of its best.
TOO_MUCH = 4.0
#: A fall or a climb of the smoothed loss is one from so many standard errors on.
ERRORS = 4.0


def geometric_rates(first: float = FIRST, last: float = LAST, count: int = COUNT) -> list[float]:
    """`count` ≥ 2 rates from `first` to `last`, each the one before it times the same number."""
    return [first * (last / first) ** (index / (count - 1)) for index in range(count)]


@dataclass
class Ramp:
    """Training while the rate climbs, update after update: `losses[i]` is what is minimised, before the update at `rates[i]`.

    `smoothed[i]` is s / (1 − βⁱ⁺¹), s ← β · s + (1 − β) · loss from s = 0: a mean of the losses so far without the pull of that 0.
    `diverged`: the loss after the last of these updates was not finite.
    """

    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    diverged: bool = False
    beta: float = BETA

    def add(self, rate: float, loss: float) -> None:
        """Take the next update."""
        count = len(self.losses)
        before = self.smoothed[-1] * (1 - self.beta**count) if count else 0.0
        self.rates.append(rate)
        self.losses.append(loss)
        self.smoothed.append((self.beta * before + (1 - self.beta) * loss) / (1 - self.beta ** (count + 1)))

    @property
    def over(self) -> bool:
        """Whether there is nothing more to see: the smoothed loss is more than four times its best (Gugger 2018).

        Not before the smoothing spans its own length, and not while the loss keeps half of what it gained: one near 0, or below
        it, would end by its noise.
        """
        if len(self.losses) < 1 / (1 - self.beta):
            return False
        best, now = min(self.smoothed), self.smoothed[-1]
        return now - best > max((TOO_MUCH - 1) * abs(best), (self.start - best) / 2)

    @property
    def start(self) -> float:
        """The mean loss over the first 50 updates, the first factor of ten of the ramp, or as many as there were."""
        first = self.losses[: round(1 / (1 - self.beta))]
        return sum(first) / len(first)

    @property
    def turn(self) -> int:
        """The update at which the smoothed loss is lowest, from which on it climbs."""
        return min(range(len(self.smoothed)), key=self.smoothed.__getitem__)

    def suggest(self) -> Suggestion:
        """A tenth of the rate at which the smoothed loss starts to climb, in two digits (Géron 2019, chapter 11).

        None where the loss never falls, or never climbs, by more than four times the standard error of its smoothing.
        """
        if len(self.losses) < 2:
            when = f"after one update at the first rate, {self.rates[0]:.2g}" if self.rates else "with the initial weights"
            return Suggestion(None, f"the loss is not finite {when}")
        turn, best, span = self.rates[self.turn], self.smoothed[self.turn], f"{self.rates[0]:.2g} to {self.rates[-1]:.2g}"
        # Sums of equal numbers differ by their rounding.
        noise = max(ERRORS * self._error, 1e-6 * abs(self.start))
        if self.start - best <= noise:
            return Suggestion(None, f"the loss falls at no rate from {span} by more than its noise")
        fall = f"the smoothed loss falls from {self.start:.3g} to {best:.3g}"
        if not self.diverged and self.smoothed[-1] - best <= noise:
            return Suggestion(None, f"{fall} and climbs at no rate from {span}")
        return Suggestion(float(f"{turn / BELOW_TURN:.2g}"), f"{fall} and climbs from a rate of {turn:.2g} on")

    @property
    def _error(self) -> float:
        """Of the smoothed loss at the turn, by how losses that follow each other differ up to it, or over the first 50."""
        before = self.losses[: max(round(1 / (1 - self.beta)), self.turn + 1)]
        # A product, because a power of floats that overflows is an error.
        variance = sum((b - a) * (b - a) for a, b in pairwise(before)) / (2 * (len(before) - 1))
        left = self.beta ** (self.turn + 1)
        return math.sqrt(variance * (1 - self.beta) / (1 + self.beta) * (1 + left) / (1 - left))

    def to_dict(self) -> dict[str, Any]:
        """In JSON values, with the suggestion."""
        found = self.suggest()
        turn = self.rates[self.turn] if found.rate is not None else None
        held = {"rates": self.rates, "losses": self.losses, "smoothed": self.smoothed}
        return {"suggested": found.rate, "turn": turn, "reason": found.reason, "diverged": self.diverged, "beta": self.beta, **held}


@dataclass(frozen=True)
class Suggestion:
    """A rate, or None, and what that rests on, in a clause."""

    rate: float | None
    reason: str
