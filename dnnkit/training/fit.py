"""Lightning at work: fit, then test on the best weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from rich.console import Console

from dnnkit.checkpoint import STATE_KEY, RunState, load, load_weights
from dnnkit.checkpoint.lightning import AtomicCheckpointIO
from dnnkit.config import Config, Trainer
from dnnkit.data import DataSet, Split
from dnnkit.data.loaders import evaluation_batches, training_batches
from dnnkit.data.resident import Batches
from dnnkit.data.sizing import evaluation_batch
from dnnkit.data.tasks import task_named
from dnnkit.diagnostics import as_metrics
from dnnkit.disk import in_passing
from dnnkit.errors import CheckpointError, DivergedError, Interrupted
from dnnkit.loop import engine_report, use_chunks
from dnnkit.loop.strategy import RankStrategy, leave_signals_alone
from dnnkit.loop.synced import SyncBatchNorm
from dnnkit.module import Module
from dnnkit.record import RunFolder, config_digest
from dnnkit.record.identity import version
from dnnkit.record.journal import METRICS, last_values
from dnnkit.record.signal import write_confusion
from dnnkit.training.assemble import augment, monitor
from dnnkit.training.callbacks import Bar, Clock, JournalLogger, StopOnSignal
from dnnkit.training.diagnose import Diagnosis
from dnnkit.training.keeping import LAST, Best, EachEpoch, Patience
from dnnkit.training.live import Live
from dnnkit.training.place import Place, warn_of_unequal_weights
from dnnkit.training.scheduling import total_steps

log = logging.getLogger("dnnkit")

#: Lightning's advice that does not apply: metrics are flushed at an epoch's end too, and there are no workers.
_BESIDE_THE_POINT = (
    r".*The number of training batches .* is smaller than the logging interval",
    r".*does not have many workers",
    r".*GPU available but not used",
    r".*Checkpoint directory .* exists and is not empty",
    r".*isinstance\(treespec, LeafSpec\)",
    r".*sync_dist=True",
    r".*callbacks used to create the checkpoint need to be provided",
    r".*in eval mode at the start of training",
)
PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "64": "64-true"}


class KeepState(Callback):
    """Puts what is needed to use the weights again into every checkpoint."""

    def __init__(self, state: RunState) -> None:
        self._state = state.as_dict()

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the run's state."""
        checkpoint[STATE_KEY] = self._state


def fit_and_test(
    cfg: Config,
    settings: Trainer,
    data: DataSet,
    module: Module,
    device: torch.device,
    folder: RunFolder,
    console: Console,
    place: Place = Place(),  # noqa: B008 - frozen
) -> dict[str, float]:
    """Train to the end, test on the best weights; the last value of every metric by key.

    On several devices this is what the first rank does, and `train_along` what the others do.
    Raises Interrupted after a signal, with `checkpoints/last.ckpt` at the state of that moment.
    """
    stop, each = StopOnSignal(), EachEpoch(folder.path / "checkpoints")
    point = folder.resume_point
    best = _best(cfg, data.task, folder, point)
    logger = JournalLogger(folder.journal)
    diagnosis = Diagnosis(cfg, data, module, folder, console)
    with quiet():
        callbacks = [best, each, KeepState(_state(cfg, data)), Clock(folder.journal), Bar(console), stop, diagnosis.live]
        trainer = _trainer(cfg, settings, data.task, device, folder, callbacks, place, logger)
        start = diagnosis.begin()
        if point is None:
            folder.journal.log(0, as_metrics(start))
        with _said_how(trainer, folder), _explained(diagnosis):
            _fit(trainer, module, cfg, settings, data, device, place, point)
        each.keep_the_end(trainer)
        # After the checkpoint, so that nothing here can cost it; before the best weights take the last ones' place.
        diagnosis.finish(trainer.global_step)
        _check_unstopped(stop, trainer, folder)
        if trainer.global_step < total_steps(cfg, len(data.train.y)):
            _tell_early_stop(trainer, best, console)
        _take_best(best, module)
        trainer.test(module, _evaluation(cfg, settings, data.test, place, module, device), verbose=False)
    _count_confusions(folder, module, data)
    return last_values(folder.path / METRICS)


@contextmanager
def _said_how(trainer: pl.Trainer, folder: RunFolder) -> Iterator[None]:
    """After the body the folder says how training steps were run; what ends the body goes on, also where the disk is full."""
    try:
        yield
    except BaseException:
        with in_passing():
            folder.write_engine(engine_report(trainer))
        raise
    folder.write_engine(engine_report(trainer))


@contextmanager
def _explained(diagnosis: Diagnosis) -> Iterator[None]:
    """Training that diverges inside says in which layer, and where the last healthy weights are."""
    try:
        yield
    except DivergedError as error:
        raise diagnosis.diverged(error) from error


def _check_unstopped(stop: StopOnSignal, trainer: pl.Trainer, folder: RunFolder) -> None:
    """Raises Interrupted where a signal has ended training."""
    if stop.received is not None:
        cause = f"stopped by {stop.received.name} after {trainer.global_step} optimizer steps"
        raise Interrupted(stop.received, cause, f"the state of that moment is in {folder.path / 'checkpoints' / LAST}")


def train_along(
    cfg: Config, settings: Trainer, data: DataSet, module: Module, device: torch.device, folder: RunFolder, place: Place
) -> None:
    """What a rank other than the first does of `fit_and_test`: its share of every minibatch, and nothing that writes."""
    stop, each = StopOnSignal(), EachEpoch(folder.path / "checkpoints")
    point = folder.resume_point
    best = _best(cfg, data.task, folder, point)
    with quiet():
        callbacks = [best, each, KeepState(_state(cfg, data)), stop, Live(cfg.diagnostics.every)]
        trainer = _trainer(cfg, settings, data.task, device, folder, callbacks, place, False)
        _fit(trainer, module, cfg, settings, data, device, place, point)
        each.keep_the_end(trainer)  # the first rank writes, while the others wait
        if not stop.agreed:
            _take_best(best, module)
            trainer.test(module, _evaluation(cfg, settings, data.test, place, module, device), verbose=False)


def _fit(
    trainer: pl.Trainer,
    module: Module,
    cfg: Config,
    settings: Trainer,
    data: DataSet,
    device: torch.device,
    place: Place,
    point: Path | None,
) -> None:
    """Train, from the start or from the epoch's end that `point` holds."""
    train = _training(cfg, settings, data, place).to(device)
    validation = _evaluation(cfg, settings, data.validation, place, module, device, settings.limit_val_batches)
    if point is not None and str(settings.precision) == "64":
        module.double()  # Lightning converts it after it has loaded the weights, which would be rounded
    trainer.fit(module, train, validation, ckpt_path=point, weights_only=None if point is None else True)
    if place.world > 1:
        warn_of_unequal_weights(module.net)


def _training(cfg: Config, settings: Trainer, data: DataSet, place: Place) -> Batches:
    x, y = in_precision(data.train, settings)
    return training_batches(
        x,
        y,
        cfg.data.batch_size,
        cfg.seed,
        rank=place.rank,
        world=place.world,
        augment=augment(cfg),
        workers=cfg.data.workers,
    )


def _evaluation(
    cfg: Config, settings: Trainer, split: Split, place: Place, module: Module, device: torch.device, limit: int | float = 1.0
) -> Batches:
    x, y = in_precision(split, settings)
    size, workers = evaluation_batch(module.net, x.shape[1:], x.dtype, device, limit), cfg.data.workers
    return evaluation_batches(x, y, size, rank=place.rank, world=place.world, workers=workers).to(device)


def _best(cfg: Config, task: str, folder: RunFolder, point: Path | None) -> Best:
    key, mode = monitor(cfg, task)
    checkpoints = folder.path / "checkpoints"
    # What was best after the point that a resume goes back to belongs to a part of the run that no longer is.
    beyond = point is not None and int(load(checkpoints / "best.ckpt")["global_step"]) > folder.record.resumed_step
    if beyond:
        log.warning("best.ckpt is of a step after the one that the run goes on from: the best weights are looked for anew from here on")
    return Best(checkpoints, key, mode, anew=beyond)


def _trainer(
    cfg: Config,
    settings: Trainer,
    task: str,
    device: torch.device,
    folder: RunFolder,
    callbacks: list[Callback],
    place: Place,
    logger: Logger | Literal[False],
) -> pl.Trainer:
    key, mode = monitor(cfg, task)
    if settings.early_stopping is not None:
        callbacks = [*callbacks, Patience(key, mode=mode, patience=settings.early_stopping)]
    trainer = pl.Trainer(
        accelerator={"cpu": "cpu", "cuda": "gpu", "mps": "mps"}[device.type],
        **_devices(settings, place),
        precision=PRECISIONS[str(settings.precision)],
        max_epochs=settings.max_epochs,
        accumulate_grad_batches=settings.accumulate_grad_batches,
        limit_train_batches=settings.limit_train_batches,
        limit_val_batches=settings.limit_val_batches,
        val_check_interval=settings.val_check_interval,
        log_every_n_steps=settings.log_every_n_steps,
        logger=logger,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(), *([SyncBatchNorm()] if place.world > 1 and settings.sync_batch_norm else [])],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder.path,
    )
    return use_chunks(leave_signals_alone(trainer) if place.world > 1 else trainer, settings.chunk_size, settings.engine)


def _devices(settings: Trainer, place: Place) -> dict[str, Any]:
    """The Trainer's arguments that say which rank of how many this process is."""
    if place.world == 1:
        return {"devices": 1}
    strategy = RankStrategy(place.rank, place.world, place.local_rank, place.node)
    return {"devices": settings.devices, "num_nodes": place.nodes, "strategy": strategy, "use_distributed_sampler": False}


def _state(cfg: Config, data: DataSet) -> RunState:
    values = cfg.values
    return RunState(
        config=values,
        digest=config_digest(values),
        inputs=data.inputs,
        outputs=data.outputs,
        classes=data.classes,
        mean=data.scaling.mean,
        std=data.scaling.std,
        fill=data.scaling.fill,
        target_mean=None if data.target_scaling is None else data.target_scaling.mean,
        target_std=None if data.target_scaling is None else data.target_scaling.std,
        task=data.task,
        columns=data.columns,
        targets=data.targets,
        encoding=None if data.encoding is None else dict(data.encoding),
        seed=cfg.seed,
        version=version(),
    )


def in_precision(split: Split, settings: Trainer) -> Split:
    """The examples and values in the precision of the run; mixed precision takes them as float32."""
    if str(settings.precision) != "64":
        return split
    return Split(*(part.double() if part.dtype == torch.float32 else part for part in split))


def _tell_early_stop(trainer: pl.Trainer, best: ModelCheckpoint, console: Console) -> None:
    """On the terminal and in the log: that the run ended before its last epoch, why, and which weights are tested."""
    for callback in trainer.early_stopping_callbacks:
        if isinstance(callback, Patience) and callback.told is not None and best.best_model_path:
            step = load(Path(best.best_model_path))["global_step"]
            text = f"stopped early: {callback.told}; the best weights (step {step}) are tested"
            log.info("%s", text)
            console.print(text, highlight=False, markup=False, soft_wrap=True)


def _take_best(best: ModelCheckpoint, module: Module) -> None:
    if not best.best_model_path:
        raise CheckpointError("no checkpoint was saved, so there are no best weights to test", "validate at least once")
    load_weights(Path(best.best_model_path), module)


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's notices about the machine, and its advice on loaders that are not used here, stay off the terminal."""
    lightning = logging.getLogger("pytorch_lightning"), logging.getLogger("lightning_fabric")
    levels = [logger.level for logger in lightning]
    for logger in lightning:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for text in _BESIDE_THE_POINT:
            warnings.filterwarnings("ignore", message=text)
        try:
            yield
        finally:
            for logger, level in zip(lightning, levels, strict=True):
                logger.setLevel(level)


def _count_confusions(folder: RunFolder, module: Module, data: DataSet) -> None:
    """What was taken for what in the test, as numbers: figures are drawn by another process."""
    seen = module.evaluations["test"]
    counts = task_named(data.task).confusions(seen.prediction, seen.target)
    if counts is not None:
        write_confusion(folder.path, counts.tolist(), data.classes)
