"""dnnkit with `trainer.engine=auto`, whose even epochs are run as a graph and odd ones operation by operation once it has chosen.

Both ways in one process: the same graph takes up to a third longer in one process than in another, by where its memory lies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.contenders import ours
from benchmarks.jobs import Boundary, Facts, Work
from dnnkit.loop.engine import Engine
from dnnkit.loop.step import Execute


def train(work: Work, boundary: Boundary) -> Facts:
    """`as_graph` of the facts is what `auto` chose. RuntimeError where it never did."""
    with _taking_turns() as chosen:
        facts = ours.train(work, boundary)
    if not chosen:
        raise RuntimeError(f"{work.title}: training ended before auto had chosen")
    return {**facts, "as_graph": float(chosen[0] == "captured")}


@contextmanager
def _taking_turns() -> Iterator[list[str]]:
    """Gives the choice of `auto`, as soon as there is one; it is not acted upon."""
    chosen: list[str] = []
    chunk, go_on, run_eagerly = Engine.chunk, Engine._go_on, Engine._run_eagerly

    def noted(engine: Engine, way: str, seconds: dict[str, float]) -> None:
        chosen.append(way)
        go_on(engine, way, seconds)  # type: ignore[arg-type]

    def in_turns(engine: Engine) -> Execute:
        execute = chunk(engine)
        return engine._eager if chosen and engine._trainer.current_epoch % 2 else execute

    Engine.chunk, Engine._go_on, Engine._run_eagerly = in_turns, noted, lambda engine: None  # type: ignore[method-assign, assignment]
    try:
        yield chosen
    finally:
        Engine.chunk, Engine._go_on, Engine._run_eagerly = chunk, go_on, run_eagerly  # type: ignore[method-assign]
