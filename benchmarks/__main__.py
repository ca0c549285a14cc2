"""`python -m benchmarks`: the main job's epoch, dnnkit beside a hand-written loop and stock Lightning."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.contenders import CONTENDERS
from benchmarks.driver import ROOT, Finish, Sample, play_round
from benchmarks.jobs import SYNTHETIC, Job, write_bench_images
from benchmarks.results import Results, describe_machine, markdown, put_between_markers, table

DOCUMENT, FIGURE, RESULTS = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance.png", ROOT / "benchmarks" / "results.json"
_DATA = {"mnist": "MNIST, 55,000 training images", SYNTHETIC: "synthetic images in MNIST's shape, 55,000 to train on", "digits": "digits"}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    console = Console()
    data = options.data or find_data()
    began = time.perf_counter()
    console.print(f"{_DATA[data]}; batch {', '.join(map(str, options.batch))}; {options.rounds} rounds of 1 + {options.epochs} epochs")
    with console.status("starting") as status:
        results = measure(options.contenders, data, options.batch, options.rounds, options.epochs, status.update)
    console.print(table(results))
    console.print(f"{time.perf_counter() - began:.0f} s in all")
    if options.json:
        results.write(options.json)
    if options.write:
        write(results)


def find_data() -> str:
    """MNIST where DNNKIT_DATA has it, else synthetic images."""
    root = os.environ.get("DNNKIT_DATA")
    return "mnist" if root and (Path(root) / "mnist").is_dir() else SYNTHETIC


def measure(
    contenders: Sequence[str], data: str, batch_sizes: Sequence[int], rounds: int, epochs: int, told: Callable[[str], None]
) -> Results:
    """All rounds of all batch sizes; a round has one warm-up epoch more than `epochs`."""
    samples: list[Sample] = []
    finishes: list[Finish] = []
    with tempfile.TemporaryDirectory(prefix="bench-images-") as folder:
        path = Path(folder, "images.npz")
        if data == SYNTHETIC:
            write_bench_images(path)
        for number in range(rounds):
            for batch_size in batch_sizes:
                jobs = [Job(name, data, batch_size, epochs + 1, path=str(path)) for name in contenders]
                measured, finished = play_round(jobs, number, told)
                samples += measured
                finishes += finished
    return Results(describe_machine(), _DATA[data], rounds, epochs, samples, finishes)


def write(results: Results) -> None:
    """Into the repository: the figures, the table in the document, the picture."""
    from benchmarks.figure import draw

    results.write(RESULTS)
    DOCUMENT.write_text(put_between_markers(DOCUMENT.read_text(encoding="utf-8"), markdown(results)), encoding="utf-8")
    draw(results, FIGURE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_const", const=1, dest="rounds", help="one round only: a first impression")
    parser.add_argument("--rounds", type=_count, help="processes for each contender and batch size, one after the other (default 3)")
    parser.add_argument("--epochs", type=_count, default=3, help="measured in each round, after a warm-up (default 3)")
    parser.add_argument("--batch", type=_count, nargs="+", default=[32, 128], metavar="SIZE", help="batch sizes (default 32 128)")
    parser.add_argument("--data", choices=tuple(_DATA), help="default: mnist where DNNKIT_DATA has it, else synthetic images")
    parser.add_argument(
        "--contenders", nargs="+", choices=tuple(CONTENDERS), default=list(CONTENDERS), help="who takes part (default: all)"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every measured epoch to this file")
    parser.add_argument("--write", action="store_true", help="write results.json, and the table and figure of docs/performance.md")
    parser.set_defaults(rounds=3)
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


if __name__ == "__main__":
    main()
