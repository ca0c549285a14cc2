"""What a run says of its network's signal: measured at the start and at the end, told on the terminal, kept in the run folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from rich.console import Console

from dnnkit.config import Config
from dnnkit.data import DataSet
from dnnkit.diagnostics import (
    MOST_SAMPLES,
    Condition,
    Divergence,
    Event,
    LayerSignal,
    Verdict,
    as_metrics,
    evenly_spaced,
    find_divergence,
    probe,
    selu_conditions,
    selu_line,
    verdicts,
)
from dnnkit.disk import in_passing
from dnnkit.errors import DivergedError
from dnnkit.module import Module
from dnnkit.module.gather import several
from dnnkit.record import RunFolder
from dnnkit.record.signal import SIGNAL, VERDICTS, read_diagnostics, write_numbers, write_verdicts
from dnnkit.training.keeping import LAST
from dnnkit.training.live import Live, course

log = logging.getLogger("dnnkit")


class Diagnosis:
    """The probes of one run. `begin` before training, `finish` or `diverged` after it, with the last weights in the module.

    `live` is the callback that looks at the signal meanwhile.
    """

    def __init__(self, cfg: Config, data: DataSet, module: Module, folder: RunFolder, console: Console) -> None:
        self._cfg, self._data, self._module, self._folder, self._console = cfg, data, module, folder, console
        self.live = Live(cfg.diagnostics.every, folder.journal)
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
        self._write({})
        return self._start

    def finish(self, step: int) -> None:
        """Measure the trained weights, say what is wrong with them and when it went wrong, and write all of it to `diagnostics/`.

        `step`: the optimizer steps done; where a resumed run has done none, its journal has these numbers already.
        """
        end = self._probe()
        if step > self._folder.record.resumed_step:
            self._folder.journal.log(step, as_metrics(end))
        found = self._course()
        self._tell_course(found)
        self._tell("after training", end)
        write_numbers(self._folder.path, {"start": self._start, "end": end})
        self._write({"end": verdicts(end), "timeline": found})

    def diverged(self, error: DivergedError) -> DivergedError:
        """The error with which a fit broke off, with the layer that was first no longer finite, and where the last healthy weights are."""
        latest = self._module.window.latest
        if latest is None:
            return error
        module = self._module.eval() if several() else self._module.train()  # layers that ranks evaluate together would wait for them
        found = find_divergence(module.net, *latest, module.task.loss)
        with in_passing():
            self._write({"timeline": self._course(), "diverged": [found]})
        return DivergedError(f"{error.cause}; {found.text}", f"{error.cure}; {self._healthy()}")

    def _healthy(self) -> str:
        last = self._folder.path / "checkpoints" / LAST
        return f"the last healthy weights are in {last}" if last.exists() else "no epoch was finished, so that no weights were kept"

    def _course(self) -> list[Event]:
        return course(self._folder.path, [signal.layer for signal in self._start], self.live.silence)

    def _write(self, found: Mapping[str, Sequence[Verdict | Event | Divergence]]) -> None:
        write_verdicts(self._folder.path, {"start": verdicts(self._start), **found, "selu": self._selu})

    def _probe(self) -> list[LayerSignal]:
        x, y = self._data.train
        rows = evenly_spaced(len(x), MOST_SAMPLES)
        return probe(self._module.net, x[rows], y[rows], self._module.task.loss)

    def _tell(self, when: str, signals: list[LayerSignal]) -> None:
        for verdict in verdicts(signals):
            self._say(f"{when}: {verdict.text}")

    def _tell_course(self, events: Sequence[Event]) -> None:
        """The first of each kind; not what held from the start to the end, which is said before and after training."""
        for word in dict.fromkeys(event.word for event in events):
            found = [event for event in events if event.word == word and (event.first > 0 or not event.lasting)]
            if found:
                first = min(found, key=lambda event: event.first)
                others = f"; in {len(found) - 1} more layer{'s' if len(found) > 2 else ''}, see diagnostics/" if len(found) > 1 else ""
                self._say(f"during training: {first.text}{others}")

    def _say(self, text: str) -> None:
        log.info("%s", text)
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
