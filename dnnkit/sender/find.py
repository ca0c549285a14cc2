"""Run folders, found by what a user calls them: a path, a name, letters of it, or an id, also MLflow's. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dnnkit.errors import CheckpointError, DnnkitError, nearest
from dnnkit.record import RunRecord
from dnnkit.record.folder import read_files
from dnnkit.sender.mark import MARK


def find_run(run: str | Path, runs: str | Path = "runs") -> Path:
    """The absolute path of a run folder.

    `run`: the path of a run folder; or, of a folder under `runs`, the name, the beginning or the end of the name that no
    other has (the end is the run's 8-letter id), its UUID, or the id of its MLflow run.
    Raises CheckpointError with the nearest names where it is none, and with the candidates where it is several.
    """
    word = str(run)
    if word and (Path(word).expanduser() / "run.json").is_file():
        return Path(word).expanduser().absolute()
    folders = [path.parent for path in sorted(Path(runs).expanduser().absolute().glob("*/run.json"))]
    for candidates in _candidates(word, folders) if word else ():
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            listed = "\n".join(f"  - {path.name}" for path in candidates[:10]) + ("\n  - …" if len(candidates) > 10 else "")
            raise CheckpointError(f"{word!r} is the name of {len(candidates)} runs:\n{listed}", "Name one of them by its last 8 letters.")
    raise _no_such_run(word, folders, Path(runs))


def _candidates(word: str, folders: Sequence[Path]) -> Iterator[list[Path]]:
    """What the word may mean, the surest first."""
    yield [path for path in folders if path.name == word]
    yield [path for path in folders if word in _ids(path)]
    yield [path for path in folders if path.name.endswith(word) or path.name.startswith(word)]


def _ids(folder: Path) -> tuple[str, ...]:
    """The run's UUID, and its id in MLflow where the folder knows it."""
    held: Mapping[str, Any] = {}
    try:
        uuid = RunRecord.read(folder).uuid
        held = read_files(folder, MARK)
    except (DnnkitError, OSError, ValueError):  # a damaged folder has no ids, and is still found by its name
        return ()
    return (uuid, str(held.get("run_id") or uuid))


def _no_such_run(word: str, folders: Sequence[Path], runs: Path) -> CheckpointError:
    names = {path.name: path.name for path in folders} | {path.name.rpartition("_")[2]: path.name for path in folders}
    close = list(dict.fromkeys(names[name] for name in nearest(word, names)))
    if not folders:
        return CheckpointError(f"there is no run {word!r}: {runs}/ holds no run", "Name the path of a run folder.")
    known = f"Did you mean {' or '.join(close)}?" if close else f"The latest of {len(folders)} in {runs}/ is {folders[-1].name}."
    return CheckpointError(f"there is no run {word!r}", known)
