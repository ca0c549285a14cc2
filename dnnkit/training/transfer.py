"""The weights that a run begins with: those of a checkpoint, of a run, or of a pretraining that is done first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dnnkit.checkpoint import RunState, load_with_digest
from dnnkit.config import Config
from dnnkit.data import DataSet
from dnnkit.errors import CheckpointError, ConfigError, DnnkitError, Problem
from dnnkit.record import RunRecord
from dnnkit.sender.find import find_run
from dnnkit.training.place import Place
from dnnkit.training.pretraining import finished_run
from dnnkit.training.reuse import Plan, copy, plan

if TYPE_CHECKING:
    from dnnkit.training.run import Prepared

log = logging.getLogger("dnnkit")

_PREFIX = "net."


@dataclass(frozen=True, eq=False)
class Origin:
    """A checkpoint to begin with. `run`: its run folder, else the file; `sha256`: of the file; `weights`: by their names in the network."""

    run: Path
    checkpoint: Path
    uuid: str | None
    sha256: str
    state: RunState
    weights: Mapping[str, Tensor]


def begin(run: Prepared, prepare: Callable[[Config], Prepared], train: Callable[[Prepared, str], Path] | None) -> Prepared:
    """The run with the weights that its `init_from` names in its network, and with what they are in its config.

    Where that names an experiment, its finished run is used; where there is none, `train` trains it and gives its folder.
    That begins only when all phases, which `prepare` prepares, are found possible and to fit together.
    Raises CheckpointError, ConfigError, and whatever preparing and training raise.
    """
    phases = _phases(run, prepare)
    before: Path | None = None
    while len(phases) > 1:
        phase = _started(phases.pop(0), before)
        before = _done(phase, phases[0], train)
    return _started(run, before)


def _phases(run: Prepared, prepare: Callable[[Config], Prepared]) -> list[Prepared]:
    """The run after the pretrainings that it rests on, the first of them first; each is known to fit the one before."""
    phases = [run]
    while (node := phases[0].cfg.init_from) is not None and node["experiment"] is not None:
        if Place.of_torchrun() is not None:
            cure = (f"+experiment={node['experiment']} tracking.runs=…", "init_from=RUN")
            raise ConfigError([Problem("init_from.experiment", "cannot be trained under torchrun: train it first, by itself", cure)])
        phase = prepare(Config(node["config"], words(node)))
        _plan(phases[0], phase.network.state_dict(), phase.data, f"+experiment={node['experiment']}")
        phases.insert(0, phase)
    if node is not None and len(phases) > 1:
        origin = read(node, phases[0].tracking.runs)  # so that it is known to be there before a phase is trained
        _plan(phases[0], origin.weights, origin.state, origin.run.name)
    return phases


def words(node: Mapping[str, Any]) -> tuple[str, ...]:
    """The overrides that a pretraining is composed from, what it inherits aside."""
    return (f"+experiment={node['experiment']}", *(node["overrides"] or ()))


def _done(phase: Prepared, after: Prepared, train: Callable[[Prepared, str], Path] | None) -> Path:
    """The run folder of a pretraining: one that has finished, else a new one."""
    told = " ".join(words(after.cfg.init_from))
    found = finished_run(phase)
    if found is not None:
        return found
    if train is None:
        raise CheckpointError(
            f"the pretraining {told} has no finished run in {phase.tracking.runs}/", "Train this config, or the pretraining."
        )
    return train(phase, told)


def _started(run: Prepared, before: Path | None) -> Prepared:
    """The run with the weights of `before`, or else of what its config names, if it names anything."""
    node = run.cfg.init_from
    if node is None:
        return run
    origin = read(node if before is None else {**node, "run": str(before)}, run.tracking.runs)
    planned = _plan(run, origin.weights, origin.state, origin.run.name)
    if str(run.trainer.precision) == "64":
        run.network.double()  # Lightning does it later, and would round the weights to 32 bits first
    copy(run.network, origin.weights, planned)
    if planned.left:
        left = ", ".join(planned.left)
        log.warning("%s has layers that this network has not (%s): what is copied is not the function that was learnt", origin.run, left)
    inputs = tuple(origin.state.inputs)
    if inputs != run.data.inputs:
        log.warning(
            "%s has inputs of shape %s, this run of shape %s: its weights were learnt on other data", origin.run, inputs, run.data.inputs
        )
    taken = {"run": str(origin.run), "uuid": origin.uuid, "sha256": origin.sha256}
    used = {**node, "experiment": None, "overrides": None, "data": "own", "config": None, **taken}
    cfg = run.cfg.changed(init_from=used)
    return replace(run, cfg=cfg, said=(f"from {origin.run.name}: {planned}", *run.said))


def _plan(run: Prepared, weights: Mapping[str, Tensor], of: RunState | DataSet, where: str) -> Plan:
    node = run.cfg.init_from
    return plan(run.network, weights, node["layers"], _other_outputs(of, run.data), where, node)


def _other_outputs(there: RunState | DataSet, here: DataSet) -> str | None:
    """Why outputs of the same number are not the same outputs, if they are not."""
    if there.task != here.task:
        return "another task"
    if there.classes != here.classes:
        return "other classes"
    return "other targets" if there.targets != here.targets else None


def read(node: Mapping[str, Any], runs: str) -> Origin:
    """The checkpoint that a node of `init_from` names by `run`, verified; `runs` is where names and ids are looked up.

    Raises CheckpointError where it is not there, damaged, or not the one whose SHA-256 the node has.
    """
    word = str(node["run"])
    path = Path(word).expanduser().absolute()
    run, checkpoint = (path, path) if word.endswith(".ckpt") else _of_run(find_run(word, runs), node["checkpoint"])
    held, sha256 = load_with_digest(checkpoint)
    state = RunState.of(held, checkpoint)
    state.check_trainable(checkpoint)
    if node["sha256"] not in (None, sha256):
        cause = f"{checkpoint} is not the checkpoint that init_from.sha256 names (it is {sha256[:12]}…, not {node['sha256'][:12]}…)"
        raise CheckpointError(cause, "Leave sha256 out to begin with the weights that it holds now.")
    weights = {key.removeprefix(_PREFIX): tensor for key, tensor in held.get("state_dict", {}).items() if key.startswith(_PREFIX)}
    return Origin(run, checkpoint, _uuid(checkpoint), sha256, state, weights)


def _of_run(folder: Path, checkpoint: str) -> tuple[Path, Path]:
    return folder, folder / "checkpoints" / f"{checkpoint}.ckpt"


def _uuid(checkpoint: Path) -> str | None:
    """Of the run in whose folder a checkpoint lies; None of a file that was taken out of it."""
    folder = checkpoint.parent.parent
    if not (folder / "run.json").is_file():
        return None
    try:
        return RunRecord.read(folder).uuid
    except DnnkitError as error:
        log.warning("the record of the run that %s is from cannot be read, and its UUID is not recorded: %s", checkpoint, error)
        return None
