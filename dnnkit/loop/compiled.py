"""A step's graph through torch.compile. Needs what torch.compile needs: on a CPU, a C++ compiler."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from dnnkit.loop.program import Program


def compiled(module: fx.GraphModule, values: Sequence[Tensor]) -> Program:
    """The graph with `values` for its first inputs, compiled at the first call; it draws the random numbers that eager code would."""
    from torch._inductor import config

    graph = module.graph
    graph.set_codegen(fx.graph.CodeGen())  # inputs one by one, not as the lists that were traced
    inner = fx.GraphModule(module, graph)
    run = torch.compile(inner, fullgraph=True, dynamic=False)
    kept = list(values)

    def step(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        with config.patch(fallback_random=True):
            return tuple(run(*kept, x, y))

    return step
