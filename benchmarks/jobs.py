"""The work that every contender does: the same rows, network, rates and number of epochs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The highest rate of the 1cycle schedule, at which all contenders learn on every network; SGD's is with a momentum of 0.9.
PEAK_RATE = {"sgd": 0.02, "nadam": 0.002}
OPTIMIZERS = {"sgd": "SGD with momentum", "nadam": "NAdam"}
#: Widths of the hidden layers; the cnn is two convolutions of 16 and 32 kernels, 3 × 3, each with a pooling, and 64 units.
HIDDEN = {"mlp": (300, 100), "deep": (100,) * 20}
CHANNELS, CNN_HIDDEN = (16, 32), 64
NETWORKS = {"mlp": "784-300-100-10", "deep": "20 layers of 100", "cnn": "cnn"}
#: torch's OneCycleLR with these is dnnkit's `one_cycle`.
ONE_CYCLE = {"three_phase": True, "anneal_strategy": "linear", "pct_start": 0.45, "div_factor": 10.0, "final_div_factor": 1000.0}
EVALUATION_BATCH = 1000
#: Training rows for each row of validation, in the images.
SHARE = 11
MNIST, SYNTHETIC, DIGITS = "mnist", "synthetic", "digits"
_DIGITS_VALIDATION = 300

#: Called where an epoch begins, and where the last one has ended.
Boundary = Callable[[], None]
#: What a contender says at its end: `parameters steps val_acc`.
Facts = dict[str, float]


@dataclass(frozen=True)
class Work:
    """`epochs` epochs of training with validation after each; `tracking` is whether the contenders that can tell MLflow do.

    `folder` holds the rows, as `write_rows` leaves them there. `hidden`: widths in place of the network's own. `metrics`
    are accuracies, `top_k` for k from 1, of training and validation. `slower` divides the rate. dnnkit is stopped after its
    epochs where it is told that `planned` are to come: what pays over many is then seen in few.
    """

    data: str
    folder: str
    batch_size: int
    epochs: int
    network: str = "mlp"
    optimizer: str = "sgd"
    hidden: tuple[int, ...] = ()
    metrics: int = 1
    rows: int = 0
    tracking: bool = True
    slower: float = 1.0
    planned: int = 0

    @property
    def layers(self) -> tuple[int, ...]:
        """Widths of the hidden dense layers."""
        return self.hidden or HIDDEN.get(self.network, (CNN_HIDDEN,))

    @property
    def title(self) -> str:
        layers = f", {len(self.hidden)} × {self.hidden[0]}" if self.hidden else ""
        return f"{self.network}{layers}, {self.optimizer}, batch {self.batch_size}"

    @property
    def rate(self) -> float:
        return PEAK_RATE[self.optimizer] / self.slower

    def data_overrides(self) -> list[str]:
        """The rows in dnnkit's own words."""
        if self.data == DIGITS:
            return ["data=digits", f"data.val_size={_DIGITS_VALIDATION}"]
        return ["data=npz", f"data.path={Path(self.folder, 'images.npz')}", f"data.val_size={self.rows // SHARE}"]

    def overrides(self) -> list[str]:
        """The whole work in dnnkit's own words."""
        return [
            "trainer=cpu",
            "activation=selu",
            "initializer=lecun_normal",
            *self.data_overrides(),
            *(["model=cnn"] if self.network == "cnn" else [f"model.hidden={list(self.layers)}"]),
            f"data.batch_size={self.batch_size}",
            f"optimizer={'momentum' if self.optimizer == 'sgd' else self.optimizer}",
            f"optimizer.lr={self.rate}",
            f"trainer.max_epochs={self.planned or self.epochs}",
            f"trainer.early_stopping={self.planned or self.epochs}",
            "trainer.threads=1",
            f"tracking={'mlflow' if self.tracking else 'none'}",
        ]


class Rows(NamedTuple):
    """Standardised examples, `(n, channels, height, width)`, or `(n, features)` from `flat`, and their classes, `(n,)`."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    x_val: NDArray[np.float32]
    y_val: NDArray[np.int64]

    @property
    def classes(self) -> int:
        return int(self.y.max()) + 1

    def flat(self) -> Rows:
        return self._replace(x=self.x.reshape(len(self.x), -1), x_val=self.x_val.reshape(len(self.x_val), -1))


def load(work: Work) -> Rows:
    """The work's rows as dnnkit prepares them, in the shape that its network takes."""
    with np.load(Path(work.folder, "rows.npz")) as file:
        rows = Rows(*(file[name] for name in Rows._fields))
    return rows if work.network == "cnn" else rows.flat()


def write_rows(data: str, rows: int, folder: Path) -> None:
    """What contenders read: `images.npz`, bytes for dnnkit, and `rows.npz`, the same split and standardised, for all others.

    `rows` are those to train on; a share of them more is for validation. digits are as they are.
    """
    import dnnkit
    from dnnkit.training.assemble import load_data

    if data != DIGITS:
        x, y = _mnist() if data == MNIST else synthetic_images()
        many = rows + rows // SHARE
        np.savez(folder / "images.npz", x=x[:many], y=y[:many], x_test=x[-1000:], y_test=y[-1000:])
    prepared = load_data(dnnkit.compose(Work(data, str(folder), 1, 1, rows=rows).data_overrides()))
    splits = (np.asarray(part) for split in (prepared.train, prepared.validation) for part in (split.x, split.y))
    np.savez(folder / "rows.npz", **dict(zip(Rows._fields, splits, strict=True)))


def synthetic_images() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """61,000 images of 28 × 28 from 0 to 255: ten patterns under noise, for a machine without MNIST."""
    generator = np.random.default_rng(0)
    patterns = (generator.random((10, 28, 28)) * 96).astype(np.uint8)
    y = generator.integers(10, size=61_000)
    return generator.integers(160, size=(61_000, 28, 28), dtype=np.uint8) + patterns[y], y


def _mnist() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All 70,000 images, the test images last."""
    from dnnkit import plugins
    from dnnkit.registry import REGISTRIES

    plugins.load()
    source = REGISTRIES["data"].get("mnist").function(None)
    splits = [given for _, given in source.splits()]
    x, y = (np.concatenate([np.asarray(getattr(given, name)) for given in splits]) for name in "xy")
    return x.reshape(-1, 28, 28), y
