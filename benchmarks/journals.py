"""`python -m benchmarks.journals REVISION`: whether twelve runs give the same bytes as they did at another revision.

Each run is trained twice, by the package of this checkout and by that of the revision, with one thread, and two things are
compared: the rows of `metrics.jsonl`, but for those of the keys that `--except` names, and every tensor of the best and the
last checkpoint. The exit code is 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
_ALWAYS = ("tracking=none", "trainer.threads=1", "trainer.progress_bar=false")
#: Two commands of one run are told apart by this word: the second gets the first one's folder.
_RUN = "RUN"
RUNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "mlp": (("trainer.max_epochs=4", "scheduler.warmup=0.3", "dropout=alpha_dropout"),),
    "cnn": (("model=cnn", "activation=relu", "optimizer=nadam", "optimizer.lr=0.002", "trainer.max_epochs=2", "clipping=norm"),),
    "sequential": (("+experiment=bn_net_a", "data=digits", "data.val_size=300", "trainer.max_epochs=3"),),
    "resmlp": (("model=resmlp", "normalization=batch_norm", "activation=elu", "trainer.max_epochs=3", "regularizer=l2"),),
    "autoencoder": (("model=autoencoder", "trainer.max_epochs=3"),),
    "regression": (("data=diabetes", "optimizer=adamw", "optimizer.lr=0.01", "trainer.max_epochs=10"),),
    "csv": (("+experiment=csv_berries", "trainer.max_epochs=10", "diagnostics.every=5"),),
    "two devices": (("trainer=ddp_cpu", "trainer.devices=2", "trainer.max_epochs=2"),),
    "resume": (("trainer.max_epochs=2", "scheduler=constant"), ("resume", _RUN, "trainer.max_epochs=4")),
    "transfer": (("trainer.max_epochs=2",), (f"init_from={_RUN}", "freeze=[00_*]", "trainer.max_epochs=2", "seed=1")),
    "accumulation": (("data.train_size=1024", "trainer.accumulate_grad_batches=4", "trainer.max_epochs=4"),),
    "bf16": (("trainer.precision=bf16", "trainer.max_epochs=2"),),
}


@dataclass(frozen=True)
class Bytes:
    """What a run left: the rows of its journal and its weights, as bytes by name."""

    rows: list[bytes]
    weights: dict[str, bytes]


def run(name: str, package: Path, folder: Path) -> Path:
    """Carry out one of RUNS by the package in a checkout; the run folder of its last command. Raises SystemExit with its words."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(package / "plugins")])}
    folder.mkdir(parents=True)
    left: list[Path] = []
    for words in RUNS[name]:
        given = [word.replace(_RUN, str(left[-1])) if left else word for word in words]
        always = () if given[0] == "resume" else _ALWAYS
        done = subprocess.run(
            [sys.executable, "-m", "dnnkit", *given, *always], cwd=folder, env=environment, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise SystemExit(f"{name}, {package}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        left += [path for path in (folder / "runs").iterdir() if path not in left]
    return left[-1]


def read(run_dir: Path, apart: Sequence[str]) -> Bytes:
    """What a run left, without the rows of keys that begin with one of `apart`."""
    import torch

    lines = (run_dir / "metrics.jsonl").read_bytes().splitlines()
    rows = [line for line in lines if not json.loads(line)["key"].startswith(tuple(apart))]
    weights = {}
    for name in ("best", "last"):
        held = torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
        weights |= {f"{name}/{key}": tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for key, tensor in held.items()}
    return Bytes(rows, weights)


def compare(name: str, before: Path, apart: Sequence[str]) -> str:
    """A line about one run: `same`, or what differs."""
    with tempfile.TemporaryDirectory() as scratch:
        old, new = (read(run(name, package, Path(scratch, side)), apart) for side, package in (("old", before), ("new", ROOT)))
    if old == new:
        return f"same: {len(new.rows)} rows, {len(new.weights)} tensors"
    rows = sum(first != second for first, second in zip(old.rows, new.rows, strict=False)) + abs(len(old.rows) - len(new.rows))
    weights = [key for key in old.weights.keys() | new.weights.keys() if old.weights.get(key) != new.weights.get(key)]
    first = next(((a, b) for a, b in zip(old.rows, new.rows, strict=False) if a != b), None)
    return f"DIFFERENT: {rows} of {len(old.rows)} rows, {len(weights)} of {len(old.weights)} tensors; first: {first}"


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A work tree of the revision, for as long as it is needed."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch, "before")
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--quiet", "--detach", str(tree), revision], check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.journals", description=__doc__)
    parser.add_argument("revision", help="of git, such as a commit")
    parser.add_argument("--except", dest="apart", nargs="*", default=["lr", "momentum", "train/"], help="beginnings of keys (%(default)s)")
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default %(default)s)")
    options = parser.parse_args(arguments)
    with checkout(options.revision) as before, ThreadPoolExecutor(options.jobs) as pool:
        found = dict(zip(options.runs, pool.map(lambda name: compare(name, before, options.apart), options.runs), strict=True))
    for name, text in found.items():
        print(f"{name:<13} {text}")
    return int(any(text.startswith("DIFFERENT") for text in found.values()))


if __name__ == "__main__":
    sys.exit(main())
