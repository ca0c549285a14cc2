"""The LightningModule."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from dnnkit.data.resident import Minibatch, default_generator, minibatch_seed
from dnnkit.errors import ConfigError, DivergedError, Problem, nearest
from dnnkit.module.accumulation import WHOLE, Portion, portion_of_epoch, sizes_of
from dnnkit.module.frozen import Frozen
from dnnkit.module.gather import gather_batches, several, take_buffers_of_rank_0
from dnnkit.module.groups import clip_apart, gradient_norm
from dnnkit.module.guard import Guard, check_finite
from dnnkit.module.monte_carlo import MonteCarlo
from dnnkit.module.pace import Pace
from dnnkit.module.schedule import ScheduleLR
from dnnkit.module.task import Evaluation, Outcome, Recipe, Task, minimised, scaled
from dnnkit.module.window import Window, at_least_float32
from dnnkit.network.freezing import Freezing

log = logging.getLogger("dnnkit")


class Module(pl.LightningModule):
    """Trains `net` for a Task by a Recipe, with the same numbers under Lightning's own loop and under the chunked one.

    Every `log_every` optimizer steps, and at an epoch's end, these go to the loggers; step = optimizer steps done:
    - train/loss, the mean data loss over the samples of the last W updates, with W the smaller of `log_every` and an epoch's
      updates (all so far where training is ended before there are W), each measured before its update; the penalty is
      train/penalty, and train/<metric> is of the same samples. At an epoch's end, a W of a whole epoch makes it the epoch's mean.
      Where training is stopped between two rows, the last is about fewer updates: those of the next row that were made.
    - grad_norm, of the gradient of the last update, before clipping.
    - lr, and momentum where the schedule cycles it: those that the optimizer holds at that step, with which it made the last
      update, or at step 0 will make the first. They are recorded at step 0, and between two of the steps above wherever their
      curve turns (`pace.corners`), so that a line through the points shows every shape, a warm-up's too.
    After a validation or test pass, loss and metrics of all samples at once follow. All of them are also
    `trainer.callback_metrics`, for callbacks that monitor one.

    Where gradients are added up over `trainer.accumulate_grad_batches` minibatches, an update has the gradient of the mean loss
    over the examples of its group, plus the penalty, whatever sizes they have and however few the last group of an epoch has.

    A metric that is NaN, because it is not defined for these samples, is left out of the journal.

    On several devices each trains on its share of a minibatch, and what they kept is gathered before it is measured: every
    rank has the numbers that a single device would have. Step and rate are the same everywhere.

    `evaluations["val"]` and `["test"]` hold the last pass's predictions and targets.
    Raises DivergedError where a training loss, a gradient, or the validation loss while fitting, is not finite: see `guard`.
    """

    def __init__(
        self,
        net: nn.Module,
        task: Task,
        recipe: Recipe,
        log_every: int = 50,
        freezing: Freezing = Freezing(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        self.net = net
        self.frozen = Frozen(net, freezing)
        self.task, self.recipe, self.log_every = task, recipe, log_every
        self.window = Window()
        self.pace = Pace()
        self.guard = Guard()
        self.evaluations: dict[str, Evaluation] = {}
        self._passing: list[tuple[Tensor, Tensor]] = []
        self._monte_carlo = MonteCarlo(task, recipe.seed)
        self._to_load: Mapping[str, Mapping[str, Any]] = {}
        self._undefined: set[str] = set()

    def forward(self, x: Tensor) -> Tensor:
        """Logits or values `(batch, outputs)` of standardised x `(batch, *inputs)`."""
        output: Tensor = self.net(x)
        return output

    # What one minibatch and one update are: both loops come through here.

    def objective(self, x: Tensor, y: Tensor, weight: float = 1.0) -> Outcome:
        """Forward and loss of one minibatch: `total` = weight · loss + penalty.

        The weight is that of a device's share of a minibatch, so that the mean over the devices of weight · loss is the
        minibatch's loss.
        """
        return self.objective_of(self.net, x, y, weight)

    def objective_of(self, net: nn.Module, x: Tensor, y: Tensor, weight: float = 1.0) -> Outcome:
        """`objective` of a network in the place of this one's, such as a copy."""
        return minimised(net, x, y, self.task.loss, self.recipe.penalty, weight)

    def flush_due(self, step: int, index: int) -> bool:
        """Whether the update that makes `step`, at minibatch `index` of the epoch, is the last of a window."""
        trainer = self.trainer
        return step % self.log_every == 0 or index + 1 == trainer.num_training_batches or step == trainer.max_steps

    def begin_update(self, step: int, index: int, last: bool = True) -> None:
        """What precedes the gradient of the optimizer's update number `step`, at minibatch `index` of the epoch.

        Not `last`: nobody looks at anything before the next one, and no window ends with it.
        """
        # In the window, because torch's modules take microseconds to set an attribute.
        window = self.window
        window.update, window.last, window.due = step, last, last and self.flush_due(step, index)
        if window.due:
            window.left = self._updates_of(self.trainer.num_training_batches - index - 1)

    def finish_update(self, step: int) -> None:
        """What follows the optimizer's update number `step`: the constraint, and the flush where one is due."""
        if self.recipe.constrain is not None:
            with torch.no_grad():
                self.recipe.constrain(self.net)
            self.frozen.put_back()
        self.pace.add(self._schedule.rate, self._schedule.momentum)
        if self.window.due:
            self._flush(step)
            self._forget_until_next(step)

    def portions(self, indices: Iterable[int]) -> list[Portion]:
        """What minibatches of the epoch weigh in the groups over which their gradients are added up."""
        trainer = self.trainer
        accumulate, length = trainer.accumulate_grad_batches, trainer.num_training_batches
        if accumulate == 1 or not math.isfinite(length):  # of a stream without an end, no group is shorter that anybody could foresee
            return [WHOLE for _ in indices]
        sizes = sizes_of(trainer.train_dataloader)
        return [portion_of_epoch(index, int(length), accumulate, sizes) for index in indices]

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer, with its schedule over `trainer.estimated_stepping_batches` steps."""
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total):
            raise ConfigError([Problem("trainer.max_epochs", "a schedule needs an end: set trainer.max_epochs or trainer.max_steps")])
        optimizer = self.recipe.optimizer(self.recipe.groups.parameters(self.net))
        self._clips = self.recipe.groups.clips(self.net, self.recipe.clip)
        self._schedule = ScheduleLR.of(optimizer, self.recipe.schedule, int(total))
        self._check_watched()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedule, "interval": "step"}}

    @property
    def clips_nothing(self) -> bool:
        """Whether the recipe leaves gradients as they are."""
        return self.recipe.clip is None and self._clips is None

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the recipe says, then as the Trainer was told to; note the norm before both."""
        self.frozen.drop_gradients()
        if several():  # Shares are seeded apart; what clipping and the optimizer draw must be the same on every rank.
            world = self.trainer.world_size
            default_generator(self.device).manual_seed(minibatch_seed(self.recipe.seed, self.window.update, world))
        window, norm = self.window, None
        if self._clips is None and self.recipe.clip is not None:
            window.norm = norm = self.recipe.clip(_parameters(optimizer))
        elif window.due:
            window.norm = norm = gradient_norm(_parameters(optimizer))
        self.guard.see_gradient(norm, window.update)
        if self._clips is not None:
            clip_apart(self._clips)
        if gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # Lightning's own loop.

    def training_step(self, batch: Minibatch, batch_idx: int) -> Tensor:
        """One minibatch: seeded, forward, loss."""
        number = self.trainer.fit_loop.total_batch_idx
        default_generator(self.device).manual_seed(minibatch_seed(self.recipe.seed, number, self.trainer.global_rank))
        self.window.latest = batch[0], batch[1]
        x, y, *weight = batch
        [part] = self.portions([batch_idx])
        outcome = scaled(self.objective(x, y, math.prod((*weight, part.loss))), part.total)
        self.window.update = self.trainer.global_step + 1
        self.guard.see_loss(outcome, self.window.update)
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
        self.begin_update(step, batch_idx)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.finish_update(step)

    def setup(self, stage: str) -> None:
        """Begin with nothing kept from a run or a pass that was broken off."""
        self.window.clear()
        self.pace.clear()
        self._passing.clear()
        self._monte_carlo.clear()
        self._to_load = {}
        if stage == "fit" and several():
            self.frozen.require_gradients()

    def train(self, mode: bool = True) -> Self:
        """Training mode, or evaluation mode; a frozen normalization stays in evaluation mode."""
        super().train(mode)
        self.frozen.stay_still()
        return self

    def on_train_epoch_start(self) -> None:
        """What was frozen up to here is trained from here on."""
        self.frozen.begin(self.trainer.current_epoch + 1, several(), self.recipe.constrain is not None)

    def on_train_start(self) -> None:
        """Continue where a checkpoint stopped: inside a window, and inside an epoch."""
        self.guard.begin(self)
        self.on_train_epoch_start()  # of an epoch that it goes on with Lightning calls it only where it starts
        self.window.load_state_dict(self._to_load.get("window", {}), self.device)
        self.pace.load_state_dict(self._to_load.get("pace", {}))
        if not self.pace.begun:
            self._begin_pace()
        if self.trainer.global_rank > 0:
            self.window.keep_no_samples()
        # The loaders were made for `estimated_stepping_batches`, before the checkpoint's state was read;
        # Lightning gives it to loaders only as it makes them, and would start the epoch anew.
        fit_loop = self.trainer.fit_loop
        if fit_loop.restarting and fit_loop._combined_loader_states_to_load and fit_loop._data_fetcher is not None:
            fit_loop._load_combined_loader_states()
            iter(fit_loop._data_fetcher)

    def on_train_epoch_end(self) -> None:
        """Flush what is left where an epoch was ended early."""
        self.flush_rest()

    def flush_rest(self) -> None:
        """Measure and journal what the window holds, where it holds an update."""
        if self.guard.broke_off:
            self.window.norm = None  # of an update that was not made
        if self.pace.moved:
            self._flush(self.trainer.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the window and the pace, so that the first flush after a resume says what it would have said."""
        checkpoint["dnnkit_window"] = self.window.gathered().state_dict()
        checkpoint["dnnkit_pace"] = self.pace.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take window and pace from a checkpoint that has them."""
        self._to_load = {name: checkpoint.get(f"dnnkit_{name}", {}) for name in ("window", "pace")}

    def _updates_of(self, minibatches: float) -> float:
        return minibatches if math.isinf(minibatches) else -(-minibatches // self.trainer.accumulate_grad_batches)

    @property
    def _width(self) -> float:
        """How many updates a row of the training loss is about."""
        return min(self.log_every, self._updates_of(self.trainer.num_training_batches))

    def _begin_pace(self) -> None:
        """A run begins: what the first update will be made with is on record."""
        self.pace.add(self._schedule.rate, self._schedule.momentum)
        if self.trainer.global_step == 0:
            for step, values in self.pace.rows(0):
                self._journal(values, step)

    def _flush(self, step: int) -> None:
        self.window.forget(int(step - self._width))
        window = self.window.gathered()
        *turns, (_, last) = self.pace.rows(step)
        values = {**window.summary(self.task.metrics), **last}
        if self.window.norm is not None:
            values["grad_norm"] = float(self.window.norm)
        self.window.norm, self.window.due = None, False
        for turn, pace in turns:
            self._journal(pace, turn)
        try:
            for key in ("train/loss", "train/penalty", "grad_norm"):
                check_finite(key, values.get(key, 0.0), window.first_not_finite(step))
        except DivergedError:
            self._journal(last, step)  # the rate may be why
            raise
        self._journal(values, step)
        self._tell(values, step)
        self.trainer.callback_metrics.update({key: torch.tensor(value) for key, value in values.items()})
        self.trainer.progress_bar_metrics["train/loss"] = values["train/loss"]

    def _forget_until_next(self, step: int) -> None:
        """Keep of the window what the next row of the training loss will be about too."""
        left = self.window.left or self._updates_of(self.trainer.num_training_batches)  # of the next epoch, where this one is over
        following = step + min(self.log_every - step % self.log_every, left)
        if step < self.trainer.max_steps:
            following = min(following, self.trainer.max_steps)
        self.window.forget(int(following - self._width))

    def _check_watched(self) -> None:
        """ConfigError where a schedule would wait for a metric that is never measured."""
        watched, stages = self._schedule.monitor, ("val", "train") if self.trainer.enable_validation else ("train",)
        measured = [f"{stage}/{name}" for stage in stages for name in ("loss", *self.task.metrics)]
        measured += ["train/penalty"] * (self.recipe.penalty is not None)
        if watched is not None and watched not in measured:
            message = f"must be one of {', '.join(measured)}, which this run measures, got {watched!r}"
            raise ConfigError([Problem("scheduler.monitor", message, nearest(watched, measured))])

    def _tell(self, values: Mapping[str, float], step: int) -> None:
        """Show a schedule that watches one of these values what it is."""
        watched = self._schedule.monitor
        if watched is not None and watched in values:
            self._schedule.observe(values[watched], step)

    def _journal(self, values: dict[str, float], step: int) -> None:
        undefined = {key for key, value in values.items() if math.isnan(value) and key.partition("/")[2] in self.task.metrics}
        for key in sorted(undefined - self._undefined):
            log.warning("%s is not defined here (it is NaN at step %d): it is left out of the record wherever it is", key, step)
        self._undefined |= undefined
        for logger in self.loggers:
            logger.log_metrics({key: value for key, value in values.items() if key not in undefined}, step=step)

    # Validation and test: kept on the device, measured once.

    def on_validation_start(self) -> None:
        """On several devices, validate what a checkpoint would hold: moving statistics differ between ranks, and rank 0's are saved."""
        if several():
            take_buffers_of_rank_0(self.net)

    def validation_step(self, batch: Minibatch, batch_idx: int) -> None:
        """Predict one batch, or this rank's share of it, which may be empty."""
        x, y = batch[0], batch[1]
        # Not every network takes a batch without examples.
        output = self.net(x) if len(x) else self.net(x.new_zeros(1, *x.shape[1:]))[:0]
        self._passing.append((at_least_float32(output), y))

    def on_validation_epoch_end(self) -> None:
        """Measure the pass: val/loss, val/<metric>."""
        self._measure("val")

    def test_step(self, batch: Minibatch, batch_idx: int) -> None:
        """Predict one batch; with Monte-Carlo dropout, many times more."""
        self.validation_step(batch, batch_idx)
        if self.task.mc_samples:
            outputs = self._passing[-1][0].shape[1]
            self._monte_carlo.keep(self.net, batch, batch_idx, outputs, self.trainer.global_rank, self.trainer.world_size)

    def on_test_epoch_end(self) -> None:
        """Measure the pass: test/loss, test/<metric>; with Monte-Carlo dropout test/mc_…"""
        self._measure("test")
        if self.task.mc_samples:
            values = {f"test/{name}": value for name, value in self._monte_carlo.values(self.evaluations["test"].target).items()}
            self.log_dict(values, logger=False)
            self._journal(values, self.trainer.global_step)

    def _whole_pass(self) -> tuple[Tensor, Tensor]:
        """Predictions and targets of all examples, of which nothing else is kept."""
        predictions, targets = (list(part) for part in zip(*self._passing, strict=True))
        self._passing.clear()
        if several():
            predictions, targets = gather_batches(predictions), gather_batches(targets)
        # A copy of the targets: a metric may do with them as it likes, and a view would be of the data themselves.
        return predictions[0] if len(predictions) == 1 else torch.cat(predictions), torch.cat(targets)

    def _measure(self, stage: str) -> None:
        prediction, target = self._whole_pass()
        self.evaluations[stage] = Evaluation(prediction, target)
        values = {f"{stage}/{name}": f(prediction, target) for name, f in {"loss": self.task.loss, **self.task.metrics}.items()}
        step, trainer = self.trainer.global_step, self.trainer
        # Not through Lightning's loggers' path: inside an epoch it counts one step less, and adds the epoch as a metric.
        self.log_dict(values, logger=False, prog_bar=True, batch_size=len(target))
        if trainer.sanity_checking:
            return
        fitting, measured = stage == "val" and trainer.state.fn == "fit", _floats(values)
        if fitting:
            check_finite("val/loss", measured["val/loss"], step)
        self._journal(measured, step)
        if fitting:
            self._tell(measured, step)


def _floats(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalars as numbers; those on a GPU come together, so that it is waited for once."""
    on_gpu = {key: value.detach().double() for key, value in values.items() if isinstance(value, Tensor) and value.is_cuda}
    arrived = dict(zip(on_gpu, torch.stack([value.reshape(()) for value in on_gpu.values()]).tolist(), strict=True)) if on_gpu else {}
    return {key: arrived[key] if key in arrived else float(value) for key, value in values.items()}


def _parameters(optimizer: Optimizer) -> list[Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
