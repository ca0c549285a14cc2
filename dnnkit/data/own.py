"""Where the user's own files are, and what to say of one that is not there."""

from __future__ import annotations

from pathlib import Path

from dnnkit.errors import DataError, nearest

_RELATIVE = "a path is relative to data.root where that is set, else to the working folder"


def own_path(path: str, root: Path | None) -> Path:
    """Where a path named in a config leads: below `root` where one is given, else below the working folder; `~` is home."""
    named = Path(path).expanduser()
    return named if root is None else root.expanduser() / named


def absent(path: Path, what: str) -> DataError:
    """The error for a `what` (file, folder) that is not there, with the nearest names beside it."""
    if not path.parent.is_dir():
        return DataError(f"there is no {what} {path}, and no folder {path.parent}", _RELATIVE)
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.is_dir() == (what == "folder") and not entry.name.startswith("."))
    close = nearest(path.name, names)
    hint = f"did you mean {' or '.join(str(path.with_name(name)) for name in close)}?\n  " if close else ""
    return DataError(f"there is no {what} {path}", hint + _RELATIVE)
