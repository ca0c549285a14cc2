"""Looking at a network's signal while it trains, at a fixed cadence and without touching what is trained."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from dnnkit.diagnostics import Event, Silence, as_live_metrics, glance, timeline
from dnnkit.module import Module
from dnnkit.module.gather import gather_batches, several
from dnnkit.record import Journal
from dnnkit.record.journal import METRICS, stream_journal

log = logging.getLogger("dnnkit")


class Live(pl.Callback):
    """After every `every` optimizer steps, the signal of their last minibatch goes to the journal as `signal/<layer>/<measure>`.

    A pass of its own for each look; chunks of minibatches end there, and everything else goes on as if nobody had looked. On
    several devices all ranks look at the whole minibatch together, and the one that has a journal writes. `every` None: never.
    """

    chunked = True

    def __init__(self, every: int | None, journal: Journal | None = None) -> None:
        self.looks_every = every or 0
        self.silence = Silence()
        self._journal = journal
        self._looked_at = self._began = -1.0
        self._looks, self._spent_s, self._training_s = 0, 0.0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look, where it is time."""
        step = trainer.global_step
        if not self.looks_every or step % self.looks_every or step in (0, self._looked_at):
            return
        self._looked_at = step
        assert isinstance(pl_module, Module)
        began = time.perf_counter()
        self._look(step, pl_module)
        self._looks, self._spent_s = self._looks + 1, self._spent_s + time.perf_counter() - began

    def _look(self, step: int, module: Module) -> None:
        latest = module.window.latest
        assert latest is not None  # an update has a minibatch
        glances = glance(module.net, *_whole(*latest), module.task.loss)
        self.silence.look(step, glances)
        if self._journal is not None:
            self._journal.log(step, as_live_metrics(glances, self.silence.dead()))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what it cost."""
        self._training_s = time.perf_counter() - self._began
        if self._looks and self._journal is not None:
            share = self._spent_s / self._training_s
            log.info("signal: looked at %d times while it trained, %.1f %% of that time", self._looks, 100 * share)

    def state_dict(self) -> dict[str, Any]:
        """How long units have been silent."""
        return self.silence.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.silence.load_state_dict(state_dict)


def course(run_dir: Path, layers: list[str], silence: Silence) -> list[Event]:
    """When what went wrong with a run's signal, by all looks that its journal holds."""
    series: Mapping[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for row in stream_journal(run_dir / METRICS):
        if row.key.startswith("signal/"):
            layer, _, measure = row.key.removeprefix("signal/").rpartition("/")
            series[layer, measure].append((row.step, row.value))
    return timeline(series, layers, silence)


def _whole(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The minibatch, of which this process may hold a share."""
    if not several():
        return x, y
    [whole_x], [whole_y] = gather_batches([x]), gather_batches([y])
    return whole_x, whole_y
