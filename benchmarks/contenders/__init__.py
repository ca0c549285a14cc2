"""Who takes part: functions `(work, boundary, *arguments) -> facts` that set themselves up and train.

Each calls `boundary` as an epoch begins and after the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from benchmarks.jobs import Boundary, Facts, Work


@dataclass(frozen=True)
class Contender:
    """`module` is one of this package whose `train` is called with `arguments`; `needs` are packages it cannot do without."""

    label: str
    module: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def train(self, work: Work, boundary: Boundary) -> Facts:
        """Only the contender's own dependencies are imported."""
        facts: Facts = import_module(f"benchmarks.contenders.{self.module}").train(work, boundary, *self.arguments)
        return facts


#: In the order in which they are shown; the first is what the others are divided by.
CONTENDERS = {
    "floor": Contender("hand-written loop", "floor"),
    "ours": Contender("dnnkit", "ours"),
    "captured": Contender("dnnkit, captured", "ours", ("trainer.engine=captured",)),
    "eager": Contender("dnnkit, eager", "ours", ("trainer.engine=eager",)),
    "switched": Contender("dnnkit, graph and eager in turns", "switched"),
    "compiled": Contender("dnnkit, compiled", "ours", ("trainer.engine=compiled",)),
    "streamed": Contender("dnnkit, streamed", "ours", ("data.loader=stream",)),
    "ranks": Contender("dnnkit, 2 processes", "ours", ("trainer=ddp_cpu", "trainer.devices=2")),
    "keras_jax": Contender("Keras on JAX", "with_keras", ("jax",), ("keras", "jax")),
    "keras_torch": Contender("Keras on torch", "with_keras", ("torch",), ("keras",)),
    "lean": Contender("lean Lightning", "lean"),
    "template": Contender("stock Lightning", "template"),
}
FLOOR = "floor"
DEFAULT = ("floor", "captured", "eager", "keras_jax", "keras_torch", "lean", "template")


def check(names: Sequence[str]) -> None:
    """ModuleNotFoundError, saying how to install them, where what these contenders need is not there."""
    missing = sorted({need for name in names for need in CONTENDERS[name].needs if find_spec(need) is None})
    if missing:
        raise ModuleNotFoundError(
            f"{', '.join(missing)}: not installed; pip install -c constraints.txt -e '.[dev,bench]', or leave "
            f"{', '.join(name for name in names if set(CONTENDERS[name].needs) & set(missing))} out with --contenders"
        )
