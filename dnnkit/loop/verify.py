"""A captured step against the same step run operation by operation, on the same minibatch: equal to the last bit, or not used."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dnnkit.data.randomness import same_randomness
from dnnkit.data.resident import default_generator
from dnnkit.loop.graph import Objective, Tensors
from dnnkit.loop.watch import fingerprint, outside_randomness, put_back

Alike = Callable[[Sequence[Tensor | None], Sequence[Tensor | None]], bool]
"""Whether what one run left is what the other left, tensor by tensor."""


@dataclass(frozen=True)
class Trial:
    """What one run of forward and backward leaves: results, gradients by trained parameter (None: none), buffers, randomness."""

    results: tuple[Tensor, ...]
    gradients: tuple[Tensor | None, ...]
    buffers: tuple[Tensor, ...]
    randomness: tuple[Tensor, ...]


@contextmanager
def undone(net: nn.Module) -> Iterator[None]:
    """Afterwards buffers, gradients and random generators, torch's, Python's and NumPy's, are as before."""
    tensors = Tensors.of(net)
    buffers = [buffer.clone() for buffer in tensors.buffers.values()]
    gradients = [parameter.grad for parameter in tensors.parameters.values()]
    try:
        with same_randomness(parameter.device for parameter in net.parameters()):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(tensors.buffers.values(), buffers, strict=True):
                buffer.copy_(value)
        for parameter, gradient in zip(tensors.parameters.values(), gradients, strict=True):
            parameter.grad = gradient


def attempt(net: nn.Module, run: Callable[[], tuple[Tensor, ...]]) -> Trial:
    """What `run`, which returns results and leaves gradients in the parameters, does; afterwards all is as before."""
    tensors = Tensors.of(net)
    with undone(net):
        for parameter in tensors.parameters.values():
            parameter.grad = None
        results = run()
        return Trial(
            tuple(result.detach().clone() for result in results),
            tuple(parameter.grad for parameter in tensors.trained),
            tuple(buffer.clone() for buffer in tensors.buffers.values()),
            tuple(generator.get_state() for generator in _generators(net)),
        )


def side_effects(net: nn.Module, objective: Objective, run: Callable[[nn.Module, Objective], object]) -> str | None:
    """What `run` of copies of `net` and of its objective changes that a graph would not: None where there is nothing."""
    try:
        copied, minimised = copy.deepcopy((net, objective))
    except Exception as error:
        return f"the network or its loss cannot be copied, to see what it changes ({type(error).__name__}: {error})"
    before, randomness, put = fingerprint(copied, minimised, values=True), outside_randomness(), put_back(copied, minimised)
    # What cannot be copied apart, such as a closure over the network itself, still acts on the network.
    with undone(net), undone(copied):
        for parameter in net.parameters():
            parameter.grad = None
        try:
            run(copied, minimised)
            if fingerprint(copied, minimised, values=True) != before:
                return "the network, its loss or its penalty changes its own attributes in a forward pass"
            if outside_randomness() != randomness:
                return "the network draws from Python's or NumPy's random numbers"
        except Exception as error:  # where the network itself fails too, its eager step will say so
            return f"a copy of the network does not run ({type(error).__name__}: {error})"
        finally:
            put()
    return None


def difference(eager: Trial, captured: Trial, alike: Alike) -> str | None:
    """Where two trials differ; None where they do not."""
    pairs = (
        ("results", eager.results, captured.results),
        ("gradients", eager.gradients, captured.gradients),
        ("buffers", eager.buffers, captured.buffers),
    )
    for what, ours, theirs in pairs:
        if not alike(ours, theirs):
            return f"its {what} differ"
    if not equal(eager.randomness, captured.randomness):
        return "it draws other random numbers"
    return None


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal to the last bit, NaN included."""
    if (one.dtype, one.shape, one.device) != (other.dtype, other.shape, other.device):
        return False
    return torch.equal(*(tensor.reshape(-1).contiguous().view(torch.uint8) for tensor in (one, other)))


def equal(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None]) -> bool:
    """To the last bit."""
    return _paired(ours, theirs) and all(
        one is None or other is None or same_bits(one, other) for one, other in zip(ours, theirs, strict=True)
    )


def near(bound: float) -> Alike:
    """To within `bound` of the norm of all of them together: a tensor of nothing but rounding has no norm to be measured by."""

    def alike(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None]) -> bool:
        if not _paired(ours, theirs):
            return False
        pairs = [(one.double(), other.double()) for one, other in zip(ours, theirs, strict=True) if one is not None and other is not None]
        apart = sum(float((one - other).square().sum()) for one, other in pairs)
        return apart <= bound**2 * sum(float(one.square().sum()) for one, _ in pairs)

    return alike


def _paired(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None]) -> bool:
    return len(ours) == len(theirs) and all(
        one is other if one is None or other is None else (one.dtype, one.shape) == (other.dtype, other.shape)
        for one, other in zip(ours, theirs, strict=True)
    )


def _generators(net: nn.Module) -> list[torch.Generator]:
    devices = {parameter.device for parameter in net.parameters()} | {torch.device("cpu")}
    return [default_generator(device) for device in sorted(devices, key=str)]
