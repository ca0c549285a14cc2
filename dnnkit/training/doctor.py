"""What is wrong with a network before it is trained, layer by layer, and overrides that were tried and mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dnnkit.config import Config
from dnnkit.diagnostics import MOST_SAMPLES, LayerSignal, Verdict, evenly_spaced, probe, verdicts
from dnnkit.errors import DnnkitError
from dnnkit.lint import Finding, lint
from dnnkit.training.assemble import measures
from dnnkit.training.devices import computing_with
from dnnkit.training.run import Prepared, prepare_run
from dnnkit.training.stability import clipped_gradients, rehearse

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
#: Where updates diverge: by how much the rate is lowered, the least first, and at how many times what is offered it has to hold too,
#: since a run has more updates than a rehearsal.
_LOWER, _MARGIN = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001), 2.0


@dataclass(frozen=True)
class Report:
    """The signal of a network with its initial weights on training examples, what is wrong with it, its updates and its config.

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
    """Probe the network of a config on at most 1000 training examples, and rehearse its run; nothing of that is written or stays.

    `compose` makes configs of overrides, as this one was made of its own. Raises what a run raises before it begins.
    """
    run = prepare_run(cfg)
    with computing_with(run.threads):
        return _examined(run, cfg, compose)


def _examined(run: Prepared, cfg: Config, compose: Compose) -> Report:
    signals = _probe(run)
    found, findings, rehearsal = verdicts(signals), findings_of(run), rehearse(run)
    if rehearsal.diverges:
        found.append(rehearsal.verdict())
    warnings = _warnings(findings)
    if not found and not warnings:
        return Report(signals, found, findings, (), True)
    for remedy in _remedies(warnings):
        fix = _mending(cfg, remedy, compose)
        if fix:
            return Report(signals, found, findings, fix, True)
    return Report(signals, found, findings, (), False)


def _remedies(warnings: Sequence[Finding]) -> Iterator[tuple[str, ...]]:
    """What the linter offers, all of it, and that with each remedy; where both set a key the remedy, typed later, counts."""
    offered = tuple(dict.fromkeys(word for finding in warnings for word in finding.fault.fix))
    for remedy in _REMEDIES:
        yield _typed_later(offered, remedy)


def _typed_later(words: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    keys = {word.partition("=")[0] for word in others}
    return (*(word for word in words if word.partition("=")[0] not in keys), *others)


def _mending(cfg: Config, remedy: Sequence[str], compose: Compose) -> tuple[str, ...]:
    """The remedy, with a lower rate where it takes one, if nothing is wrong with it; else nothing."""
    try:
        run = prepare_run(compose([*cfg.overrides, *remedy]))
    except DnnkitError:
        return ()  # it does not fit this network, or these data
    if verdicts(_probe(run)) or _warnings(findings_of(run)):
        return ()
    if remedy and not rehearse(run).diverges:
        return tuple(remedy)
    for share in _LOWER:
        slower = _typed_later(remedy, (f"optimizer.lr={run.cfg.optimizer.lr * share:.2g}",))
        other = replace(run, cfg=compose([*cfg.overrides, *slower]))  # its network and data are the same
        if not rehearse(other).diverges and not rehearse(other, _MARGIN).diverges:
            return slower
    return ()


def findings_of(run: Prepared) -> tuple[Finding, ...]:
    """The linter's, those of rules that ask for the gradients of the first minibatches among them, which are measured for that."""
    clipped = clipped_gradients(run)
    if not clipped:
        return run.findings
    asked = lint(run.cfg.values, network=run.network, clipped_gradients=clipped)
    known = {finding.rule for finding in run.findings}
    return (*run.findings, *(finding for finding in asked if finding.rule not in known))


def _warnings(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity in ("error", "warning")]


def _probe(run: Prepared) -> list[LayerSignal]:
    loss, _ = measures(run.cfg, run.data.task, run.data.target_scaling)
    rows = evenly_spaced(len(run.data.train.x), MOST_SAMPLES)
    return probe(run.network.float(), run.data.train.x[rows], run.data.train.y[rows], loss, whole=True)
