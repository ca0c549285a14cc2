"""One network's step as a program, made for one shape of minibatch and found equal to the step run operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from operator import is_
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from dnnkit.loop.graph import Objective, Tensors, Traced, trace
from dnnkit.loop.program import Program, Unrecorded, program
from dnnkit.loop.replay import Record, record_on_gpu, replayed
from dnnkit.loop.verify import Trial, attempt, difference, equal, near, side_effects, undone
from dnnkit.loop.watch import hooked
from dnnkit.module import Outcome
from dnnkit.module.gather import several

Kind = Literal["captured", "compiled"]

#: How far a compiled step may be from an eager one: the norm of the difference of all gradients (results, buffers), over theirs.
COMPILED_BOUND = 1e-4


Pairs = tuple[tuple[Tensor, Tensor], ...]
Form = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.Size, tuple[int, ...], torch.dtype]


def form(x: Tensor, y: Tensor) -> Form:
    """Shape, strides and type of a minibatch."""
    return x.shape, x.stride(), x.dtype, y.shape, y.stride(), y.dtype


class CannotCapture(Exception):
    """The step cannot be run as a graph; the text says why, as the end of a sentence."""


@dataclass(frozen=True)
class StepGraph:
    """Forward, loss and backward of minibatches of one form, as a program."""

    program: Program
    form: Form
    reached: list[Parameter]
    penalized: bool
    net: nn.Module
    read: list[Tensor]
    places: list[int]
    copied: frozenset[int] = field(default=frozenset())

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Outcome, list[Tensor]]:
        """What the minibatch gives, and the gradient of each parameter that takes part, in memory of its own."""
        with Unrecorded():
            total, loss, output, *rest = self.program(x, y)
            penalty = rest.pop(0) if self.penalized else None
            for index in self.copied:
                rest[index] = torch.empty_like(self.reached[index]).copy_(rest[index])
        return Outcome(total, loss, output, penalty), rest

    def takes(self, x: Tensor, y: Tensor) -> bool:
        """Whether it is made for minibatches like this one: a program takes shapes and the order in memory for granted."""
        return form(x, y) == self.form

    def is_of(self, tensors: Tensors) -> bool:
        """Whether these are what it reads, and not others that somebody has put in their place."""
        values = [*tensors.parameters.values(), *tensors.buffers.values()]
        return len(values) == len(self.read) and all(map(is_, values, self.read))

    @property
    def moved(self) -> bool:
        """Whether somebody has put the network's tensors into other memory, so that the program no longer reads them."""
        return [tensor.data_ptr() for tensor in self.read] != self.places


def capture(
    net: nn.Module,
    objective: Objective,
    x: Tensor,
    y: Tensor,
    divisor: int,
    autocast: Callable[[], AbstractContextManager[None]],
    kind: Kind = "captured",
) -> StepGraph:
    """The step of `objective` of `net`, for minibatches of the form of (x, y).

    It is compared with the same step run operation by operation, on (x, y) and on its examples the other way round: losses,
    output, gradients, buffers and what was drawn at random must be equal to the last bit (`compiled`: to `COMPILED_BOUND`).
    Everything is left as it was: x, y, weights, gradients, buffers, attributes, random generators.

    Raises CannotCapture, with the reason.
    """
    reason = hooked(net)
    if reason is not None:
        raise CannotCapture(reason)
    reason = side_effects(net, objective, lambda net, objective: _eager(net, objective, x, y, divisor, autocast))
    if reason is not None:
        raise CannotCapture(reason)
    batches = ((x, y), (x.flip(0), y.flip(0)))
    wanted = [attempt(net, partial(_eager, net, objective, *batch, divisor, autocast)) for batch in batches]
    try:
        traced = trace(net, objective, x, y, divisor, autocast)
    except Exception as error:
        raise CannotCapture(f"its operations cannot be recorded ({_first_line(error)})") from error
    # Gradients that are added up must not lie where the next minibatch's are put.
    kept = (4 if traced.penalized else 3) + (len(traced.reached) if divisor > 1 else 0)
    return _first_equal(_programs(traced, net, x, y, kept, kind), traced, net, batches, wanted, kind)


def _first_equal(
    programs: Iterable[Callable[[], Program]], traced: Traced, net: nn.Module, batches: Pairs, wanted: list[Trial], kind: Kind
) -> StepGraph:
    """The first that does what the eager step does. Raises CannotCapture, with the reason against the last."""
    reason = None
    for make in programs:
        try:
            step, reason = _verified(_step_graph(net, make(), traced, form(*batches[0])), batches, wanted, kind)
        except Exception as error:
            step, reason = None, f"running it failed ({_first_line(error)})"
        if step is not None:
            return step
    raise CannotCapture(f"run as a graph, {reason}")


def _programs(traced: Traced, net: nn.Module, x: Tensor, y: Tensor, kept: int, kind: Kind) -> Iterator[Callable[[], Program]]:
    """Ways to make a program of a graph, the fastest first."""
    values = Tensors.of(net).values()
    if kind == "compiled":
        from dnnkit.loop.compiled import compiled

        yield lambda: compiled(traced.module, values)
        return
    if x.is_cuda and not several():
        yield lambda: _recorded(net, program(traced.module, values), x, y, kept)
    yield lambda: program(traced.module, values)
    yield lambda: program(traced.module, values, short=False)


def _recorded(net: nn.Module, run: Program, x: Tensor, y: Tensor, kept: int, record: Record = record_on_gpu) -> Program:
    with undone(net):
        return replayed(run, x, y, kept, record)


def _step_graph(net: nn.Module, run: Program, traced: Traced, made_for: Form) -> StepGraph:
    tensors = Tensors.of(net)
    reached = [parameter for parameter, there in zip(tensors.trained, traced.reached, strict=True) if there]
    read = [*tensors.parameters.values(), *tensors.buffers.values()]
    return StepGraph(run, made_for, reached, traced.penalized, net, read, [tensor.data_ptr() for tensor in read])


def _verified(step: StepGraph, batches: Pairs, wanted: list[Trial], kind: Kind) -> tuple[StepGraph | None, str | None]:
    """The step, with the copies that it needs, or None and what it does otherwise than the eager one."""
    alike = equal if kind == "captured" else near(COMPILED_BOUND)
    step = _with_own_memory(step, *batches[0], wanted[0])
    for batch, eager in zip(batches, wanted, strict=True):
        reason = difference(eager, attempt(step.net, partial(_captured, step, *batch)), alike)
        if reason is not None:
            return None, reason
    return step, None


def _with_own_memory(step: StepGraph, x: Tensor, y: Tensor, wanted: Trial) -> StepGraph:
    """With copies of the gradients that share memory with something else, or lie in it otherwise than autograd would leave them."""
    found: list[set[int]] = []
    strides = [gradient.stride() for gradient in wanted.gradients if gradient is not None]

    def look() -> tuple[Tensor, ...]:
        given = x.clone(), y.clone()
        outcome, gradients = step(*given)
        others = [
            tensor.untyped_storage().data_ptr() for tensor in (*given, *outcome, *Tensors.of(step.net).values()) if tensor is not None
        ]
        own = [gradient.untyped_storage().data_ptr() for gradient in gradients]
        found.append(
            {
                index
                for index, gradient in enumerate(gradients)
                if own[index] in others or own[index] in own[:index] or gradient.stride() != strides[index]
            }
        )
        return ()

    attempt(step.net, look)
    return replace(step, copied=frozenset(found[0]))


def _eager(
    net: nn.Module, objective: Objective, x: Tensor, y: Tensor, divisor: int, autocast: Callable[[], AbstractContextManager[None]]
) -> tuple[Tensor, ...]:
    with autocast():
        outcome = objective(net, x.clone(), y.clone())  # which a network may change in place
    (outcome.total / divisor if divisor > 1 else outcome.total).backward()  # type: ignore[no-untyped-call]
    return tuple(value for value in outcome if value is not None)


def _captured(step: StepGraph, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    outcome, gradients = step(x.clone(), y.clone())
    for parameter, gradient in zip(step.reached, gradients, strict=True):
        parameter.grad = gradient
    return tuple(value for value in outcome if value is not None)


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
