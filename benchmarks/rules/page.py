"""The text of docs/rules.md: the rules as the registry has them, with what was measured."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks import document
from benchmarks.rules.measure import SIDES
from benchmarks.rules.scenarios import COMMON, SEEDS, asked_for
from dnnkit.registry import Component
from docs.generate.page import escaped, prose
from docs.generate.records import builtin

#: A run that diverged is counted as this: one of ten classes, guessed.
GUESSING = 0.1
HARM, REVERSE, NOTHING = "harm", "**the reverse**", "no harm measured"

Row = Mapping[str, Any]


def text(found: Mapping[str, Any]) -> str:
    """The whole page, of what `measure` found."""
    rules = builtin("lint")
    parts = [_introduction(len(rules)), _how(found), *summary(found), "## Every rule"]
    return "\n\n".join([*parts, *(part for record in rules for part in _section(record, found["rules"].get(record.name, ())))]) + "\n"


def trials(found: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What was tried and did not help, by rule, as the rules themselves say it: medians of the test accuracy."""
    kept = {name: [_trial(row) for row in rows if row["seeds"] and verdict(row) != HARM] for name, rows in found["rules"].items()}
    return {name: rows for name, rows in kept.items() if rows}


def _trial(row: Row) -> dict[str, Any]:
    given, changed = (round(median(accuracies(row, side)), 4) for side in SIDES)
    return {"about": row["about"], "instead": row["tried"], "given": given, "changed": changed, "reverse": verdict(row) == REVERSE}


def verdict(row: Row) -> str:
    """Harm, the reverse of it, or nothing that is more than the spread of seeds: only ranges that do not meet tell two configs apart."""
    bad, mended = (accuracies(row, side) for side in SIDES)
    if min(mended) > max(bad):
        return HARM
    return REVERSE if max(mended) < min(bad) else NOTHING


def accuracies(row: Row, side: str) -> list[float]:
    """Of all seeds, with those that diverged as a guess."""
    return [GUESSING if value is None else value for value in row[side]]


def _introduction(count: int) -> str:
    return f"""\
# The rules of the linter

What is right by itself and does not go together: {count} rules, each with its reason, whose it is, a config that breaks it and the
override that mends it. `dnnkit check OVERRIDES` says what they find in a config; a run says the warnings too, before it begins.

A **warning** or a **hint** offers an override. A **remark** offers none: what one would change was measured, and it did not help, so
that the remark says what was measured. A rule **on request** is asked where `lint.severity` names it.

The words are those of the rules themselves, the numbers were measured. `make rules` measures them again and writes this page;
`python -m benchmarks.rules --page` writes it anew from the numbers that there are, which are in `benchmarks/rules.json`."""


def _how(found: Mapping[str, Any]) -> str:
    return f"""\
## How it is measured

- Fashion-MNIST: 10,000 training images, at most five epochs, tested on its 10,000 test images; {len(SEEDS)} seeds, each with initial
  weights, an order and a choice of training images of its own. Every config begins with

  `{shlex.join(COMMON)}`
- **bad** is the config as given. **mended** is the same, followed by the override that the linter gives for it and nothing else.
  Of a remark **given** is the config, and **changed** the same, followed by what was tried.
- Accuracies are medians with the range over seeds, by the weights that were best in validation. A run that **diverged**, its loss
  no number any more, counts as a guess, {GUESSING:g}.
- It is called **harm** only where every mended run is better than every bad one, which chance does once in 252 times where there
  is no difference. Where every mended run is worse than every bad one it is **the reverse**: a change that costs something here.
- A scenario is what its rule is about, with one rate for both sides. Where the first showed no harm there are others beside it.
- Three epochs show what hinders learning. What would be best after a hundred they do not show, nor what helps against overfitting.

{document.machine_line(found["machine"])}."""


def summary(found: Mapping[str, Any]) -> Iterator[str]:
    """One line for each scenario that was measured: what the linter offers, then what it remarks."""
    rows = [(record, row) for record in builtin("lint") for row in found["rules"].get(record.name, ()) if row["seeds"]]
    offered, remarked = ([pair for pair in rows if (pair[1]["severity"] == "remark") is which] for which in (False, True))
    yield "## What they are worth"
    yield f"{_count(offered)} `diverged` counts runs, bad and mended."
    yield _lines(offered, "bad", "mended")
    yield "## What was tried and did not help"
    yield f"{_count(remarked)} `diverged` counts runs, as given and changed."
    yield _lines(remarked, "given", "changed")


def _lines(rows: Sequence[tuple[Component, Row]], *sides: str) -> str:
    lines = [f"| rule | tried on | {' | '.join(sides)} | diverged | difference | |", "| --- | --- | ---: | ---: | ---: | ---: | --- |"]
    for record, row in rows:
        bad, mended = (document.spread(accuracies(row, side), 3) for side in SIDES)
        link, diverged = f"[{record.name}](#{record.name})", " / ".join(str(row[side].count(None)) for side in SIDES)
        lines.append(f"| {link} | {row['about']} | {bad} | {mended} | {diverged} | {_difference(row):+.3f} | {verdict(row)} |")
    return "\n".join(lines)


def _count(rows: Sequence[tuple[Component, Row]]) -> str:
    """Who shows harm somewhere, and by name who shows none or the reverse anywhere."""
    names = list(dict.fromkeys(record.name for record, _ in rows))
    harmed, reversed_ = ({record.name for record, row in rows if verdict(row) == which} for which in (HARM, REVERSE))
    said = f"{len(names)} rules were measured, and {len(harmed) or 'none'} of them {'show' if len(harmed) > 1 else 'shows'} harm."
    for words, some in (("No harm of", set(names) - harmed if harmed else set()), ("Somewhere the reverse of", reversed_)):
        if some:
            said += f" {words}: {', '.join(f'`{name}`' for name in names if name in some)}."
    return said


def _difference(row: Row) -> float:
    """Between the medians; positive where the linter is right."""
    bad, mended = (median(accuracies(row, side)) for side in SIDES)
    return mended - bad


def _section(record: Component, rows: Sequence[Row]) -> Iterator[str]:
    yield f"### `{record.name}`"
    yield from prose(record.doc)
    yield _severity(record)
    if "clipped_gradients" in record.offered:
        yield "Judged by `dnnkit doctor` alone, which measures gradients; not tried here."
    for row in rows:
        yield _table(row)
        worth = f"{verdict(row)}, {_difference(row):+.3f}" if row["seeds"] else "not measured"
        kind = " A remark." if row["severity"] == "remark" != record.facts.get("severity") else ""
        yield f"It finds: {escaped(row['found'])}.{kind}\\\nWhat it is worth here: {worth}.{_elsewhere(row)}"


def _elsewhere(row: Row) -> str:
    return f" Measured on another processor, {row['cpu']}." if "cpu" in row else ""


def _severity(record: Component) -> str:
    request = "".join(f", on request: `{word}`" for word in asked_for(record.name))
    return f"A {record.facts.get('severity', 'warning')}{request}."


def _table(row: Row) -> str:
    lines = [f"| {row['about']} | | test accuracy | diverged |", "| --- | --- | ---: | ---: |"]
    names = ("given", "changed") if row["severity"] == "remark" else SIDES
    typed = (f"`{row['config']}`", f"… `{shlex.join(row['tried'])}`")
    for name, side, words in zip(names, SIDES, typed, strict=True):
        shown = [document.spread(accuracies(row, side), 3), f"{row[side].count(None)} of {len(row['seeds'])}"] if row["seeds"] else ["", ""]
        lines.append(f"| {name} | {words} | {' | '.join(shown)} |")
    return "\n".join(lines)
