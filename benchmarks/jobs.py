"""The work that every contender does: the same rows, network, rate and number of epochs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from torch import Tensor, nn

import dnnkit
from dnnkit.data import DataSet, Split
from dnnkit.training.assemble import load_data

PEAK_RATE = 0.05
HIDDEN = (300, 100)
EVALUATION_BATCH = 1000
#: torch's OneCycleLR with these is dnnkit's `one_cycle`.
ONE_CYCLE = {"three_phase": True, "anneal_strategy": "linear", "pct_start": 0.45, "div_factor": 10.0, "final_div_factor": 1000.0}
SYNTHETIC = "bench_images"
#: Validation rows by data set; 55,000 of MNIST's are left to train on.
_VALIDATION = {"mnist": 5000, SYNTHETIC: 5000, "digits": 300}

#: Called where an epoch begins, and where the last one has ended.
Boundary = Callable[[], None]
#: What a contender says at its end: `parameters steps val_acc`.
Facts = dict[str, float]


@dataclass(frozen=True)
class Job:
    """`epochs` epochs of training with validation after each; `tracking` is whether the contenders that can tell MLflow do.

    `path` is the file that holds the synthetic images.
    """

    contender: str
    data: str
    batch_size: int
    epochs: int
    tracking: bool = True
    path: str = ""

    def overrides(self) -> list[str]:
        """The main job in dnnkit's own words."""
        return [
            "trainer=cpu",
            "activation=selu",
            "initializer=lecun_normal",
            *(["data=npz", f"data.path={self.path}"] if self.data == SYNTHETIC else [f"data={self.data}"]),
            f"data.val_size={_VALIDATION[self.data]}",
            f"data.batch_size={self.batch_size}",
            f"optimizer.lr={PEAK_RATE}",
            f"trainer.max_epochs={self.epochs}",
            f"trainer.early_stopping={self.epochs}",
            "trainer.threads=1",
            f"tracking={'mlflow' if self.tracking else 'none'}",
        ]


def write_bench_images(path: Path) -> None:
    """70,000 images of 28 × 28 from 0 to 255 in an .npz file: ten patterns under noise, for a machine without MNIST."""
    generator = np.random.default_rng(0)
    patterns = (generator.random((10, 28, 28)) * 96).astype(np.uint8)
    y = generator.integers(10, size=70_000)
    x = generator.integers(160, size=(70_000, 28, 28), dtype=np.uint8) + patterns[y]
    np.savez(path, x=x[:60_000], y=y[:60_000], x_test=x[60_000:], y_test=y[60_000:])


def load(job: Job) -> DataSet:
    """The job's rows as dnnkit prepares them."""
    return load_data(dnnkit.compose(job.overrides()))


def flat(split: Split) -> tuple[Tensor, Tensor]:
    """x of shape `(n, features)` and y of shape `(n,)`."""
    assert isinstance(split.x, Tensor)
    assert isinstance(split.y, Tensor)
    return split.x.flatten(1), split.y


def perceptron(data: DataSet) -> nn.Module:
    """The network by hand: dense layers with SELU between them, LeCun normal weights, biases 0."""
    widths = (math.prod(data.inputs), *HIDDEN, data.outputs)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        dense = nn.Linear(fan_in, fan_out)
        nn.init.normal_(dense.weight, std=fan_in**-0.5)
        nn.init.zeros_(dense.bias)
        layers += [dense, nn.SELU()]
    return nn.Sequential(*layers[:-1])


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())
