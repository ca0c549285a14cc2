"""The frame of an update: what torch's `step` finds out anew at every call is found once, and its kernels are called directly.

In a training step of a small network torch's bookkeeping takes longer than its kernel: records for the profiler, hooks, lists
by device and dtype, a count for every parameter. `Lean` leaves that out where nothing needs it, and hands over to torch's own
`step` where something does. Groups, state and its layout stay torch's, so that either class loads what the other saved.
"""

import logging
import math
from collections.abc import Callable, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer, optimizer

log = logging.getLogger("dnnkit")

#: Types in which a number and a tensor of that number give the same results.
EXACT = (torch.float32, torch.float64)
#: To add to a tensor of counts: a number would first be made a tensor.
ONE = torch.tensor(1.0)


class Lot:
    """The parameters of a group that have a gradient, with their states: the same from step to step, until they are not."""

    def __init__(self, weights: list[Tensor], states: list[dict[str, Any]]) -> None:
        self.weights, self.states = weights, states
        self.shapes = [weight.shape for weight in weights]
        self.strides = [weight.stride() for weight in weights]
        self.dtype, self.device = weights[0].dtype, weights[0].device
        #: Whether all are dense, on the CPU and of one type: a fused kernel goes over the memory and looks at nothing else.
        self.alike = all(w.is_cpu and w.dtype is self.dtype and w.is_floating_point() and is_dense(w) for w in weights)
        self._exact = self.alike and self.dtype in EXACT
        self.scratch: dict[str, list[Tensor]] = {}
        self._flat: dict[str, tuple[Tensor, list[Tensor]]] = {}

    def holds(self, weights: list[Tensor], states: list[dict[str, Any]]) -> bool:
        """Whether it is made of these very parameters and states, in the form that they have now."""
        first = weights[0]
        return (
            _same(weights, self.weights)
            and _same(states, self.states)
            and first.dtype is self.dtype
            and first.device == self.device
            and [weight.shape for weight in weights] == self.shapes
            and [weight.stride() for weight in weights] == self.strides
        )

    def each(self, name: str) -> list[Tensor]:
        """A running quantity of every parameter."""
        return [state[name] for state in self.states]

    def flat(self, name: str) -> tuple[Tensor, list[Tensor]]:
        """A scalar of every parameter's state, of shape (), as one tensor `(parameters,)` and the views of it that are the states'."""
        parts = [state[name] for state in self.states]
        kept = self._flat.get(name)
        if kept is None or not _same(parts, kept[1]):
            whole = torch.stack(parts)
            kept = self._flat[name] = (whole, list(whole.unbind()))
            for state, part in zip(self.states, kept[1], strict=True):
                state[name] = part
        return kept

    def scale(self, tensors: list[Tensor], factor: float) -> None:
        """Multiply each by a number, in place."""
        # torch makes a tensor of a number, converted for every item of the list; half types round it unlike the number.
        torch._foreach_mul_(tensors, torch.scalar_tensor(factor, dtype=self.dtype) if self._exact else factor)

    def shift(self, tensors: list[Tensor], amount: float) -> None:
        """Add a number to each, in place."""
        if self._exact:
            torch._foreach_add_(tensors, [torch.scalar_tensor(amount, dtype=self.dtype)] * len(tensors))
        else:
            torch._foreach_add_(tensors, amount)

    def decayed(self, gradients: list[Tensor], decay: float) -> list[Tensor]:
        """Add torch's weight decay, g + decay · w, in new tensors where it is not 0."""
        return list(torch._foreach_add(gradients, self.weights, alpha=decay)) if decay else gradients

    def fits(self) -> bool:
        """Whether every running quantity has the shape of its parameter, or none: kernels would read on beyond its end."""
        return all(
            not isinstance(value, Tensor) or value.dim() == 0 or value.shape == weight.shape
            for weight, state in zip(self.weights, self.states, strict=False)
            for value in state.values()
        )

    def lay_out_states(self) -> None:
        """Give every running quantity the memory order of its parameter, which a checkpoint need not have kept."""
        for weight, state in zip(self.weights, self.states, strict=False):
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                    state[name] = in_the_order_of(weight, value)


Work = list[tuple[dict[str, Any], Lot, list[Tensor]]]
"""Every group that has something to do, with its parameters and their gradients."""


class Lean(Optimizer):
    """A torch optimizer, to stand before torch's class among the bases; a rule of our own has none behind it.

    `kernels` are the functions of torch without which, `dtypes` the types of number beside which torch's own step is taken.
    """

    kernels: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    #: Whether torch has a step of its own for this rule.
    torchs = True

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        missing = self._missing()
        if missing:
            log.info("this torch has no %s: torch's own %s.step does the update", ", ".join(missing), type(self).__name__)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of every parameter that has a gradient, after `closure`, which computes it, where there is one."""
        if not _watched(self):
            return self._update_after(closure)
        return _observed(self) if closure is None else _observed(self, closure)

    step.hooked = True  # type: ignore[attr-defined]  # torch would wrap it otherwise

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for group in self.param_groups:
            for weight in group["params"]:
                weight.grad = None

    def _update_after(self, closure: Callable[[], Any] | None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            if "decay" in self.defaults:
                _take_decay(self)
            work = self._work()
            if work is None:
                self._torchs_step()
            else:
                self._do(work)
        return loss

    def direct(self, weights: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], None] | None:
        """`step` as a function of the gradients, one for each of `weights`, under `torch.no_grad`; `grad` is not looked at.

        To be asked for between a step of these weights and the next, and good until somebody changes more than a group's
        numbers: its weights, their states, a hook; and for gradients that lie in memory as those of that step do.
        None where a step has more to do than an update by kernels, or other weights to update.
        """
        inner = getattr(self.step, "__wrapped__", self.step)  # torch's schedulers wrap it to know that it was called
        work = None if _watched(self) or getattr(inner, "__func__", inner) is not Lean.step else self._work()
        places = {id(weight): place for place, weight in enumerate(weights)}
        if work is None or sorted(places.get(id(weight), -1) for _, lot, _ in work for weight in lot.weights) != sorted(places.values()):
            return None
        if any(weight.grad is not gradient for _, lot, gradients in work for weight, gradient in zip(lot.weights, gradients, strict=True)):
            return None  # they have to be copied first
        plan = [(group, lot, [places[id(weight)] for weight in lot.weights]) for group, lot, _ in work]

        def update(gradients: Sequence[Tensor]) -> None:
            self._do([(group, lot, [gradients[place] for place in chosen]) for group, lot, chosen in plan])

        return update

    def _do(self, work: Work) -> None:
        defaults = self.defaults
        if "eps_hat" in defaults:
            _put_eps(self)
        apart = "decay" in defaults
        for group, lot, gradients in work:
            if apart and group["decay"]:
                lot.scale(lot.weights, 1 - group["lr"] * group["decay"])
            self._update(group, lot, gradients)

    def _torchs_step(self) -> None:
        if "eps_hat" in self.defaults:
            _put_eps(self)
        apart = "decay" in self.defaults
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for weight in weights:
                if weight.grad.layout is torch.strided:
                    weight.grad = in_the_order_of(weight, weight.grad)
            if apart and group["decay"] and weights:
                torch._foreach_mul_(weights, 1 - group["lr"] * group["decay"])
        theirs: Any = super().step
        # torch wraps the step of a class once an optimizer of it has been made; the hooks have had their turn.
        (theirs.__wrapped__ if getattr(theirs, "hooked", False) else theirs.__func__)(self)

    def _work(self) -> Work | None:
        """Every group with its parameters and gradients; None where torch's own step has to do it."""
        # torch's GradScaler leaves its own two for the step.
        if self._missing() or "grad_scale" in vars(self) or "found_inf" in vars(self):
            return None
        work: Work = []
        for index, group in enumerate(self.param_groups):
            if self.torchs and not self._takes(group):
                return None
            weights = group["params"]
            gradients = [weight.grad for weight in weights]
            if any(gradient is None for gradient in gradients):
                weights = [weight for weight in weights if weight.grad is not None]
                gradients = [weight.grad for weight in weights]
            if weights:
                lot = self._lot(index, group, weights)
                if lot is None:
                    return None
                if [gradient.stride() for gradient in gradients] != lot.strides:
                    if any(gradient.layout is not torch.strided for gradient in gradients):
                        if self.torchs:
                            return None
                        raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
                    gradients = [in_the_order_of(weight, gradient) for weight, gradient in zip(weights, gradients, strict=True)]
                work.append((group, lot, gradients))
        return work

    def _lot(self, index: int, group: dict[str, Any], weights: list[Tensor]) -> Lot | None:
        """What is known of these parameters from the step before, or is found now; None where torch has to do the update."""
        lots = vars(self).setdefault("_lots", {})  # torch's copies and checkpoints leave it out
        states, known = self._states(group, weights), lots.get(index)
        if known is not None and known.holds(weights, states):
            return known
        lot = Lot(list(weights), states)
        if self.torchs and not (lot.alike and lot.dtype in self.dtypes):
            return None
        for weight, state in zip(lot.weights, states, strict=False):
            if not state:
                state.update(self._begin(group, weight))
        if not lot.fits():
            if self.torchs:
                return None  # torch's own step says what is wrong
            raise ValueError("the state of this optimizer was made for parameters of other shapes")
        lot.lay_out_states()
        lots[index] = lot
        return lot

    def _missing(self) -> list[str]:
        return [name for name in self.kernels if not hasattr(torch, name)]

    def _takes(self, group: dict[str, Any]) -> bool:
        """Whether the update below is that of a group with these settings."""
        unusual = group["maximize"] or group["differentiable"] or group.get("capturable")
        return not unusual and not isinstance(group["lr"], Tensor)

    def _states(self, group: dict[str, Any], weights: Sequence[Tensor]) -> list[dict[str, Any]]:
        state = self.state
        return [state[weight] for weight in weights]

    def _begin(self, group: dict[str, Any], weight: Tensor) -> dict[str, Any]:
        """The state of a parameter before its first update, as torch's class would begin it."""
        return {}

    def _update(self, group: dict[str, Any], lot: Lot, gradients: list[Tensor]) -> None:
        raise NotImplementedError


def is_dense(weight: Tensor) -> bool:
    """Whether its numbers lie in one piece of memory without gaps, in whatever order of dimensions."""
    return torch.empty_like(weight, device="meta").stride() == weight.stride()


def in_the_order_of(weight: Tensor, value: Tensor) -> Tensor:
    """The same numbers in the memory order of `weight`: torch's fused kernels pair numbers by their place in memory alone."""
    return value if value.stride() == weight.stride() else torch.empty_like(weight, dtype=value.dtype).copy_(value)


def _same(ones: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(ones) == len(others) and all(map(is_, ones, others))


def _watched(made: Optimizer) -> Any:
    return (
        made._optimizer_step_pre_hooks
        or made._optimizer_step_post_hooks
        or optimizer._global_optimizer_pre_hooks
        or optimizer._global_optimizer_post_hooks
        or torch.autograd.profiler._is_profiler_enabled
    )


@Optimizer.profile_hook_step
def _observed(made: Lean, closure: Callable[[], Any] | None = None) -> Any:
    """The step as torch wraps it: with its hooks and a record for the profiler."""
    return made._update_after(closure)


def decoupled(made: Lean) -> Lean:
    """Hand an optimizer back with decoupled decay: w ← w − lr · weight_decay · w after the gradient is taken, before the update.

    In place of torch's, which adds weight_decay · w to the gradient. In its groups the amount is kept as `decay`.
    """
    made.defaults["decay"] = 0.0
    _take_decay(made)
    return made


def _take_decay(made: Optimizer) -> None:
    for group in made.param_groups:
        # A group that was added later, or loaded from torch's class, still has it under torch's name.
        group["decay"] = group["weight_decay"] or group.get("decay", 0.0)
        group["weight_decay"] = 0.0


def epsilon_hat(made: Lean) -> Lean:
    """Hand an Adam back whose eps is the paper's ε̂, added to √v before v is corrected: eps = ε̂ / √(1 − β₂ᵗ) at update t.

    t is that of the group: of its first parameter that has been updated.
    """
    made.defaults["eps_hat"] = made.defaults["eps"]
    for group in made.param_groups:
        group["eps_hat"] = group["eps"]
    return made


def _put_eps(made: Optimizer) -> None:
    for group in made.param_groups:
        # Not the optimizer's own count: a group that was frozen at first begins with its own first update.
        done = next((float(made.state[weight]["step"]) for weight in group["params"] if made.state.get(weight)), 0.0)
        group["eps"] = group["eps_hat"] / math.sqrt(1 - group["betas"][1] ** (done + 1))
