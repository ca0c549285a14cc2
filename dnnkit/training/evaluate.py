"""Measuring a run's weights again: on its own data, or on other data that are standardised as its own were."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch import Tensor

from dnnkit.config import Config, Trainer
from dnnkit.data import DataSet, Split
from dnnkit.data.loaders import evaluation_batches
from dnnkit.data.scaling import Scaling
from dnnkit.data.sizing import evaluation_batch
from dnnkit.data.stored import StoredRows
from dnnkit.data.tasks import task_named
from dnnkit.errors import ConfigError, DataError, Problem, nearest
from dnnkit.record.journal import METRICS, stream_journal
from dnnkit.training.assemble import assemble, load_data
from dnnkit.training.callbacks import JournalLogger
from dnnkit.training.devices import computing_with, inference_device, threads_to_prepare
from dnnkit.training.finished import FinishedRun, check_monte_carlo, fingerprint_of, open_run, threads_of, with_overrides
from dnnkit.training.fit import PRECISIONS, in_precision, quiet

log = logging.getLogger("dnnkit")

SPLITS = ("test", "validation", "train")
#: What may differ from the run: where the data are, and what is measured of them. The weights are what they are.
MAY_CHANGE = ("data.", "metrics", "trainer.threads")


@dataclass(frozen=True)
class Evaluated:
    """Loss and metrics by name of `rows` examples, by the weights of `step`.

    `recorded` holds the same as the run's journal has them, where it measured the same split with the same weights.
    `fingerprint` is that of the data; `trained_on` that of the run's, None where its folder does not say.
    """

    run_dir: Path
    uuid: str
    checkpoint: str
    step: int
    split: str
    rows: int
    metrics: Mapping[str, float]
    recorded: Mapping[str, float]
    fingerprint: str
    trained_on: str | None
    notices: tuple[str, ...]

    @property
    def same_data(self) -> bool:
        """Whether the data are known to be those of the run."""
        return self.fingerprint == self.trained_on


def evaluate(
    run: str | Path | FinishedRun,
    overrides: Sequence[str] = (),
    *,
    split: str = "test",
    mc_samples: int | None = None,
    checkpoint: str = "best",
    runs: str | Path = "runs",
) -> Evaluated:
    """Loss and metrics of a run's weights on a split of its data: by default on what the run itself tested.

    The network is rebuilt from the checkpoint, the data are loaded and split as the run's config says, and standardised
    with the statistics in the checkpoint. Nothing is written. On the same data and the same kind of device, with the same
    number of threads (by default as many as the run had), the numbers are those in the run's journal, bit for bit; a run
    on several devices measured in float32 on each of them what is measured on one here.

    `overrides` may change `data.…` (other files, another place) and `metrics`. Other data than the run's are a notice, not
    an error, as long as they mean the same: shape, classes, columns and the encoding of a table.

    `mc_samples`: so many passes of Monte-Carlo dropout, for the metrics `mc_…`; None: as many as the run's config says.

    Raises CheckpointError, ConfigError, DataError.
    """
    _check_split(split)
    found = run if isinstance(run, FinishedRun) else open_run(run, checkpoint, runs=runs)
    cfg = with_overrides(found.cfg, overrides, MAY_CHANGE, "train another network with the others")
    cfg, notices = _with_samples(found, cfg, mc_samples)
    settings = cfg.trainer
    with threads_of(found.folder.path, settings.threads):
        device = inference_device(settings)
        data, trained_on = data_for(found, cfg, device), fingerprint_of(found.folder.path)
        notices += _strangeness(settings, device, data.fingerprint, trained_on)
        for notice in notices:
            log.warning("%s", notice)
        values = _measure(found, cfg, settings, data, split, device)
    recorded = _recorded(found, cfg, split) if data.fingerprint == trained_on else {}
    return Evaluated(
        found.folder.path, found.folder.record.uuid, found.checkpoint.stem, found.step, split, len(getattr(data, split).y), values,
        {name: recorded[name] for name in values if name in recorded}, data.fingerprint, trained_on, tuple(notices),
    )  # fmt: skip


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ConfigError([Problem("--split", f"must be one of {', '.join(SPLITS)}, got {split!r}", nearest(split, SPLITS))])


def _strangeness(settings: Trainer, device: torch.device, fingerprint: str, trained_on: str | None) -> Iterator[str]:
    """What is not here as it was in the run: its GPU, its data."""
    if settings.name in ("gpu", "ddp") and device.type == "cpu":
        yield "the run used a GPU and there is none here: the last digits may differ"
    if fingerprint != trained_on:
        yield _other_data(fingerprint, trained_on)


def _with_samples(run: FinishedRun, cfg: Config, samples: int | None) -> tuple[Config, list[str]]:
    """The config with so many passes of Monte-Carlo dropout, and a word where the run's own cannot be made."""
    notices, dropout = [], cfg.dropout
    if samples is not None:
        check_monte_carlo(run, samples, run.network())
    elif run.state.fused and dropout.mc_samples:
        samples = 0
        notices.append("Monte-Carlo dropout is left out: fusing takes dropout as the identity")
    if samples is None:
        return cfg, notices
    return cfg.changed(dropout={**dropout, "mc_samples": samples}), notices


def data_for(run: FinishedRun, cfg: Config, device: torch.device) -> DataSet:
    """The data that the config names, if they mean what the run's did, standardised with the statistics in the checkpoint.

    Raises DataError, ConfigError.
    """
    with computing_with(threads_to_prepare(cfg.trainer)):
        data = load_data(cfg, device)
    return _rescaled(run, cfg, _fitting(run, cfg, data))


def _other_data(fingerprint: str, trained_on: str | None) -> str:
    if trained_on is None:
        return "the run folder does not say what data the run was trained on: these may be others"
    return f"these are not the data that the run was trained on (fingerprint {fingerprint[:12]}…, the run's is {trained_on[:12]}…)"


def _fitting(run: FinishedRun, cfg: Config, data: DataSet) -> DataSet:
    """The data, if they mean what the network was trained on. Raises DataError."""
    state, name = run.state, f"data={cfg.data.name}"
    if _meaning(data.encoding) != _meaning(state.encoding):
        cure = "dnnkit predict RUN --input FILE encodes a file as training did, and measures it where it has the target"
        raise DataError(f"{name}: this table would be encoded otherwise than the run's was, so its columns mean something else", cure)
    pairs = {
        "the task": (data.task, state.task),
        "the shape of an example": (data.inputs, state.inputs),
        "the classes": (data.classes, state.classes),
        "the columns": (data.columns, state.columns),
        "the targets": (data.targets, state.targets),
    }
    for what, (here, there) in pairs.items():
        if here != there:
            raise DataError(f"{name}: {what} must be {_shown(there)}, as the run had, got {_shown(here)}", "take data of the same kind")
    if not task_named(state.task).fits(data.outputs, state.outputs):
        raise DataError(f"{name}: the network has {state.outputs} outputs, these data have {data.outputs}")
    return data


def _meaning(encoding: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The encoding without its word on the training file's own gaps: a file with others means the same."""
    return None if encoding is None else {key: value for key, value in encoding.items() if key != "complete"}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _rescaled(run: FinishedRun, cfg: Config, data: DataSet) -> DataSet:
    """The data standardised with the statistics in the checkpoint; those of the run are already."""
    wanted, targets = run.scaling, run.target_scaling
    if _equal(data.scaling, wanted) and (targets is None or (data.target_scaling is not None and _equal(data.target_scaling, targets))):
        return data
    raw = load_data(cfg.changed(data={**cfg.data, "loader": "stream"}))
    assert raw.target_scaling is None or targets is not None
    train, validation, test = (_with(part, wanted, raw.target_scaling, targets) for part in (raw.train, raw.validation, raw.test))
    return replace(data, train=train, validation=validation, test=test, scaling=wanted, target_scaling=targets)


def _with(split: Split, scaling: Scaling, was: Scaling | None, targets: Scaling | None) -> Split:
    x, y = (part if isinstance(part, Tensor) else replace(part, scaling=scaling)[:] for part in split)
    if was is not None and targets is not None and not isinstance(split.y, StoredRows):
        y = targets.apply(was.undo(y))
    return Split(x, y)


def _equal(one: Scaling, other: Scaling) -> bool:
    pairs = ((one.mean, other.mean), (one.std, other.std), (one.fill, other.fill))
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


class _Numbers(JournalLogger):
    """Keeps what is measured, where a run writes it into its journal."""

    def __init__(self) -> None:
        Logger.__init__(self)
        self.values: dict[str, float] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep them by name."""
        self.values |= {key.partition("/")[2]: float(value) for key, value in metrics.items()}


def _measure(run: FinishedRun, cfg: Config, settings: Trainer, data: DataSet, split: str, device: torch.device) -> dict[str, float]:
    """The loss and the metrics of one split, by the code that tests a run."""
    rows: Split = getattr(data, split)
    # As the run did: of a limited validation in minibatches as that counts them.
    limit = settings.limit_val_batches if split == "validation" else 1.0
    module, numbers = assemble(cfg, run.network(), replace(data, test=rows)), _Numbers()
    with quiet():
        trainer = pl.Trainer(
            accelerator={"cpu": "cpu", "cuda": "gpu", "mps": "mps"}[device.type],
            devices=1,
            precision=PRECISIONS[str(settings.precision)],
            logger=numbers,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        x, y = in_precision(rows, settings)
        size = evaluation_batch(module.net, x.shape[1:], x.dtype, device, limit)
        batches = evaluation_batches(x, y, size, workers=cfg.data.workers)
        trainer.test(module, batches.to(device), verbose=False)
    return {name: value for name, value in numbers.values.items() if not math.isnan(value)}


def _recorded(run: FinishedRun, cfg: Config, split: str) -> dict[str, float]:
    """What the run's journal says of these weights and this split, by name; empty where it did not measure them so."""
    rows = stream_journal(run.folder.path / METRICS)
    if split == "test" and run.checkpoint.stem == "best":
        found = {row.key.removeprefix("test/"): row.value for row in rows if row.key.startswith("test/")}
        as_then = cfg.dropout == run.cfg.dropout
        return {name: value for name, value in found.items() if as_then or not name.startswith("mc_")}
    if split == "validation":
        return {row.key.removeprefix("val/"): row.value for row in rows if row.key.startswith("val/") and row.step == run.step}
    return {}
