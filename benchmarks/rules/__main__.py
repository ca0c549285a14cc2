"""`python -m benchmarks.rules [RULE …]`: what the linter's rules are worth, on real images; docs/rules.md with `--write`.

Every rule is tried on a config that breaks it and on the same config with what the linter says mends it, five seeds each, in
processes side by side: about a quarter of an hour on two quiet cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import document
from benchmarks.driver import ROOT
from benchmarks.rules import page
from benchmarks.rules.measure import measure
from benchmarks.rules.scenarios import SCENARIOS
from dnnkit_plugins.rule_parts import TRIALS
from docs.generate.records import builtin

PAGE, RESULTS = ROOT / "docs" / "rules.md", ROOT / "benchmarks" / "rules.json"
KNOWN = tuple(dict.fromkeys(scenario.rule for scenario in SCENARIOS))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.rules if name not in KNOWN]:
        parser.error(f"there is no rule {unknown[0]!r}; there are {', '.join(KNOWN)}")
    if not options.page:
        found = _measured(options.rules or KNOWN, options.processes, options.write)
        Console().print("\n\n".join(page.summary(found)), markup=False, highlight=False, soft_wrap=True)
    if options.page or options.write:
        PAGE.write_text(page.text(read(RESULTS)), encoding="utf-8")
        document.write_json(TRIALS, page.trials(read(RESULTS)))


def _measured(names: Sequence[str], processes: int, write: bool) -> dict[str, Any]:
    """Each rule's figures are written as soon as they are there."""
    found: dict[str, Any] = {"machine": document.describe_machine(), "rules": {}}
    wanted = [scenario for name in dict.fromkeys(names) for scenario in SCENARIOS if scenario.rule == name]
    with Console().status("measuring") as status:
        for rule, rows in measure(wanted, processes):
            status.update(f"measured: {rule}")
            found["rules"][rule] = rows
            if write:
                keep(RESULTS, found)
    return found


def read(path: Path) -> dict[str, Any]:
    """What was measured so far."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def keep(path: Path, found: dict[str, Any]) -> None:
    """Into the file; what was found of other rules stays."""
    before = read(path)["rules"] if path.exists() else {}
    together = {**before, **found["rules"]}
    document.update_json(path, "machine", found["machine"])
    document.update_json(path, "rules", {record.name: together[record.name] for record in builtin("lint") if record.name in together})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rules", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rules", nargs="*", metavar="RULE", help=f"any of {' '.join(KNOWN)} (default: all)")
    parser.add_argument("--write", action="store_true", help="write benchmarks/rules.json and docs/rules.md")
    parser.add_argument(
        "--page", action="store_true", help="measure nothing: write docs/rules.md, and what the rules say of it, from benchmarks/rules.json"
    )
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="side by side (default %(default)s)")
    return parser


if __name__ == "__main__":
    main()
