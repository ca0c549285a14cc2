"""Files that are whole or absent: atomic writes, and disk trouble told as `DiskError`."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from dnnkit.errors import DiskError

log = logging.getLogger("dnnkit")

_DAY_S = 86_400.0


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal to write `path` into a `DiskError` that says what to do."""
    try:
        yield
    except OSError as error:
        cure = (
            "Free some space on that disk, then start again or resume."
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "Choose a working folder that you may write to, or correct its permissions."
        )
        raise DiskError(f"cannot write {path}: {error.strerror or error}", cure) from error


@contextmanager
def in_passing() -> Iterator[None]:
    """What cannot be written inside is told in the log alone: an error that is under way already says more."""
    try:
        yield
    except DiskError as error:
        log.warning("%s", error)


def sync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` survive a power cut (a folder is synced like a file)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write in the place of `path`: a reader sees the old bytes or the new ones, never a mixture.

    It is a hidden neighbour, synced and renamed at the end of the block. Raises DiskError; whatever goes wrong inside,
    `path` is as it was and no neighbour is left behind.
    """
    neighbour = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk(path):
        try:
            with open(neighbour, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(neighbour, path)
            sync_folder(path.parent)
        except BaseException:
            neighbour.unlink(missing_ok=True)
            raise


def write_atomically(path: Path, data: bytes | bytearray) -> None:
    """Replaces `path` by `data`, whole or not at all. Raises DiskError."""
    with replacing(path) as file:
        file.write(data)


def write_to_cache(path: Path, data: bytes | bytearray) -> None:
    """`write_atomically` below `user_cache()`: makes the folder, and clears away what killed processes left there a day ago or more.

    Raises DiskError, OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(".*.tmp"):
        with suppress(FileNotFoundError):  # another process was quicker
            if time.time() - leftover.stat().st_mtime > _DAY_S:
                leftover.unlink()
    write_atomically(path, data)


def write_text(path: Path, text: str) -> None:
    """`write_atomically` for text, in UTF-8."""
    write_atomically(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, keys in the order given; NaN and Infinity as Python's tokens."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises OSError where there is none, ValueError where it is not JSON."""
    return json.loads(path.read_text("utf-8"))


def user_cache() -> Path:
    """Where what can be made again is kept for this user: `dnnkit` in `$XDG_CACHE_HOME`, else in the platform's own cache folder.

    Raises OSError for a user who has no home.
    """
    named = os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named) / "dnnkit"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise FileNotFoundError(str(error)) from error
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "dnnkit"
