"""The two components against closed forms and against the update rule written out in NumPy."""

import math

import numpy as np
import pytest
import torch
from dnnkit_example.components import lion, squareplus

Z = torch.linspace(-20, 20, 801, dtype=torch.float64)
WIDTHS = [0.25, 1.0, 4.0]


@pytest.mark.parametrize("b", WIDTHS)
def test_squareplus_undoes_its_inverse(b):
    y = torch.logspace(-3, 3, 200, dtype=torch.float64)
    # The positive root of y² − zy − b/4 = 0 solved for z.
    torch.testing.assert_close(squareplus(b)(y - b / (4 * y)), y, rtol=1e-12, atol=0)


@pytest.mark.parametrize("b", WIDTHS)
def test_squareplus_is_the_printed_formula(b):
    z = Z.numpy()
    np.testing.assert_allclose(squareplus(b)(Z).numpy(), (z + np.sqrt(z**2 + b)) / 2, rtol=1e-11)


def test_squareplus_at_zero_has_the_value_and_the_curvature_of_softplus():
    same_value, same_curvature = squareplus(4 * math.log(2) ** 2), squareplus(4.0)
    zero = torch.zeros(1, dtype=torch.float64)
    assert same_value(zero).item() == pytest.approx(math.log(2), rel=1e-12)
    h = 1e-4
    curvature = (same_curvature(zero + h) - 2 * same_curvature(zero) + same_curvature(zero - h)) / h**2
    assert curvature.item() == pytest.approx(1 / 4, rel=1e-5)


def test_squareplus_keeps_its_digits_far_below_zero():
    z = torch.tensor([-1e2, -1e4, -1e6], dtype=torch.float32)
    # (sqrt(z² + b) + z)/2 = b/(4|z|) · (1 − b/(4z²) + …)
    torch.testing.assert_close(squareplus(4.0)(z), 4.0 / (4 * z.abs()), rtol=2e-4, atol=0)


def test_squareplus_gradient_is_finite_and_right_everywhere():
    z = torch.tensor([-1e4, -3.0, 0.0, 3.0, 1e4], dtype=torch.float64, requires_grad=True)
    squareplus(4.0)(z).sum().backward()
    expected = (1 + z.detach() / (z.detach() ** 2 + 4).sqrt()) / 2
    torch.testing.assert_close(z.grad, expected, rtol=1e-6, atol=1e-12)


def test_squareplus_second_moment_of_a_standard_normal_is_a_half_plus_a_quarter_b():
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    y = squareplus(4.0)(torch.from_numpy(nodes)).numpy()
    assert (weights * y**2).sum() / weights.sum() == pytest.approx(1 / 2 + 4 / 4, rel=1e-3)


def test_lion_moves_every_coordinate_by_lr_under_a_constant_gradient():
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    optimizer = lion([parameter], lr=0.01)
    for _ in range(5):
        parameter.grad = torch.tensor([1e-8, -1e3, 0.0], dtype=torch.float64)
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([0.95, -1.95, 3.0], dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("steps_forward", "turns_at_once"), [(11, True), (12, False)])
def test_lion_turns_round_when_the_momentum_allows(steps_forward, turns_at_once):
    # After t gradients of 1 the momentum is 1 − .99^t; a gradient of −1 wins if .9(1 − .99^t) < .1, that is t ≤ 11.
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = lion([parameter], lr=1.0)
    for gradient in [1.0] * steps_forward + [-1.0]:
        before = parameter.item()
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    assert parameter.item() - before == (1.0 if turns_at_once else -1.0)


def test_lion_follows_its_update_rule_for_30_steps():
    generator = np.random.default_rng(0)
    start, gradients = generator.normal(size=7), generator.normal(size=(30, 7))
    lr, beta1, beta2, decay = 0.003, 0.8, 0.95, 0.1
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = lion([parameter], lr, beta1, beta2, decay)
    theta, m = start.copy(), np.zeros(7)
    for g in gradients:
        parameter.grad = torch.from_numpy(g.copy())
        optimizer.step()
        theta = theta - lr * (np.sign(beta1 * m + (1 - beta1) * g) + decay * theta)
        m = beta2 * m + (1 - beta2) * g
    np.testing.assert_allclose(parameter.detach().numpy(), theta, rtol=1e-12)


def test_lion_continues_from_its_saved_state():
    def run(optimizer, parameter, steps):
        for step in steps:
            parameter.grad = torch.full_like(parameter, math.cos(step))
            optimizer.step()

    whole, first = (torch.nn.Parameter(torch.zeros(3, dtype=torch.float64)) for _ in range(2))
    run(lion([whole], lr=0.01), whole, range(20))
    before = lion([first], lr=0.01)
    run(before, first, range(10))
    second = torch.nn.Parameter(first.detach().clone())
    after = lion([second], lr=0.01)
    after.load_state_dict(before.state_dict())
    run(after, second, range(10, 20))
    assert torch.equal(whole, second)


def test_lion_leaves_parameters_without_a_gradient_alone():
    used, unused = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = lion([used, unused], lr=0.1, weight_decay=0.5)
    used.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(unused, torch.ones(2))
    torch.testing.assert_close(used.detach(), torch.full((2,), 1 - 0.1 * (1 + 0.5)))
