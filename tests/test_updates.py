"""The update of captured steps, cut short where nobody looks: the same bits, and everybody who has a say is heard."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dnnkit import plugins
from dnnkit.data.resident import epoch_order
from dnnkit.errors import DivergedError
from dnnkit.loop import updates
from dnnkit.module import Module, Recipe, Task
from dnnkit.registry import REGISTRIES, optimizers

plugins.load()

Fit = Callable[..., SimpleNamespace]
Same = Callable[[Any, Any], None]

ROWS, BATCH, FEATURES = 150, 8, 6  # 19 minibatches, the last of 6 examples; a window is 7 updates, a logger asks every 10
X = torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(4))
Y = X[:, :3].argmax(1)

VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {} for name in optimizers.names()},
    "momentum, decoupled": {"weight_decay": 0.1, "decoupled": True},
    "momentum as in Keras": {"keras_momentum": True},
    "adam, eps_hat": {"eps_hat": True},
    "adam, coupled": {"weight_decay": 0.1},
    "nadam, decoupled": {"weight_decay": 0.1, "decoupled": True},
    "rmsprop, inside": {"eps_inside": True, "momentum": 0.5},
}


def made(variant: str, groups: bool = False) -> tuple[list[nn.Parameter], Any]:
    """Weights of several shapes, and a registered optimizer of them."""
    generator = torch.Generator().manual_seed(1)
    weights = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 4), (5,), (3, 2, 2, 2), (3,))]
    params: Any = [{"params": [weights[3], weights[0]], "lr": 0.01}, {"params": weights[1:3], "lr": 0.02}] if groups else weights
    make = REGISTRIES["optimizer"].get(variant.partition(",")[0].partition(" ")[0]).function
    return weights, make(params, lr=0.05, **VARIANTS[variant])


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator) for shape in ((5, 4), (5,), (3, 2, 2, 2), (3,))]


def give(weights: list[nn.Parameter], found: list[Tensor]) -> None:
    for weight, gradient in zip(weights, found, strict=True):
        weight.grad = gradient


@pytest.mark.parametrize("groups", [False, True], ids=["one group", "two groups"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_direct_updates_leave_the_bits_that_steps_leave(variant: str, groups: bool, assert_same: Same) -> None:
    (ones, plain), (others, short) = made(variant, groups), made(variant, groups)
    direct = None
    for step in range(30):
        for optimizer in (plain, short):
            for place, group in enumerate(optimizer.param_groups):
                group["lr"] = 0.05 / (step + place + 1)  # as a schedule does within a chunk
        give(ones, gradients(step))
        plain.step()
        if direct is None or step % 10 == 0:
            give(others, gradients(step))
            short.step()
            direct = short.direct(others)
            assert direct is not None
            give(others, [torch.full_like(weight, torch.nan) for weight in others])  # which nobody is to look at
        else:
            with torch.no_grad():
                direct(gradients(step))
    assert_same([weight.detach() for weight in ones], [weight.detach() for weight in others])
    assert_same(plain.state_dict(), short.state_dict())


def with_a_hook(weights: list[nn.Parameter], optimizer: Any) -> None:
    optimizer.register_step_post_hook(lambda *_: None)


def with_a_step_of_its_own(weights: list[nn.Parameter], optimizer: Any) -> None:
    optimizer.step = lambda closure=None: None


def with_a_gradient_that_is_turned(weights: list[nn.Parameter], optimizer: Any) -> None:
    weights[0].grad = torch.ones(4, 5).t()


def with_a_weight_more(weights: list[nn.Parameter], optimizer: Any) -> None:
    more = nn.Parameter(torch.ones(2))
    more.grad = torch.ones(2)
    optimizer.add_param_group({"params": [more]})


def with_torchs_own_step(weights: list[nn.Parameter], optimizer: Any) -> None:
    optimizer.param_groups[0]["maximize"] = True


OBSTACLES = (with_a_hook, with_a_step_of_its_own, with_a_gradient_that_is_turned, with_a_weight_more, with_torchs_own_step)


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_an_update_is_not_offered_directly_where_a_step_does_more(obstacle: Callable[..., None]) -> None:
    weights, optimizer = made("momentum")
    give(weights, gradients(0))
    optimizer.step()
    assert optimizer.direct(weights) is not None
    obstacle(weights, optimizer)
    assert optimizer.direct(weights) is None


def module(optimizer: str = "momentum", **recipe: Any) -> Module:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))
    make: Any = recipe.pop("make", partial(optimizers.get(optimizer).function, lr=0.05))
    return Module(net, Task(nn.CrossEntropyLoss()), Recipe(make, lambda step, total: 1 - step / total, seed=3, **recipe), 7)


@pytest.fixture
def shortcuts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many updates were made directly, as its length."""
    seen: list[int] = []

    class Counted(updates.Unrecorded):
        def __enter__(self) -> None:
            seen.append(1)
            super().__enter__()

    monkeypatch.setattr(updates, "Unrecorded", Counted)
    return seen


@pytest.mark.parametrize("optimizer", optimizers.names())
def test_a_run_whose_updates_are_cut_short_ends_in_the_same_bits(optimizer: str, fit: Fit, assert_same: Same, shortcuts: list[int]) -> None:
    eager, captured = (fit(module(optimizer), X, Y, engine) for engine in ("eager", "captured"))
    assert_same(eager.state, captured.state)
    # Windows and the logger end chunks after 7, 10, 14, 19, 21, 28, 29, 30, 35 and 38 of 38 updates; the epochs' last minibatches
    # are run operation by operation, and the first and last update of a chunk go the whole way.
    assert len(shortcuts) == sum(max(0, size - 2) for size in (7, 3, 4, 5, 2, 7, 1, 1, 5, 3))


class AtChunks(pl.Callback):
    chunked = True

    def __init__(self, act: Callable[[Module, Any, int], object]) -> None:
        self.act = act

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.act(pl_module, trainer.optimizers[0], trainer.global_step)


def test_whoever_looks_at_a_chunks_end_sees_the_gradients_of_its_last_update(fit: Fit, assert_same: Same, shortcuts: list[int]) -> None:
    seen: dict[str, list[Any]] = {"eager": [], "captured": []}

    def look(found: list[Any], module: Module, optimizer: Optimizer, step: int) -> None:
        found.append((step, [parameter.grad.clone() for parameter in module.net.parameters()]))  # type: ignore[union-attr]

    for engine, found in seen.items():
        fit(module(), X, Y, engine, callbacks=[AtChunks(partial(look, found))])
    assert shortcuts
    assert_same(seen["eager"], seen["captured"])


def test_a_hook_that_comes_in_mid_run_is_called_at_every_update_from_then_on(fit: Fit, shortcuts: list[int]) -> None:
    called: list[int] = []

    def join(module: Module, optimizer: Optimizer, step: int) -> None:
        if step == 14:
            optimizer.register_step_post_hook(lambda *_: called.append(1))

    fit(module(), X, Y, "captured", callbacks=[AtChunks(join)])
    assert shortcuts
    assert len(called) == 38 - 14


def shrunk(net: nn.Module) -> None:
    for parameter in net.parameters():
        parameter.mul_(0.99)


def clipped(parameters: list[nn.Parameter]) -> Tensor:
    return torch.nn.utils.clip_grad_norm_(parameters, 0.1)


WITH_A_SAY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a constraint": ({"constrain": shrunk}, {}),
    "a clipping": ({"clip": clipped}, {}),
    "the Trainer's clipping": ({}, {"gradient_clip_val": 0.1}),
    "groups of minibatches": ({}, {"accumulate_grad_batches": 2}),
    "an optimizer that offers nothing": ({"make": partial(torch.optim.SGD, lr=0.05, momentum=0.9)}, {}),
}


@pytest.mark.parametrize("name", WITH_A_SAY)
def test_where_somebody_else_has_a_say_every_update_goes_the_whole_way(
    name: str, fit: Fit, assert_same: Same, shortcuts: list[int]
) -> None:
    recipe, settings = WITH_A_SAY[name]
    eager, captured = (fit(module(**recipe), X, Y, engine, **settings) for engine in ("eager", "captured"))
    assert_same(eager.state, captured.state)
    assert not shortcuts


def test_a_module_that_clips_in_a_way_of_its_own_is_asked_at_every_update(fit: Fit, assert_same: Same, shortcuts: list[int]) -> None:
    class Halving(Module):
        def configure_gradient_clipping(self, optimizer: Any, *settings: Any) -> None:
            super().configure_gradient_clipping(optimizer, *settings)
            for parameter in self.net.parameters():
                parameter.grad.mul_(0.5)  # type: ignore[union-attr]

    def halving() -> Module:
        like = module()
        return Halving(like.net, like.task, like.recipe, like.log_every)

    eager, captured = (fit(halving(), X, Y, engine) for engine in ("eager", "captured"))
    assert_same(eager.state, captured.state)
    assert not shortcuts


def rooted(prediction: Tensor, target: Tensor) -> Tensor:
    """Finite; its gradient is not, where a prediction is below its target: an infinity times 0."""
    gap = prediction - target
    return (gap * (gap > 0)).sqrt().mean()


@pytest.mark.parametrize("update", [1, 3, 7])
def test_a_gradient_that_is_not_finite_ends_the_run_before_its_update_wherever_in_a_chunk_it_is(
    update: int, fit: Fit, assert_same: Same
) -> None:
    targets = torch.full((ROWS, 3), -1e3)
    targets[epoch_order(ROWS, 3, 0)[(update - 1) * BATCH]] = 1e3

    def end(engine: str) -> Any:
        like = module()
        run = Module(like.net, Task(rooted), like.recipe, 7)
        with pytest.raises(DivergedError, match=f"grad_norm is nan at step {update}"):
            fit(run, X, targets, engine)
        return run.trainer.global_step, run.state_dict(), run.trainer.optimizers[0].state_dict()

    eager, captured = end("eager"), end("captured")
    assert captured[0] == update - 1
    assert_same(eager, captured)
