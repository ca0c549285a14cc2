"""Networks that are hard to run as a graph: whichever way they are run, the numbers are those of running operation by operation."""

from __future__ import annotations

import itertools
import logging
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from dnnkit.errors import ConfigError
from dnnkit.loop.captured import CannotCapture, StepGraph, capture
from dnnkit.module import Module, Outcome, Recipe, Task, minimised

Fit = Callable[..., SimpleNamespace]
Same = Callable[[Any, Any], None]

FEATURES, CLASSES, ROWS = 6, 3, 86  # 11 minibatches of 8, the last of 6
X = torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(4))
Y = X[:, :CLASSES].argmax(1)


class Around(nn.Module):
    """Something between two dense layers."""

    def __init__(self, inner: nn.Module | None = None, units: int = 8) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.last = nn.Linear(FEATURES, units), nn.Linear(units, CLASSES)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))

    def middle(self, z: Tensor) -> Tensor:
        return z if self.inner is None else self.inner(z)


# Networks that have to run operation by operation.


class BranchesOnValues(Around):
    def middle(self, z: Tensor) -> Tensor:
        return z.relu() if z.mean() > 0 else z.tanh()


class BranchesByNumpy(Around):
    def middle(self, z: Tensor) -> Tensor:
        return z.relu() if z.detach().numpy().mean() > 0 else z.tanh()


class BranchesByList(Around):
    def middle(self, z: Tensor) -> Tensor:
        return z * (1 + sum(z.detach().flatten().tolist()) / 100)


class ChoosesRows(Around):
    """Shapes that depend on values."""

    def middle(self, z: Tensor) -> Tensor:
        return z - z[z > 0].mean()


class Counts(Around):
    calls = 0

    def middle(self, z: Tensor) -> Tensor:
        self.calls += 1
        return z * (1 + 0.01 * self.calls)


class CountsOnItsClass(Around):
    calls = 0

    def middle(self, z: Tensor) -> Tensor:
        type(self).calls += 1
        return z.relu() if type(self).calls % 10 else z.tanh()


class CountsInATensor(Around):
    """A plain tensor, no buffer, changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = torch.zeros(())

    def middle(self, z: Tensor) -> Tensor:
        self.calls += 1
        return z * (1 + 0.01 * self.calls)


class CountsInAnArray(Around):
    def __init__(self) -> None:
        super().__init__()
        self.calls = np.zeros(1)

    def middle(self, z: Tensor) -> Tensor:
        self.calls += 1
        return z * float(1 + 0.01 * self.calls[0])


class CountsByIterating(Around):
    def __init__(self) -> None:
        super().__init__()
        self.calls = itertools.count()

    def middle(self, z: Tensor) -> Tensor:
        return z * (1 + 0.01 * next(self.calls))


class CountsDeepInside(Around):
    """In an object in a list in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = {"a": [SimpleNamespace(more={"calls": 0})]}

    def middle(self, z: Tensor) -> Tensor:
        self.kept["a"][0].more["calls"] += 1
        return z * (1 + 0.01 * self.kept["a"][0].more["calls"])


class SwitchesLate(Around):
    """Another network from the fifteenth call on."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 15

    def middle(self, z: Tensor) -> Tensor:
        self.left = max(0, self.left - 1)
        return z.relu() if self.left else z.tanh()


class Appends(Around):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def middle(self, z: Tensor) -> Tensor:
        self.seen.append(0.0)
        return z.relu()


class KeepsWhatItSaw(Around):
    """A plain attribute, as for an attention map to be looked at."""

    def middle(self, z: Tensor) -> Tensor:
        self.seen = z.detach().relu()
        return z.relu()


class ChangesABufferByAssignment(Around):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(8))

    def middle(self, z: Tensor) -> Tensor:
        self.scale = self.scale * 0.9
        self.scale = self.scale + 0.1 * z.detach().abs().mean(0)
        return z / self.scale


class MakesABufferLate(Around):
    def middle(self, z: Tensor) -> Tensor:
        if not hasattr(self, "scale"):
            self.register_buffer("scale", z.detach().abs().mean(0))
        return z / self.scale


class DrawsFromPython(Around):
    def middle(self, z: Tensor) -> Tensor:
        return z.relu() if random.random() < 0.5 else z.tanh()


class DrawsFromNumpy(Around):
    def middle(self, z: Tensor) -> Tensor:
        return z * float(np.random.rand())


class DrawsFromItsOwn(Around):
    """A generator of torch's that is the network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def middle(self, z: Tensor) -> Tensor:
        return z * torch.rand(8, generator=self.generator)


class DrawsFromItsOwnNumpy(Around):
    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(3)

    def middle(self, z: Tensor) -> Tensor:
        return z * float(self.generator.random())


class DrawsFromItsOwnPython(Around):
    def __init__(self) -> None:
        super().__init__()
        self.generator = random.Random(3)

    def middle(self, z: Tensor) -> Tensor:
        return z * self.generator.random()


class ForgetsByChance(Around):
    """Recomputed in the backward pass with the mask of the forward pass, which takes the generator's state back and forth."""

    def middle(self, z: Tensor) -> Tensor:
        found: Tensor = checkpoint(lambda z: nn.functional.dropout(z, 0.5), z, use_reentrant=False)
        return found


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.cells, self.last = nn.LSTM(2, 5, batch_first=True), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cells(x.view(len(x), 3, 2))[0][:, -1])


def hooked(register: Callable[[Around], object]) -> Around:
    net = Around(nn.ReLU())
    register(net)
    return net


def scripted() -> Around:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is going out of use
        return Around(torch.jit.script(nn.ReLU()))


def counts_in_a_closure() -> Around:
    calls, net = 0, Around()

    def middle(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return z.relu() if calls % 10 else z.tanh()

    net.middle = middle
    return net


class FreshStatistics(Around):
    """Batch normalization of statistics that are made anew for each minibatch, and read afterwards."""

    def middle(self, z: Tensor) -> Tensor:
        mean, var = torch.zeros(8), torch.ones(8)
        return nn.functional.batch_norm(z, mean, var, training=True) * var + mean


EAGER: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "an LSTM": (Recurrent, "cells (LSTM) is recurrent"),
    "a branch by a value": (BranchesOnValues, "cannot be recorded"),
    "a branch by numpy": (BranchesByNumpy, "cannot be recorded"),
    "numbers in a list": (BranchesByList, "cannot be recorded"),
    "rows by value": (ChoosesRows, "cannot be recorded"),
    "a counter": (Counts, "changes its own attributes in a forward pass"),
    "a counter on the class": (CountsOnItsClass, "changes its own attributes in a forward pass"),
    "a counter in a tensor": (CountsInATensor, "changes its own attributes in a forward pass"),
    "a counter in an array": (CountsInAnArray, "changes its own attributes in a forward pass"),
    "a counter that iterates": (CountsByIterating, "changes its own attributes in a forward pass"),
    "a counter deep inside": (CountsDeepInside, "changes its own attributes in a forward pass"),
    "a late switch": (SwitchesLate, "changes its own attributes in a forward pass"),
    "a list that grows": (Appends, "changes its own attributes in a forward pass"),
    "an attribute written": (KeepsWhatItSaw, "changes its own attributes in a forward pass"),
    "a buffer assigned": (ChangesABufferByAssignment, "changes its own attributes in a forward pass"),
    "python's random": (DrawsFromPython, "Python's or NumPy's random numbers"),
    "numpy's random": (DrawsFromNumpy, "Python's or NumPy's random numbers"),
    "a generator of its own": (DrawsFromItsOwn, ""),
    "a numpy generator of its own": (DrawsFromItsOwnNumpy, "changes its own attributes in a forward pass"),
    "a python generator of its own": (DrawsFromItsOwnPython, "changes its own attributes in a forward pass"),
    "dropout recomputed": (ForgetsByChance, ""),
    "a forward hook": (lambda: hooked(lambda net: net.inner.register_forward_hook(lambda *_: None)), "inner (ReLU) has a hook"),
    "a forward pre-hook": (lambda: hooked(lambda net: net.register_forward_pre_hook(lambda *_: None)), "the network (Around) has a hook"),
    "a backward hook": (lambda: hooked(lambda net: net.inner.register_full_backward_hook(lambda *_: None)), "inner (ReLU) has a hook"),
    "a hook of a parameter": (
        lambda: hooked(lambda net: net.first.bias.register_hook(lambda g: 2 * g)),
        "the parameter first.bias has a hook",
    ),
    "a hook after a gradient": (
        lambda: hooked(lambda net: net.first.bias.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", 2 * p.grad))),
        "the parameter first.bias has a hook",
    ),
    "TorchScript": (scripted, "is TorchScript"),
    "a closure that counts": (counts_in_a_closure, "changes its own attributes in a forward pass"),
    "statistics made anew": (FreshStatistics, "run as a graph, its results differ"),
}

# Networks that may run as a graph, and that are odd in some way.


class Squares(torch.autograd.Function):
    """With a gradient of its own, which is not the true one."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.square()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return 3 * z * gradient


class OwnGradient(Around):
    def middle(self, z: Tensor) -> Tensor:
        found: Tensor = Squares.apply(z)
        return found


class OwnGradientByNumpy(Around):
    class Doubles(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            return torch.from_numpy(2 * z.detach().numpy())

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return torch.from_numpy(2 * gradient.numpy())

    def middle(self, z: Tensor) -> Tensor:
        found: Tensor = self.Doubles.apply(z)
        return found


class Recomputes(Around):
    def middle(self, z: Tensor) -> Tensor:
        found: Tensor = checkpoint(torch.tanh, z, use_reentrant=False)
        return found


class Complex(Around):
    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.polar(torch.ones(5), torch.linspace(0, 1, 5)))

    def middle(self, z: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(z) * self.turn, n=8)


class Tied(Around):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.other.weight = self.one.weight

    def middle(self, z: Tensor) -> Tensor:
        return self.other(self.one(z).relu())


class TakesNoPart(Around):
    def __init__(self) -> None:
        super().__init__()
        self.aside = nn.Linear(3, 3)


class SharesAGradient(Around):
    """Both offsets have the very same gradient; that of the scale is one number spread over all units."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.spread = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8))

    def middle(self, z: Tensor) -> Tensor:
        return (z + (self.one + self.other)).tanh() + self.spread.sum()


class Turned(Around):
    """Parameters whose numbers do not lie one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Parameter(0.3 * torch.randn(8, 8).t())
        self.thin = nn.Parameter(0.3 * torch.randn(8, 16)[:, ::2])
        self.turned = nn.Parameter(0.3 * torch.randn(8, 8))

    def middle(self, z: Tensor) -> Tensor:
        return z @ self.square @ self.thin @ self.turned.t()


class InPlace(Around):
    def middle(self, z: Tensor) -> Tensor:
        z = (z.relu_() + 1).add_(1)
        z[:, 0] = 0.5
        z[:, 1:3].mul_(2)
        return z


class ChangesItsInput(Around):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(1.5))


class GivesItsInputBack(Around):
    """The output lies in the memory of the examples."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :CLASSES] if not self.training else (x + 0 * super().forward(x).sum())[:, :CLASSES]


class BuffersInPlace(Around):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(8))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("kept", torch.zeros(8), persistent=False)

    def middle(self, z: Tensor) -> Tensor:
        self.count += 1
        self.scale.mul_(0.9).add_(z.detach().abs().mean(0), alpha=0.1)
        self.kept.copy_(z.detach()[0])
        return z / self.scale * (1 + 0.1 * self.count)


class MapsOver(Around):
    def middle(self, z: Tensor) -> Tensor:
        return torch.func.vmap(lambda row: row.relu() / (1 + row.square().sum()))(z)


class TakesItsSlope(Around):
    def middle(self, z: Tensor) -> Tensor:
        return torch.func.vmap(torch.func.grad(lambda row: row.tanh().square().sum()))(z)


class HooksAnActivation(Around):
    """The gradient is changed on its way."""

    def middle(self, z: Tensor) -> Tensor:
        z = z.relu()
        if z.requires_grad:
            z.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
        return z


class ReadsAPlainTensor(Around):
    """A constant that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.linspace(0.5, 1.5, 8)

    def middle(self, z: Tensor) -> Tensor:
        return z * self.scale


class ReadsItsOwnWeights(Around):
    """Through a name that is no parameter's."""

    def __init__(self) -> None:
        super().__init__()
        self.aside = [self.first.weight]

    def middle(self, z: Tensor) -> Tensor:
        return z * (1 + self.aside[0].detach().square().mean())


class Attends(Around):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)

    def middle(self, z: Tensor) -> Tensor:
        z = z[:, None] * torch.linspace(0, 1, 4)[:, None]
        return self.attention(z, z, z)[0].mean(1)


def half() -> nn.Module:
    class Half(Around):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.half()).float()

    return Half(nn.Tanh()).half()


def spectral() -> nn.Module:
    torch.manual_seed(5)
    return Around(parametrizations.spectral_norm(nn.Linear(8, 8)))


def weight_normed() -> nn.Module:
    torch.manual_seed(5)
    return Around(parametrizations.weight_norm(nn.Linear(8, 8)))


def orthogonal() -> nn.Module:
    torch.manual_seed(5)
    return Around(parametrizations.orthogonal(nn.Linear(8, 8, bias=False)))


ODD: dict[str, Callable[[], nn.Module]] = {
    "a gradient of its own": OwnGradient,
    "a gradient by numpy": OwnGradientByNumpy,
    "a buffer made late": MakesABufferLate,
    "recomputed in the backward pass": Recomputes,
    "complex numbers": Complex,
    "16-bit weights": half,
    "tied weights": Tied,
    "a weight that takes no part": TakesNoPart,
    "a gradient of two weights": SharesAGradient,
    "weights in another order": Turned,
    "changes in place": InPlace,
    "its input changed in place": ChangesItsInput,
    "a part of its input for output": GivesItsInputBack,
    "buffers changed in place": BuffersInPlace,
    "a map": MapsOver,
    "a slope inside": TakesItsSlope,
    "a hook on an activation": HooksAnActivation,
    "a plain tensor": ReadsAPlainTensor,
    "its weights by another name": ReadsItsOwnWeights,
    "attention": Attends,
    "spectral norm": spectral,
    "weight norm": weight_normed,
    "orthogonal": orthogonal,
}
#: Of which it is known that they run as a graph.
AS_A_GRAPH = set(ODD) - {"a gradient by numpy", "a buffer made late"}


def module_of(net: nn.Module, loss: Callable[..., Tensor] = nn.functional.cross_entropy, **recipe: Any) -> Module:
    made = {"optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9), "schedule": lambda *_: 1.0, "seed": 3, **recipe}
    return Module(net, Task(loss), Recipe(**made), log_every=7)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Python's and NumPy's generators, which some of these networks draw from, begin alike in every fit of a test."""
    yield
    CountsOnItsClass.calls = 0


def begin() -> None:
    random.seed(1)
    np.random.seed(1)
    CountsOnItsClass.calls = 0


def trained(fit: Fit, make: Callable[[], Module], engine: str, **settings: Any) -> SimpleNamespace:
    begin()
    return fit(make(), X.clone(), Y.clone(), engine, **settings)


def outside(run: SimpleNamespace) -> list[Any]:
    """What is not in a state dict: the network's plain attributes, and the other random generators."""
    plain = [
        (name, {key: repr(value) for key, value in vars(part).items() if not key.startswith("_") and " at 0x" not in repr(value)})
        for name, part in run.module.net.named_modules()
    ]
    return [plain, random.getstate(), np.random.get_state()[1].tolist(), CountsOnItsClass.calls]


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "operation by operation" in record.getMessage()]


@pytest.mark.parametrize("name", EAGER)
def test_network_that_cannot_be_captured_trains_in_eager_with_the_same_numbers_and_says_why(
    name: str, fit: Fit, assert_same: Same, caplog: pytest.LogCaptureFixture
) -> None:
    net, reason = EAGER[name]
    make = lambda: module_of(net())  # noqa: E731
    eager = trained(fit, make, "eager")
    kept = outside(eager)
    with caplog.at_level(logging.WARNING, logger="dnnkit"):
        auto = trained(fit, make, "auto")
    assert auto.graphs == 0
    assert_same(eager.state, auto.state)
    assert_same(kept, outside(auto))
    (said,) = reasons(caplog)
    assert reason in said
    with pytest.raises(ConfigError, match=r"trainer\.engine: cannot be captured here") as caught:
        trained(fit, make, "captured")
    assert caught.value.exit_code == 2
    assert reason in str(caught.value)


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_odd_network_ends_in_the_same_bits(name: str, accumulate: int, fit: Fit, assert_same: Same) -> None:
    make = lambda: module_of(ODD[name]())  # noqa: E731
    engine = "captured" if name in AS_A_GRAPH else "auto"
    eager, graph = (trained(fit, make, wanted, accumulate_grad_batches=accumulate) for wanted in ("eager", engine))
    assert_same(eager.state, graph.state)
    assert graph.graphs == 1 or name not in AS_A_GRAPH


# What an attempt leaves behind: nothing.


def everything(net: nn.Module) -> dict[str, Any]:
    """The values of a network's tensors, its gradients, its plain attributes and every random generator."""
    random_states = [random.getstate(), str(np.random.get_state()), torch.get_rng_state()]
    tensors = {name: tensor.clone() for name, tensor in (*net.named_parameters(), *net.named_buffers())}
    gradients = {name: None if tensor.grad is None else tensor.grad.clone() for name, tensor in net.named_parameters()}
    inside = {}
    for name, part in net.named_modules():
        for key, value in vars(part).items():
            if isinstance(value, torch.Generator):
                value = value.get_state()
            elif isinstance(value, np.random.Generator):
                value = str(value.bit_generator.state)
            elif isinstance(value, random.Random):
                value = value.getstate()
            elif not isinstance(value, Tensor):
                value = repr(value)
            inside[f"{name}.{key}"] = value.clone() if isinstance(value, Tensor) else value
    return {"random": random_states, "tensors": tensors, "gradients": gradients, "attributes": inside, "class": CountsOnItsClass.calls}


def least(net: nn.Module, x: Tensor, y: Tensor) -> Outcome:
    output = net(x)
    loss = nn.functional.cross_entropy(output, y)
    return Outcome(loss, loss, output, None)


@pytest.mark.parametrize("name", [*EAGER, *ODD])
def test_an_attempt_to_capture_changes_nothing(name: str, assert_same: Same) -> None:
    begin()
    net = EAGER[name][0]() if name in EAGER else ODD[name]()
    x, y = X[:8].clone(), Y[:8].clone()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    places, before = [tensor.data_ptr() for tensor in net.state_dict().values()], everything(net)
    made: StepGraph | CannotCapture
    try:
        made = capture(net, least, x, y, 1, nullcontext)
    except CannotCapture as error:
        made = error
    assert_same(before, everything(net))
    assert places == [tensor.data_ptr() for tensor in net.state_dict().values()]
    assert torch.equal(x, X[:8])
    assert torch.equal(y, Y[:8])
    assert isinstance(made, CannotCapture) == (name not in AS_A_GRAPH)


class KnowsItsWeights(nn.Module):
    """A copy of it has other weights, which it does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.scale = {id(parameter): 2.0 for parameter in self.parameters()}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.scale[id(self.layer.weight)]


def test_a_network_whose_copy_does_not_run_gives_that_as_the_reason() -> None:
    net, objective = KnowsItsWeights(), lambda net, x, y: minimised(net, x, y, nn.functional.cross_entropy, None)
    with pytest.raises(CannotCapture, match="a copy of the network does not run \\(KeyError"):
        capture(net, objective, torch.randn(5, 4), torch.zeros(5, dtype=torch.int64), 1, nullcontext)


def test_an_objective_that_is_set_on_the_module_during_training_is_heard(fit: Callable[..., SimpleNamespace], assert_same: Any) -> None:
    class Doubles(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
            if trainer.current_epoch == 1:
                plain = Module.objective.__get__(module)

                def doubled(x: Tensor, y: Tensor, weight: float = 1.0) -> Outcome:
                    outcome = plain(x, y, weight)
                    return outcome._replace(total=2 * outcome.total)

                module.objective = doubled

    x, y = torch.randn(160, 4, generator=torch.Generator().manual_seed(0)), torch.arange(160) % 3
    ends = []
    for engine in ("eager", "auto"):
        torch.manual_seed(0)
        net = nn.Linear(4, 3)
        recipe = Recipe(lambda parameters: torch.optim.SGD(parameters, lr=0.1), lambda step, total: 1.0)
        module = Module(net, Task(nn.functional.cross_entropy), recipe)
        run = fit(module, x, y, engine, callbacks=[Doubles()], log_every_n_steps=5)
        ends.append({name: value.clone() for name, value in net.state_dict().items()})
        assert run.graphs == (engine == "auto")
    assert_same(*ends)
