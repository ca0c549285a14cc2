"""Schedulers: pure functions of the optimizer step, whose value multiplies `optimizer.lr`, the peak rate.

`step` is the number of optimizer steps done before this one, 0 to total_steps − 1: steps, not minibatches and not epochs,
counted after gradient accumulation and across devices. Where a length may also be a share of the run, a number between 0
and 1, that share is rounded down to whole steps. Every schedule has `warmup_steps`, a linear warm-up before it.

Facts for the linter: `length` is the setting that says how long the whole schedule is, `stage` how long one of its stages,
`boundaries` where its pieces begin. Of one that watches a metric, `patience` is the setting that says how many measurements
without improvement it waits for, and `every` which of them count.
"""

import math
from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval, Lt

from dnnkit.errors import ConfigError, Problem
from dnnkit.registry import schedulers

Share = Annotated[float, Interval(gt=0, le=1)]
End = Annotated[float, Interval(ge=0, le=1)]
Positive = Annotated[float, Gt(0)]
Count = Annotated[int, Ge(0)]
Steps = Annotated[int, Ge(1)] | None
Length = Annotated[int, Ge(1)] | Annotated[float, Interval(gt=0, lt=1)]


@schedulers.register("constant")
def constant(step: int, total_steps: int) -> float:
    """1: the rate stays at `optimizer.lr`."""
    return 1.0


@schedulers.register("exponential")
def exponential(step: int, total_steps: int, factor: Share = 0.1, steps: Steps = None) -> float:
    """factor^(t / steps): the rate falls by `factor` every `steps` optimizer steps, smoothly; null means over the whole run.

    Keras's ExponentialDecay.
    Source: Senior, Heigold, Ranzato & Yang 2013, whose factor is 0.1.
    """
    return math.pow(factor, step / (steps or total_steps))


@schedulers.register("power")
def power(step: int, total_steps: int, steps: Steps = None, exponent: Positive = 1.0) -> float:
    """(1 + t / steps)^−exponent, t in optimizer steps; null means the whole run, at whose end the rate is 2^−exponent.

    With exponent 1 Keras's InverseTimeDecay; torch's PolynomialLR is `polynomial`.
    Source: Senior, Heigold, Ranzato & Yang 2013.
    """
    return math.pow(1 + step / (steps or total_steps), -exponent)


@schedulers.register("polynomial", length="steps")
def polynomial(step: int, total_steps: int, steps: Steps = None, exponent: Positive = 1.0, end_factor: End = 0.0) -> float:
    """end_factor + (1 − end_factor) · (1 − t / steps)^exponent, then end_factor; t in optimizer steps, null means the whole run.

    Over the whole run the last step is one before the end of the curve, so that its rate is not zero. torch's PolynomialLR
    and Keras's PolynomialDecay, whose end_factor is end_learning_rate / initial_learning_rate.
    Source: Chen, Papandreou, Kokkinos, Murphy & Yuille 2018, whose "poly" policy has exponent 0.9.
    """
    return end_factor + (1 - end_factor) * math.pow(1 - min(step / (steps or total_steps), 1.0), exponent)


@schedulers.register("step", stage="steps")
def step(step: int, total_steps: int, factor: Share = 0.1, steps: Steps = None) -> float:
    """factor^⌊t / steps⌋: the rate falls by `factor` at once every `steps` optimizer steps; null means a third of the run.

    torch's StepLR, counted in steps and not epochs; Keras's ExponentialDecay with `staircase`.
    """
    return math.pow(factor, step // (steps or math.ceil(total_steps / 3)))


@schedulers.register("multi_step", boundaries="milestones")
def multi_step(
    step: int,
    total_steps: int,
    milestones: list[Length] = [0.5, 0.75],  # noqa: B006 (a config node holds lists; never written to)
    factor: Share = 0.1,
) -> float:
    """factor^(milestones reached): the rate falls by `factor` when t is each of `milestones`, optimizer steps or shares of the run.

    torch's MultiStepLR, counted in steps and not epochs. ConfigError for milestones that do not rise.
    Source: He, Zhang, Ren & Sun 2016 divide by 10 at 1/2 and 3/4 of a CIFAR-10 run.
    """
    return math.pow(factor, bisect_right(_rising("milestones", milestones, total_steps), step))


@schedulers.register("piecewise", boundaries="boundaries")
def piecewise(
    step: int,
    total_steps: int,
    boundaries: list[Length] = [0.5, 0.75],  # noqa: B006
    factors: list[End] = [1.0, 0.1, 0.01],  # noqa: B006
    inclusive: bool = True,
) -> float:
    """factors[i] from boundaries[i − 1] on: constant pieces, boundaries in optimizer steps or shares of the run.

    A piece begins at t = its boundary, as in torch's MultiStepLR; with `inclusive=false` one step later, at t > boundary, as in
    Keras's PiecewiseConstantDecay. A boundary past the run's end is never reached.
    ConfigError where there is not one factor more than boundaries, and for boundaries that do not rise.
    """
    if len(factors) != len(boundaries) + 1:
        message = f"must hold one more than scheduler.boundaries, {len(boundaries) + 1} for {boundaries}, got {len(factors)}: {factors}"
        raise ConfigError([Problem("scheduler.factors", message)])
    find = bisect_right if inclusive else bisect_left
    return factors[find(_rising("boundaries", boundaries, total_steps), step)]


@schedulers.register("cosine")
def cosine(step: int, total_steps: int, end_factor: End = 0.0) -> float:
    """end_factor + (1 − end_factor) · (1 + cos(πt / total_steps)) / 2; t in optimizer steps, not epochs.

    The last step is one before the end of the curve, so that its rate is not zero.
    Source: Loshchilov & Hutter 2017, eq. 5, without restarts.
    """
    return _half_cosine(step / total_steps, end_factor)


@schedulers.register("cosine_restarts", stage="steps")
def cosine_restarts(
    step: int,
    total_steps: int,
    steps: Steps = None,
    growth: Annotated[float, Ge(1)] = 1.0,
    restart_factor: Share = 1.0,
    end_factor: End = 0.0,
) -> float:
    """`cosine` again and again: the first cycle is `steps` optimizer steps long, each other `growth` times the one before.

    end_factor + (1 − end_factor) · restart_factor^i · (1 + cos(πs)) / 2 at the share s of cycle i from 0 on; null means a third
    of the run. torch's CosineAnnealingWarmRestarts has growth 1 (T_mult) and adds eta_min, Keras's
    CosineDecayRestarts has growth 2 (t_mul), and calls restart_factor m_mul and end_factor alpha.
    Source: Loshchilov & Hutter 2017, eq. 5.
    """
    begin, length, peak = 0.0, float(steps or math.ceil(total_steps / 3)), 1.0
    while step >= begin + length:
        begin, length, peak = begin + length, length * growth, peak * restart_factor
    return end_factor + (1 - end_factor) * peak * _half_cosine((step - begin) / length, 0.0)


@schedulers.register("linear_warmup")
def linear_warmup(step: int, total_steps: int, warmup: Length = 0.1, start_factor: End = 0.1) -> float:
    """start_factor + (1 − start_factor) · t / warmup up to t = warmup, then 1; `warmup` in optimizer steps or as a share of the run.

    torch's LinearLR, whose start_factor is 1/3 and total_iters 5. ConfigError for a warm-up that is as long as the run.
    Source: Goyal et al. 2017, section 2.2, who begin at the rate of a single worker.
    """
    length = _warmup(warmup, total_steps)
    return 1.0 if step >= length else start_factor + (1 - start_factor) * step / length


@schedulers.register("warmup_cosine")
def warmup_cosine(step: int, total_steps: int, warmup: Length = 0.1, start_factor: End = 0.1, end_factor: End = 0.0) -> float:
    """`linear_warmup`, then `cosine` from 1 to end_factor over the steps that are left.

    Keras's CosineDecay with a warmup_target. ConfigError for a warm-up that is as long as the run.
    Source: Goyal et al. 2017, section 2.2; Loshchilov & Hutter 2017, eq. 5.
    """
    length = _warmup(warmup, total_steps)
    if step < length:
        return start_factor + (1 - start_factor) * step / length
    return _half_cosine((step - length) / (total_steps - length), end_factor)


@schedulers.register("one_cycle")
def one_cycle(
    step: int,
    total_steps: int,
    warmup: Annotated[float, Interval(gt=0, le=0.5)] = 0.45,
    start_factor: Share = 0.1,
    end_factor: Share = 1e-4,
    base_momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.85,
    max_momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.95,
) -> tuple[float, float]:
    """Linear from start_factor up to 1 in the share `warmup` of the run, down again in as long, then on to end_factor.

    Returns the factor and the momentum, which goes from max_momentum to base_momentum and back, and then stays. Equal to
    torch's `OneCycleLR(three_phase=True, anneal_strategy="linear", pct_start=.45, div_factor=10, final_div_factor=1000)`,
    but where the way up and down is so short that no step would fall on it: then the second step is at the peak.
    ConfigError where base_momentum is above max_momentum.
    Source: Smith & Topin 2019; there, too, the momentum runs against the rate and the last phase falls far below the start.
    """
    if base_momentum > max_momentum:
        message = f"must be at most scheduler.max_momentum={max_momentum}, got {base_momentum}"
        raise ConfigError([Problem("scheduler.base_momentum", message)])
    peak, end = warmup * total_steps - 1, total_steps - 1
    peak = peak if 2 * peak > 1 else min(1, end)
    back = 2 * peak
    legs = (
        (0.0, peak, start_factor, 1.0, max_momentum, base_momentum),
        (peak, back, 1.0, start_factor, base_momentum, max_momentum),
        (back, end, start_factor, end_factor, max_momentum, max_momentum),
    )
    begin, finish, *values = next((leg for leg in legs if step <= leg[1]), legs[-1])
    # In a run of a step or two a leg may have no length; then it is at its end.
    share = min((step - begin) / (finish - begin), 1.0) if finish > begin else 1.0
    rate, next_rate, momentum, next_momentum = values
    return rate + share * (next_rate - rate), momentum + share * (next_momentum - momentum)


@schedulers.register("performance", patience="patience", every="every")
class Performance:
    """Times `factor`, as often as the metric `monitor` has not been better than its best for more than `patience` measurements.

    A measurement is one validation for val/…, one row of the journal for train/…; with `every` = N only each Nth one counts.
    Better is by `threshold`, a share of the best (`rel`) or an amount (`abs`), in the metric's own direction; NaN is never
    better. For `cooldown` measurements after a cut none counts as without improvement. The factor stays at least
    `min_factor`.

    Equal to torch's ReduceLROnPlateau with eps=0 (torch's own 1e-8 leaves out cuts smaller than that). Keras's, with its
    patience p and cooldown c ≥ 1, is patience = p − 1, threshold_mode = abs, threshold = 1e-4, cooldown = c − 1.
    Source: Senior, Heigold, Ranzato & Yang 2013, who compare it with `power` and `exponential`.
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        factor: Annotated[float, Gt(0), Lt(1)] = 0.1,
        patience: Count = 10,
        threshold: Annotated[float, Ge(0)] = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: Count = 0,
        min_factor: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
        every: Annotated[int, Ge(1)] = 1,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        self.monitor, self.mode, self.every = monitor, mode, every
        self.cut, self.patience, self.cooldown, self.min_factor = factor, patience, cooldown, min_factor
        self.threshold, self.threshold_mode = threshold, threshold_mode
        self.current, self.best = 1.0, math.inf if mode == "min" else -math.inf
        self.seen = self.waited = self.cooling = 0

    def factor(self, step: int) -> float:
        """The factor at every step until something else is observed."""
        return self.current

    def observe(self, value: float) -> None:
        """Take one measurement."""
        self.seen += 1
        if self.seen % self.every:
            return
        if self._better(value):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        if self.cooling > 0:
            self.cooling, self.waited = self.cooling - 1, 0
        if self.waited > self.patience:
            self.current = max(self.current * self.cut, self.min_factor)
            self.cooling, self.waited = self.cooldown, 0

    def _better(self, value: float) -> bool:
        best, threshold = self.best, self.threshold
        if self.mode == "min":
            return value < (best * (1 - threshold) if self.threshold_mode == "rel" else best - threshold)
        return value > (best * (1 + threshold) if self.threshold_mode == "rel" else best + threshold)


def _half_cosine(share: float, end_factor: float) -> float:
    return end_factor + (1 - end_factor) * (1 + math.cos(math.pi * min(share, 1.0))) / 2


def _whole(length: float, total_steps: int) -> int:
    # The nearest double below a whole number of steps is that number: 0.29 · 100 is 28.999….
    return length if isinstance(length, int) else math.floor(length * total_steps + 1e-9)


def _warmup(warmup: float, total_steps: int) -> int:
    length = _whole(warmup, total_steps)
    if length >= total_steps:
        message = f"must be shorter than the run, which has {total_steps} optimizer steps, got {warmup}"
        raise ConfigError([Problem("scheduler.warmup", message, ("scheduler.warmup=0.1",))])
    return length


def _rising(name: str, places: list[float], total_steps: int) -> list[int]:
    steps = [_whole(place, total_steps) for place in places]
    mixed = len({type(place) for place in places}) > 1
    if mixed or any(one >= other for one, other in pairwise(places)):
        raise ConfigError([Problem(f"scheduler.{name}", f"must rise, and be all steps or all shares of the run, got {places}")])
    return steps
