"""The update with less bookkeeping against torch's own optimizers: bit for bit, or to rounding where another kernel does it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, optimizer

from dnnkit import plugins
from dnnkit.registry import optimizers

plugins.load()

Make = Callable[[Any], Optimizer]
SHAPES = ((30, 20), (30,), (4, 3, 2, 2), (), (7, 5), (7,))


def stock(kind: type[Optimizer], **settings: Any) -> Make:
    return lambda params: kind(params, **settings)


def stock_nadam(**settings: Any) -> Make:
    """torch's, with the product of μ begun in the precision of the parameter, where torch takes float32 for float64 too."""

    def make(params: Any) -> Optimizer:
        made = torch.optim.NAdam(params, **settings)
        for param in (param for group in made.param_groups for param in group["params"]):
            start = {"step": torch.tensor(0.0), "mu_product": torch.ones((), dtype=param.dtype)}
            made.state[param] = start | {name: torch.zeros_like(param) for name in ("exp_avg", "exp_avg_sq")}
        return made

    return make


#: name, our settings, torch's own optimizer, and how far weights of about 1 may be from torch's (float32, float64).
CASES: list[tuple[str, dict[str, Any], Make, tuple[float, float]]] = [
    ("sgd", {"weight_decay": 0.1}, stock(torch.optim.SGD, lr=0.01, weight_decay=0.1, fused=True), (0, 0)),
    ("momentum", {"weight_decay": 0.1}, stock(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1, fused=True), (0, 0)),
    ("nesterov", {}, stock(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, fused=True), (0, 0)),
    ("adagrad", {"weight_decay": 0.1}, stock(torch.optim.Adagrad, lr=0.01, weight_decay=0.1, fused=True), (0, 0)),
    ("adagrad", {"initial_accumulator_value": 0.1}, stock(torch.optim.Adagrad, initial_accumulator_value=0.1, fused=True), (0, 0)),
    ("adam", {"weight_decay": 0.1}, stock(torch.optim.Adam, weight_decay=0.1, fused=True), (0, 0)),
    ("adam", {"amsgrad": True, "beta2": 0.9}, stock(torch.optim.Adam, amsgrad=True, betas=(0.9, 0.9), fused=True), (0, 0)),
    ("adamw", {}, stock(torch.optim.AdamW, fused=True), (0, 0)),
    ("adamax", {}, stock(torch.optim.Adamax, foreach=True), (0, 0)),
    ("adamax", {"weight_decay": 0.1}, stock(torch.optim.Adamax, weight_decay=0.1, foreach=True), (0, 0)),
    ("rmsprop", {"centered": True, "eps": 0.1}, stock(torch.optim.RMSprop, centered=True, eps=0.1, foreach=True), (0, 0)),
    ("rmsprop", {"weight_decay": 0.1}, stock(torch.optim.RMSprop, weight_decay=0.1), (2e-6, 4e-15)),
    ("rmsprop", {"momentum": 0.5}, stock(torch.optim.RMSprop, momentum=0.5), (4e-6, 8e-15)),
    ("nadam", {}, stock_nadam(), (4e-6, 8e-15)),
    ("nadam", {"weight_decay": 0.1, "momentum_decay": 1.0}, stock_nadam(weight_decay=0.1, momentum_decay=1.0), (4e-6, 8e-15)),
    (
        "nadam",
        {"weight_decay": 0.1, "decoupled": True},
        stock_nadam(weight_decay=0.1, decoupled_weight_decay=True),
        (4e-6, 8e-15),
    ),
    ("nadam", {"beta1": 0.1}, stock_nadam(betas=(0.1, 0.999), foreach=True), (0, 0)),
]
NAMES = [f"{name}-{index}" for index, (name, *_) in enumerate(CASES)]
every_case = pytest.mark.parametrize(("name", "settings", "theirs", "apart"), CASES, ids=NAMES)
both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def weights(dtype: torch.dtype = torch.float32, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)) for shape in shapes]


def give_gradients(params: list[nn.Parameter], t: int, frozen: tuple[int, ...] = ()) -> None:
    draw = torch.Generator().manual_seed(100 + t)
    for index, param in enumerate(params):
        noise = torch.randn(param.shape, generator=draw, dtype=torch.float64).to(param.dtype)
        param.grad = None if index in frozen else 0.1 * param.detach() + noise


def put(made: Optimizer, t: int, base: list[float]) -> None:
    """Another rate, and another momentum where there is one, at every step."""
    for group, lr in zip(made.param_groups, base, strict=True):
        group["lr"] = lr * (1 - t / 60)
        momentum = 0.95 - 0.1 * (t % 7) / 7
        if "betas" in group and group["betas"][0] > 0.5:
            group["betas"] = (momentum, group["betas"][1])
        elif group.get("momentum", 0) > 0.6:
            group["momentum"] = momentum


def train(made: Optimizer, params: list[nn.Parameter], steps: range, frozen: Callable[[int], tuple[int, ...]] = lambda t: ()) -> None:
    base = [made.defaults["lr"] * (0.5 if index else 1) for index in range(len(made.param_groups))]
    for t in steps:
        put(made, t, base)
        give_gradients(params, t, frozen(t))
        made.step()


def assert_near(ours: list[Any], theirs: list[Any], apart: float) -> None:
    for one, other in zip(ours, theirs, strict=True):
        if apart:
            torch.testing.assert_close(one, other, rtol=0, atol=apart)
        else:
            assert torch.equal(one, other)


def groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[:3]}, {"params": params[3:], "weight_decay": 0.01}]


@both_types
@every_case
def test_fifty_steps_of_two_groups_end_where_torchs_own_do(
    name: str, settings: dict[str, Any], theirs: Make, apart: tuple[float, float], dtype: torch.dtype
) -> None:
    mine, its = weights(dtype), weights(dtype)
    # From step 15 to step 29 one of each group is frozen, and from step 22 on one group is frozen whole.
    schedule = lambda t: (0, 4) if 15 <= t < 22 else (0, 3, 4, 5) if 22 <= t < 30 else ()  # noqa: E731
    train(optimizers.get(name).function(groups(mine), **settings), mine, range(50), schedule)
    train(theirs(groups(its)), its, range(50), schedule)
    assert_near(mine, its, apart[dtype is torch.float64])


def test_every_optimizer_that_torch_has_is_compared_with_it() -> None:
    assert {name for name, *_ in CASES} == {component.name for component in optimizers if component.origin.package == "dnnkit"}


@every_case
def test_the_state_has_torchs_layout_and_goes_to_torchs_class_and_back(
    name: str, settings: dict[str, Any], theirs: Make, apart: tuple[float, float]
) -> None:
    mine, its = weights(), weights()
    ours = optimizers.get(name).function(mine, **settings)
    other = theirs(its)
    train(ours, mine, range(10))
    train(other, its, range(10))
    saved, stocks = copy.deepcopy(ours.state_dict()), copy.deepcopy(other.state_dict())
    assert saved["param_groups"][0].keys() == stocks["param_groups"][0].keys()
    for index, state in stocks["state"].items():
        mirrored = saved["state"][index]
        assert {key: (value.shape, value.dtype) for key, value in state.items()} == {
            key: (value.shape, value.dtype) for key, value in mirrored.items()
        }
    # Each goes on from what the other saved, with the weights that belong to it.
    crossed, back = theirs(mine), optimizers.get(name).function(its, **settings)
    crossed.load_state_dict(saved)
    back.load_state_dict(stocks)
    train(crossed, mine, range(10, 20))
    train(back, its, range(10, 20))
    assert_near(mine, its, 2 * apart[0])


@every_case
def test_weights_that_begin_later_are_updated_as_if_they_were_alone(
    name: str, settings: dict[str, Any], theirs: Make, apart: tuple[float, float]
) -> None:
    together, alone = weights(), weights()
    train(optimizers.get(name).function(together, **settings), together, range(12), lambda t: (1, 4) if t < 5 else ())
    for chosen, begins in (((1, 4), 5), ((0, 2, 3, 5), 0)):
        rest = tuple(index for index in range(6) if index not in chosen)
        made = optimizers.get(name).function([alone[index] for index in chosen], **settings)
        train(made, alone, range(begins, 12), lambda t, rest=rest: rest)
    # Centred RMSprop and an early β₁ of 0.1 go by torch's lists, in which the order of parameters changes nothing either.
    assert_near(together, alone, 0)


@pytest.mark.parametrize("name", [component.name for component in optimizers if component.origin.package == "dnnkit"])
def test_a_gradient_in_another_memory_order_is_the_same_gradient(name: str) -> None:
    plain, turned = weights(shapes=((6, 4), (4, 3, 2, 2))), weights(shapes=((6, 4), (4, 3, 2, 2)))
    one, other = (optimizers.get(name).function(params) for params in (plain, turned))
    for t in range(6):
        give_gradients(plain, t)
        for param, source in zip(turned, plain, strict=True):
            assert source.grad is not None
            last = source.grad.movedim(0, -1).contiguous().movedim(-1, 0)
            param.grad = last
            assert last.stride() != source.grad.stride()
        one.step()
        other.step()
    assert_near(plain, turned, 0)


@pytest.mark.parametrize("name", ["momentum", "adam", "nadam", "rmsprop", "adagrad"])
def test_a_network_that_changes_its_memory_order_or_precision_is_trained_on(name: str) -> None:
    changed, plain = nn.Conv2d(3, 4, 2, bias=False), nn.Conv2d(3, 4, 2, bias=False)
    plain.load_state_dict(changed.state_dict())
    one, other = (optimizers.get(name).function(list(net.parameters())) for net in (changed, plain))
    for t in range(6):
        if t == 3:
            changed.to(memory_format=torch.channels_last)
            assert changed.weight.stride() != plain.weight.stride()
        give_gradients([plain.weight], t)
        assert plain.weight.grad is not None
        changed.weight.grad = plain.weight.grad.clone(memory_format=torch.contiguous_format if t % 2 else torch.channels_last)
        one.step()
        other.step()
    torch.testing.assert_close(changed.weight, plain.weight, rtol=0, atol=1e-6)


def test_parameters_with_gaps_in_memory_and_of_several_types_are_updated_as_the_formula_says() -> None:
    gaps = nn.Parameter(torch.zeros(4, 6)[:, ::2])
    mixed = [gaps, nn.Parameter(torch.zeros(3, dtype=torch.float64)), nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))]
    made = optimizers.get("sgd").function(mixed, lr=0.5)
    for param in mixed:
        param.grad = torch.arange(1.0, param.numel() + 1).view(param.shape).to(param.dtype)
    made.step()
    for param in mixed:
        torch.testing.assert_close(param.detach(), -0.5 * torch.arange(1.0, param.numel() + 1).view(param.shape).to(param.dtype))


@pytest.mark.parametrize(("name", "kind", "settings"), [("momentum", torch.optim.SGD, {"momentum": 0.9}), ("adam", torch.optim.Adam, {})])
def test_bfloat16_parameters_end_where_torchs_own_do(name: str, kind: type[Optimizer], settings: dict[str, Any]) -> None:
    mine, its = weights(torch.bfloat16), weights(torch.bfloat16)
    train(optimizers.get(name).function(mine, lr=0.01), mine, range(10))
    train(kind(its, lr=0.01, fused=True, **settings), its, range(10))  # type: ignore[call-arg]
    assert_near(mine, its, 0)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("momentum", {"decoupled": True, "weight_decay": 0.1}),
        ("adam", {"decoupled": True, "weight_decay": 0.1}),
        ("rmsprop", {"decoupled": True, "weight_decay": 0.1}),
        ("adam", {"eps_hat": True, "eps": 0.1}),
        ("nadam", {}),
    ],
)
def test_a_deep_copy_goes_on_as_the_original(name: str, settings: dict[str, Any]) -> None:
    params = weights()
    made = optimizers.get(name).function(params, **settings)
    train(made, params, range(5))
    twins, twin = copy.deepcopy((params, made))
    assert twin.param_groups[0]["params"][0] is twins[0]
    train(made, params, range(5, 10))
    train(twin, twins, range(5, 10))
    assert_near(params, twins, 0)


def test_nadam_strays_no_further_from_float64_than_torchs_own() -> None:
    def end(make: Make, dtype: torch.dtype) -> Tensor:
        params = weights(dtype, ((200, 50),))
        train(make(params), params, range(50))
        return params[0].detach().double()

    exact = end(stock(torch.optim.NAdam), torch.float64)
    ours, its = (
        (end(make, torch.float32) - exact).abs().mean()
        for make in (lambda params: optimizers.get("nadam").function(params), stock(torch.optim.NAdam))
    )
    assert ours < 1.2 * its < 1e-6


def test_rmsprop_forgets_a_large_gradient_in_its_direction() -> None:
    # Its kernel keeps a mean of gradients with β₁ = 0: what is left of the last one must be nothing, not a rounding error of it.
    param, other = nn.Parameter(torch.zeros(40)), nn.Parameter(torch.zeros(40))
    made, its = optimizers.get("rmsprop").function([param], alpha=0.0), torch.optim.RMSprop([other], alpha=0.0)
    for size in (1e9, 1e-3):
        for one in (param, other):
            one.grad = torch.full((40,), size)
        made.step()
        its.step()
    torch.testing.assert_close(param, other, rtol=1e-6, atol=0)


def test_a_sparse_gradient_is_refused_as_torch_does() -> None:
    for name in ("sgd", "momentum", "adam", "nadam", "rmsprop", "adamax"):
        for settings in ({}, {"keras_momentum": True}) if name == "momentum" else ({},):
            embedding = nn.Embedding(5, 3, sparse=True)
            made = optimizers.get(name).function(list(embedding.parameters()), **settings)
            embedding(torch.tensor([1, 2])).sum().backward()
            with pytest.raises(RuntimeError, match="support sparse grad"):
                made.step()


def test_hooks_of_the_optimizer_and_of_all_optimizers_run_once_a_step_each() -> None:
    calls: list[str] = []
    param = nn.Parameter(torch.ones(2))
    torch.optim.SGD([param], lr=0.1)  # torch wraps the step of the class that ours is made of
    made = optimizers.get("momentum").function([param], decoupled=True)
    kind: Any = type(made)
    handles = [
        made.register_step_pre_hook(lambda *_: calls.append("before")),
        made.register_step_post_hook(lambda *_: calls.append("after")),
        optimizer.register_optimizer_step_pre_hook(lambda *_: calls.append("all before")),
        optimizer.register_optimizer_step_post_hook(lambda *_: calls.append("all after")),
    ]
    for kernels in (kind.kernels, ("_no_such_kernel_",)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kind, "kernels", kernels)
            param.grad = torch.ones(2)
            made.step()
        assert calls == ["all before", "before", "after", "all after"]
        calls.clear()
    for handle in handles:
        handle.remove()
    made.step()
    assert calls == []


def test_a_profile_names_the_step() -> None:
    param = nn.Parameter(torch.ones(2))
    made = optimizers.get("adam").function([param])
    param.grad = torch.ones(2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        made.step()
    assert any(event.key == "Optimizer.step#Adam.step" for event in profile.key_averages())


def test_without_its_kernel_torchs_own_step_is_taken_and_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    mine, its = weights(), weights()
    monkeypatch.setattr(type(optimizers.get("nadam").function(mine)), "kernels", ("_fused_nothing_",))
    with caplog.at_level(logging.INFO, logger="dnnkit"):
        made = optimizers.get("nadam").function(mine)
    assert "_fused_nothing_" in caplog.text
    assert "NAdam" in caplog.text
    train(made, mine, range(5))
    train(torch.optim.NAdam(its, foreach=True), its, range(5))
    assert_near(mine, its, 0)


def test_a_scaled_gradient_with_an_infinity_leaves_all_as_it_is() -> None:
    for name in ("momentum", "adam"):
        params = weights()
        made: Any = optimizers.get(name).function(params)
        train(made, params, range(3))
        before = [param.detach().clone() for param in params]
        give_gradients(params, 3)
        made.grad_scale, made.found_inf = torch.tensor(2.0), torch.tensor(1.0)
        made.step()
        assert_near(params, before, 0)
        del made.grad_scale, made.found_inf
        made.step()
        assert not torch.equal(params[0], before[0])


def test_state_that_is_put_in_by_hand_counts() -> None:
    params = weights()
    made = optimizers.get("adam").function(params)
    train(made, params, range(3))
    for param in params:
        made.state[param] = {"step": torch.tensor(7.0), **{name: torch.zeros_like(param) for name in ("exp_avg", "exp_avg_sq")}}
    made.state[params[1]]["step"].fill_(9.0)
    give_gradients(params, 3)
    made.step()
    assert [made.state[param]["step"].item() for param in params] == [8, 10, 8, 8, 8, 8]
    made.state[params[1]]["step"] = torch.tensor(1.0)
    made.step()
    assert [made.state[param]["step"].item() for param in params] == [9, 2, 9, 9, 9, 9]


def test_zero_grad_forgets_gradients_or_makes_them_zero() -> None:
    params = weights()
    made = optimizers.get("nadam").function(params)
    give_gradients(params, 0)
    made.zero_grad(set_to_none=False)
    assert all(param.grad is not None and not param.grad.any() for param in params)
    made.zero_grad()
    assert all(param.grad is None for param in params)
    made.step()  # nothing to do is no mistake
    assert_near(params, weights(), 0)
