"""Schedulers: pure functions of the optimizer step, whose value multiplies `optimizer.lr`, the peak rate.

`step` is the number of optimizer steps done before this one, 0 to total_steps − 1: steps, not minibatches and not epochs,
counted after gradient accumulation and across devices.
"""

import math
from typing import Annotated

from annotated_types import Ge, Gt, Interval

from dnnkit.registry import schedulers

Share = Annotated[float, Interval(gt=0, le=1)]
Steps = Annotated[int, Ge(1)] | None


@schedulers.register("constant")
def constant(step: int, total_steps: int) -> float:
    """1: the rate stays at `optimizer.lr`."""
    return 1.0


@schedulers.register("exponential")
def exponential(step: int, total_steps: int, factor: Share = 0.1, steps: Steps = None) -> float:
    """factor^(t / steps): the rate falls by `factor` every `steps` optimizer steps, smoothly; null means over the whole run.

    Source: Senior, Heigold, Ranzato & Yang 2013, whose factor is 0.1.
    """
    return math.pow(factor, step / (steps or total_steps))


@schedulers.register("power")
def power(step: int, total_steps: int, steps: Steps = None, exponent: Annotated[float, Gt(0)] = 1.0) -> float:
    """(1 + t / steps)^−exponent, t in optimizer steps; null means the whole run, at whose end the rate is 2^−exponent.

    torch's PolynomialLR is something else.
    Source: Senior, Heigold, Ranzato & Yang 2013.
    """
    return math.pow(1 + step / (steps or total_steps), -exponent)


@schedulers.register("step")
def step(step: int, total_steps: int, factor: Share = 0.1, steps: Steps = None) -> float:
    """factor^⌊t / steps⌋: the rate falls by `factor` at once every `steps` optimizer steps; null means a third of the run."""
    return math.pow(factor, step // (steps or math.ceil(total_steps / 3)))


@schedulers.register("cosine")
def cosine(step: int, total_steps: int, end_factor: Annotated[float, Interval(ge=0, le=1)] = 0.0) -> float:
    """end_factor + (1 − end_factor) · (1 + cos(πt / total_steps)) / 2; t in optimizer steps, not epochs.

    The last step is one before the end of the curve, so that its rate is not zero.
    Source: Loshchilov & Hutter 2017, eq. 5, without restarts.
    """
    return end_factor + (1 - end_factor) * (1 + math.cos(math.pi * min(step / total_steps, 1.0))) / 2


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
    torch's `OneCycleLR(three_phase=True, anneal_strategy="linear", pct_start=.45, div_factor=10, final_div_factor=1000)`.
    Source: Smith & Topin 2019; there, too, the momentum runs against the rate and the last phase falls far below the start.
    """
    peak, back, end = warmup * total_steps - 1, 2 * warmup * total_steps - 2, total_steps - 1
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
