"""`python -m benchmarks.optimizers`: an update and a clipping by themselves, beside torch's own, in one process and one thread.

For six tensors of a few numbers, which is bookkeeping alone, and for the 266,610 parameters of the 784-300-100-10 network.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dnnkit import plugins
from dnnkit.registry import clippings, optimizers

#: The shapes, and how many calls are timed together.
SIZES = {
    "six small tensors": (((4, 4), (4,), (4, 4), (4,), (4, 4), (4,)), 100),
    "266,610 parameters": (((300, 784), (300,), (100, 300), (100,), (10, 100), (10,)), 10),
}
#: Our name and settings, torch's class, and its settings: as most people run it, and in its fastest form.
UPDATES: list[tuple[str, dict[str, Any], type[Optimizer], list[dict[str, Any]]]] = [
    ("sgd", {}, torch.optim.SGD, [{"lr": 0.01}, {"lr": 0.01, "fused": True}]),
    ("momentum", {}, torch.optim.SGD, [{"lr": 0.01, "momentum": 0.9}, {"lr": 0.01, "momentum": 0.9, "fused": True}]),
    ("adagrad", {}, torch.optim.Adagrad, [{}, {"fused": True}]),
    ("rmsprop", {}, torch.optim.RMSprop, [{}, {"foreach": True}]),
    ("adam", {}, torch.optim.Adam, [{}, {"fused": True}]),
    ("adamw", {}, torch.optim.AdamW, [{}, {"fused": True}]),
    ("adamax", {}, torch.optim.Adamax, [{}, {"foreach": True}]),
    ("nadam", {}, torch.optim.NAdam, [{}, {"foreach": True}]),
]
Call = Callable[[], Any]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimizers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, default=100, help="short blocks of calls, in turns; the fastest and the first tenth count")
    parser.add_argument("--only", nargs="*", help="rows with one of these names")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    plugins.load()
    print("µs per call of process CPU time: fastest (first tenth) of", options.blocks, "blocks; torch", torch.__version__)
    for size, (shapes, calls) in SIZES.items():
        print(
            f"\n| {size} | torch, default | torch, fastest | dnnkit | ÷ default | ÷ fastest |\n| --- | ---: | ---: | ---: | ---: | ---: |"
        )
        for name, contenders in {**updates(shapes), **clips(shapes)}.items():
            if not options.only or name in options.only:
                print(row(name, measure(contenders, calls, options.blocks)), flush=True)


def updates(shapes: Sequence[tuple[int, ...]]) -> dict[str, list[Call]]:
    """By name: torch's default, torch's fastest, ours; each on parameters of its own."""
    made: dict[str, list[Call]] = {}
    for name, settings, kind, stock in UPDATES:
        makers: list[Callable[[list[nn.Parameter]], Optimizer]] = [partial(_stock, kind, one) for one in stock]
        makers.append(partial(_ours, name, settings))
        made[name] = [make(parameters(shapes)).step for make in makers]
    zeroed = torch.optim.SGD(parameters(shapes), lr=0.01), _ours("sgd", {}, parameters(shapes))
    made["zero_grad"] = [zeroed[0].zero_grad, zeroed[0].zero_grad, zeroed[1].zero_grad]
    return made


def clips(shapes: Sequence[tuple[int, ...]]) -> dict[str, list[Call]]:
    """Torch's one way twice. The bound is out of reach in the first, and far below the norm in the second."""
    ours = clippings.get("norm").function
    made: dict[str, list[Call]] = {}
    for name, bound in (("norm, nothing to clip", 1e9), ("norm, clipped", 1e-3)):
        params = parameters(shapes)
        stock: Call = partial(nn.utils.clip_grad_norm_, params, bound)
        made[name] = [stock, stock, partial(ours, params, bound)]
    return made


def _stock(kind: Any, settings: dict[str, Any], params: list[nn.Parameter]) -> Optimizer:
    made: Optimizer = kind(params, **settings)
    return made


def _ours(name: str, settings: dict[str, Any], params: list[nn.Parameter]) -> Optimizer:
    made: Optimizer = optimizers.get(name).function(params, **settings)
    return made


def parameters(shapes: Sequence[tuple[int, ...]]) -> list[nn.Parameter]:
    torch.manual_seed(0)
    made = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for parameter in made:
        parameter.grad = 0.01 * torch.randn_like(parameter)
    return made


def measure(contenders: Sequence[Call], calls: int, blocks: int) -> list[tuple[float, float]]:
    """Fastest and first tenth, in µs per call, of each; they take turns block by block."""
    taken: list[list[float]] = [[] for _ in contenders]
    for block in range(blocks + 1):
        for call, times in zip(contenders, taken, strict=True):
            began = time.process_time()
            for _ in range(calls):
                call()
            if block:  # the first one warms up
                times.append((time.process_time() - began) / calls * 1e6)
    return [(times[0], times[len(times) // 10]) for times in map(sorted, taken)]


def row(name: str, found: Sequence[tuple[float, float]]) -> str:
    cells = [f"{fastest:.1f} ({tenth:.1f})" for fastest, tenth in found]
    default, best, ours = (fastest for fastest, _ in found)
    return f"| {name} | {' | '.join(cells)} | {ours / default:.2f} | {ours / best:.2f} |"


if __name__ == "__main__":
    main()
