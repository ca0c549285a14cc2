"""Training: every scenario by its bad and by its mended config, once for each seed."""

from __future__ import annotations

import json
import multiprocessing
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest import mock

from matplotlib.figure import Figure

import dnnkit
from benchmarks.rules.scenarios import COMMON, Scenario, finding, tried
from dnnkit.errors import DivergedError

_QUIET = ("trainer.threads=1", "trainer.progress_bar=false", "tracking=none")
SIDES = ("bad", "mended")


def measure(scenarios: Sequence[Scenario], processes: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Rule by rule, as soon as it is done, its scenarios: what they are, what the linter says, the test accuracies of all seeds.

    Where two scenarios come to the same run, as their mended configs often do, it is trained once.
    """
    rows = [_row(scenario) for scenario in scenarios]
    runs = [{side: (_resolved(words), words) for side, words in _sides(row)} for row in rows]
    trained: dict[tuple[str, int], Future[float | None]] = {}
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for row, sides in zip(rows, runs, strict=True):
            for resolved, words in sides.values():
                for seed in row["seeds"]:
                    if (resolved, seed) not in trained:
                        trained[resolved, seed] = pool.submit(accuracy, [*words, f"seed={seed}"])
        for rule, group in groupby(zip(scenarios, rows, runs, strict=True), lambda one: one[0].rule):
            yield rule, [{**row, **{side: _results(trained, sides[side][0], row["seeds"]) for side in SIDES}} for _, row, sides in group]


def _resolved(words: Sequence[str]) -> str:
    """The same text for two ways to write one config."""
    return json.dumps(dnnkit.compose(words).values, sort_keys=True)


def _results(trained: Mapping[tuple[str, int], Future[float | None]], resolved: str, seeds: Sequence[int]) -> list[float | None]:
    return [trained[resolved, seed].result() for seed in seeds]


def _row(scenario: Scenario) -> dict[str, Any]:
    found = finding(scenario, *COMMON)
    row = {"about": scenario.about, "config": scenario.bad, "found": found.fault.found}
    return {**row, "severity": found.severity, "tried": tried(scenario, found), "seeds": list(scenario.seeds)}


def _sides(row: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """The overrides of the bad config, and of the mended one, which has what is tried after its own."""
    bad = [*COMMON, *shlex.split(row["config"])]
    return zip(SIDES, (bad, [*bad, *row["tried"]]), strict=True)


def accuracy(overrides: Sequence[str]) -> float | None:
    """The share of right answers on the test set, by the weights that were best in validation; None for a run that diverged."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(Figure, "savefig", _no_picture):
        try:
            trainer = () if any(word.startswith("trainer=") for word in overrides) else ("trainer=cpu",)
            result = dnnkit.train(dnnkit.compose([*overrides, *trainer, *_QUIET, f"tracking.runs={folder}"]))
        except DivergedError:
            return None
    return round(result.metrics["test/acc"], 4)


def _no_picture(_: Figure, path: Path, **__: Any) -> None:
    """Drawing would take longer than training; an empty file is in its place."""
    path.touch()
