"""Predicting with a run's weights: from raw examples to classes with their probabilities, or to values in their own units."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor, nn

from dnnkit.data import Told
from dnnkit.data.passes import reseeding
from dnnkit.data.sizing import evaluation_batch
from dnnkit.data.tables import EncodedRows
from dnnkit.data.tasks import task_named
from dnnkit.disk import replacing
from dnnkit.errors import ConfigError, DataError, DiskError, Problem
from dnnkit.network.stochastic import Spread, passes
from dnnkit.training.assemble import measures
from dnnkit.training.devices import inference_device
from dnnkit.training.examples import read_examples
from dnnkit.training.finished import FinishedRun, check_monte_carlo, open_run, threads_of

T = TypeVar("T")

#: Of so many examples it is asked whether they are in training's units.
_LOOKED_AT = 10_000
#: Beyond this many deviations, or closer together than that share of one, examples are hardly in training's units.
_FAR, _FLAT = 20.0, 0.05


@dataclass(frozen=True, eq=False)
class Predicted:
    """What `predict_file` did. `metrics`: the loss and the metrics by name, where the file has the target."""

    run_dir: Path
    checkpoint: str
    step: int
    rows: int
    output: Path
    metrics: dict[str, float]
    notices: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Answers:
    """`raw`: logits or standardised values; `predicted`: what is told of them; `spread`: that of Monte-Carlo dropout."""

    raw: Tensor
    predicted: Tensor
    spread: Spread | None = None


def predict(run: FinishedRun, x: Tensor, *, batch_size: int | None = None) -> Tensor:
    """Predictions for raw examples x `(n, *inputs)`, float64 on the CPU.

    They are standardised with the statistics of the run's training split. What is told is the task's: of a classification
    probabilities `(n, classes)`, the softmax of the network's logits; of a regression values `(n, outputs)` in the units of
    the target; of a reconstruction examples `(n, *inputs)` in raw units. `batch_size`: examples at a time; None: as many as
    when a run is tested.
    Raises DataError for x of another shape, and for values that cannot be used.
    """
    return _in_words(run, _outputs(run, x, batch_size))


def predict_spread(run: FinishedRun, x: Tensor, samples: int, *, batch_size: int | None = None) -> Spread:
    """Monte-Carlo dropout: the mean of `samples` predictions with dropout on, in the units of `predict`, and how far they are apart.

    What is said of an example depends on the run's seed and on the example and its number in x, on nothing beside it. Raises
    ConfigError for a network without dropout and for a fused one, DataError as `predict`.
    """
    return _spread_in_words(run, _spread(run, x, samples, batch_size))


def _in_words(run: FinishedRun, output: Tensor) -> Tensor:
    return task_named(run.state.task).predicted(output, run.target_scaling, run.state.inputs)


def _spread_in_words(run: FinishedRun, found: Spread) -> Spread:
    return task_named(run.state.task).told_spread(found, run.target_scaling, run.state.inputs)


def _answers(run: FinishedRun, x: Tensor, samples: int, batch_size: int | None) -> _Answers:
    if not samples:
        raw = _outputs(run, x, batch_size)
        return _Answers(raw, _in_words(run, raw))
    found = _spread(run, x, samples, batch_size)
    told = _spread_in_words(run, found)
    return _Answers(found.output, told.mean, told)


def _outputs(run: FinishedRun, x: Tensor, batch_size: int | None) -> Tensor:
    """What the network itself gives, `(n, outputs)`, float32 or float64 on the CPU, in evaluation mode and the run's precision."""

    def ask(network: nn.Module, batch: Tensor, _first: int) -> Tensor:
        output: Tensor = network(batch)
        return output.to("cpu", torch.float64 if batch.dtype is torch.float64 else torch.float32)

    return torch.cat(_each(run, x, batch_size, ask))


def _spread(run: FinishedRun, x: Tensor, samples: int, batch_size: int | None) -> Spread:
    """Monte-Carlo dropout in the network's own units: logits or standardised values."""
    check_monte_carlo(run, samples, run.network())
    summary = task_named(run.state.task).spread

    def ask(network: nn.Module, batch: Tensor, first: int) -> Spread:
        with reseeding(run.state.seed, batch.device) as reseed:
            return passes(network, batch, first, samples, reseed, summary)

    return Spread.joined(_each(run, x, batch_size, ask))


def _each(run: FinishedRun, x: Tensor, batch_size: int | None, ask: Callable[[nn.Module, Tensor, int], T]) -> list[T]:
    """What `ask` says of every batch, standardised, given the network, the batch and the number of its first example."""
    if tuple(x.shape[1:]) != run.state.inputs or len(x) == 0:
        raise DataError(f"x must be examples of shape (n, {', '.join(map(str, run.state.inputs))}), got {tuple(x.shape)}")
    if batch_size is not None and batch_size < 1:
        raise ConfigError([Problem("--batch-size", f"must be at least 1, got {batch_size}")])
    settings = run.cfg.trainer
    with threads_of(run.folder.path, settings.threads), torch.inference_mode():
        device = inference_device(settings)
        dtype = torch.float64 if str(settings.precision) == "64" else torch.float32
        network = run.network().to(device)
        size = batch_size or evaluation_batch(network, run.state.inputs, dtype, device)
        mixed = torch.autocast(device.type, torch.bfloat16) if str(settings.precision) == "bf16" else nullcontext()
        said: list[T] = []
        for first in range(0, len(x), size):
            ready = run.scaling.apply(x[first : first + size])
            if not ready.isfinite().all():
                row = first + int((~ready.flatten(1).isfinite()).any(1).nonzero()[0])
                raise DataError(f"example {row + 1} holds a value that is missing, or not finite once it is standardised")
            with mixed:
                said.append(ask(network, ready.to(device, dtype), first))
        return said


def predict_file(
    run: str | Path | FinishedRun,
    source: str | Path,
    output: str | Path,
    *,
    batch_size: int | None = None,
    overwrite: bool = False,
    mc_samples: int = 0,
    checkpoint: str = "best",
    runs: str | Path = "runs",
) -> Predicted:
    """Predict every example of a file and write the predictions to another, whole or not at all.

    `source`: csv, Parquet or .npz; see `read_examples`. `output`: .csv or .npz. In csv a line for each row: its number `row`,
    counted from 1 in every format, without the header (`row_number` where a target is called `row` itself); for classes the
    predicted one and a column `p_<class>` with the probability of each; for values one column by the name of each target, in
    its units. In .npz the arrays `row`, and `prediction` (class indices), `probabilities` and `classes`, or `values` with
    `targets`; a reconstruction has `values` `(n, *inputs)` and is .npz alone. Other tasks say in `columns` and `arrays` what theirs are.

    With `mc_samples` the predictions are the mean of so many passes with dropout on, and there are more columns: for classes
    the deviation of each probability over the passes, `std_<class>`, and `entropy` and `mutual_information` in nats; for
    values the deviation of each, `std_<target>`, in its units. In .npz the arrays `std`, `entropy`, `mutual_information`.
    Neither the data that the run was trained on nor MLflow is needed.

    Raises CheckpointError; DataError for a source that cannot be used; ConfigError for an output that is there already
    (without `overwrite`), is the source itself or has another ending; DiskError where it cannot be written.
    """
    source, target = Path(source).expanduser(), Path(output).expanduser()
    found = run if isinstance(run, FinishedRun) else open_run(run, checkpoint, runs=runs)
    _check_output(source, target, found.state.task, overwrite)
    examples = read_examples(source, found.state)
    answers = _answers(found, examples.x, mc_samples, batch_size)
    notices = [*examples.notices, *_strange(found, examples.x)]
    told = Told(answers.predicted, found.state.outputs, found.state.classes, found.state.targets, answers.spread)
    task = task_named(found.state.task)
    if target.suffix.lower() == ".csv":
        columns = task.columns(told)
        if (counting := _counting(columns)) != "row":
            notices.append(f"a target is called 'row': the column {counting!r} has the numbers of the rows")
        write: Callable[[BinaryIO], None] = partial(_write_csv, columns={counting: range(1, len(examples.x) + 1), **columns})
    else:
        write = partial(_write_npz, arrays={**task.arrays(told), **_of_spread(answers.spread)}, rows=len(examples.x))
    metrics = _measured(found, examples, answers.raw)
    with replacing(target) as file:
        write(file)
    return Predicted(found.folder.path, found.checkpoint.stem, found.step, len(examples.x), target, metrics, tuple(notices))


def _check_output(source: Path, output: Path, task: str, overwrite: bool) -> None:
    message = ""
    if output.suffix.lower() not in (".csv", ".npz"):
        message = f"must end in .csv or .npz, got {str(output)!r}"
    elif (why := task_named(task).arrays_only) and output.suffix.lower() != ".npz":
        message = f"must end in .npz, because {why}, got {str(output)!r}"
    elif output.exists() and source.exists() and output.samefile(source):
        message = f"is the input itself: {output}"
    elif output.is_dir():
        message = f"is a folder: {output}"
    elif output.exists() and not overwrite:
        message = f"is there already: {output}; add --overwrite to replace it"
    if message:
        raise ConfigError([Problem("--output", message)])
    if not output.absolute().parent.is_dir():
        raise DiskError(f"cannot write {output}: there is no folder {output.parent}", "Make the folder, or choose another.")


def _strange(run: FinishedRun, x: Tensor) -> Iterator[str]:
    """A word where the examples cannot be in the units of training, such as pixels from 0 to 1 in place of 0 to 255."""
    ready = run.scaling.apply(x[:_LOOKED_AT])
    middle, spread = float(ready.mean()), float(ready.std(correction=0))
    if abs(middle) > _FAR or spread > _FAR or (spread < _FLAT and ready.numel() > 100):
        yield (
            "are these examples in the units of training? In its deviations around its mean, they are at "
            f"{middle:.3g} on average and {spread:.3g} apart, where training's own are at 0 and 1 apart"
        )


def _measured(run: FinishedRun, examples: EncodedRows, output: Tensor) -> dict[str, float]:
    """The loss and the metrics of the predictions, where the target is known; those that are defined for it."""
    task, given = task_named(run.state.task), examples.target
    if given is None and task.form != "itself":
        return {}
    if given is None or given.is_floating_point():
        given = torch.empty(0) if given is None else given.reshape(len(examples.x), -1)
    x = run.scaling.apply(examples.x) if task.form == "itself" else examples.x  # which may be much larger than the targets
    target = task.targets(x, given, run.target_scaling)
    assert isinstance(target, Tensor)
    loss, metrics = measures(run.cfg, run.state.task, run.target_scaling)
    target = target.to(output.dtype) if target.is_floating_point() else target
    values = {name: float(measure(output, target)) for name, measure in {"loss": loss, **metrics}.items()}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _counting(columns: Container[str]) -> str:
    """The name of the column with the numbers of the rows: one that no other column of the output has."""
    name = "row"
    while name in columns:
        name = "row_number" if name == "row" else f"{name}_"
    return name


def _write_csv(file: BinaryIO, columns: Mapping[str, Sequence[Any]]) -> None:
    """A header and a line for each row; numbers in the fewest digits that say exactly which they are."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(columns)
    lines.writerows(zip(*columns.values(), strict=True))
    text.flush()
    text.detach()


def _of_spread(spread: Spread | None) -> dict[str, Tensor]:
    """The arrays of Monte-Carlo dropout, where it was asked for."""
    if spread is None:
        return {}
    parts = {"std": spread.std, "entropy": spread.entropy, "mutual_information": spread.mutual_information}
    return {name: part for name, part in parts.items() if part is not None}


def _write_npz(file: BinaryIO, arrays: Mapping[str, Tensor | Sequence[str]], rows: int) -> None:
    import numpy as np

    held: dict[str, Any] = {"row": np.arange(1, rows + 1)}
    held |= {name: part.numpy() if isinstance(part, Tensor) else np.array(part, dtype=str) for name, part in arrays.items()}
    np.savez(file, **held)
