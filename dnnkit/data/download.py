"""Data sets whose files are not on this machine: downloaded once, verified, and put where they will be found.

A file is received under another name (`.part`) and renamed when its uncompressed bytes have the known size and SHA-256,
so that whatever has the right name is whole. One process at a time downloads into a folder; others wait for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from dnnkit.data.fetch import FetchError, Tell, fetch, without_credentials
from dnnkit.data.files import Found, Known, find_files, first_place, lacking, read_verified
from dnnkit.disk import disk, sync_folder, user_cache
from dnnkit.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console

#: Base addresses, separated by spaces, each with `<data set>/<file>.gz`; they replace the built-in ones, and empty means: none.
VARIABLE = "DNNKIT_MIRRORS"
_LOCK = ".download.lock"
_offline: ContextVar[list[Path] | None] = ContextVar("offline", default=None)


@contextmanager
def offline() -> Iterator[list[Path]]:
    """Nothing is downloaded inside, for what only looks at data that is there; the folders that would have been completed."""
    missing: list[Path] = []
    token = _offline.set(missing)
    try:
        yield missing
    finally:
        _offline.reset(token)


def obtain_files(
    root: Path | None,
    folder: str,
    files: Mapping[str, Known],
    mirrors: Sequence[str],
    *,
    system: Sequence[Path] = (),
    cure: str = "",
    console: Console | None = None,
) -> Found:
    """The verified contents of `files`: found as `find_files` finds them, else downloaded as `<file>.gz` and kept.

    `mirrors` are the addresses of folders that hold the files, tried in order; the variable DNNKIT_MIRRORS replaces them.
    The files go into `download_folder(root, folder)`, where what an earlier download left is completed.

    Raises DataError as `find_files` does; where a download was tried, its cause says what every mirror answered. Without a
    network that takes seconds. Raises DiskError where the disk is full.
    """
    place, target = first_place(root, folder, files, system), download_folder(root, folder)
    trouble: list[str] = []
    if place is None or (place == target and lacking(place, files)):
        trouble = _download(target, files, _bases(folder, mirrors), console)
    return find_files(root, folder, files, system=system, cure=cure, trouble=trouble)


def download_folder(root: Path | None, folder: str) -> Path:
    """Where a data set is downloaded to: `folder` in the root given, else in `$DNNKIT_DATA`, else in the user's cache."""
    named = os.environ.get("DNNKIT_DATA")
    chosen = root if root is not None else Path(named) if named else user_cache()
    return chosen.expanduser() / folder


def _bases(folder: str, mirrors: Sequence[str]) -> list[str]:
    """The addresses of the folders to download from, without a slash at the end. DataError for one that is not HTTP."""
    named = os.environ.get(VARIABLE)
    bases = [base.rstrip("/") for base in mirrors] if named is None else [f"{base.rstrip('/')}/{folder}" for base in named.split()]
    for base in bases:
        if not base.startswith(("http://", "https://")):
            raise DataError(f"an address in {VARIABLE} must begin with http:// or https://, got {without_credentials(base)!r}")
    return bases


def _download(target: Path, files: Mapping[str, Known], bases: Sequence[str], console: Console | None) -> list[str]:
    """Download what `target` lacks; what stood in the way, in words, and nothing where nothing did."""
    missing = _offline.get()
    if missing is not None:
        missing.append(target)
    if not bases or missing is not None:
        return ["nothing was downloaded: " + ("a run does that" if bases else f"{VARIABLE} is set and empty")]
    if console is None:
        from rich.console import Console

        console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _alone(target, console):
            return _download_lacking(target, files, bases, console)
    except (OSError, NotImplementedError) as error:  # the latter where a file system has no locks
        return [f"nothing was downloaded: {target} cannot be written ({getattr(error, 'strerror', None) or error})"]


@contextmanager
def _alone(target: Path, console: Console) -> Iterator[None]:
    """No other process downloads into `target` meanwhile. The system frees the lock of a process that dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(target / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.print(f"another process is downloading into {target}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download_lacking(target: Path, files: Mapping[str, Known], bases: Sequence[str], console: Console) -> list[str]:
    lost: set[str] = set()
    trouble: list[str] = []
    for name in lacking(target, files):
        for base in bases:
            if base in lost:
                continue
            address = f"{base}/{name}.gz"
            try:
                with _progress(console, name, address) as tell:
                    _get(address, target, name, files[name], tell)
                break
            except FetchError as error:
                trouble.append(f"{without_credentials(address)}: {error}")
                if error.server_lost:
                    lost.add(base)
        else:
            # Without one of them the others are of no use.
            return ["it could not be downloaded:", *trouble]
    return []


def _get(address: str, target: Path, name: str, known: Known, tell: Tell) -> None:
    """One file from one mirror, verified and renamed. FetchError where it cannot be had; what is wrong is deleted."""
    part = target / f"{name}.gz.part"
    continued = part.exists()
    # Deflate stores what it cannot compress, with a few bytes for each block of it.
    most = known.size + known.size // 100 + 2**16
    fetch(address, part, most, tell)
    try:
        read_verified(part, known, gzipped=True)
    except DataError as error:
        part.unlink(missing_ok=True)
        if continued:
            # Its beginning may have come from a mirror that compresses otherwise: once more, from the first byte.
            return _get(address, target, name, known, tell)
        raise FetchError(f"it sent something else: {error.cause.partition(', found ')[2] or error.cause}") from error
    with disk(part):
        handle = os.open(part, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        part.replace(target / f"{name}.gz")
        sync_folder(target)


@contextmanager
def _progress(console: Console, name: str, address: str) -> Iterator[Tell]:
    """A bar on a terminal; elsewhere one line for each file."""
    if not console.is_terminal:
        console.print(f"downloading {without_credentials(address)}")
        yield lambda count, expected: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=None)
        yield lambda count, expected: progress.update(task, completed=count, total=expected)
