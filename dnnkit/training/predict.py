"""Predicting with a run's weights: from raw examples to classes with their probabilities, or to values in their own units."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor, nn

from dnnkit.config import Trainer
from dnnkit.data.passes import reseeding
from dnnkit.data.sizing import evaluation_batch
from dnnkit.data.tables import EncodedRows
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

    They are standardised with the statistics of the run's training split. Classification: probabilities `(n, classes)`,
    the softmax of the network's logits. Regression: values `(n, outputs)` in the units of the target. Reconstruction:
    examples `(n, *inputs)` in raw units. `batch_size`: examples at a time; None: as many as when a run is tested.
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
    if run.target_scaling is None:
        return output.double().softmax(1)
    return _shaped(run, run.target_scaling.undo(output))


def _spread_in_words(run: FinishedRun, found: Spread) -> Spread:
    scaling = run.target_scaling
    return found if scaling is None else Spread(_shaped(run, scaling.undo(found.mean)), _shaped(run, found.std * scaling.std))


def _shaped(run: FinishedRun, values: Tensor) -> Tensor:
    return values.reshape(-1, *run.state.inputs) if run.state.task == "reconstruction" else values


def _answers(run: FinishedRun, x: Tensor, samples: int, batch_size: int | None) -> _Answers:
    if not samples:
        raw = _outputs(run, x, batch_size)
        return _Answers(raw, _in_words(run, raw))
    found = _spread(run, x, samples, batch_size)
    told = _spread_in_words(run, found)
    return _Answers(found.mean if found.log_mean is None else found.log_mean, told.mean, told)


def _outputs(run: FinishedRun, x: Tensor, batch_size: int | None) -> Tensor:
    """What the network itself gives, `(n, outputs)`, float32 or float64 on the CPU, in evaluation mode and the run's precision."""

    def ask(network: nn.Module, batch: Tensor, _first: int) -> Tensor:
        output: Tensor = network(batch)
        return output.to("cpu", torch.float64 if batch.dtype is torch.float64 else torch.float32)

    return torch.cat(_each(run, x, batch_size, ask))


def _spread(run: FinishedRun, x: Tensor, samples: int, batch_size: int | None) -> Spread:
    """Monte-Carlo dropout in the network's own units: logits or standardised values."""
    check_monte_carlo(run, samples, run.network())
    summary = Spread.of_logits if run.target_scaling is None else Spread.of_values

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
    `targets`; a reconstruction has `values` `(n, *inputs)` and is .npz alone.

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
    if target.suffix.lower() == ".csv" and (counting := _counting(found)) != "row":
        notices.append(f"a target is called 'row': the column {counting!r} has the numbers of the rows")
    metrics = _measured(found, examples, answers.raw)
    with replacing(target) as file:
        (_write_csv if target.suffix.lower() == ".csv" else _write_npz)(file, found, answers)
    return Predicted(found.folder.path, found.checkpoint.stem, found.step, len(examples.x), target, metrics, tuple(notices))


def _check_output(source: Path, output: Path, task: str, overwrite: bool) -> None:
    message = ""
    if output.suffix.lower() not in (".csv", ".npz"):
        message = f"must end in .csv or .npz, got {str(output)!r}"
    elif task == "reconstruction" and output.suffix.lower() != ".npz":
        message = f"must end in .npz, because this run reconstructs whole examples, got {str(output)!r}"
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
    if run.state.task == "reconstruction":
        target = run.scaling.apply(examples.x).flatten(1)
    elif examples.target is None:
        return {}
    elif run.target_scaling is None:
        target = examples.target
    else:
        target = run.target_scaling.apply(examples.target.reshape(len(examples.x), -1))
    loss, metrics = measures(run.cfg, run.state.task, run.target_scaling)
    target = target.to(output.dtype) if target.is_floating_point() else target
    values = {name: float(measure(output, target)) for name, measure in {"loss": loss, **metrics}.items()}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _classes(run: FinishedRun) -> tuple[str, ...]:
    return run.state.classes or tuple(map(str, range(run.state.outputs)))


def _targets(run: FinishedRun) -> tuple[str, ...]:
    many = run.state.outputs
    return run.state.targets or (("value",) if many == 1 else tuple(f"value_{index}" for index in range(many)))


def _counting(run: FinishedRun) -> str:
    """The name of the column with the numbers of the rows: one that no other column of the output has."""
    taken, name = (set() if run.state.task == "classification" else set(_targets(run))), "row"
    while name in taken:
        name = "row_number" if name == "row" else f"{name}_"
    return name


def _write_csv(file: BinaryIO, run: FinishedRun, answers: _Answers) -> None:
    """A header and a line for each row; numbers in the fewest digits that say exactly which they are."""
    predicted, spread = answers.predicted, answers.spread
    more = [[] for _ in predicted] if spread is None else torch.cat(_columns(spread), 1).tolist()
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    lines = csv.writer(text, lineterminator="\n")
    if run.state.task == "classification":
        names = _classes(run)
        told = [] if spread is None else [*(f"std_{name}" for name in names), "entropy", "mutual_information"]
        lines.writerow(["row", "prediction", *(f"p_{name}" for name in names), *told])
        chosen = [names[index] for index in predicted.argmax(1).tolist()]
        rows = zip(chosen, predicted.tolist(), more, strict=True)
        lines.writerows([row, name, *shares, *said] for row, (name, shares, said) in enumerate(rows, 1))
    else:
        lines.writerow([_counting(run), *_targets(run), *([] if spread is None else _deviations(run))])
        lines.writerows([row, *values, *said] for row, (values, said) in enumerate(zip(predicted.tolist(), more, strict=True), 1))
    text.flush()
    text.detach()


def _columns(spread: Spread) -> list[Tensor]:
    """The numbers of a spread, a row for each example."""
    more = [part[:, None] for part in (spread.entropy, spread.mutual_information) if part is not None]
    return [spread.std, *more]


def _deviations(run: FinishedRun) -> list[str]:
    """The names of the columns with the deviations: `std_<target>`, and an underscore more where another column has that name."""
    taken = {_counting(run), *_targets(run)}
    names = []
    for target in _targets(run):
        name = f"std_{target}"
        while name in taken:
            name += "_"
        taken.add(name)
        names.append(name)
    return names


def _write_npz(file: BinaryIO, run: FinishedRun, answers: _Answers) -> None:
    import numpy as np

    predicted, spread = answers.predicted, answers.spread
    arrays: dict[str, Any] = {"row": np.arange(1, len(predicted) + 1)}
    if run.state.task == "classification":
        arrays |= {"prediction": predicted.argmax(1).numpy(), "probabilities": predicted.numpy()}
        arrays["classes"] = np.array(_classes(run), dtype=str)
    else:
        arrays["values"] = predicted.numpy()
        if run.state.task == "regression":
            arrays["targets"] = np.array(_targets(run), dtype=str)
    if spread is not None:
        parts = {"std": spread.std, "entropy": spread.entropy, "mutual_information": spread.mutual_information}
        arrays |= {name: part.numpy() for name, part in parts.items() if part is not None}
    np.savez(file, **arrays)
