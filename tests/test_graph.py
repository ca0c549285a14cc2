"""What is left out of a captured graph, and that it gives the same bits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor, fx, nn

from dnnkit import plugins
from dnnkit.loop.graph import Tensors, trace
from dnnkit.loop.program import Unrecorded, program
from dnnkit.module import Outcome
from dnnkit.network import component
from dnnkit.registry import losses
from dnnkit.schema import node

plugins.load()

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(2)).abs()
Y = torch.randn(8, 3, generator=torch.Generator().manual_seed(3))


class Summing(nn.Module):
    """A dense layer of something that sums over its inputs."""

    def __init__(self, inner: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.last = inner, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.inner(x))
        return y


#: A network's first steps; how many sums its graph has that keep their dimension, and how many that do not.
CASES: dict[str, tuple[Callable[[Tensor], Tensor], int, int]] = {
    "the gradient of a bias": (lambda x: x, 0, 1),
    "a sum that is needed with its dimension": (lambda x: x / x.sum(1, keepdim=True), 1, 1),
    "one that is flattened, twice": (lambda x: x * x.sum(1, keepdim=True).view(8).mean(), 0, 2),
    "one that is needed in both forms": (lambda x: x / (s := x.sum(1, keepdim=True)) + s.view(8).mean(), 1, 1),
    "one that is viewed in another shape": (lambda x: x * x.sum((0, 1), keepdim=True).view(1), 1, 1),
}


def objective(net: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.mse_loss) -> Outcome:
    output = net(x)
    found = loss(output, y)
    return Outcome(found, found, output, None)


def sums(module: fx.GraphModule) -> list[bool]:
    """Whether each sum over dimensions keeps them."""
    nodes = [node for node in module.graph.nodes if node.target is torch.ops.aten.sum.dim_IntList]
    return [len(node.args) > 2 and bool(node.args[2]) for node in nodes]


@pytest.mark.parametrize("name", CASES)
def test_a_sum_keeps_its_dimension_only_where_that_is_needed_and_the_bits_stay(name: str) -> None:
    inner, kept, lost = CASES[name]
    torch.manual_seed(0)
    net = Summing(inner)
    wanted = objective(net, X, Y)
    wanted.total.backward()  # type: ignore[no-untyped-call]
    traced = trace(net, objective, X, Y, 1, nullcontext).module
    assert sorted(sums(traced)) == [False] * lost + [True] * kept
    with Unrecorded():
        total, _, output, *gradients = program(traced, Tensors.of(net).values())(X, Y)
    assert torch.equal(total, wanted.total)
    assert torch.equal(output, wanted.output)
    assert all(torch.equal(gradient, parameter.grad) for gradient, parameter in zip(gradients, net.parameters(), strict=True))


@pytest.mark.parametrize("name", losses.names())
def test_torchs_shorter_names_of_operations_give_the_bits_of_every_loss(name: str) -> None:
    record = losses.get(name)
    y = Y.argmax(1) if "classification" in record.facts["tasks"] else Y
    loss = component("loss", node("loss", name))
    torch.manual_seed(0)
    net = nn.Linear(6, 3)
    wanted = objective(net, X, y, loss)
    traced = trace(net, partial(objective, loss=loss), X, y, 1, nullcontext).module
    with Unrecorded():
        assert torch.equal(program(traced, Tensors.of(net).values(), short=True)(X, y)[0], wanted.total)


@pytest.mark.parametrize("before", [True, False])
def test_recording_goes_on_as_before_also_after_an_error(before: bool) -> None:
    seen = []

    def fail() -> None:
        with Unrecorded():
            seen.append(torch.is_grad_enabled())
            raise ZeroDivisionError

    with torch.set_grad_enabled(before):
        with pytest.raises(ZeroDivisionError):
            fail()
        seen.append(torch.is_grad_enabled())
    assert seen == [False, before]
