"""A run that has been: found by name, and its network, scaling and config taken from one of its checkpoints."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from torch import nn

from dnnkit import plugins
from dnnkit.checkpoint import RunState, load, rebuild
from dnnkit.config import Config
from dnnkit.config.references import resolve
from dnnkit.config.sections import GROUPS, SECTIONS, validate
from dnnkit.config.triage import CLI, is_choice, judge_value, line, parse
from dnnkit.data.scaling import Scaling
from dnnkit.disk import read_json
from dnnkit.errors import CheckpointError, ConfigError, PluginError, Problem, nearest
from dnnkit.network.stochastic import dropouts
from dnnkit.record import RunFolder
from dnnkit.record.folder import read_files
from dnnkit.sender.find import find_run
from dnnkit.training.devices import computing_with

log = logging.getLogger("dnnkit")

CHECKPOINTS = ("best", "last", "fused")


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """One checkpoint of a run folder, verified and loaded. `step`: the optimizer steps that were done when it was saved."""

    folder: RunFolder
    checkpoint: Path
    state: RunState
    cfg: Config
    step: int

    @property
    def scaling(self) -> Scaling:
        """From raw examples to standardised ones, by the statistics of the run's training split."""
        return Scaling(self.state.mean, self.state.std, self.state.fill)

    @property
    def target_scaling(self) -> Scaling | None:
        """The same for values to predict; None for classes."""
        mean, std = self.state.target_mean, self.state.target_std
        return None if mean is None or std is None else Scaling(mean, std)

    def network(self) -> nn.Module:
        """The network with the checkpoint's weights, in evaluation mode, on the CPU, in the run's precision. Raises CheckpointError."""
        return rebuild(self.checkpoint, self.state)


def open_run(run: str | Path, checkpoint: str = "best", *, runs: str | Path = "runs") -> FinishedRun:
    """A run by path, name or id (see `find_run`) with its checkpoint `best`, `last` or, once it was fused, `fused`.

    Nothing in the checkpoint is executed, and its config is validated like any other. Raises CheckpointError where there is
    no such run or checkpoint, where it is damaged, or where its config is not understood; PluginError where a plugin that
    the config may need has failed.
    """
    if checkpoint not in CHECKPOINTS:
        message = f"must be one of {', '.join(CHECKPOINTS)}, got {checkpoint!r}"
        raise ConfigError([Problem("--checkpoint", message, nearest(checkpoint, CHECKPOINTS))])
    folder = find_run(run, runs)
    return read_run(folder, folder / "checkpoints" / f"{checkpoint}.ckpt")


def read_run(folder: Path, checkpoint: Path) -> FinishedRun:
    """`open_run` for a file in a folder that are known."""
    if not checkpoint.exists():
        there = ", ".join(sorted(path.stem for path in (folder / "checkpoints").glob("*.ckpt"))) or "none"
        cure = f"There is: {there}." if there != "none" else "It ended before its first validation; train it again."
        cure = f"Make it with dnnkit fuse {folder.name}." if checkpoint.name == "fused.ckpt" and there != "none" else cure
        raise CheckpointError(f"the run {folder.name} has no checkpoint {checkpoint.name}", cure)
    held = load(checkpoint)
    state = RunState.of(held, checkpoint)
    step = held.get("global_step")
    if not isinstance(step, int):
        raise CheckpointError(f"{checkpoint} does not say at which step it was saved", "Use another checkpoint of the run.")
    if state.fused:
        _warn_if_stale(folder, str(held.get("fused_from")), step)
    return FinishedRun(RunFolder(folder), checkpoint, state, _understood(state, checkpoint), step)


def _warn_if_stale(folder: Path, source: str, step: int) -> None:
    """A run that was resumed since has other weights by now."""
    path = folder / "checkpoints" / f"{source}.ckpt"
    now = load(path).get("global_step") if path.exists() else step
    if now != step:
        log.warning("fused.ckpt holds the %s weights of step %d, which are those of step %s by now: fuse the run again", source, step, now)


def _understood(state: RunState, where: Path) -> Config:
    plugins.load()
    values, problems = validate(state.config)
    if not problems:
        return Config(values)
    told = "\n".join(f"  - {problem}" for problem in problems)
    for plugin in plugins.failed():
        raise PluginError(f"{where} cannot be used, and the plugin {plugin.name!r} failed to load: {plugin.error}\n{told}")
    cure = f"It was written by dnnkit {state.version}; install that version and the plugins of the run (the tag dnnkit.plugins)."
    raise CheckpointError(f"the config in {where} is not one of this installation:\n{told}", cure)


def check_monte_carlo(run: FinishedRun, samples: int, network: nn.Module) -> None:
    """ConfigError where Monte-Carlo dropout cannot be had of this network, which is the run's."""
    if samples < 1:
        raise ConfigError([Problem("--mc-samples", f"must be an integer at least 1, got {samples}")])
    if run.state.fused:
        message = "needs the network as it was trained: fusing takes dropout as the identity"
        raise ConfigError([Problem("--mc-samples", message, ("--checkpoint best",))])
    if not dropouts(network):
        raise ConfigError([Problem("--mc-samples", f"{samples} passes would all be the same: the network of this run has no dropout")])


def with_overrides(cfg: Config, words: Sequence[str], allowed: Sequence[str], why: str) -> Config:
    """The config with settings changed: `trainer.max_epochs=40`.

    `allowed`: the keys that may change; `data.` allows all below it. `why` tells what to do about the others.
    Raises ConfigError with every problem.
    """
    parsed, problems = parse(words)
    values, base = cfg.values, OmegaConf.create(cfg.values)
    assert OmegaConf.is_dict(base)
    for override in parsed:
        key, text = override.key_or_group, line(override)
        fitting = any(key == name or (name.endswith(".") and key.startswith(name)) for name in allowed) and not key.endswith(".name")
        if override.is_sweep_override() or is_choice(override, {*GROUPS, *SECTIONS}) or not fitting:
            shown = ", ".join(f"{name}…" if name.endswith(".") else name for name in allowed)
            close = tuple(f"{name}=…" for name in nearest(key, allowed) if name != key)
            problems.append(Problem(text, f"cannot be changed here; {shown} can: {why}", close, CLI))
        elif found := judge_value(override, base):
            problems += found
        else:
            _put(values, key.split("."), override.value())
    resolved, found = resolve(values)
    problems += found
    valid, found = validate(resolved) if not problems else ({}, [])
    if problems or found:
        raise ConfigError([*problems, *found])
    return Config(valid, words)


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        values = values[part]
    values[path[-1]] = value


def fingerprint_of(run_dir: Path) -> str | None:
    """The fingerprint of the data that a run was trained on, None where its folder does not say."""
    dataset = read_files(run_dir, "dataset.json")
    return str(json.loads(dataset["source"])["fingerprint"]) if "source" in dataset else None


def recorded_threads(folder: Path) -> int | None:
    """With how many CPU threads a run computed; None where its folder does not say, and where a GPU did what they would do."""
    path = folder / "environment" / "environment.json"
    facts = read_json(path) if path.exists() else {}
    on_cpu = str(facts.get("device", "cpu")).startswith("cpu")
    return int(facts["threads"]) if on_cpu and facts.get("threads") else None


@contextmanager
def threads_of(folder: Path, wanted: Literal["auto"] | int | None) -> Iterator[None]:
    """Compute with `wanted` CPU threads, else with as many as the run had: sums depend on their number in the last digits.

    As many as there are where neither says.
    """
    with computing_with(wanted if isinstance(wanted, int) else recorded_threads(folder)):
        yield
