"""The subcommand that draws the rate and the momentum of a run before it is trained: plot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnnkit.cli.discover import asks_help
from dnnkit.cli.options import Options, parse_options
from dnnkit.errors import ConfigError, Problem

if TYPE_CHECKING:
    from dnnkit.config import Config
    from dnnkit.training.planning import Plan, Planned

PLOT = """\
dnnkit plot [-m] [OVERRIDES] [--steps N] [--output FILE.png] [--config-dir DIR] [--json]

Draws the learning rate, and the momentum, at each optimizer step of the run that the overrides describe, and trains nothing:

  dnnkit plot scheduler=cosine scheduler.warmup_steps=0.1 trainer.max_epochs=6
  dnnkit plot -m scheduler=cosine,one_cycle,step        several in one figure

The length of the run follows from its data, its batch size and its epochs. Nothing is downloaded: of data that are not here,
--steps says it. A schedule that follows a metric, such as performance, is drawn as if the metric got better every time.

  --steps N            the optimizer steps of the run, instead of those that its data make
  --output FILE.png    where the figure goes (default: SCHEDULER_schedule.png; of several schedules.png)
  --json               print the schedules as JSON: for each step the rate and the momentum; of more than 2,400 steps, as many
                       as the figure can show

Exit codes: 0 drawn, 2 config, 3 plugin, 4 the data are not here or are damaged, 8 the figure cannot be written."""


def plot_schedule(words: list[str]) -> int:
    """Draw the rates of a run before it is trained: dnnkit plot OVERRIDES."""
    if asks_help(words, PLOT):
        return 0
    as_json, steps, output, rest = _options(words)
    options = parse_options(rest)
    configs = _configs(options)
    labels = _labels(configs)
    plans = _plans(configs, steps)
    default = f"{plans[0].scheduler}_schedule.png" if len(plans) == 1 else "schedules.png"
    path = _draw(plans, labels, output or Path(default))
    if as_json:
        shown = {"figure": str(path), "schedules": [_record(label, plan) for label, plan in zip(labels, plans, strict=True)]}
        print(json.dumps(shown, ensure_ascii=False))
        return 0
    for label, plan in zip(labels, plans, strict=True):
        print("\n".join(_text(label, plan)))
    print(f"figure: {path}")
    return 0


def _options(words: Sequence[str]) -> tuple[bool, int | None, Path | None, list[str]]:
    """Whether as JSON, the steps, the file, and the other words. Raises ConfigError."""
    found: dict[str, str] = {}
    rest, left = [], iter(words)
    for word in left:
        name, equals, value = word.partition("=")
        if name in ("--steps", "--output"):
            found[name] = value if equals else next(left, "")
        elif word != "--json":
            rest.append(word)
    steps, output = found.get("--steps"), found.get("--output")
    problems = []
    if steps is not None and not (steps.isdecimal() and int(steps) > 0):
        problems.append(Problem("--steps", f"must be an integer at least 1, got {steps!r}"))
    if output is not None and not output.lower().endswith(".png"):
        problems.append(Problem("--output", f"must be the name of a PNG file, FILE.png, got {output!r}"))
    if problems:
        raise ConfigError(problems)
    return "--json" in words, None if steps is None else int(steps), None if output is None else Path(output).expanduser(), rest


def _configs(options: Options) -> list[Config]:
    """The config of the one run, or of every job of a sweep."""
    from dnnkit.config import Composer
    from dnnkit.sweep import check_sweep, is_sweep

    composer = Composer(options.config_dir)
    if not (options.multirun or is_sweep(options.overrides, options.config_dir)):
        return [composer.one(options.overrides)]
    found: list[Config] = []
    check_sweep(composer, options.overrides, found.append)
    return found


def _labels(configs: Sequence[Config]) -> list[str]:
    """The overrides of each config that not all have; of a single one its schedule."""
    if len(configs) == 1:
        return [f"scheduler={configs[0].scheduler.name}"]
    shared = set.intersection(*(set(cfg.overrides) for cfg in configs))
    return [" ".join(word for word in cfg.overrides if word not in shared) or f"job {number}" for number, cfg in enumerate(configs)]


def _plans(configs: Sequence[Config], steps: int | None) -> list[Plan]:
    """The plan of each config; equal data are read once."""
    from dnnkit.training.planning import plan, training_rows
    from dnnkit.training.scheduling import total_steps

    rows: dict[str, int] = {}
    plans = []
    for cfg in configs:
        total = steps
        if total is None:
            data = json.dumps([dict(cfg.data), cfg.task, cfg.seed, dict(cfg.model)], sort_keys=True)
            if data not in rows:
                rows[data] = training_rows(cfg)
            total = total_steps(cfg, rows[data])
        plans.append(plan(cfg, total))
    return plans


def _draw(plans: Sequence[Plan], labels: Sequence[str], path: Path) -> Path:
    from dnnkit.disk import disk
    from dnnkit.record.schedule_figure import Schedule, schedule_figure

    shown = [
        Schedule(label, one.total, one.epochs, one.warmup, one.rate.curve, None if one.momentum is None else one.momentum.curve, one.scales)
        for label, one in zip(labels, plans, strict=True)
    ]
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        schedule_figure(shown, _headline(labels[0], plans[0]) if len(plans) == 1 else "Schedules").savefig(path)
    return path


def _headline(label: str, plan: Plan) -> str:
    return f"{label}: {plan.total:,} optimizer step{'s' * (plan.total > 1)} in {plan.epochs:,} epoch{'s' * (plan.epochs > 1)}"


def _text(label: str, plan: Plan) -> Iterator[str]:
    yield _headline(label, plan)
    yield f"  learning rate  {_course(plan.rate, plan.total)}"
    for name, scale in plan.scales.items():
        yield f"                 × {scale:g} for {name}"
    if plan.momentum is not None:
        yield f"  momentum       {_course(plan.momentum, plan.total)}"
    if plan.warmup:
        yield f"  warm-up        the first {f'{plan.warmup:,} steps' if plan.warmup > 1 else 'step'}"
    if plan.follows is not None:
        yield f"  follows        {plan.follows}: the rate is cut when it gets no better; shown as if the metric got better every time"


def _course(planned: Planned, total: int) -> str:
    """Start, peak and end, as far as they are different."""
    values = planned.curve.values
    if min(values) == max(values):
        return f"{planned.start:.4g} at every step"
    parts = [f"{planned.start:.4g} at step 0", f"{planned.end:.4g} at step {total - 1:,}"]
    if 0 < planned.peak_step < total - 1:
        parts.insert(1, f"{planned.peak:.4g} at step {planned.peak_step:,}, the highest")
    lowest = min(zip(values, planned.curve.steps, strict=True))
    if lowest[0] < min(planned.start, planned.end):
        parts.insert(len(parts) - 1, f"{lowest[0]:.4g} at step {lowest[1]:,}, the lowest")
    return "; ".join(parts)


def _record(label: str, plan: Plan) -> dict[str, Any]:
    def numbers(planned: Planned) -> dict[str, Any]:
        ends = {"start": planned.start, "peak": planned.peak, "peak_step": planned.peak_step, "end": planned.end}
        return {**ends, "steps": planned.curve.steps, "values": planned.curve.values}

    return {
        "label": label, "scheduler": plan.scheduler, "total_steps": plan.total, "epochs": plan.epochs, "warmup_steps": plan.warmup,
        "follows": plan.follows, "lr_scales": dict(plan.scales), "lr": numbers(plan.rate),
        "momentum": None if plan.momentum is None else numbers(plan.momentum),
    }  # fmt: skip
