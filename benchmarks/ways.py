"""Ways to run the same training step, 784-300-100-10: `python -m benchmarks.ways JOB`, JOB as JSON; prints what each took.

The hand-written step gathers a minibatch, runs network, gradient and torch's update, and asks torch's OneCycleLR for the
rate. All others gather fifty minibatches at once and have the rate from a closed form; they differ in what runs the network
and the update. All see the same real minibatches, with 1cycle rates: at a fixed rate, on labels that cannot be learned,
values leave the range in which a processor is fast.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import cross_entropy

from benchmarks.contenders.floor import validate
from benchmarks.jobs import Rows, Work, load
from benchmarks.networks import network, optimizer, schedule, tensors
from benchmarks.scripted import scripted
from benchmarks.updates import UPDATES, Momentum, Nadam, Rates
from dnnkit import plugins
from dnnkit.loop.graph import Tensors, trace
from dnnkit.loop.program import program
from dnnkit.module import Outcome
from dnnkit.registry import REGISTRIES

#: x, y and the number of the step.
Step = Callable[[Tensor, Tensor, int], None]
_CHUNK = 50


class Trial:
    """A network of its own that is trained for `steps` steps in one way."""

    def __init__(self, work: Work, rows: Rows, steps: int, way: str) -> None:
        torch.manual_seed(0)
        self.net = network(work, rows)
        self.weights = list(self.net.parameters())
        (self._x, self._y), self._validation = tensors(rows)
        self._size, self._done, self._seconds = work.batch_size, 0, list[float]()
        self._order = torch.randperm(len(self._x), generator=torch.Generator().manual_seed(1))
        began = time.perf_counter()
        self._step = WAYS[way](work, self.net, steps, *self._minibatches(0, 1)[0])
        self._gathers_each = way == HAND_WRITTEN
        self.setup_s = time.perf_counter() - began

    def block(self, count: int) -> None:
        """`count` more steps, and the CPU seconds they took."""
        began = time.process_time()
        for first in range(self._done, self._done + count, 1 if self._gathers_each else _CHUNK):
            many = 1 if self._gathers_each else min(_CHUNK, self._done + count - first)
            for step, (x, y) in enumerate(self._minibatches(first, many), first):
                self._step(x, y, step)
        self._seconds.append(time.process_time() - began)
        self._done += count

    def found(self) -> dict[str, Any]:
        return {"setup_s": self.setup_s, "seconds": self._seconds, "val_acc": validate(self.net, *self._validation)}

    def _minibatches(self, first: int, count: int) -> list[tuple[Tensor, Tensor]]:
        start = first * self._size % (len(self._order) - count * self._size + 1)
        chosen = self._order[start : start + count * self._size]
        x, y = self._x[chosen], self._y[chosen]
        return [(x, y)] if count == 1 else list(zip(x.split(self._size), y.split(self._size), strict=True))


def _hand_written(work: Work, net: nn.Module, steps: int, x: Tensor, y: Tensor) -> Step:
    update = optimizer(work, net, fused=True)
    rates = schedule(work, update, steps)

    def step(x: Tensor, y: Tensor, number: int) -> None:
        update.zero_grad()
        cross_entropy(net(x), y).backward()
        update.step()
        rates.step()

    return step


def _eager(work: Work, net: nn.Module, steps: int, x: Tensor, y: Tensor) -> Step:
    weights = list(net.parameters())
    update = _our_update(work, weights, steps)

    def step(x: Tensor, y: Tensor, number: int) -> None:
        for weight in weights:
            weight.grad = None
        cross_entropy(net(x), y).backward()
        update(number)

    return step


Gradients = Callable[[Tensor, Tensor], Sequence[Tensor]]
Update = Callable[[int], None]


def _graph_and_update(gradients: Callable[[nn.Module, Tensor, Tensor], Gradients], update: Callable[[Work, list[Any], int], Update]) -> Any:
    """A graph for the gradients, then an update."""

    def way(work: Work, net: nn.Module, steps: int, x: Tensor, y: Tensor) -> Step:
        weights = list(net.parameters())
        run, change = gradients(net, x, y), update(work, weights, steps)

        def step(x: Tensor, y: Tensor, number: int) -> None:
            with torch.no_grad():
                found = run(x, y)
            for weight, gradient in zip(weights, found, strict=True):
                weight.grad = gradient
            change(number)

        return step

    return way


def _graph(net: nn.Module, x: Tensor, y: Tensor) -> fx.GraphModule:
    """Weights one by one, x, y to total, loss, logits and gradients."""

    def objective(net: nn.Module, x: Tensor, y: Tensor) -> Outcome:
        logits = net(x)
        loss = cross_entropy(logits, y)
        return Outcome(loss, loss, logits, None)

    return trace(net, objective, x, y, 1, nullcontext).module


def _plain(module: fx.GraphModule) -> fx.GraphModule:
    """With its inputs one by one, not as the lists that were traced."""
    graph = module.graph
    graph.set_codegen(fx.graph.CodeGen())
    return fx.GraphModule(module, graph)


def _as_module(net: nn.Module, x: Tensor, y: Tensor) -> Gradients:
    run, weights = _plain(_graph(net, x, y)), Tensors.of(net).values()
    return lambda x, y: run(*weights, x, y)[3:]


def _as_program(net: nn.Module, x: Tensor, y: Tensor) -> Gradients:
    run = program(_graph(net, x, y), Tensors.of(net).values())
    return lambda x, y: run(x, y)[3:]


def _as_script(net: nn.Module, x: Tensor, y: Tensor) -> Gradients:
    run, weights = scripted(_graph(net, x, y)), Tensors.of(net).values()
    return lambda x, y: run(*weights, x, y)[3:]


def _our_update(work: Work, weights: list[Any], steps: int) -> Update:
    """dnnkit's optimizer of that name."""
    plugins.load()
    name = "momentum" if work.optimizer == "sgd" else work.optimizer
    return _with_rates(REGISTRIES["optimizer"].get(name).function(weights, lr=work.rate), Rates(work.rate, steps))


def _torchs_update(work: Work, weights: list[Any], steps: int) -> Update:
    return _with_rates(optimizer(work, nn.ParameterList(weights), fused=True), Rates(work.rate, steps))


def _with_rates(update: torch.optim.Optimizer, rates: Rates) -> Update:
    group = update.param_groups[0]

    def change(number: int) -> None:
        group["lr"], momentum = rates.at(number)
        if "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        else:
            group["momentum"] = momentum
        update.step()

    return change


def _compiled_update(work: Work, weights: list[Any], steps: int) -> Update:
    rule = UPDATES[work.optimizer](weights, Rates(work.rate, steps))
    change = torch.compile(rule.change, fullgraph=True, dynamic=False)

    def update(number: int) -> None:
        with torch.no_grad():
            change(rule.weights, [weight.grad for weight in weights], rule.state, rule.numbers(number))

    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    _compile(rule, lambda: update(0))
    return update


def _whole_compiled(work: Work, net: nn.Module, steps: int, x: Tensor, y: Tensor) -> Step:
    graph = _plain(_graph(net, x, y))
    rule = UPDATES[work.optimizer](list(net.parameters()), Rates(work.rate, steps))

    def whole(weights: list[Tensor], state: list[list[Tensor]], x: Tensor, y: Tensor, numbers: Tensor) -> None:
        rule.change(weights, graph(*weights, x, y)[3:], state, numbers)

    run = torch.compile(whole, fullgraph=True, dynamic=False)

    def step(x: Tensor, y: Tensor, number: int) -> None:
        with torch.no_grad():
            run(rule.weights, rule.state, x, y, rule.numbers(number))

    _compile(rule, lambda: step(x, y, 0))
    return step


def _compile(rule: Momentum | Nadam, once: Callable[[], None]) -> None:
    """By doing it once, without a trace."""
    before = [weight.clone() for weight in rule.weights]
    once()
    for weight, value in zip(rule.weights, before, strict=True):
        weight.copy_(value)
    for tensor in chain(*rule.state):
        tensor.zero_()


HAND_WRITTEN = "hand-written loop"
WAYS: dict[str, Callable[[Work, nn.Module, int, Tensor, Tensor], Step]] = {
    HAND_WRITTEN: _hand_written,
    "eager, dnnkit's update": _eager,
    "graph as torch.fx module, dnnkit's update": _graph_and_update(_as_module, _our_update),
    "graph as generated code, dnnkit's update": _graph_and_update(_as_program, _our_update),
    "graph as generated code, torch's update": _graph_and_update(_as_program, _torchs_update),
    "graph as TorchScript, dnnkit's update": _graph_and_update(_as_script, _our_update),
    "graph as generated code, compiled update": _graph_and_update(_as_program, _compiled_update),
    "whole step compiled": _whole_compiled,
}
COMPILED = tuple(name for name in WAYS if "compiled" in name)


def main() -> None:
    """JOB: `{"work": …, "ways": […], "blocks": …, "steps": …}`; blocks of `steps` steps take turns, and who is first changes."""
    torch.set_num_threads(1)
    job = json.loads(sys.argv[1])
    work = Work(**{**job["work"], "hidden": tuple(job["work"]["hidden"])})
    rows, ways, steps = load(work), job["ways"], job["steps"]
    trials = {way: Trial(work, rows, steps * (job["blocks"] + 1), way) for way in ways}
    for number in range(job["blocks"] + 1):
        first = number % len(ways)
        for way in [*ways[first:], *ways[:first]]:
            trials[way].block(steps)
    print(json.dumps({way: trial.found() for way, trial in trials.items()}))


if __name__ == "__main__":
    main()
