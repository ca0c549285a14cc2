"""What is wrong with a network before it is trained, layer by layer, and overrides that were tried and mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dnnkit.config import Config
from dnnkit.diagnostics import MOST_SAMPLES, LayerSignal, Verdict, evenly_spaced, probe, verdicts
from dnnkit.errors import DnnkitError
from dnnkit.lint import Finding
from dnnkit.training.assemble import measures
from dnnkit.training.run import Prepared, prepare_run

Compose = Callable[[Sequence[str]], Config]

#: What may mend a signal, the smallest change first; what is tried is whether it does.
_REMEDIES = (
    (),
    ("initializer=auto",),
    ("activation=selu", "initializer=auto"),
    ("activation=elu", "initializer=auto"),
    ("normalization=batch_norm",),
    ("activation=relu", "initializer=auto", "normalization=batch_norm"),
)


@dataclass(frozen=True)
class Report:
    """The signal of a network with its initial weights on training examples, what is wrong with it and with its config.

    `fix`: overrides to be typed after those of the config, with which neither verdicts nor warnings are left; empty where there is
    nothing to mend, and where nothing that was tried mends it, which `cured` tells apart.
    """

    signals: list[LayerSignal]
    verdicts: list[Verdict]
    findings: tuple[Finding, ...]
    fix: tuple[str, ...]
    cured: bool

    def to_dict(self) -> dict[str, Any]:
        """In JSON values."""
        return {
            "samples": self.signals[0].samples if self.signals else 0,
            "layers": [signal.to_dict() for signal in self.signals],
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
            "findings": [finding.to_dict() for finding in self.findings],
            "fix": list(self.fix),
            "cured": self.cured,
        }


def examine(cfg: Config, compose: Compose) -> Report:
    """Probe the network of a config on at most 1000 training examples; nothing is trained or written.

    `compose` makes configs of overrides, as this one was made of its own. Raises what a run raises before it begins.
    """
    run = prepare_run(cfg)
    signals = _probe(run)
    found, warnings = verdicts(signals), _warnings(run)
    if not found and not warnings:
        return Report(signals, found, run.findings, (), True)
    for fix in _remedies(warnings):
        if fix and _mends(cfg, fix, compose):
            return Report(signals, found, run.findings, fix, True)
    return Report(signals, found, run.findings, (), False)


def _remedies(warnings: Sequence[Finding]) -> Iterator[tuple[str, ...]]:
    """What the linter offers, all of it, and that with each remedy; where both set a key the remedy, typed later, counts."""
    offered = tuple(dict.fromkeys(word for finding in warnings for word in finding.fault.fix))
    for remedy in _REMEDIES:
        keys = {word.partition("=")[0] for word in remedy}
        yield (*(word for word in offered if word.partition("=")[0] not in keys), *remedy)


def _mends(cfg: Config, fix: Sequence[str], compose: Compose) -> bool:
    try:
        other = prepare_run(compose([*cfg.overrides, *fix]))
    except DnnkitError:
        return False  # it does not fit this network, or these data
    return not verdicts(_probe(other)) and not _warnings(other)


def _warnings(run: Prepared) -> list[Finding]:
    return [finding for finding in run.findings if finding.severity != "hint"]


def _probe(run: Prepared) -> list[LayerSignal]:
    loss, _ = measures(run.cfg, run.data.task, run.data.target_scaling)
    rows = evenly_spaced(len(run.data.train.x), MOST_SAMPLES)
    return probe(run.network.float(), run.data.train.x[rows], run.data.train.y[rows], loss, whole=True)
