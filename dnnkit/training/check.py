"""What `dnnkit check` does beside validating a config: all that a run finds out before it makes anything, and no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from dnnkit.config import Config
from dnnkit.data.download import offline
from dnnkit.errors import DataError
from dnnkit.lint import Finding, lint, refuse
from dnnkit.training.run import Prepared, prepare_run


class _Untrained(Exception):
    """A pretraining would be trained now; `findings` are the linter's about it."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        super().__init__()
        self.findings = findings


@dataclass(frozen=True)
class Checked:
    """A config in which nothing is wrong. `unknown`: why it could not be judged by its data; None where it was.

    `findings` are the linter's: of rules that need neither data nor network where there are none.
    """

    findings: tuple[Finding, ...]
    unknown: str | None = None


def check_run(cfg: Config) -> Checked:
    """Judge a config, by its data too unless they would have to be downloaded first.

    Nothing is downloaded, trained or written. Raises what such a run raises before it begins: ConfigError, DataError,
    CheckpointError, PluginError.
    """
    with offline() as missing:
        try:
            return Checked(prepare_run(cfg, pretrain=_not_here).findings)
        except DataError:
            if not missing:
                raise
            unknown = f"data={cfg.data.name} would have to be downloaded"
        except _Untrained as untrained:
            return Checked(untrained.findings)  # it is found possible, and to fit, before it is asked for
    findings = lint(cfg.values)
    refuse(findings)
    return Checked(tuple(findings), unknown)


def _not_here(run: Prepared, told: str) -> NoReturn:
    """What a run would train at this place: `prepare_run` calls it once all its phases are known to be possible."""
    raise _Untrained(run.findings)
