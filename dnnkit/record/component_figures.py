"""What a component does, drawn: an activation with its derivative, a schedule, the law of an initializer's weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dnnkit.config.schedule import Schedule, Watching, schedule_of
from dnnkit.network import component
from dnnkit.record.figures import BLUE, PALE, VERMILION, blank_figure, dress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Optimizer steps of the run whose schedules are drawn, and the validations in it of the metric that a schedule may watch.
STEPS, VALIDATIONS = 1000, 50
#: The layer whose weights are drawn: fan-out and fan-in.
SHAPE = (300, 784)
#: Deviation of N(0, 1) cut at ±2, and how far a law reaches in its own deviations.
_CUT = 0.87962566103423978
_REACH = {"uniform law": math.sqrt(3), "truncated normal law": 2 / _CUT}


def component_figure(group: str, node: Mapping[str, Any], title: str) -> Figure:
    """The figure of a valid node of one of the groups in `FIGURES`, with its settings."""
    figure = blank_figure(6.4, 4.0)
    # Names of settings hold underscores, which are no formula.
    figure.suptitle(title, fontsize=11, parse_math=False)
    FIGURES[group](figure.add_subplot(), node)
    return figure


def draw_activation(axes: Axes, module: nn.Module) -> None:
    """f(z) and f ′(z) over [−4, 4] of an activation in evaluation mode, float64."""
    z = torch.linspace(-4, 4, 801, dtype=torch.float64).requires_grad_()
    y = module.double().eval()(z.reshape(-1, 1)).reshape(-1)
    (slope,) = torch.autograd.grad(y.sum(), z)
    axes.axhline(0, color=PALE, linewidth=0.5)
    axes.axvline(0, color=PALE, linewidth=0.5)
    axes.plot(z.detach(), slope, color=VERMILION, linewidth=1.1, label="derivative f ′(z)")
    axes.plot(z.detach(), y.detach(), color=BLUE, linewidth=1.5, label="f(z)")


def draw_schedule(axes: Axes, schedule: Schedule) -> None:
    """The factor of the rate at each of STEPS steps, the momentum where it is cycled, and what a schedule that watches is shown."""
    curve = schedule_curve(schedule)
    factors = [value[0] if isinstance(value, tuple) else value for value in curve]
    axes.plot(range(STEPS), factors, color=BLUE, linewidth=1.5, label="factor of optimizer.lr")
    momenta = [value[1] for value in curve if isinstance(value, tuple)]
    if momenta:
        axes.plot(range(STEPS), momenta, color=VERMILION, linewidth=1.1, linestyle="--", label="momentum")
    if isinstance(schedule, Watching):
        axes.plot(range(0, STEPS, STEPS // VALIDATIONS), watched(), color=PALE, linewidth=1, label="the metric that it follows here")


def draw_weights(axes: Axes, weights: Tensor, limit: float, density: bool = False) -> None:
    """The histogram of weights over [−limit, limit]: how many, or `density`."""
    counts, edges = torch.histogram(weights.flatten(), bins=81, range=(-limit, limit), density=density)
    axes.stairs(counts, edges, fill=True, color=BLUE, label="the weights")


def drawn_weights(fill: Callable[[Tensor], Any]) -> Tensor:
    """A weight of SHAPE as an initializer fills it, with seed 0; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        filled: Tensor = fill(torch.empty(*SHAPE))
    return filled


def watched() -> list[float]:
    """The loss that a schedule which watches one is shown on, at each validation."""
    return [1 / min(number, 15) for number in range(1, VALIDATIONS + 1)]


def schedule_curve(schedule: Schedule) -> list[Any]:
    """The values of a schedule at steps 0 to STEPS − 1; one that watches a metric sees `watched()`."""
    if not isinstance(schedule, Watching):
        return [schedule(step, STEPS) for step in range(STEPS)]
    losses, values = dict(zip(range(0, STEPS, STEPS // VALIDATIONS), watched(), strict=True)), []
    for step in range(STEPS):
        if step in losses:
            schedule.watcher.observe(losses[step])
        values.append(schedule(step, STEPS))
    return values


def law_like(weights: Tensor) -> tuple[str, Callable[[Tensor], Tensor]] | None:
    """Name and density of the law of zero mean and the weights' deviation that reaches as far as they do; None where all are equal.

    U(−r, r) reaches √3 deviations, the normal law cut at two of its own 2.274, the normal law further, so that it is told by that.
    """
    std = float(weights.double().std(correction=0))
    if not math.isfinite(std) or std <= 1e-12 * float(weights.abs().max()):
        return None
    reach = float(weights.abs().max()) / std
    for name, ends in _REACH.items():
        if 0.99 * ends <= reach <= 1.01 * ends:
            return name, lambda x, ends=ends: _density(x / std, ends) / std
    return "normal law", lambda x: _density(x / std, math.inf) / std


def _density(x: Tensor, reach: float) -> Tensor:
    """The density of the law of deviation 1 that ends at ±reach."""
    inside = x.abs() <= reach
    if reach == math.sqrt(3):
        return torch.where(inside, 1 / (2 * reach), 0.0)
    wide, share = (1.0, 1.0) if math.isinf(reach) else (1 / _CUT, math.erf(math.sqrt(2)))
    normal = torch.exp(-0.5 * (x / wide) ** 2) / (wide * math.sqrt(2 * math.pi))
    return torch.where(inside, normal / share, 0.0)


def _activation(axes: Axes, node: Mapping[str, Any]) -> None:
    make = component("activation", node)
    assert make is not None
    draw_activation(axes, make())
    dress(axes, "f(z) and its derivative")
    axes.set_xlabel("z")
    axes.set_xlim(-4, 4)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, fontsize=9)


def _schedule(axes: Axes, node: Mapping[str, Any]) -> None:
    draw_schedule(axes, schedule_of(node))
    dress(axes, "Factor of optimizer.lr")
    axes.set_xlabel(f"Optimizer steps, of a run of {STEPS:,}")
    axes.set_ylim(bottom=0)
    if len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=9)


def _initializer(axes: Axes, node: Mapping[str, Any]) -> None:
    fill = component("initializer", node)
    assert fill is not None
    weights = drawn_weights(fill).float()
    limit = 1.15 * float(weights.abs().max()) or 1.0
    draw_weights(axes, weights, limit, density=True)
    law = law_like(weights)
    if law is not None:
        x = torch.linspace(-limit, limit, 2001, dtype=torch.float64)
        axes.plot(x, law[1](x), color=VERMILION, linewidth=1.6, label=law[0])
    dress(axes, "Density")
    axes.xaxis.set_major_formatter("{x:.4g}")
    axes.locator_params(axis="x", integer=False)
    axes.set_xlabel(f"Weight of a dense layer, fan_in {SHAPE[1]}, fan_out {SHAPE[0]}")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.22)
    variance = float(weights.double().var(correction=0))
    told = f"both of deviation {math.sqrt(variance):.4g} = √({variance * SHAPE[1]:.3g} / fan_in)" if law is not None else None
    axes.legend(frameon=False, fontsize=9, loc="upper center", ncols=2, title=told, title_fontsize=9)


#: The groups whose components can be drawn.
FIGURES: Mapping[str, Callable[[Axes, Mapping[str, Any]], None]] = {
    "activation": _activation,
    "initializer": _initializer,
    "scheduler": _schedule,
}
