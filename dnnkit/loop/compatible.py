"""Whether a run can go by chunks: who wants to see every minibatch, and what the chunked loop does not know."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    Callback,
    DeviceStatsMonitor,
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
    RichProgressBar,
    Timer,
    TQDMProgressBar,
)
from pytorch_lightning.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy

from dnnkit.data.resident import Batches
from dnnkit.loop.strategy import RankStrategy
from dnnkit.module import Module, ScheduleLR

_EVERY_MINIBATCH = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
_ONCE_PER_CHUNK = ("on_train_batch_start", "on_train_batch_end")
_MODULE = (
    *_EVERY_MINIBATCH,
    *_ONCE_PER_CHUNK,
    "training_step",
    "backward",
    "optimizer_step",
    "optimizer_zero_grad",
    "lr_scheduler_step",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)
# These look at counters that are right at a chunk's end, or at the clock.
_LIGHTNINGS_OWN = (DeviceStatsMonitor, LearningRateMonitor, ModelCheckpoint, ProgressBar, RichProgressBar, Timer, TQDMProgressBar)


def reason_against_chunks(trainer: pl.Trainer) -> str | None:
    """Why this run must go one minibatch at a time, or None."""
    module = trainer.lightning_module
    if not isinstance(module, Module):
        return f"{type(module).__name__} is not a dnnkit.module.Module"
    if not isinstance(trainer.train_dataloader, Batches):
        return f"the training data comes from a {type(trainer.train_dataloader).__name__}, not from Batches"
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return _against_module(module) or _against_trainer(trainer) or next(filter(None, map(_against_callback, callbacks)), None)


def _against_module(module: Module) -> str | None:
    for name in _MODULE:
        if getattr(getattr(module, name), "__func__", None) is not getattr(Module, name):
            return f"{type(module).__name__} overrides {name}"
    return None


def _against_trainer(trainer: pl.Trainer) -> str | None:
    precision, strategy, schedules = trainer.precision_plugin, trainer.strategy, trainer.lr_scheduler_configs
    if type(strategy) not in (SingleDeviceStrategy, DDPStrategy, RankStrategy):
        return f"the strategy is {type(strategy).__name__}"
    if type(precision) not in (Precision, DoublePrecision, HalfPrecision, MixedPrecision) or getattr(precision, "scaler", None) is not None:
        return f"the precision {precision.precision} changes how an update is made"
    if len(trainer.optimizers) != 1 or isinstance(trainer.optimizers[0], torch.optim.LBFGS):
        return "the optimizer evaluates the loss by itself, or there are several"
    if [type(config.scheduler) for config in schedules] != [ScheduleLR] or (schedules[0].interval, schedules[0].frequency) != ("step", 1):
        return "the schedule is not the module's own"
    if trainer.fit_loop._skip_backward:
        return "a callback switched the backward pass off"
    return None


def _against_callback(callback: Callback) -> str | None:
    for name in (*_EVERY_MINIBATCH, *_ONCE_PER_CHUNK):
        definer = _definer(callback, name)
        if definer is Callback or (name in _ONCE_PER_CHUNK and (definer in _LIGHTNINGS_OWN or getattr(callback, "chunked", False) is True)):
            continue
        return f"the callback {type(callback).__name__} has {name}"
    return None


def _definer(callback: Callback, name: str) -> type | None:
    """The class whose `name` this callback runs; None where it was set on the object itself."""
    if name in vars(callback):
        return None
    return next(cls for cls in type(callback).__mro__ if name in vars(cls))
