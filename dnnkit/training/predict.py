"""Predicting with a run's weights: from raw examples to classes with their probabilities, or to values in their own units."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dnnkit.config import Trainer
from dnnkit.data.tables import EncodedRows
from dnnkit.disk import replacing
from dnnkit.errors import ConfigError, DataError, DiskError, Problem
from dnnkit.training.assemble import measures
from dnnkit.training.devices import inference_device
from dnnkit.training.examples import read_examples
from dnnkit.training.finished import FinishedRun, open_run, threads_of

#: As many examples at a time as when a run is tested.
BATCH = 1000
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


def predict(run: FinishedRun, x: Tensor, *, batch_size: int = BATCH) -> Tensor:
    """Predictions for raw examples x `(n, *inputs)`, float64 on the CPU.

    They are standardised with the statistics of the run's training split. Classification: probabilities `(n, classes)`,
    the softmax of the network's logits. Regression: values `(n, outputs)` in the units of the target. Reconstruction:
    examples `(n, *inputs)` in raw units. Raises DataError for x of another shape, and for values that cannot be used.
    """
    return _in_words(run, _outputs(run, x, batch_size))


def _in_words(run: FinishedRun, output: Tensor) -> Tensor:
    if run.target_scaling is None:
        return output.double().softmax(1)
    values = run.target_scaling.undo(output)
    return values.reshape(-1, *run.state.inputs) if run.state.task == "reconstruction" else values


def _outputs(run: FinishedRun, x: Tensor, batch_size: int) -> Tensor:
    """What the network itself gives, `(n, outputs)`, float32 or float64 on the CPU, in evaluation mode and the run's precision."""
    if tuple(x.shape[1:]) != run.state.inputs or len(x) == 0:
        raise DataError(f"x must be examples of shape (n, {', '.join(map(str, run.state.inputs))}), got {tuple(x.shape)}")
    if batch_size < 1:
        raise ConfigError([Problem("--batch-size", f"must be at least 1, got {batch_size}")])
    settings = Trainer(**run.cfg.values["trainer"])
    with threads_of(run.folder.path, settings.threads), torch.inference_mode():
        device = inference_device(settings)
        dtype = torch.float64 if str(settings.precision) == "64" else torch.float32
        network = run.network().to(device)
        mixed = torch.autocast(device.type, torch.bfloat16) if str(settings.precision) == "bf16" else nullcontext()
        parts: list[Tensor] = []
        for batch in torch.split(x, batch_size):
            ready = run.scaling.apply(batch)
            if not ready.isfinite().all():
                row = len(torch.cat(parts)) if parts else 0
                row += int((~ready.flatten(1).isfinite()).any(1).nonzero()[0])
                raise DataError(f"example {row + 1} holds a value that is missing, or not finite once it is standardised")
            with mixed:
                output = network(ready.to(device, dtype))
            parts.append(output.to("cpu", torch.float64 if dtype is torch.float64 else torch.float32))
        return torch.cat(parts)


def predict_file(
    run: str | Path | FinishedRun,
    source: str | Path,
    output: str | Path,
    *,
    batch_size: int = BATCH,
    overwrite: bool = False,
    checkpoint: str = "best",
    runs: str | Path = "runs",
) -> Predicted:
    """Predict every example of a file and write the predictions to another, whole or not at all.

    `source`: csv, Parquet or .npz; see `read_examples`. `output`: .csv or .npz. In csv a line for each row: its number `row`,
    counted from 1 in every format, without the header (`row_number` where a target is called `row` itself); for classes the
    predicted one and a column `p_<class>` with the probability of each; for values one column by the name of each target, in
    its units. In .npz the arrays `row`, and `prediction` (class indices), `probabilities` and `classes`, or `values` with
    `targets`; a reconstruction has `values` `(n, *inputs)` and is .npz alone.
    Neither the data that the run was trained on nor MLflow is needed.

    Raises CheckpointError; DataError for a source that cannot be used; ConfigError for an output that is there already
    (without `overwrite`), is the source itself or has another ending; DiskError where it cannot be written.
    """
    source, target = Path(source).expanduser(), Path(output).expanduser()
    found = run if isinstance(run, FinishedRun) else open_run(run, checkpoint, runs=runs)
    _check_output(source, target, found.state.task, overwrite)
    examples = read_examples(source, found.state)
    raw = _outputs(found, examples.x, batch_size)
    notices = [*examples.notices, *_strange(found, examples.x)]
    if target.suffix.lower() == ".csv" and (counting := _counting(found)) != "row":
        notices.append(f"a target is called 'row': the column {counting!r} has the numbers of the rows")
    metrics = _measured(found, examples, raw)
    with replacing(target) as file:
        (_write_csv if target.suffix.lower() == ".csv" else _write_npz)(file, found, _in_words(found, raw))
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
    ready = run.scaling.apply(x[: 10 * BATCH])
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


def _write_csv(file: BinaryIO, run: FinishedRun, predicted: Tensor) -> None:
    """A header and a line for each row; numbers in the fewest digits that say exactly which they are."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    lines = csv.writer(text, lineterminator="\n")
    if run.state.task == "classification":
        names = _classes(run)
        lines.writerow(["row", "prediction", *(f"p_{name}" for name in names)])
        chosen = [names[index] for index in predicted.argmax(1).tolist()]
        lines.writerows([row, name, *shares] for row, (name, shares) in enumerate(zip(chosen, predicted.tolist(), strict=True), 1))
    else:
        lines.writerow([_counting(run), *_targets(run)])
        lines.writerows([row, *values] for row, values in enumerate(predicted.tolist(), 1))
    text.flush()
    text.detach()


def _write_npz(file: BinaryIO, run: FinishedRun, predicted: Tensor) -> None:
    import numpy as np

    arrays: dict[str, Any] = {"row": np.arange(1, len(predicted) + 1)}
    if run.state.task == "classification":
        arrays |= {"prediction": predicted.argmax(1).numpy(), "probabilities": predicted.numpy()}
        arrays["classes"] = np.array(_classes(run), dtype=str)
    else:
        arrays["values"] = predicted.numpy()
        if run.state.task == "regression":
            arrays["targets"] = np.array(_targets(run), dtype=str)
    np.savez(file, **arrays)
