"""Fusing a finished run: its batch normalizations become part of its layers, compared with the run before anything is written."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dnnkit.checkpoint import STATE_KEY, save
from dnnkit.errors import CheckpointError, ConfigError, DataError, Problem
from dnnkit.network.fusing import Fold, Refusal, fuse
from dnnkit.training.evaluate import data_for
from dnnkit.training.finished import FinishedRun, open_run, threads_of

#: Examples at a time, as when a run is tested, and at most so many that are compared.
BATCH, MOST = 1000, 10_000
#: A difference beyond this share of the greatest output is a fault, and nothing is written: by the type of the weights.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
_ROUNDS = 15


@dataclass(frozen=True)
class FusedRun:
    """What fusing a run did.

    `difference`: the greatest between an output of both networks, over `compared` examples of `compared_on`; `relative`: that
    over the greatest output of the run's own. `time_ratio`: time of a batch fused / as it was, the median of rounds taken in
    turn on the CPU. `parameters`, `fused_parameters`: numbers in weights and moving statistics before and after.
    """

    run_dir: Path
    checkpoint: str
    step: int
    output: Path
    folds: tuple[Fold, ...]
    refusals: tuple[Refusal, ...]
    parameters: int
    fused_parameters: int
    difference: float
    relative: float
    compared: int
    compared_on: str
    time_ratio: float
    batch: int
    notices: tuple[str, ...]


def fuse_run(run: str | Path | FinishedRun, checkpoint: str = "best", *, overwrite: bool = False, runs: str | Path = "runs") -> FusedRun:
    """Write `checkpoints/fused.ckpt` into the run folder: a checkpoint without those batch normalizations that can be folded.

    Both networks are compared first, on the run's validation split or, where that cannot be loaded, on random standardised
    inputs. `evaluate` and `predict` take the checkpoint by the name `fused`; it cannot be trained on.
    Raises ConfigError where the file is there already (without `overwrite`); CheckpointError where nothing can be folded, with
    every reason, where the checkpoint is fused already, and where the outputs differ by more than rounding.
    """
    if checkpoint == "fused":
        raise ConfigError([Problem("--checkpoint", "must be best or last, which are fused; got 'fused'", ("best", "last"))])
    found = run if isinstance(run, FinishedRun) else open_run(run, checkpoint, runs=runs)
    output = found.folder.path / "checkpoints" / "fused.ckpt"
    if found.state.fused:
        raise CheckpointError(f"{found.checkpoint} is fused already", "Fuse best or last.")
    if output.exists() and not overwrite:
        raise ConfigError([Problem("--overwrite", f"is not given, and there is already {output}; add --overwrite to replace it")])
    network = found.network()
    fused = fuse(network, found.state.inputs)
    if not fused.folds:
        raise _nothing(found, fused.refusals)
    settings = found.cfg.trainer
    with threads_of(found.folder.path, settings.threads), torch.inference_mode():
        x, compared_on, notices = _inputs(found)
        x = x.to(next(network.parameters()).dtype)
        difference, greatest = _difference(network, fused.network, x)
        _check(difference, greatest, x.dtype)
        ratio = _time_ratio(network, fused.network, x[:BATCH])
    _write(found, fused.network, fused.folds, output)
    return FusedRun(
        found.folder.path, found.checkpoint.stem, found.step, output, fused.folds, fused.refusals, _size(network), _size(fused.network),
        difference, difference / greatest if greatest else 0.0, len(x), compared_on, ratio, min(BATCH, len(x)), notices,
    )  # fmt: skip


def _nothing(run: FinishedRun, refusals: tuple[Refusal, ...]) -> CheckpointError:
    if not refusals:
        return CheckpointError(f"the network of {run.folder.path.name} has no normalization: there is nothing to fuse")
    reasons = "\n".join(f"  - {refusal.normalization}: {refusal.reason}" for refusal in refusals)
    return CheckpointError(f"no normalization of {run.folder.path.name} can be fused:\n{reasons}", "Use the checkpoint as it is.")


def _inputs(run: FinishedRun) -> tuple[Tensor, str, tuple[str, ...]]:
    """Examples to compare on, standardised; what they are; and a word where they are not the run's own."""
    try:
        return data_for(run, run.cfg, torch.device("cpu")).validation.x[:MOST], "validation examples", ()
    except (DataError, ConfigError) as error:
        drawn = torch.randn(BATCH, *run.state.inputs, generator=torch.Generator().manual_seed(run.state.seed))
        reason = f"the run's data cannot be loaded, so both networks were compared on random inputs: {error.cause}"
        return drawn, "random standardised inputs", (reason,)


def _difference(one: nn.Module, other: nn.Module, x: Tensor) -> tuple[float, float]:
    """The greatest |difference| of the outputs, and the greatest |output| of `one`; NaN where an output is not finite."""
    pairs = [(one(batch).double(), other(batch).double()) for batch in torch.split(x, BATCH)]
    differences = torch.stack([(a - b).abs().max() for a, b in pairs])
    return float(differences.max()), float(torch.stack([a.abs().max() for a, _ in pairs]).max())


def _check(difference: float, greatest: float, dtype: torch.dtype) -> None:
    if math.isfinite(difference) and difference <= _TOLERANCE[dtype] * max(greatest, 1.0):
        return
    cause = f"the fused network is not the same: its outputs differ by up to {difference:.3g}, where the greatest is {greatest:.3g}"
    cure = "Nothing was written. A moving variance near 0 magnifies rounding; with trainer.precision=64 there is less of it."
    raise CheckpointError(cause, cure)


def _time_ratio(before: nn.Module, after: nn.Module, x: Tensor) -> float:
    """Median time of a batch through `after` over that through `before`, in turn, so that both meet the same machine."""
    times: dict[nn.Module, list[float]] = {before: [], after: []}
    for number in range(_ROUNDS + 2):
        for network, taken in times.items():
            start = time.perf_counter()
            network(x)
            if number >= 2:  # the first ones warm up
                taken.append(time.perf_counter() - start)
    return statistics.median(times[after]) / statistics.median(times[before])


def _size(network: nn.Module) -> int:
    return sum(tensor.numel() for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked"))


def _write(run: FinishedRun, network: nn.Module, folds: tuple[Fold, ...], output: Path) -> None:
    state = replace(run.state, folded={fold.normalization: fold.into for fold in folds})
    weights = {f"net.{name}": tensor for name, tensor in network.state_dict().items()}
    save({"state_dict": weights, "global_step": run.step, "fused_from": run.checkpoint.stem, STATE_KEY: state.as_dict()}, output)
