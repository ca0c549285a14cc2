"""The bytes of a table's file, wherever it is and whether it is gzipped."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from dnnkit.errors import DataError, nearest

_GZIP = b"\x1f\x8b"


def located(path: str, root: Path | None) -> Path:
    """Where a table named in a config is: below `root` where one is given, else below the working folder; `~` is home.

    Where there is no such file but one with `.gz` added, that one is meant.
    """
    named = at_home(path)
    found = named if root is None else at_home(root) / named
    gzipped = found.with_name(f"{found.name}.gz") if found.name else found
    return gzipped if not found.exists() and gzipped.is_file() else found


def at_home(path: str | Path) -> Path:
    """The path with `~` and `~user` replaced by the home folder; DataError where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(
            f"there is no file {path}: the home folder of {Path(path).parts[0]!r} is not known", "write the path out"
        ) from error


def read_bytes(path: Path) -> bytes:
    """The content of a plain or gzipped file, told apart by its first bytes.

    Raises DataError where there is no such file (with the nearest names in its folder), where it cannot be read, and
    where the compressed data is damaged.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(_GZIP) else content
    except FileNotFoundError as error:
        raise _absent(path) from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder, not a file", "name the file in it") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: its compressed data cannot be read ({error})", "put an intact copy in its place") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", "make it readable, or name another file") from error


def _absent(path: Path) -> DataError:
    if not path.parent.is_dir():
        return DataError(f"there is no file {path}, and no folder {path.parent}", _RELATIVE)
    try:
        there = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file() and not entry.name.startswith("."))
    except PermissionError:  # a folder may be passed through and yet not be listed
        there = []
    close = nearest(path.name, there)
    hint = f"did you mean {' or '.join(str(path.with_name(name)) for name in close)}?\n  " if close else ""
    return DataError(f"there is no file {path}", hint + _RELATIVE)


_RELATIVE = "a path is relative to data.root where that is set, else to the working folder"
