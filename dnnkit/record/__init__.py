"""The record of a run: identity, run folder, journal, figures. Standard library and YAML; no torch, no MLflow."""

from dnnkit.record.folder import RunFolder, new_run
from dnnkit.record.identity import RunRecord, config_digest, flatten, git_state, strip_credentials
from dnnkit.record.journal import Journal, Row, read_journal
from dnnkit.record.log import RunLog

__all__ = [
    "Journal",
    "Row",
    "RunFolder",
    "RunLog",
    "RunRecord",
    "config_digest",
    "flatten",
    "git_state",
    "new_run",
    "read_journal",
    "strip_credentials",
]
