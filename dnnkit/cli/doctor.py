"""dnnkit doctor: a network before it is trained, layer by layer, what is wrong with it, and what mends it."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dnnkit.cli.discover import asks_help
from dnnkit.cli.options import parse_options
from dnnkit.errors import ConfigError, Problem

if TYPE_CHECKING:
    from rich.table import Table

    from dnnkit.diagnostics import LayerSignal
    from dnnkit.training.doctor import Report

HELP = """\
dnnkit doctor [--lr] [OVERRIDES] [--config-dir DIR] [--output DIR] [--json]

Builds the network of a config, sends 1000 training examples through it, or all there are, and their gradient back, and
shows for each layer: mean and deviation of what it puts out, its second moment m2, the shares of outputs where the
activation is flat and of dead units, the norm of the gradient that comes back, that of the weights' gradient over
theirs, the effective rank, and the mean cosine between two examples.
What is wrong with that, and with the config, is said, and overrides that were tried and mend it. The run is rehearsed
on a copy, in a hundred updates at most: that says whether its rate is too high, and whether a clipping ever bites.

--lr looks for a learning rate instead. A copy of the network is trained as a run would train it, with its optimizer,
groups, minibatches, augmentation, penalty, clipping and constraint, while the rate climbs from 1e-7 to 10 by a constant
factor, one optimizer step at each of 401 rates; it ends where the smoothed loss is four times its best or not finite.
Suggested is a tenth of the rate at which the smoothed loss starts to climb again (Géron 2019, chapter 11), as overrides
to paste; where the loss never falls, or never climbs, that is said and none is suggested. The scheduler plays no part:
the rate is the peak that it multiplies. Numbers are in lr.json, the curve is in lr.png.

No run is made. Numbers and figures go to DIR/diagnostics/, DIR being doctor/NAME unless it is given; --json prints the
numbers instead. Exit code 0 whatever is found, otherwise that of a run: 2 config, 3 plugin, 4 data."""

_COLUMNS = ("layer", "units", "mean", "std", "m2", "flat", "dead", "‖δ‖", "‖g‖/‖w‖", "rank", "cos")


def doctor(words: list[str]) -> int:
    """Say what is wrong with a network before it is trained: dnnkit doctor OVERRIDES."""
    if asks_help(words, HELP):
        return 0
    output, rest = _output([word for word in words if word not in ("--json", "--lr")])
    options = parse_options(rest)
    if options.multirun or options.show_config:
        raise ConfigError([Problem("-m" if options.multirun else "--cfg", "is not for the doctor, who looks at one network")])
    from dnnkit.config import Composer

    composer = Composer(options.config_dir)
    cfg = composer.one(options.overrides)
    folder = Path(output or f"doctor/{cfg.name}")
    if "--lr" in words:
        from dnnkit.cli.doctor_lr import suggest

        return suggest(cfg, options, folder, as_json="--json" in words)
    from dnnkit.training.doctor import examine

    report = examine(cfg, composer.one)
    _write(folder, report)
    if "--json" in words:
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        _say(report, options.overrides, folder)
    return 0


def _output(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """What follows --output, and the other words."""
    rest, output = [], None
    left = iter(words)
    for word in left:
        if word.split("=")[0] == "--output":
            output = word.partition("=")[2] if "=" in word else next(left, "")
            if not output:
                raise ConfigError([Problem("--output", "needs a folder, as --output DIR")])
        else:
            rest.append(word)
    return output, rest


def _write(folder: Path, report: Report) -> None:
    from dnnkit.disk import disk
    from dnnkit.record.signal import write_activations, write_findings, write_signal, write_verdicts

    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_signal(folder, {"start": report.signals})
    write_verdicts(folder, {"start": report.verdicts})
    write_findings(folder, report.findings)
    write_activations(folder, report.signals)


def _say(report: Report, overrides: Sequence[str], folder: Path) -> None:
    from rich.console import Console

    from dnnkit.console import open_console

    console = open_console()
    if report.signals:
        console.print(f"{report.signals[0].samples} training examples, once forward and once back", highlight=False)
        table = _table(report.signals)
        # A number that is cut is worse than a line that is broken.
        Console(width=max(console.width, console.measure(table).maximum)).print(table)
    lines = [verdict.text for verdict in report.verdicts]
    lines += _lines(report, "error", "warning")
    if not lines:
        lines = ["nothing is wrong with the signal or the config"]
    elif report.fix:
        lines += ["with these overrides, which were tried, nothing is:", f"  {shlex.join([*overrides, *report.fix])}"]
    else:
        lines += ["of what was tried nothing mends all of it"]
    for line in [*lines, *_lines(report, "remark"), f"numbers and figures: {folder / 'diagnostics'}"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _lines(report: Report, *severities: str) -> list[str]:
    return [line for finding in report.findings if finding.severity in severities for line in finding.lines()]


def _table(signals: Sequence[LayerSignal]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), collapse_padding=True, pad_edge=False, header_style="bold")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "layer" else "right", no_wrap=True)
    for signal in signals:
        std = math.sqrt(signal.variance) if signal.variance >= 0 else math.nan
        numbers = (signal.mean, std, signal.second_moment), (signal.saturated, signal.dead)
        last = (signal.delta_norm, signal.gradient_ratio, signal.effective_rank, signal.cosine)
        cells = [*map(_number, numbers[0]), *("" if share is None else f"{share:.0%}" for share in numbers[1]), *map(_number, last)]
        table.add_row(signal.layer, str(signal.units), *cells)
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
