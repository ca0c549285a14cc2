"""A program as a CUDA graph: its use of memory, with a stand-in for the graph on any machine, with the real one on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from dnnkit.data.resident import default_generator
from dnnkit.loop.captured import capture
from dnnkit.loop.graph import Tensors, trace
from dnnkit.loop.program import Program, program
from dnnkit.loop.replay import Results, replayed
from dnnkit.module import Outcome

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def rerun(work: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
    """Like a CUDA graph: the same work on the same memory, whose results always lie in the same place."""
    results = work()

    def replay() -> None:
        for place, value in zip(results, work(), strict=True):
            place.copy_(value)

    return replay, results


def cross_entropy(net: nn.Module, x: Tensor, y: Tensor) -> Outcome:
    output = net(x)
    loss = nn.functional.cross_entropy(output, y)
    return Outcome(loss, loss, output, None)


def minibatches(count: int, device: str = "cpu") -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(16, 6, generator=generator).to(device), torch.randint(3, (16,), generator=generator).to(device)) for _ in range(count)
    ]


def small(device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.SELU(), nn.Dropout(0.3), nn.Linear(20, 3)).to(device)


def plain_program(net: nn.Module) -> Program:
    return program(trace(net, cross_entropy, *minibatches(1)[0], 1, nullcontext).module, Tensors.of(net).values())


def test_a_replayed_program_gives_what_the_program_gives_for_every_minibatch_and_seed() -> None:
    run, other = plain_program(small()), plain_program(small())
    again = replayed(other, *minibatches(1)[0], 3, rerun)
    for number, (x, y) in enumerate(minibatches(5)):
        torch.manual_seed(number)
        wanted = run(x, y)
        torch.manual_seed(number)
        assert all(torch.equal(*pair) for pair in zip(wanted, again(x, y), strict=True)), number


def test_kept_results_survive_the_next_call_and_the_others_lie_in_one_place() -> None:
    again = replayed(plain_program(small()), *minibatches(1)[0], 3, rerun)
    (first, *_), (second, *_) = calls = [again(x, y) for x, y in minibatches(2)]
    assert float(first) != float(second)
    places = [[result.data_ptr() for result in results] for results in calls]
    assert places[0][3:] == places[1][3:]
    assert not set(places[0][:3]) & set(places[1][:3])


@needs_gpu
@pytest.mark.parametrize("divisor", [1, 4])
def test_a_cuda_graph_equals_the_eager_step_to_the_last_bit(divisor: int) -> None:
    net = small("cuda")
    batches = minibatches(20, "cuda")
    step = capture(net, cross_entropy, *batches[0], divisor, nullcontext)
    generator = default_generator(torch.device("cuda"))
    for number, (x, y) in enumerate(batches):
        statistics = {name: buffer.clone() for name, buffer in net.named_buffers()}
        generator.manual_seed(number)
        for parameter in net.parameters():
            parameter.grad = None
        outcome = cross_entropy(net, x, y)
        (outcome.total / divisor if divisor > 1 else outcome.total).backward()
        wanted = [outcome.loss, outcome.output, *(parameter.grad for parameter in net.parameters()), *(b.clone() for b in net.buffers())]
        net.load_state_dict(statistics, strict=False)
        generator.manual_seed(number)
        again, gradients = step(x, y)
        got = [again.loss, again.output, *gradients, *net.buffers()]
        assert all(torch.equal(one, other) for one, other in zip(wanted, got, strict=True)), number
