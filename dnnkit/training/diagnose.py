"""What a run says of its network's signal: measured at the start and at the end, told on the terminal, kept in the run folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rich.console import Console

from dnnkit.config import Config
from dnnkit.data import DataSet
from dnnkit.diagnostics import MOST_SAMPLES, Condition, LayerSignal, Verdict, evenly_spaced, probe, selu_conditions, selu_line, verdicts
from dnnkit.module import Module
from dnnkit.record import RunFolder
from dnnkit.record.signal import SIGNAL, VERDICTS, read_diagnostics, write_numbers, write_signal, write_verdicts

log = logging.getLogger("dnnkit")


class Diagnosis:
    """The probes of one run. `begin` before training, `finish` after it, with the last weights in the module."""

    def __init__(self, cfg: Config, data: DataSet, module: Module, folder: RunFolder, console: Console) -> None:
        self._cfg, self._data, self._module, self._folder, self._console = cfg, data, module, folder, console
        self._start: list[LayerSignal] = []
        self._selu: list[Condition] = []

    def begin(self) -> list[LayerSignal]:
        """Measure the initial weights and say what is wrong with them; of a run that goes on, what was found when it began."""
        if self._folder.resume_point is not None:
            self._start = [LayerSignal(**held) for held in read_diagnostics(self._folder.path, SIGNAL, "start")]
            self._selu = [Condition(**held) for held in read_diagnostics(self._folder.path, VERDICTS, "selu")]
            return self._start
        self._start = self._probe()
        x = self._data.train.x[evenly_spaced(len(self._data.train.x), MOST_SAMPLES)]
        self._selu = selu_conditions(self._module.net, x, self._cfg.values)
        if self._selu:
            self._say(selu_line(self._selu))
        self._tell("before training", self._start)
        # Now too, so that a run that is killed has it.
        write_numbers(self._folder.path, {"start": self._start})
        write_verdicts(self._folder.path, {"start": verdicts(self._start), "selu": self._selu})
        return self._start

    def finish(self) -> list[LayerSignal]:
        """Measure the trained weights, say what is wrong with them, and write all of it to `diagnostics/`."""
        end = self._probe()
        self._tell("after training", end)
        write_signal(self._folder.path, {"start": self._start, "end": end})
        found: dict[str, Sequence[Verdict | Condition]] = {"start": verdicts(self._start), "end": verdicts(end), "selu": self._selu}
        write_verdicts(self._folder.path, found)
        return end

    def _probe(self) -> list[LayerSignal]:
        x, y = self._data.train
        rows = evenly_spaced(len(x), MOST_SAMPLES)
        return probe(self._module.net, x[rows], y[rows], self._module.task.loss)

    def _tell(self, when: str, signals: list[LayerSignal]) -> None:
        for verdict in verdicts(signals):
            self._say(f"{when}: {verdict.text}")

    def _say(self, text: str) -> None:
        log.info("%s", text)
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
