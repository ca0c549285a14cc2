"""Which of two ways to run a step is the faster: both take turns, chunk by chunk, until it shows."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from dnnkit.loop.step import Execute
from dnnkit.module import Outcome
from dnnkit.module.gather import several

Way = Literal["captured", "eager"]

#: Minibatches of a turn, at least. Short turns: a machine that others use too is faster at one moment than at the next.
TURN = 10
#: After so many turns of each way it is over.
_ROUNDS = 12
#: In a tie, which is a difference below this, the graph wins.
TIE = 1.01


class Mark(NamedTuple):
    """When a minibatch begins, whether an update follows it, and whether it is one to compare."""

    at: Any
    closes: bool
    counts: bool


class Clock(Protocol):
    """Marks of moments, and the seconds from one to another, which are asked for later."""

    def mark(self) -> Any:
        """This moment."""
        ...

    def between(self, first: Any, second: Any) -> float:
        """Seconds."""
        ...


class ProcessorClock:
    """Of the processor. With one thread, the time that this one computes: other programs, which it waits for, do not count."""

    def __init__(self, alone: bool) -> None:
        self.mark = time.thread_time if alone else time.perf_counter

    def between(self, first: float, second: float) -> float:
        """Their difference."""
        return second - first


class DeviceClock:
    """Of a GPU, which passes the marks when it has done what came before them: nothing waits for it but who asks for seconds."""

    def mark(self) -> torch.cuda.Event:
        """An event in the current stream."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def between(self, first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        """Waits for the second."""
        second.synchronize()
        return float(first.elapsed_time(second)) / 1000


def clock_of(device: torch.device) -> Clock:
    """The one that sees what is done on `device`."""
    if device.type == "cuda":
        return DeviceClock()
    return ProcessorClock(device.type == "cpu" and torch.get_num_threads() == 1 and not several())


class Race:
    """Times of minibatches run as a graph and operation by operation, in turns: c e e c c e e c …

    A minibatch's time is that from its beginning to the next one's. Compared are the lower deciles, of minibatches that make an
    update and of those that do not: what other programs, the clock rate and the collection of garbage do only adds. The first
    and last minibatch of a chunk, whose updates go another way, count where there are no others.
    """

    def __init__(self, device: torch.device) -> None:
        self._clock = clock_of(device)
        self._marks: list[Mark] = []
        self._ended: Any = None
        self._times: dict[Way, dict[tuple[bool, bool], list[float]]] = {"captured": defaultdict(list), "eager": defaultdict(list)}
        self._turns = self._minibatches = 0

    @property
    def way(self) -> Way:
        """Whose turn it is."""
        return "captured" if self._turns % 4 in (0, 3) else "eager"

    def timed(self, execute: Execute, whole: Callable[[Tensor, bool, float, float], bool]) -> Execute:
        """`execute` for one chunk, whose minibatches count that are `whole`."""
        clock, marks = self._clock, self._marks

        def run(x: Tensor, y: Tensor, opens: bool, closes: bool, weight: float = 1.0, factor: float = 1.0) -> Outcome:
            marks.append(Mark(clock.mark(), closes, whole(x, closes, weight, factor)))
            outcome = execute(x, y, opens, closes, weight, factor)
            self._ended = clock.mark()
            return outcome

        return run

    def spoil(self) -> None:
        """The minibatch at hand does not count: a graph is made in it."""
        self._marks[-1] = self._marks[-1]._replace(counts=False)

    def end_chunk(self) -> None:
        """Take the times of the chunk that was run, and see whether the turn is over."""
        marks, times = self._marks, self._times[self.way]
        ends = [*(mark.at for mark in marks[1:]), self._ended]
        for place, (mark, ended) in enumerate(zip(marks, ends, strict=False)):
            if mark.counts:
                times[place in (0, len(marks) - 1), mark.closes].append(self._clock.between(mark.at, ended))
        self._minibatches += len(marks)
        self._marks = []
        if self._minibatches >= TURN:
            self._turns, self._minibatches = self._turns + 1, 0

    def seconds(self) -> dict[Way, float]:
        """A minibatch takes that long, by way; NaN where no minibatches can be compared."""
        kinds = sorted(set.intersection(*map(set, self._times.values())))
        kinds = [kind for kind in kinds if kind[0] == kinds[0][0]]
        weights = {kind: sum(len(times[kind]) for times in self._times.values()) for kind in kinds}
        total = sum(weights.values())
        return {
            way: sum(_lower_decile(times[kind]) * weight for kind, weight in weights.items()) / total if total else math.nan
            for way, times in self._times.items()
        }

    @property
    def bound(self) -> float | None:
        """The slower way is found out by taking more than so many times as long; None in the middle of a round, or in the first."""
        rounds = self._turns // 2
        if self._turns % 2 or self._minibatches or rounds < 2:
            return None
        return TIE if self.over else 1 + 0.6 / rounds

    @property
    def over(self) -> bool:
        """Whether no more turns follow: a tie is the graph's."""
        return self._turns // 2 >= _ROUNDS


def faster(seconds: Mapping[Way, float], bound: float, final: bool = False) -> Way | None:
    """The way that is the faster by so much; where neither is, None, or the graph where that is `final`."""
    captured, eager = seconds["captured"], seconds["eager"]
    if captured > bound * eager:
        return "eager"
    return "captured" if final or eager > bound * captured else None


def _lower_decile(times: list[float]) -> float:
    return sorted(times)[(len(times) - 1) // 10]
