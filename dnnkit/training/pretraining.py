"""Pretraining: the run of an experiment that another run begins with, found where it has been done, and done once."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout
from rich.console import Console

from dnnkit.disk import disk
from dnnkit.errors import DnnkitError
from dnnkit.record import RunRecord, config_digest
from dnnkit.training.finished import fingerprint_of

if TYPE_CHECKING:
    from dnnkit.training.run import Prepared

log = logging.getLogger("dnnkit")

#: What says where a run is recorded, where its data lie and how it goes about its work, but changes nothing that it learns.
_BESIDE_THE_POINT: Mapping[str, tuple[str, ...]] = {
    "trainer": ("chunk_size", "progress_bar"),
    "data": ("root", "loader", "memory_share", "workers"),
    "init_from": ("run",),  # the weights themselves are named by their digest
}
_LOCKS = ".pretraining"


def experiment_digest(values: Mapping[str, Any]) -> str:
    """The digest of a resolved config without the run's name, its tracking, and what changes no number."""
    plain = copy.deepcopy({key: value for key, value in values.items() if key not in ("name", "tracking")})
    for section, keys in _BESIDE_THE_POINT.items():
        for key in keys:
            (plain.get(section) or {}).pop(key, None)
    return config_digest(plain)


def finished_run(run: Prepared) -> Path | None:
    """The latest finished run under `tracking.runs` of the same experiment on the same data; None where there is none."""
    wanted = experiment_digest(run.cfg.values)
    for path in sorted(Path(run.tracking.runs).expanduser().absolute().glob("*/run.json"), reverse=True):
        if _config_digest_of(path.parent) == wanted and fingerprint_of(path.parent) == run.data.fingerprint:
            return path.parent
    return None


def _config_digest_of(folder: Path) -> str | None:
    """Of a finished run; None of any other, and of a folder that cannot be read."""
    try:
        if RunRecord.read(folder).dnnkit_status != "finished" or not (folder / "checkpoints" / "best.ckpt").exists():
            return None
        held = yaml.load((folder / "config" / "config.yaml").read_text("utf-8"), Loader=_LOADER)  # noqa: S506 (a safe loader)
    except (DnnkitError, OSError, ValueError, yaml.YAMLError):
        return None
    return experiment_digest(held) if isinstance(held, dict) else None


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def once(run: Prepared, told: str, train: Callable[[], Path], console: Console) -> Path:
    """The run folder of a pretraining, which `train` makes unless another process does meanwhile; `told` is what it is called."""
    runs = Path(run.tracking.runs).expanduser().absolute()
    with _alone(runs / _LOCKS / f"{experiment_digest(run.cfg.values)[:16]}.lock", told, console):
        found = finished_run(run)
        if found is not None:
            return found
        console.print(f"first the pretraining {told}, a run of its own:", highlight=False, markup=False, soft_wrap=True)
        made = train()
        console.print(f"the pretraining is {made}", highlight=False, markup=False, soft_wrap=True)
        return made


@contextmanager
def _alone(path: Path, told: str, console: Console) -> Iterator[None]:
    """Nobody else does the same pretraining meanwhile; where somebody does, wait until it is done."""
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            console.print(f"waiting for another process that is at the pretraining {told}", highlight=False, markup=False, soft_wrap=True)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
