"""Going on with a run that has ended: more epochs in the same folder, and the same run in MLflow."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from dnnkit.checkpoint import RunState, load
from dnnkit.config import Config
from dnnkit.config.schedule import schedule_of
from dnnkit.console import open_console
from dnnkit.errors import CheckpointError, ConfigError, DataError, Problem
from dnnkit.record import RunFolder
from dnnkit.record.journal import cut_journals
from dnnkit.sender.address import uri_of
from dnnkit.sender.find import find_run
from dnnkit.sender.rewind import rewound
from dnnkit.training.finished import FinishedRun, fingerprint_of, read_run, recorded_threads, threads_of, with_overrides
from dnnkit.training.keeping import EPOCH, LAST, epochs_done, waited
from dnnkit.training.place import Place
from dnnkit.training.result import Result
from dnnkit.training.run import Prepared, carry_out, equipment, prepare_run
from dnnkit.training.senders import Senders

log = logging.getLogger("dnnkit")

#: What a resumed run may change: how long it goes on, and what changes no experiment. Everything else would make it another one.
MAY_CHANGE = (
    "trainer.max_epochs",
    "trainer.early_stopping",
    "trainer.progress_bar",
    "trainer.threads",
    "trainer.chunk_size",
    "trainer.engine",
    "diagnostics.every",
    "tracking.wait_s",
    "data.root",
    "data.path",
    "data.loader",
    "data.workers",
    "data.memory_share",
)


@dataclass(frozen=True, eq=False)
class Point:
    """Where a run can go on: a checkpoint of an epoch's end, with `epochs` done, `patience` validations without improvement."""

    run: FinishedRun
    epochs: int
    patience: int


def resume(
    run: str | Path, overrides: Sequence[str] = (), *, runs: str | Path = "runs", gone: bool = False, console: Console | None = None
) -> Result:
    """Go on with a run from the end of its last whole epoch, in its folder and in its MLflow run.

    `overrides` may change what is in `MAY_CHANGE`: above all `trainer.max_epochs`. The orders of the epochs and what is
    random in a minibatch are functions of the seed and their numbers, and the optimizer's state is in the checkpoint: with a
    schedule that does not depend on the length of the run, the weights and the journal are bit for bit those of a run that
    was never interrupted, if the device and the number of threads are the same; the rows of a test, and of the signal at
    the end, of a run that had finished stay where they were. A schedule over the whole run is, from here
    on, that of the longer run.

    A run that was stopped inside an epoch goes back to the end of the epoch before: the rows of the journals after it are
    taken out, and that part is trained again. The best weights are those of both parts, and early stopping goes on counting.
    `gone`: the process of a run that is still marked as running is known to be gone, although that cannot be seen from here.

    Raises CheckpointError for a run that cannot go on, ConfigError for what may not change, and what `train` raises.
    """
    if Place.of_torchrun() is not None:
        message = "cannot be run under torchrun: it starts the processes of the run by itself"
        raise ConfigError([Problem("resume", message, ("dnnkit resume RUN",))])
    path = find_run(run, runs)
    with _claimed(path):
        folder = RunFolder(path)
        _check_over(folder, gone)
        point = last_epoch(path)
        cfg = with_overrides(point.run.cfg, overrides, MAY_CHANGE, "the others make another experiment: start a new run with them")
        _check_more(folder, point, cfg)
        console = console or open_console(quiet=not cfg.trainer.progress_bar)
        # The threads first: the sums of the standardisation depend on their number too.
        with threads_of(path, cfg.trainer.threads), Senders() as senders:
            prepared = _as_recorded(prepare_run(cfg, resumed=True), point)
            sender = senders.start(prepared.uri)
            with rewound(path, point.run.step, prepared.tracking.wait_s) as orphans:
                _reopen(folder, point)
            result = carry_out(prepared, folder, lambda: _describe(folder, prepared, point, orphans, console), senders, sender, console)
            return senders.settle(result)


@contextmanager
def _claimed(path: Path) -> Iterator[None]:
    """Nobody else resumes the run meanwhile. Raises CheckpointError."""
    lock = FileLock(path / ".run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise CheckpointError(f"the run {path.name} is being resumed by another process", "Wait until that one has ended.") from error
    try:
        yield
    finally:
        lock.release()


def _check_over(folder: RunFolder, gone: bool) -> None:
    record = folder.record
    if record.status != "RUNNING" or gone or record.process_is_gone():
        return
    where = f"process {record.pid} on {record.host}"
    cure = "Stop it first; if that process is another one or the machine is gone, add --gone."
    raise CheckpointError(f"the run {folder.path.name} is still running ({where})", cure)


def last_epoch(path: Path) -> Point:
    """The checkpoint of the latest epoch's end in a run folder. Raises CheckpointError where there is none, or where it is damaged."""
    seen = []
    for name in (LAST, EPOCH):
        checkpoint = path / "checkpoints" / name
        if not checkpoint.exists():
            continue
        held = load(checkpoint)
        RunState.of(held, checkpoint).check_trainable(checkpoint)
        epochs = epochs_done(held)
        if epochs is not None:
            _check_best(path)
            return Point(read_run(path, checkpoint), epochs, waited(held))
        seen.append(f"{name} was saved inside an epoch")
    cause = f"the run {path.name} has no checkpoint of an epoch's end to go on from"
    raise CheckpointError(f"{cause}: {'; '.join(seen) or 'it has neither last.ckpt nor epoch.ckpt'}", "Start it again as a new run.")


def _check_best(path: Path) -> None:
    """The best weights so far are there and whole: a resumed run is tested with them where it finds none better."""
    load(path / "checkpoints" / "best.ckpt")


def _check_more(folder: RunFolder, point: Point, cfg: Config) -> None:
    """ConfigError where there is nothing to go on with, or where it would end as before."""
    trainer, was = cfg.trainer, point.run.cfg.trainer
    most, patience = trainer.max_epochs, trainer.early_stopping
    problems = []
    if most <= point.epochs:
        message = f"must be more than {point.epochs}, the number of epochs that are done, got {most}"
        problems.append(Problem("trainer.max_epochs", message, (f"trainer.max_epochs={2 * point.epochs}",)))
    if patience is not None and point.patience >= patience:
        ended = f"the run has not improved for {point.patience} validations, which is why it ended"
        message = f"{ended}; it must be more, or null, got {patience}"
        problems.append(Problem("trainer.early_stopping", message, ("trainer.early_stopping=null",)))
    if folder.record.dnnkit_status == "diverged" and most == was.max_epochs:
        message = "the run diverged, and would do so again at the same step: start a new run with another optimizer.lr"
        problems.append(Problem("RUN", message))
    if problems:
        raise ConfigError(problems)


def _as_recorded(prepared: Prepared, point: Point) -> Prepared:
    """The prepared run, if its data and its network are the recorded one's, with the address that it was recorded to.

    Raises DataError, CheckpointError.
    """
    path, record = point.run.folder.path, point.run.folder.record
    fingerprint = fingerprint_of(path)
    if prepared.data.fingerprint != fingerprint:
        cause = f"these are not the data of the run (fingerprint {prepared.data.fingerprint[:12]}…, the run's is {str(fingerprint)[:12]}…)"
        raise DataError(cause, "Put back the files that it was trained on, or start a new run with these.")
    point.run.network()  # its weights fit the network that this installation builds, or this raises
    uri = uri_of(record, Path.cwd(), os.environ) if prepared.tracking.name == "mlflow" else None
    threads = prepared.threads if isinstance(prepared.trainer.threads, int) else recorded_threads(path) or prepared.threads
    return replace(prepared, uri=uri, threads=threads)


def _reopen(folder: RunFolder, point: Point) -> None:
    """From here on the folder is that of a running run, as it was at the checkpoint; `run.json` says so last."""
    cut_journals(folder.path, point.run.step)
    last = folder.path / "checkpoints" / LAST
    if point.run.checkpoint != last:
        os.replace(point.run.checkpoint, last)
    folder.record.resumed_at(point.run.step, f"checkpoints/{LAST}").write(folder.path)


def _describe(folder: RunFolder, run: Prepared, point: Point, orphans: Sequence[int], console: Console) -> None:
    """What is known before the resumed part begins; what was known of the earlier part stays beside it."""
    number, step, values = folder.keep_earlier(), point.run.step, run.cfg.values
    folder.change_tags(values, **equipment(run), step=step)
    folder.change_config(point.run.cfg.values, values, run.cfg.overrides, step)
    folder.write_environment(str(run.device))
    changes = " ".join(run.cfg.overrides) or "no change"
    log.info("resumed (part %d of the run) after epoch %d, step %d: %s", number + 1, point.epochs, step, changes)
    said = [f"going on after epoch {point.epochs} (step {step}) up to epoch {run.cfg.trainer.max_epochs}"]
    said += _schedule_notice(point, run.cfg)
    if orphans:
        said.append(f"MLflow keeps rows of the part that is trained again, up to step {orphans[-1]}: the journal has them no more")
    for text in said:
        log.info("%s", text)
        console.print(text, highlight=False, soft_wrap=True)


def _schedule_notice(point: Point, cfg: Config) -> list[str]:
    """A word where the schedule of the learning rate is not what it would have been: it is over the whole run."""
    schedule, per_epoch = schedule_of(cfg.scheduler), point.run.step // point.epochs
    before, now = (per_epoch * each.trainer.max_epochs for each in (point.run.cfg, cfg))
    if before == now:
        return []
    if all(schedule(step, before) == schedule(step, now) for step in range(min(before, now))):
        return []
    name = cfg.scheduler.name
    rate = f"from step {point.run.step} on, the rate is that of a run of {now} steps, not of {before}"
    return [f"the schedule {name} is over the whole run: {rate}"]
