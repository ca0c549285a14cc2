"""A run in a few lines of Markdown, for its page in MLflow: the command, how it went, what was found wrong with its signal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dnnkit.disk import read_json
from dnnkit.record.identity import RunRecord
from dnnkit.record.signal import VERDICTS

LONGEST = 5000
_WHEN = {"start": "before training", "timeline": "during training", "diverged": "at the end", "end": "after training"}


def description(record: RunRecord, run_dir: Path, tests: Mapping[str, float]) -> str:
    """The description of a run as far as it is; `tests` are its metrics `test/…`. At most 5000 characters, of MLflow's 8000."""
    return "\n\n".join(part for part in _parts(record, run_dir, tests) if part)[:LONGEST]


def _parts(record: RunRecord, run_dir: Path, tests: Mapping[str, float]) -> Iterator[str]:
    if record.command:
        yield f"```\n{record.command}\n```"
    yield " · ".join(f"**{key} {value:.4g}**" for key, value in sorted(tests.items()))
    if record.dnnkit_status not in ("running", "finished"):
        yield f"The run was {record.dnnkit_status}." if record.status == "KILLED" else f"The run {record.dnnkit_status}."
    path = run_dir / "diagnostics" / VERDICTS
    if path.exists():
        yield "\n".join(f"- {when}: {text}" for when, text in _verdicts(read_json(path))) or _no_verdict(record)


def _no_verdict(record: RunRecord) -> str:
    return "Nothing was found wrong with the signal, layer by layer." if record.status == "FINISHED" else ""


def _verdicts(found: Mapping[str, list[Mapping[str, Any]]]) -> Iterator[tuple[str, str]]:
    """When, and what: of the course of training, as on the terminal, the first of each kind that did not hold from start to end."""
    for name, when in _WHEN.items():
        told = [one for one in found.get(name, []) if not (name == "timeline" and one["first"] == 0 and one["lasting"])]
        told.sort(key=lambda one: one.get("first", 0))
        for word in dict.fromkeys(str(one.get("word", "")) for one in told):
            yield when, next(str(one["text"]) for one in told if one.get("word", "") == word)
