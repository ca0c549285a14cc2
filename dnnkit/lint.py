"""The linter: rules about what does not go together, each of them a component, judged before anything is made."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from dnnkit.errors import ConfigError, PluginError, Problem
from dnnkit.registry import REGISTRIES, Component
from dnnkit.schema import Severity

SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True)
class Fault:
    """One thing that a rule finds wrong.

    `settings` are the config paths at fault, first the one to change; `found` says what is there, in a clause without a full
    stop; `fix` are overrides that mend it, to be pasted together after those that the config was made from. `measured` says what
    such overrides were worth where that was measured, and `severity` that this fault is not as severe as others of its rule.
    """

    settings: tuple[str, ...]
    found: str
    fix: tuple[str, ...] = ()
    measured: str = ""
    severity: Severity | None = None


@dataclass(frozen=True)
class Finding:
    """A fault with the rule that found it: its id, how severe it is here, the reason in a sentence, and whose that is."""

    rule: str
    severity: Severity
    fault: Fault
    reason: str
    source: str

    @property
    def fix(self) -> str:
        """The overrides as they are pasted into a shell; empty where the rule knows none, and of a remark."""
        return shlex.join(self.fault.fix)

    def lines(self) -> list[str]:
        """For a reader: what was found, why it matters, what was measured, what mends it."""
        source = f" ({self.source.rstrip('.')})" if self.source else ""
        said = [f"{self.severity}: {self.fault.found} [{self.rule}]", f"  {self.reason.rstrip('.')}{source}."]
        said += [f"  measured: {self.fault.measured}"] if self.fault.measured else []
        return [*said, f"  mend it: {self.fix}"] if self.fix else said

    def to_dict(self) -> dict[str, Any]:
        """In JSON values."""
        fault = {key: value for key, value in asdict(self.fault).items() if key != "severity"}
        return {"rule": self.rule, "severity": self.severity, **fault, "reason": self.reason, "source": self.source}


def lint(config: Mapping[str, Any], **offered: Any) -> list[Finding]:
    """What every rule finds wrong with a resolved config, errors first; those that it ignores are left out.

    So are those that were registered with `on_request`, unless `lint.severity` names them.

    `offered` are facts beside the config, by the names that rules ask for: `network`, `data`, `steps`, and where the doctor has
    measured them `clipped_gradients`. A rule that asks for one that is not known yet is left out. PluginError for a rule that
    fails, or gives anything but faults.
    """
    settings = config["lint"]
    found: list[Finding] = []
    for record in REGISTRIES["lint"]:
        if record.name in settings["ignore"] or not all(name in offered for name in record.offered):
            continue
        severity_of(record, settings)  # which refuses one that there is not, whether or not something is found
        if not record.facts.get("on_request") or record.name in (settings["severity"] or {}):
            found += [_finding(record, settings, fault) for fault in _faults(record, config, offered)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def severity_of(record: Component, settings: Mapping[str, Any], own: Severity | None = None) -> Severity:
    """How severe what a rule finds is: as the config says, else as the fault says, `own`, else as the rule was registered.

    That is `warning` if it does not say.
    """
    chosen = (settings["severity"] or {}).get(record.name, own or record.facts.get("severity", "warning"))
    if chosen not in SEVERITIES:
        raise PluginError(f"lint={record.name} ({record.origin}): its severity must be one of {', '.join(SEVERITIES)}, got {chosen!r}")
    severity: Severity = chosen
    return "error" if settings["strict"] and severity == "warning" else severity


def _finding(record: Component, settings: Mapping[str, Any], fault: Fault) -> Finding:
    """The fault as it is said; a remark offers nothing, also where the config alone makes one of it."""
    severity = severity_of(record, settings, fault.severity)
    said = replace(fault, fix=()) if severity == "remark" else fault
    return Finding(record.name, severity, said, record.summary, record.source)


def refuse(findings: Iterable[Finding]) -> None:
    """ConfigError with everything that is an error."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise ConfigError([_problem(finding) for finding in errors])


def _problem(finding: Finding) -> Problem:
    source = f" ({finding.source.rstrip('.')})" if finding.source else ""
    message = f"{finding.fault.found} [{finding.rule}]: {finding.reason.rstrip('.')}{source}"
    return Problem(finding.fault.settings[0], message, (finding.fix,) if finding.fix else ())


def _faults(record: Component, config: Mapping[str, Any], offered: Mapping[str, Any]) -> Iterator[Fault]:
    where = f"lint={record.name} ({record.origin})"
    try:
        given = record.function(config, **{name: offered[name] for name in record.offered})
        faults: Sequence[Fault] = [given] if isinstance(given, Fault) else list(given or ())
    except Exception as error:
        cure = f"mend it, or leave it out with lint.ignore=[{record.name}]"
        raise PluginError(f"{where} failed: {type(error).__name__}: {error}", cure) from error
    for fault in faults:
        if not isinstance(fault, Fault) or not fault.settings:
            raise PluginError(f"{where} has to give dnnkit.lint.Fault, each with the settings at fault, it gave {fault!r}")
        yield fault
