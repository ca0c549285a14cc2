"""Optimizers: torch's own, in their fastest exact form. g is the gradient, t the step from 1, w the parameter.

`lr` is the peak rate, which a scheduler's factor multiplies. `weight_decay` λ is torch's: λ · w is added to g; so sgd with
λ = 2c is sgd with the loss term c · Σw², Keras's l2(c). With `decoupled` it is Keras's: w ← w − lr · λ · w before the update,
which leaves moments and velocities alone.

The fact `adaptive` says that steps are divided by a running size of the gradient, so that the rate is about the step itself.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from annotated_types import Ge, Gt, Interval
from torch import Tensor
from torch.optim import Optimizer

from dnnkit.registry import optimizers
from dnnkit_plugins.lean import Lean, decoupled, epsilon_hat, is_dense
from dnnkit_plugins.update_rules import SGD, Adagrad, Adam, Adamax, InsideRMSprop, NAdam, RMSprop, VelocitySGD

#: Parameters, or groups of them: `{"params": [...], ...settings of their own}`.
Params = Sequence[Tensor] | Sequence[dict[str, Any]]
Rate = Annotated[float, Gt(0)]
Share = Annotated[float, Interval(ge=0, lt=1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]


@optimizers.register("sgd")
def sgd(params: Params, lr: Rate = 0.01, weight_decay: NotNegative = 0.0) -> Optimizer:
    """Stochastic gradient descent: w ← w − lr · g.

    Here coupled and decoupled weight decay are the same: w ← w − lr · (g + weight_decay · w).
    Source: Robbins & Monro 1951.
    """
    return _fused(SGD, params, lr=lr, weight_decay=weight_decay)


@optimizers.register("momentum")
def momentum(
    params: Params,
    lr: Rate = 0.05,
    momentum: Share = 0.9,
    weight_decay: NotNegative = 0.0,
    decoupled: bool = False,
    keras_momentum: bool = False,
) -> Optimizer:
    """Gradient descent with momentum: v ← momentum · v + g, then w ← w − lr · v.

    The paper and Keras have the rate inside the velocity, v ← momentum · v − lr · g, then w ← w + v: the same while the
    rate stays, another run when it changes. `keras_momentum` takes theirs.
    `weight_decay` is added to g, times w; `decoupled`: w ← w − lr · weight_decay · w instead.
    Source: Polyak 1964.
    """
    return _with_momentum(params, decoupled, keras_momentum, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=False)


@optimizers.register("nesterov")
def nesterov(
    params: Params,
    lr: Rate = 0.05,
    momentum: Annotated[float, Interval(gt=0, lt=1)] = 0.9,
    weight_decay: NotNegative = 0.0,
    decoupled: bool = False,
    keras_momentum: bool = False,
) -> Optimizer:
    """Nesterov's accelerated gradient: v ← momentum · v + g, then w ← w − lr · (g + momentum · v).

    The paper and Keras have the rate inside the velocity, v ← momentum · v − lr · g, then w ← w + momentum · v − lr · g: the
    same while the rate stays, another run when it changes. `keras_momentum` takes theirs.
    `weight_decay` is added to g, times w; `decoupled`: w ← w − lr · weight_decay · w instead.
    Source: Nesterov 1983, in the form of Sutskever, Martens, Dahl & Hinton 2013 with the parameters kept at the point where
    the gradient is taken.
    """
    return _with_momentum(params, decoupled, keras_momentum, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=True)


@optimizers.register("adagrad")
def adagrad(
    params: Params,
    lr: Rate = 0.01,
    initial_accumulator_value: NotNegative = 0.0,
    eps: Positive = 1e-10,
    weight_decay: NotNegative = 0.0,
    decoupled: bool = False,
) -> Optimizer:
    """A rate for each parameter that only falls: s ← s + g², then w ← w − lr · g / (√s + eps); s is `initial_accumulator_value` at first.

    Keras has initial_accumulator_value 0.1 and eps 1e-7, inside the root. `weight_decay` as in `momentum`.
    Source: Duchi, Hazan & Singer 2011.
    """
    settings = {"lr": lr, "initial_accumulator_value": initial_accumulator_value, "eps": eps, "weight_decay": weight_decay}
    return _decayed(_fused(Adagrad, params, **settings), decoupled)


@optimizers.register("rmsprop", adaptive=True)
def rmsprop(
    params: Params,
    lr: Rate = 0.01,
    alpha: Share = 0.99,
    eps: Positive = 1e-8,
    momentum: Share = 0.0,
    centered: bool = False,
    weight_decay: NotNegative = 0.0,
    decoupled: bool = False,
    eps_inside: bool = False,
) -> Optimizer:
    """A rate for each parameter by its recent gradients: s ← alpha · s + (1 − alpha) · g², then w ← w − lr · g / (√s + eps).

    `centered` takes s − ḡ², the running variance, for s. With a momentum b ← momentum · b + g / (√s + eps), then w ← w − lr · b.
    Keras has lr 0.001, alpha 0.9, eps 1e-7, which `eps_inside` puts where Keras has it: g / √(s + eps), and the rate inside b.
    `weight_decay` as in `momentum`.
    Source: Tieleman & Hinton 2012, lecture 6.5, whose alpha is 0.9; Graves 2013 for `centered`.
    """
    settings = {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum, "centered": centered, "weight_decay": weight_decay}
    made = InsideRMSprop(params, **settings) if eps_inside else RMSprop(params, **settings, foreach=True)
    return _decayed(made, decoupled)


@optimizers.register("adam", adaptive=True)
def adam(
    params: Params,
    lr: Rate = 1e-3,
    beta1: Share = 0.9,
    beta2: Share = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NotNegative = 0.0,
    decoupled: bool = False,
    amsgrad: bool = False,
    eps_hat: bool = False,
) -> Optimizer:
    """Adaptive moments: w ← w − lr · m̂ / (√v̂ + eps).

    m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)g², m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ). `amsgrad` takes the greatest v so far for v.
    Keras has eps 1e-7, which `eps_hat` puts where Keras and the end of the paper's section 2 have it: before v is corrected,
    w ← w − lr · √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + eps). `weight_decay` as in `momentum`.
    Source: Kingma & Ba 2015, algorithm 1; Reddi, Kale & Kumar 2018 for `amsgrad`.
    """
    return _adam(
        params, (beta1, beta2), eps_hat, lr=lr, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, decoupled_weight_decay=decoupled
    )


@optimizers.register("adamw", adaptive=True)
def adamw(
    params: Params,
    lr: Rate = 1e-3,
    beta1: Share = 0.9,
    beta2: Share = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NotNegative = 0.01,
    amsgrad: bool = False,
    eps_hat: bool = False,
) -> Optimizer:
    """Adam with decoupled weight decay: w ← w − lr · weight_decay · w before Adam's update, whose moments know nothing of it.

    Keras has weight_decay 0.004; for eps see `adam`. The paper multiplies weight_decay by the schedule's factor alone, torch
    and Keras by lr.
    Source: Loshchilov & Hutter 2019, algorithm 2.
    """
    return _adam(params, (beta1, beta2), eps_hat, lr=lr, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, decoupled_weight_decay=True)


@optimizers.register("adamax", adaptive=True)
def adamax(
    params: Params,
    lr: Rate = 2e-3,
    beta1: Share = 0.9,
    beta2: Share = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NotNegative = 0.0,
    decoupled: bool = False,
) -> Optimizer:
    """Adam by the largest gradient: w ← w − lr · m / ((1 − β₁ᵗ) · u), m ← β₁m + (1 − β₁)g, u ← max(β₂u, |g| + eps).

    The paper has no eps; Keras adds 1e-7 to u afterwards, and has lr 0.001. `weight_decay` as in `momentum`.
    Source: Kingma & Ba 2015, algorithm 2.
    """
    settings = {"lr": lr, "betas": (beta1, beta2), "eps": eps, "weight_decay": weight_decay}
    return _decayed(Adamax(params, **settings, foreach=True), decoupled)


@optimizers.register("nadam", adaptive=True)
def nadam(
    params: Params,
    lr: Rate = 2e-3,
    beta1: Share = 0.9,
    beta2: Share = 0.999,
    eps: Positive = 1e-8,
    momentum_decay: NotNegative = 0.004,
    weight_decay: NotNegative = 0.0,
    decoupled: bool = False,
) -> Optimizer:
    """Adam with Nesterov's momentum: w ← w − lr · (μₜ₊₁ · m / (1 − Πμ₁…ₜ₊₁) + (1 − μₜ) · g / (1 − Πμ₁…ₜ)) / (√v̂ + eps).

    m, v and v̂ are as in `adam`; μₜ = β₁ · (1 − 0.96^(t · momentum_decay) / 2) rises from β₁/2 to β₁.
    Keras is reproduced by momentum_decay 1 and eps 1e-7; its lr is 0.001. `weight_decay` as in `momentum`.
    Source: Dozat 2016, whose decay is 0.004.
    """
    settings = {"lr": lr, "betas": (beta1, beta2), "eps": eps, "momentum_decay": momentum_decay, "weight_decay": weight_decay}
    return NAdam(params, **settings, decoupled_weight_decay=decoupled, foreach=True)


#: Where torch has a kernel that makes the whole update in one call.
_FUSED = ("cpu", "cuda")


def _fused(optimizer: Callable[..., Lean], params: Params, **settings: Any) -> Lean:
    tensors: list[Tensor] = [tensor for item in params for tensor in (item["params"] if isinstance(item, dict) else [item])]
    fused = all(tensor.device.type in _FUSED and tensor.is_floating_point() and is_dense(tensor) for tensor in tensors)
    return optimizer(params, **settings, fused=fused or None)


def _decayed(optimizer: Lean, apart: bool) -> Optimizer:
    return decoupled(optimizer) if apart else optimizer


def _with_momentum(params: Params, apart: bool, inside: bool, **settings: Any) -> Optimizer:
    return _decayed(VelocitySGD(params, **settings) if inside else _fused(SGD, params, **settings), apart)


def _adam(params: Params, betas: tuple[float, float], hat: bool, **settings: Any) -> Optimizer:
    made = _fused(Adam, params, betas=betas, **settings)
    return epsilon_hat(made) if hat else made
