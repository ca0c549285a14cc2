"""What is kept of a run while it trains, so that it can go on later: the best weights, and the state at each epoch's end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from dnnkit.errors import DivergedError
from dnnkit.module import Module

#: In `checkpoints/`: the state at the end, or at the end of the last epoch while the run goes on; and, where a run was
#: stopped inside an epoch, that of the epoch before.
LAST, EPOCH = "last.ckpt", "epoch.ckpt"


class Best(ModelCheckpoint):
    """Keeps the weights of the best validation. After a resume the best so far counts, also where the folder was moved.

    `anew`: nothing that was best before counts.
    """

    def __init__(self, folder: Path, monitor: str, mode: str, anew: bool = False) -> None:
        names: dict[str, Any] = {"filename": "best", "auto_insert_metric_name": False, "enable_version_counter": False}
        super().__init__(dirpath=folder, monitor=monitor, mode=mode, **names)
        self._anew = anew

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the best score and file of before."""
        if self._anew:
            return
        paths = {key: self._here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {self._here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})

    def _here(self, path: str) -> str:
        return os.path.join(str(self.dirpath), os.path.basename(path)) if path else path


class Patience(EarlyStopping):
    """Ends a run that no longer improves. After a resume it goes on counting, with the patience that it has now."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the best score and the count of before."""
        super().load_state_dict({**state_dict, "patience": self.patience})
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED  # an end that was reached before is not one of what follows

    @property
    def told(self) -> str | None:
        """Why the run was ended; None where that was not by its patience or a value that is not finite."""
        if self.stopping_reason is EarlyStoppingReason.NOT_STOPPED:
            return None
        if self.stopping_reason is EarlyStoppingReason.NON_FINITE_METRIC:
            return f"{self.monitor} is not finite"
        count = f"{self.wait_count} validation{'s' if self.wait_count > 1 else ''}"
        return f"{self.monitor} has not been better than {float(self.best_score):.4g} for {count}"


class EachEpoch(Checkpoint):
    """Writes `last.ckpt` at the end of every whole epoch, after validation, so that a killed run can go on from there."""

    def __init__(self, folder: Path) -> None:
        self._last, self._epoch = folder / LAST, folder / EPOCH
        self._step: int | None = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, if this is the epoch's own end and not that of a run that is stopped inside it."""
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready >= trainer.num_training_batches:
            trainer.save_checkpoint(self._last)
            self._step = trainer.global_step

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Where training diverged, on every rank: the state of that moment, if it is finite still, and what was measured up to it."""
        if isinstance(exception, DivergedError) and all(bool(torch.isfinite(weight).all()) for weight in pl_module.parameters()):
            if isinstance(pl_module, Module) and pl_module.guard.broke_off:
                pl_module.flush_rest()
            self.keep_the_end(trainer)

    def keep_the_end(self, trainer: pl.Trainer) -> None:
        """After training, on every rank: `last.ckpt` holds this moment. Inside an epoch, the one before becomes `epoch.ckpt`."""
        if self._step == trainer.global_step:
            return
        if trainer.is_global_zero and self._last.exists():
            os.replace(self._last, self._epoch)
        trainer.save_checkpoint(self._last)


def epochs_done(checkpoint: Mapping[str, Any]) -> int | None:
    """How many whole epochs a checkpoint has behind it; None where it was saved inside one, or before its validation."""
    try:
        loops = checkpoint["loops"]["fit_loop"]
        epochs, batches = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]
        whole = bool(batches["is_last_batch"]) and epochs["processed"] == epochs["started"]
        return int(epochs["processed"]) if whole and epochs["processed"] > 0 else None
    except (KeyError, TypeError):
        return None


def waited(checkpoint: Mapping[str, Any]) -> int:
    """For how many validations a run had not improved when it was saved; 0 where that was not counted."""
    callbacks = checkpoint.get("callbacks", {})
    return max((int(state["wait_count"]) for state in callbacks.values() if "wait_count" in state), default=0)
