"""`python -m benchmarks [PART …]`: dnnkit side by side with its peers.

Parts: `epochs` (networks, optimizers, batch sizes), `choice` (auto beside graph and eager), `growth` (width, depth, rows,
metrics), `startup`, `steps` (ways to run one), `record` (journal and MLflow), `threads` (the default command alone and beside
busy processes).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import choice, contenders, document, epochs, growth, record, startup, steps, threads
from benchmarks.driver import ROOT
from benchmarks.jobs import MNIST, NETWORKS, OPTIMIZERS, SYNTHETIC
from benchmarks.rows import find_data

DOCS, PAGE, RESULTS = ROOT / "docs", ROOT / "docs" / "performance.md", ROOT / "benchmarks" / "results.json"
_PARTS = {
    "epochs": epochs,
    "choice": choice,
    "growth": growth,
    "startup": startup,
    "steps": steps,
    "record": record,
    "threads": threads,
}


_OF_CHOICE = ("networks", "optimizers", "batch_sizes", "epochs", "rows")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    plans = _plans(options)
    console = Console()
    for part in options.parts or _PARTS:
        began = time.perf_counter()
        with console.status("starting") as status:
            found = _PARTS[part].measure(plans[part], _to(status.update, part))
        for text in _PARTS[part].sections(found).values():
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        console.print(f"{part}: {time.perf_counter() - began:.0f} s\n")
        if options.json:
            document.update_json(options.json, part, found)
        if options.write:
            write(part, found)


def write(part: str, found: Mapping[str, Any]) -> None:
    """Into the repository: the figures, the part's tables in the page, its pictures."""
    document.update_json(RESULTS, part, found)
    for name, content in _PARTS[part].sections(found).items():
        PAGE.write_text(document.put_between_markers(PAGE.read_text(encoding="utf-8"), name, content), encoding="utf-8")
    if hasattr(_PARTS[part], "draw"):
        _PARTS[part].draw(found, DOCS)


def _plans(options: argparse.Namespace) -> dict[str, Any]:
    """What each part is asked to do; what the options leave open is as the part has it. ModuleNotFoundError without the peers."""
    data = options.data or find_data()
    quick: dict[str, dict[str, Any]] = (
        {
            "epochs": {"networks": ("mlp",), "batch_sizes": (32, 128), "rounds": 1, "epochs": 2, "rows": 5500},
            "choice": {"networks": ("mlp",), "epochs": 4},
            "growth": {"width": (64, 1024), "depth": (1, 16), "rows": (2000, 10_000), "metrics": (1, 10), "epochs": 1},
            "startup": {"rounds": 2},
            "steps": {"processes": 1, "blocks": 10, "compiled": False},
            "record": {"points": 50_000, "blocks": 3, "databases": 1},
            "threads": {"rounds": 1, "jobs": ("digits", "selu_mnist"), "sweep": 0},
        }
        if options.quick
        else {part: {} for part in _PARTS}
    )
    names = ("contenders", "networks", "optimizers", "batch_sizes", "rounds", "epochs", "rows")
    asked = {name: value for name in names if (value := getattr(options, name)) is not None}
    plans = {
        "epochs": epochs.Plan(data, **{**quick["epochs"], **asked}),
        "choice": choice.Plan(data, **{**quick["choice"], **{name: asked[name] for name in _OF_CHOICE if name in asked}}),
        "growth": growth.Plan(data, **quick["growth"]),
        "startup": startup.Plan(**quick["startup"]),
        "steps": steps.Plan(data, **quick["steps"]),
        "record": record.Plan(**quick["record"]),
        "threads": threads.Plan(**quick["threads"]),
    }
    if "epochs" in (options.parts or _PARTS):
        contenders.check(plans["epochs"].contenders)
    return plans


def _to(update: Callable[[str], None], part: str) -> Callable[[str], None]:
    return lambda line: update(f"{part}: {line}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {' '.join(_PARTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="less of everything: a first impression in a few minutes")
    parser.add_argument("--write", action="store_true", help="write results.json, and the tables and figures of docs/performance.md")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write everything that was measured to this file")
    parser.add_argument("--data", choices=(MNIST, SYNTHETIC), help="default: mnist where DNNKIT_DATA has it, else synthetic")
    of_epochs = parser.add_argument_group("of the part epochs, some of choice too")
    known = contenders.CONTENDERS
    of_epochs.add_argument(
        "--contenders",
        nargs="+",
        choices=tuple(known),
        help=f"default: {' '.join(contenders.DEFAULT)}; all: {' '.join(known)}",
        metavar="NAME",
    )
    of_epochs.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), help=f"default: {' '.join(NETWORKS)}", metavar="NAME")
    of_epochs.add_argument("--optimizers", nargs="+", choices=tuple(OPTIMIZERS), help=f"default: {' '.join(OPTIMIZERS)}", metavar="NAME")
    of_epochs.add_argument("--batch", type=_count, nargs="+", dest="batch_sizes", metavar="SIZE", help="default: 32 128 512")
    of_epochs.add_argument("--rounds", type=_count, help="processes for each contender, one after the other (default 2)")
    of_epochs.add_argument("--epochs", type=_count, help="measured in each round, after a warm-up (default 2)")
    of_epochs.add_argument("--rows", type=_count, help="to train on (default: as many as the network needs, see the page)")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


if __name__ == "__main__":
    main()
