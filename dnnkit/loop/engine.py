"""How a run executes its minibatches: operation by operation, or as a graph that is equal to that."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Hashable
from functools import partial
from typing import Any, Literal, get_args

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dnnkit.data.resident import Batches, share
from dnnkit.errors import ConfigError, Problem
from dnnkit.loop.captured import CannotCapture, Form, Kind, StepGraph, capture, form
from dnnkit.loop.graph import Tensors
from dnnkit.loop.race import TIE, TURN, Race, Way, faster
from dnnkit.loop.step import Execute, autocast_of, eager_step
from dnnkit.loop.synced import SyncedBatchNorm
from dnnkit.loop.updates import Updates, as_defined
from dnnkit.loop.watch import fingerprint
from dnnkit.module import Module, Outcome, minimised
from dnnkit.module.gather import several

log = logging.getLogger("dnnkit")

Wanted = Literal["auto", "eager", "captured", "compiled"]
ENGINES: tuple[str, ...] = get_args(Wanted)

#: For fewer minibatches a graph takes longer to make than it saves: about a quarter of a second, and a third of a millisecond each.
_WORTHWHILE = 500
_EQUAL = {"captured": "captured and found equal to the eager ones", "compiled": "compiled, equal to the eager ones up to rounding"}
#: Why the steps of a run are eager that ends before anything is decided.
_AT_FIRST = {"eager": "it was asked for", "auto": "training ended before the faster way was known"}
#: So many graphs of one network are kept, for when it is again what it was.
_GRAPHS = 8


class Engine:
    """Executes the minibatches of one fit of `module`.

    A graph is made for minibatches like an epoch's first, and again when the network is no longer what it was made for: another
    mode, another setting of a layer, a part that is frozen or no longer frozen. Minibatches of another size, an epoch's
    ragged last one, or of another weight, those of an epoch's last group where it is shorter than the first, or that an augmentation
    left in another order in memory, run operation by operation; so does everything where a graph cannot be had, with the reason
    in the log.

    `auto` makes its graph after the first chunk, which need not wait for it, and for long enough runs only. It then goes on in
    the way that is the faster by the times of the next chunks, which take turns. Where the two are equal up to rounding
    alone, on three devices or more, no clock decides: the graph is kept.

    Raises ConfigError where a graph cannot be had and `wanted` is `captured` or `compiled`.
    """

    def __init__(self, trainer: pl.Trainer, module: Module, wanted: Wanted) -> None:
        self.module = module
        self._trainer, self._wanted = trainer, wanted
        self._kind: Kind = "compiled" if wanted == "compiled" else "captured"
        self._given_up = wanted == "eager"
        self._undecided = wanted == "auto"
        self._chunks = 0
        self._race: Race | None = None
        self._why = _AT_FIRST.get(wanted, "no minibatch was of the size that a graph is made for")
        self._seconds: dict[Way, float] = {}
        self._graphs: dict[Hashable, StepGraph] = {}
        self._state: Hashable = None
        self._step: StepGraph | None = None
        self._made = 0
        self._updates = Updates(trainer, module)
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Take over what callbacks may have changed about the trainer."""
        trainer, source = self._trainer, self._trainer.train_dataloader
        assert isinstance(source, Batches)
        self._eager = eager_step(trainer, self.module)
        minibatch = min(source.batch_size, len(source.x))
        mine = share(minibatch, source.rank, source.world)
        size = mine.stop - mine.start
        [first] = self.module.portions([0])
        # Of an epoch's first minibatch, whose group is not whole either where an epoch has fewer minibatches than a group.
        self._whole = size, size * source.world / minibatch * first.loss, first.total
        self._uneven = first.loss != 1.0  # then an epoch is one group, and its last minibatch is smaller
        shapes = ((part.shape[1:], part.dtype) for part in (source.x, source.y))
        self._made_for = (*self._whole, trainer.accumulate_grad_batches, *shapes)

    def chunk(self) -> Execute:
        """How the minibatches of the next chunk are executed."""
        self._chunks += 1
        if self._race is not None:
            self._judge(self._race)
        if self._given_up or (self._undecided and not self._pays()):
            return self._eager
        race = self._race
        if race is not None and race.way == "eager":
            return race.timed(self._eager, self._is_whole)
        self._begin_chunk()
        return self._execute if race is None else race.timed(self._execute, self._is_whole)

    def longest(self, wanted: int) -> int:
        """How many minibatches the next chunk may have at most: few while two ways take turns."""
        return wanted if self._race is None else min(wanted, TURN)

    @property
    def report(self) -> dict[str, Any]:
        """How minibatches are run now, and why: `wanted used why`, and `ms_per_minibatch` by way where both were timed."""
        made = self._step is not None or bool(self._graphs)
        report = {"wanted": self._wanted, "used": self._kind if made and not self._given_up else "eager", "why": self._why}
        return report | ({"ms_per_minibatch": {way: 1000 * value for way, value in self._seconds.items()}} if self._seconds else {})

    def _begin_chunk(self) -> None:
        """Have the graph of the network as it is now, if it was made before; the updates of its minibatches begin."""
        module = self.module
        state = fingerprint(module.net, module.task.loss, module.recipe.penalty), self._made_for, _has_own_objective(module)
        if self._on_any_rank(state != self._state or (self._step is not None and self._step.moved)):
            self._state = state
            # Ranks make their graphs together: whether one of them has made it before is its own affair.
            self._step = None if several() else self._graphs.get(state)
        self._updates.begin_chunk()

    def _is_whole(self, x: Tensor, closes: bool, weight: float, factor: float) -> bool:
        # Of a smaller minibatch in the same group one rank may have as large a share with the same weight, and another not.
        return (x.shape[0], weight, factor) == self._whole and not (closes and self._uneven)

    def _pays(self) -> bool:
        """Whether it is time for a graph; where too little is left to train, that is the end of it."""
        if self._chunks == 1:
            return False
        trainer, left, self._undecided = self._trainer, self._left, False
        if left < _WORTHWHILE:
            log.info("training steps run operation by operation: for %d minibatches more, a graph would not pay", left)
            self._given_up, self._why = True, "a graph would not pay"
        elif trainer.world_size <= 2:
            self._race = Race(self.module.device)
        else:
            self._why = "on three devices or more the two ways are equal up to rounding only, so no clock decides: the graph is kept"
        return not self._given_up

    @property
    def _left(self) -> int:
        """How many minibatches are left to train, an epoch's last group being as long as it is."""
        trainer = self._trainer
        minibatches, accumulate = int(trainer.num_training_batches), trainer.accumulate_grad_batches
        updates = int(trainer.estimated_stepping_batches) - trainer.global_step
        return updates * minibatches // math.ceil(minibatches / accumulate)

    def _judge(self, race: Race) -> None:
        """Let the faster way go on, as soon as it shows which one that is."""
        race.end_chunk()
        bound = race.bound
        if bound is None:
            return
        seconds = {way: self._of_slowest_rank(value) for way, value in race.seconds().items()}
        verdict = faster(seconds, bound, race.over)
        if verdict is not None:
            self._go_on(verdict, seconds)

    def _go_on(self, way: Way, seconds: dict[Way, float]) -> None:
        self._race = None
        if math.isnan(seconds["eager"]):
            self._why = "there were no minibatches that could be compared"
            return
        self._seconds = seconds
        self._why = "it is the faster" if faster(seconds, TIE) == way else "it is as fast"
        text = "a minibatch takes %.3f ms as a graph and %.3f ms operation by operation: training goes on %s"
        goes = "as a graph" if way == "captured" else "operation by operation"
        log.info(text, 1000 * seconds["captured"], 1000 * seconds["eager"], goes)
        if way == "eager":
            self._run_eagerly()

    def _execute(self, x: Tensor, y: Tensor, opens: bool, closes: bool, weight: float = 1.0, factor: float = 1.0) -> Outcome:
        if self._given_up or not self._is_whole(x, closes, weight, factor):
            return self._eager(x, y, opens, closes, weight, factor)
        step, updates = self._step, self._updates
        if step is not None and not updates.cut_short and step.moved:
            self._refuse_a_move()
            step = None
        if step is None:
            step = self._step = self._new_graph(x, y, weight, factor)
            if step is None:
                return self._eager(x, y, opens, closes, weight, factor)
        if not step.takes(x, y):
            if not several():
                return self._eager(x, y, opens, closes, weight, factor)
            x, y = in_form(step.form, x, y)
        if opens:
            updates.clear()
        outcome, gradients = step(x, y)
        self.module.guard.see_loss(outcome, self.module.window.update)
        updates.take(step.reached, gradients, closes)
        return outcome

    def _refuse_a_move(self) -> None:
        """Weights were put into other memory within a chunk: another graph, which several ranks could not agree upon here."""
        if several():
            message = "is not possible on several devices with an optimizer or a constraint that puts weights into other memory"
            raise ConfigError([Problem("trainer.engine", message, ("trainer.engine=eager",))])

    def _new_graph(self, x: Tensor, y: Tensor, weight: float, factor: float) -> StepGraph | None:
        """The graph for minibatches like this one; None where they have to be run operation by operation."""
        module, step, began = self.module, None, time.perf_counter()
        try:
            self._check()
            step = capture(
                module.net,
                partial(minimised, loss=module.task.loss, penalty=module.recipe.penalty, weight=weight, factor=factor),
                x,
                y,
                self._trainer.accumulate_grad_batches,
                autocast_of(self._trainer),
                self._kind,
            )
            if several() and len(step.reached) < len(Tensors.of(module.net).trained):
                raise CannotCapture("some parameters take no part in the loss")
            reason = "another rank could not make its graph"
        except CannotCapture as cannot:
            reason, step = str(cannot), None
        if self._on_any_rank(step is None):
            self._give_up(reason)
            return None
        assert step is not None
        log.info("training steps run as a graph, %s; made in %.2f s", _EQUAL[self._kind], time.perf_counter() - began)
        if several() and self._trainer.world_size > 2:
            log.info("from three devices on, sums over them are equal to those of eager steps up to rounding: they add in another order")
        self._keep(step)
        if self._wanted != "auto":
            self._why = "it was asked for"
        if self._race is not None:
            self._race.spoil()
        return step

    def _keep(self, step: StepGraph) -> None:
        """For when the network is again what it is now. Graphs of weights that were exchanged would keep those in memory."""
        tensors = Tensors.of(self.module.net)
        self._graphs = {state: graph for state, graph in self._graphs.items() if graph.is_of(tensors)}
        while len(self._graphs) >= _GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        self._graphs[self._state] = step

    def _on_any_rank(self, here: bool) -> bool:
        """Whether it is so on one rank at least; all have to ask together."""
        if not several():
            return here
        flag = torch.tensor(float(here), device=self.module.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    def _of_slowest_rank(self, seconds: float) -> float:
        """All have to ask together, and get the same."""
        if not several():
            return seconds
        slowest = torch.tensor(seconds, device=self.module.device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        return float(slowest)

    def _check(self) -> None:
        self._made += 1
        module = self.module
        run = self._trainer.fit_loop.total_batch_idx
        if self._wanted == "auto" and self._made > _GRAPHS and run < self._made * _WORTHWHILE:
            raise CannotCapture(f"the network changed its modes, settings or tensors {self._made - 1} times in {run} minibatches")
        if _has_own_objective(module):
            raise CannotCapture(f"{type(module).__name__} has an objective of its own")
        if several() and any(isinstance(layer, SyncedBatchNorm | nn.SyncBatchNorm) for layer in module.net.modules()):
            raise CannotCapture("the devices exchange statistics within a forward pass")

    def _give_up(self, reason: str) -> None:
        self._why = reason
        if self._wanted != "auto":
            raise ConfigError([Problem("trainer.engine", f"cannot be {self._wanted} here: {reason}", ("auto", "eager"))])
        log.warning("training steps run operation by operation: %s", reason)
        self._race = None
        self._run_eagerly()

    def _run_eagerly(self) -> None:
        self._given_up, self._step = True, None
        self._graphs.clear()


def in_form(wanted: Form, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A minibatch in the order in memory that a graph reads: ranks that ran one in different ways would not meet.

    Raises ConfigError where more than the order of x in memory is another.
    """
    shape, strides, dtype, *of_y = wanted
    if (x.shape, x.dtype, *form(x, y)[3:]) != (shape, dtype, *of_y):
        message = "is not possible on several devices where an augmentation changes shapes or types"
        raise ConfigError([Problem("trainer.engine", message, ("trainer.engine=eager",))])
    return torch.empty_strided(shape, strides, dtype=dtype, device=x.device).copy_(x), y


def _has_own_objective(module: Module) -> bool:
    return not as_defined(module, "objective", "objective_of")
