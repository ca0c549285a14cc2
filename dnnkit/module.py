"""The LightningModule: a network, what it is trained for (Task) and how (Recipe)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dnnkit.data.resident import default_generator, minibatch_seed
from dnnkit.errors import ConfigError, DivergedError, Problem

Factor = float | tuple[float, float]
"""What a schedule gives for a step: the factor of the peak rate, or that and the momentum."""


@dataclass(frozen=True)
class Task:
    """What is learnt. `loss` and every metric map (prediction, target) to a scalar, a mean over the samples."""

    loss: Callable[[Tensor, Tensor], Tensor]
    metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """How it is learnt.

    `optimizer`: parameters to optimizer, at the peak rate.
    `schedule`: (optimizer steps done, total optimizer steps) to the factor of the peak rate, or (factor, momentum).
    `clip`: parameters to the total norm before clipping; clips their gradients in place, once per optimizer step.
    `penalty`: network to a scalar that is added to the training loss only.
    `constrain`: acts on the network in place after each optimizer step.
    `seed`: of everything random in a step.
    """

    optimizer: Callable[[list[Parameter]], Optimizer]
    schedule: Callable[[int, int], Factor]
    clip: Callable[[list[Parameter]], Tensor] | None = None
    penalty: Callable[[nn.Module], Tensor] | None = None
    constrain: Callable[[nn.Module], object] | None = None
    seed: int = 0


class Outcome(NamedTuple):
    """One minibatch: `total` = `loss` + `penalty` is what is minimised; all but `output` are scalars."""

    total: Tensor
    loss: Tensor
    output: Tensor
    penalty: Tensor | None


@dataclass(frozen=True)
class Evaluation:
    """Predictions and targets of a whole validation or test pass, on the device, samples first."""

    prediction: Tensor
    target: Tensor


class ScheduleLR(LRScheduler):
    """rate(t) = peak · factor(t), t = optimizer steps done, so the rate depends on t and nothing else.

    Where `factor` also gives a momentum, it becomes `momentum` in a group that began with one above 0, `betas[0]` in a
    group that has betas; other optimizers keep what they have (plain SGD stays plain). From the last step on, t stays
    at `total_steps` − 1. `factor` is asked afresh at each step, so it may also be a method of an object that watches a metric.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], Factor], total_steps: int) -> None:
        self._factor = factor
        self._last_step = total_steps - 1
        self._peak = float(optimizer.defaults["lr"])
        self._momentum_keys = [
            "betas" if "betas" in group else "momentum" if group.get("momentum", 0) > 0 else None for group in optimizer.param_groups
        ]
        self.rate = self._peak  # of the next update, before any scale that a parameter group has
        super().__init__(optimizer)

    def put(self, step: int) -> None:
        """Give the optimizer the rate, and the momentum, of the update that follows `step` updates; the schedule stays where it is."""
        factor, momentum = self._at(step)
        self.rate = self._peak * factor
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor
        if momentum is not None:
            self._put_momentum(momentum)

    def seek(self, step: int) -> None:
        """Move to `step` updates done, as that many calls of `step()` would."""
        self.last_epoch, self._step_count = step, step + 1
        self.put(step)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def step(self, epoch: int | None = None) -> None:
        """One update more; `epoch` is torch's name for the place to move to."""
        self.seek(self.last_epoch + 1 if epoch is None else epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The rate of each parameter group."""
        return [base * self._at(self.last_epoch)[0] for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """The number of updates done: all else follows from it."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Move to a saved place."""
        self.seek(state_dict["last_epoch"])

    def _at(self, step: int) -> tuple[float, float | None]:
        factor = self._factor(min(step, self._last_step))
        return factor if isinstance(factor, tuple) else (factor, None)

    def _put_momentum(self, momentum: float) -> None:
        for group, key in zip(self.optimizer.param_groups, self._momentum_keys, strict=True):
            if key == "betas":
                group["betas"] = (momentum, *group["betas"][1:])
            elif key == "momentum":
                group["momentum"] = momentum


class Window:
    """What training leaves on the device between two flushes; nothing here waits for the device before `summary`."""

    __slots__ = ("due", "losses", "norm", "outputs", "penalties", "rate", "sizes", "targets")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything, as after a flush."""
        self.losses: list[Tensor] = []
        self.penalties: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.sizes: list[int] = []
        self.norm: Tensor | None = None  # of the last update's gradient, before clipping
        self.rate: float | None = None  # of the last update; None: no update since the last flush
        self.due = False  # whether the update at hand ends the window

    def keep(self, outcome: Outcome, target: Tensor, with_output: bool) -> None:
        """Add one minibatch."""
        self.losses.append(outcome.loss.detach())
        self.sizes.append(len(target))
        if outcome.penalty is not None:
            self.penalties.append(outcome.penalty.detach())
        if with_output:
            self.outputs.append(outcome.output.detach())
            self.targets.append(target)

    def summary(self, metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]]) -> dict[str, float]:
        """The sample-weighted mean of the losses, metrics of all outputs at once, rate and gradient norm, by journal key."""
        values = {"train/loss": self._mean(self.losses)}
        if self.penalties:
            values["train/penalty"] = self._mean(self.penalties)
        if self.outputs:
            output, target = _at_least_float32(torch.cat(self.outputs)), torch.cat(self.targets)
            values |= {f"train/{name}": float(metric(output, target)) for name, metric in metrics.items()}
        if self.rate is not None:
            values["lr"] = self.rate
        if self.norm is not None:
            values["grad_norm"] = float(self.norm)
        return values

    def _mean(self, scalars: list[Tensor]) -> float:
        values: list[float] = torch.stack(scalars).tolist()
        return sum(value * size for value, size in zip(values, self.sizes, strict=True)) / sum(self.sizes)

    def state_dict(self) -> dict[str, Any]:
        """Tensors that `load_state_dict` takes back; empty where there is nothing to keep."""
        if not self.sizes:
            return {}
        tensors = {"losses": torch.stack(self.losses), "sizes": torch.tensor(self.sizes)}
        if self.penalties:
            tensors["penalties"] = torch.stack(self.penalties)
        if self.outputs:
            tensors |= {"outputs": torch.cat(self.outputs), "targets": torch.cat(self.targets)}
        return tensors

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Put a saved window in the place of this one."""
        self.clear()
        if not state:
            return
        self.sizes = state["sizes"].tolist()
        for name in ("losses", "penalties"):
            if name in state:
                setattr(self, name, list(state[name].to(device).unbind()))
        for name in ("outputs", "targets"):
            if name in state:
                setattr(self, name, list(state[name].to(device).split(self.sizes)))


class Module(pl.LightningModule):
    """Trains `net` for a Task by a Recipe, with the same numbers under Lightning's own loop and under the chunked one.

    Every `log_every` optimizer steps, and at an epoch's end, train/loss (the mean data loss over the samples since the
    last time; the penalty is train/penalty), train/<metric> over the same samples, lr and grad_norm (of that step,
    before clipping) go to the loggers; after a validation or test pass, loss and metrics of all samples at once.
    Step = optimizer steps done. All of them are also `trainer.callback_metrics`, for callbacks that monitor one.

    `evaluations["val"]` and `["test"]` hold the last pass's predictions and targets.
    Raises DivergedError where a training loss, or the validation loss while fitting, is not finite.
    """

    def __init__(self, net: nn.Module, task: Task, recipe: Recipe, log_every: int = 50) -> None:
        super().__init__()
        self.net = net
        self.task, self.recipe, self.log_every = task, recipe, log_every
        self.window = Window()
        self.evaluations: dict[str, Evaluation] = {}
        self._passing: list[tuple[Tensor, Tensor]] = []
        self._window_to_load: Mapping[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Logits or values `(batch, outputs)` of standardised x `(batch, *inputs)`."""
        output: Tensor = self.net(x)
        return output

    # What one minibatch and one update are: both loops come through here.

    def objective(self, x: Tensor, y: Tensor) -> Outcome:
        """Forward and loss of one minibatch."""
        output = self.net(x)
        loss = self.task.loss(output, y)
        if self.recipe.penalty is None:
            return Outcome(loss, loss, output, None)
        penalty = self.recipe.penalty(self.net)
        return Outcome(loss + penalty, loss, output, penalty)

    def flush_due(self, step: int, index: int) -> bool:
        """Whether the update that makes `step`, at minibatch `index` of the epoch, is the last of a window."""
        trainer = self.trainer
        return step % self.log_every == 0 or index + 1 == trainer.num_training_batches or step == trainer.max_steps

    def finish_update(self, step: int) -> None:
        """What follows the optimizer's update number `step`: the constraint, and the flush where one is due."""
        if self.recipe.constrain is not None:
            with torch.no_grad():
                self.recipe.constrain(self.net)
        self.window.rate = self._schedule.rate
        if self.window.due:
            self._flush(step)

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer, with its schedule over `trainer.estimated_stepping_batches` steps."""
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total):
            raise ConfigError([Problem("trainer.max_epochs", "a schedule needs an end: set trainer.max_epochs or trainer.max_steps")])
        optimizer = self.recipe.optimizer([parameter for parameter in self.net.parameters() if parameter.requires_grad])
        schedule, steps = self.recipe.schedule, int(total)
        self._schedule = ScheduleLR(optimizer, lambda step: schedule(step, steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the recipe says, then as the Trainer was told to; note the norm before both."""
        window = self.window
        if self.recipe.clip is not None:
            window.norm = self.recipe.clip(_parameters(optimizer))
        elif window.due:
            window.norm = torch.nn.utils.get_total_norm([p.grad for p in _parameters(optimizer) if p.grad is not None])
        if gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # Lightning's own loop.

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One minibatch: seeded, forward, loss."""
        number = self.trainer.fit_loop.total_batch_idx
        default_generator(self.device).manual_seed(minibatch_seed(self.recipe.seed, number, self.trainer.global_rank))
        outcome = self.objective(*batch)
        self.window.keep(outcome, batch[1], bool(self.task.metrics))
        return outcome.total

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """One update, and what follows it."""
        step = self.trainer.global_step + 1
        self.window.due = self.flush_due(step, batch_idx)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.finish_update(step)

    def setup(self, stage: str) -> None:
        """Begin with nothing kept from a run or a pass that was broken off."""
        self.window.clear()
        self._passing.clear()
        self._window_to_load = {}

    def on_train_start(self) -> None:
        """Continue where a checkpoint stopped: inside a window, and inside an epoch."""
        self.window.load_state_dict(self._window_to_load, self.device)
        # The loaders were made for `estimated_stepping_batches`, before the checkpoint's state was read;
        # Lightning gives it to loaders only as it makes them, and would start the epoch anew.
        fit_loop = self.trainer.fit_loop
        if fit_loop.restarting and fit_loop._combined_loader_states_to_load and fit_loop._data_fetcher is not None:
            fit_loop._load_combined_loader_states()
            iter(fit_loop._data_fetcher)

    def on_train_epoch_end(self) -> None:
        """Flush what is left where an epoch was ended early."""
        if self.window.rate is not None:
            self._flush(self.trainer.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the open window, so that the first flush after a resume says what it would have said."""
        checkpoint["dnnkit_window"] = self.window.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the open window from a checkpoint that has one."""
        self._window_to_load = checkpoint.get("dnnkit_window", {})

    def _flush(self, step: int) -> None:
        values = self.window.summary(self.task.metrics)
        self.window.clear()
        for key in ("train/loss", "train/penalty"):
            _check_finite(key, values.get(key, 0.0), step)
        self._journal(values, step)
        self.trainer.callback_metrics.update({key: torch.tensor(value) for key, value in values.items()})
        self.trainer.progress_bar_metrics["train/loss"] = values["train/loss"]

    def _journal(self, values: dict[str, float], step: int) -> None:
        for logger in self.loggers:
            logger.log_metrics(values, step=step)

    # Validation and test: kept on the device, measured once.

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Predict one batch."""
        self._passing.append((_at_least_float32(self.net(batch[0])), batch[1]))

    def on_validation_epoch_end(self) -> None:
        """Measure the pass: val/loss, val/<metric>."""
        self._measure("val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Predict one batch."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Measure the pass: test/loss, test/<metric>."""
        self._measure("test")

    def _measure(self, stage: str) -> None:
        prediction, target = (torch.cat(part) for part in zip(*self._passing, strict=True))
        self._passing.clear()
        self.evaluations[stage] = Evaluation(prediction, target)
        values = {f"{stage}/{name}": f(prediction, target) for name, f in {"loss": self.task.loss, **self.task.metrics}.items()}
        step, trainer = self.trainer.global_step, self.trainer
        # Not through Lightning's loggers' path: inside an epoch it counts one step less, and adds the epoch as a metric.
        self.log_dict(values, logger=False, prog_bar=True, batch_size=len(target))
        if trainer.sanity_checking:
            return
        if stage == "val" and trainer.state.fn == "fit":
            _check_finite("val/loss", float(values["val/loss"]), step)
        self._journal({key: float(value) for key, value in values.items()}, step)


def _check_finite(key: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise DivergedError(f"training diverged: {key} is {value} at step {step}", "lower optimizer.lr or use clipping=norm")


def _parameters(optimizer: Optimizer) -> list[Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _at_least_float32(output: Tensor) -> Tensor:
    # Mixed precision leaves outputs in 16 bits, too few for a mean over thousands of samples.
    return output.float() if output.is_floating_point() and output.element_size() < 4 else output
