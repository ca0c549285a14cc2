"""Where and on what the checks run, how much each does, and what they share: runs, and the comparison of two of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.device.bare import ROOT
from benchmarks.jobs import MNIST, SYNTHETIC, synthetic_images

Status = Literal["passed", "failed", "skipped"]
_QUIET = ("tracking=none", "trainer.progress_bar=false", "diagnostics.every=null")


@dataclass(frozen=True)
class Verdict:
    """What a check found; `reason` says why it failed or was skipped, `figures` are for the JSON file and the table."""

    status: Status
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """`cuda`: on a GPU of NVIDIA or AMD, else on the CPU. `quick`: little of everything. `root`: the folder with MNIST, if there is one."""

    cuda: bool
    quick: bool
    root: Path | None

    @classmethod
    def here(cls, quick: bool) -> Setting:
        """A CPU is given little in any case: what takes it minutes is done by a GPU in seconds."""
        cuda = torch.cuda.is_available()
        return cls(cuda, quick or not cuda, find_root())

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0) if self.cuda else torch.device("cpu")

    @property
    def trainer(self) -> str:
        return "trainer=gpu" if self.cuda else "trainer=cpu"

    @property
    def data(self) -> str:
        return MNIST if self.root else SYNTHETIC

    def many(self, full: int, quick: int) -> int:
        """How much: `full` in a whole run of the script."""
        return quick if self.quick else full

    def images(self) -> list[str]:
        """MNIST where it is found, else synthetic images of its shape, which the first check to ask for them writes down."""
        if self.root is not None:
            return ["data=mnist", f"data.root={self.root}"]
        path = Path("images.npz").absolute()
        if not path.exists():
            x, y = synthetic_images()
            rows = self.many(61_000, 5000)
            np.savez(path, x=x[:rows], y=y[:rows], x_test=x[-1000:], y_test=y[-1000:])
        return ["data=npz", f"data.path={path}", "data.val_size=500"]


def find_root() -> Path | None:
    """`$DNNKIT_DATA`, else `shared/data` in the checkout or beside it: the first that has MNIST."""
    named = os.environ.get("DNNKIT_DATA")
    places = [*([Path(named)] if named else []), ROOT / "shared" / "data", ROOT.parent / "shared" / "data"]
    return next((place.resolve() for place in places if (place / "mnist").is_dir()), None)


def train(*words: str) -> Path:
    """A run without a record in MLflow; its folder."""
    import dnnkit

    return Path(dnnkit.train(dnnkit.compose([*words, *_QUIET])).run_dir)


def last(run: Path) -> dict[str, float]:
    """The last value of every metric."""
    from dnnkit.record.journal import METRICS, last_values

    return last_values(run / METRICS)


def difference(one: Path, other: Path, parts: Sequence[str] = ("state_dict", "optimizer_states")) -> str:
    """Where two runs differ, in the bytes of the journal or the bits of the last checkpoint; empty where they do not."""
    from dnnkit.checkpoint import load

    journals = [(run / "metrics.jsonl").read_bytes() for run in (one, other)]
    if journals[0] != journals[1]:
        return "metrics.jsonl differs"
    states = [load(run / "checkpoints" / "last.ckpt") for run in (one, other)]
    return next((f"{part} of last.ckpt differs" for part in parts if not same(states[0][part], states[1][part])), "")


def same(one: Any, other: Any) -> bool:
    """To the last bit, through dicts, lists and tensors, NaN included."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        from dnnkit.loop.verify import same_bits

        return same_bits(one, other)
    return bool(type(one) is type(other) and one == other)
