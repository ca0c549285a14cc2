"""`python -m benchmarks.signal`: what looking at the signal costs: seconds within the looks over seconds of training, in one process."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

#: Networks by name, as overrides.
NETWORKS = {
    "784-300-100-10": (),
    "20 layers of 100": ("model.hidden=[" + ",".join(["100"] * 20) + "]", "optimizer.lr=0.005"),
    "cnn": ("model=cnn", "activation=relu", "data.train_size=15000"),
}
_SAID = re.compile(r"signal: looked at (\d+) times while it trained, ([\d.]+) % of that time")


def measure(batch_sizes: Sequence[int], epochs: int, every: int, optimizers: Sequence[str]) -> list[str]:
    """The lines of a table: what each run says of itself in its log."""
    import dnnkit

    lines = [f"| looked at every {every} steps | batch | optimizer | looks | share of the training |", "|---|---:|---|---:|---:|"]
    for name, words in NETWORKS.items():
        for size in batch_sizes:
            for optimizer in optimizers:
                with tempfile.TemporaryDirectory() as folder:
                    quiet = ("tracking=none", f"tracking.runs={folder}", "trainer.progress_bar=false", "trainer=cpu", "trainer.threads=1")
                    asked = ("data=mnist", f"data.batch_size={size}", f"trainer.max_epochs={epochs}", f"diagnostics.every={every}")
                    cfg = dnnkit.compose([*quiet, *asked, f"optimizer={optimizer}", *words])
                    said = (dnnkit.train(cfg).run_dir / "run.log").read_text()
                found = _SAID.search(said)
                looks, share = found.groups() if found is not None else ("0", "0.0")
                lines.append(f"| {name} | {size} | {optimizer} | {looks} | {share} % |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.signal", description=__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--every", type=int, default=200, help="optimizer steps between two looks (default %(default)s, as dnnkit's)")
    parser.add_argument("--optimizers", nargs="+", default=["momentum", "nadam"])
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    options = parser.parse_args(arguments)
    lines = measure(options.batch_sizes, options.epochs, options.every, options.optimizers)
    Console().print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
