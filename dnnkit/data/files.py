"""Finding the files of a data set, and refusing any that are not what they should be."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dnnkit.data import decoded
from dnnkit.disk import user_cache
from dnnkit.errors import DataError


class Known(NamedTuple):
    """What a file has to hold once it is uncompressed: the SHA-256 of its bytes (hex) and their number."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Found:
    """The folder that was used, and the verified, uncompressed bytes by file name."""

    place: Path
    contents: Mapping[str, bytearray]


def find_files(
    root: Path | None, folder: str, files: Mapping[str, Known], *, system: Sequence[Path] = (), cure: str = "", trouble: Sequence[str] = ()
) -> Found:
    """The verified contents of `files`, from the first place that holds any of them.

    The place is `root/folder` where a root is given. Otherwise it is sought as `folder` in `$DNNKIT_DATA`, in `data/` of
    the working folder, and in the user's cache, then in the `system` folders themselves. A file may be plain or gzipped
    (`.gz`), and its `-idx` may be written `.idx`.

    Raises DataError where no place holds any file (`cure` is added to the advice), where the place lacks some of them
    (`trouble`, what a download met, is added to the cause of both), and where a file is damaged. Such a file is never
    used, and the next place is not tried instead of it.
    """
    place = first_place(root, folder, files, system)
    if place is None:
        raise _nothing(root, folder, files, places(root, folder, system), cure, trouble)
    missing = lacking(place, files)
    if missing:
        cause = "\n    ".join([f"{place} lacks {_listed(missing)}", *trouble])
        raise DataError(cause, "put it there, plain or gzipped (.gz), or empty that folder")
    spelled = {name: spelling(place, name) for name in files}
    return Found(place, {name: _read(path, files[name]) for name, path in spelled.items() if path is not None})


def _read(path: Path, known: Known) -> bytearray:
    """The verified bytes, of a large gzipped file those that an earlier run has uncompressed."""
    if path.suffix != ".gz" or known.size < decoded.WORTH_KEEPING:
        return read_verified(path, known)
    content = decoded.held(known.sha256, known.size)
    if content is None:
        content = read_verified(path, known)
        decoded.hold(known.sha256, content)
    return content


def first_place(root: Path | None, folder: str, files: Iterable[str], system: Sequence[Path] = ()) -> Path | None:
    """The first of the places that holds any of the files; see `find_files`."""
    return next((place for place in places(root, folder, system) if any(spelling(place, name) for name in files)), None)


def lacking(place: Path, files: Iterable[str]) -> list[str]:
    """The names of those files that the place does not hold in any spelling."""
    return [name for name in files if spelling(place, name) is None]


def places(root: Path | None, folder: str, system: Sequence[Path] = ()) -> list[Path]:
    """The folders in which the files of one data set are looked for, in order; see `find_files`."""
    if root is not None:
        return [root.expanduser() / folder]
    named = os.environ.get("DNNKIT_DATA")
    roots = [*([Path(named).expanduser()] if named else []), Path.cwd() / "data", user_cache()]
    return [*(one / folder for one in roots), *system]


def read_verified(path: Path, known: Known, *, gzipped: bool | None = None) -> bytearray:
    """The uncompressed bytes of a plain or gzipped file; DataError where they are not the known ones.

    Where `gzipped` is not said, the name's ending `.gz` says it. Never more than the known size plus one byte is held in
    memory, whatever a compressed file would expand to.
    """
    content = bytearray(known.size + 1)
    try:
        with gzip.open(path) if (path.suffix == ".gz" if gzipped is None else gzipped) else path.open("rb") as stream:
            count = _fill(memoryview(content), stream)
    except EOFError as error:
        raise _damaged(path, known, f"the compressed data ends too early ({error})") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, known, f"the compressed data is damaged ({error})") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", "make it readable, or replace it") from error
    if count != known.size:
        raise _damaged(path, known, f"{'more' if count > known.size else count} bytes")
    del content[count:]
    digest = hashlib.sha256(content).hexdigest()
    if digest != known.sha256:
        raise _damaged(path, known, f"SHA-256 {digest}")
    return content


def _fill(target: memoryview, stream: io.BufferedIOBase) -> int:
    """Read until the end of either; a megabyte at a time, because gzip's `readinto` allocates as much as it is asked for."""
    count = 0
    while got := stream.readinto(target[count : count + 2**20]):
        count += got
    return count


def spelling(place: Path, name: str) -> Path | None:
    """The first spelling of the name that is a file in this place: plain before gzipped, `-idx` before `.idx`."""
    candidates = [place / (spelled + suffix) for suffix in ("", ".gz") for spelled in dict.fromkeys((name, name.replace("-idx", ".idx")))]
    try:
        return next((path for path in candidates if path.is_file()), None)
    except OSError as error:
        raise DataError(f"{place} cannot be looked into: {error.strerror or error}", "make it readable") from error


def _damaged(path: Path, known: Known, found: str) -> DataError:
    return DataError(
        f"{path} is damaged: expected {known.size} bytes uncompressed with SHA-256 {known.sha256}, found {found}",
        "put an intact copy in its place, plain or gzipped (.gz); it was not used",
    )


def _nothing(
    root: Path | None, folder: str, files: Mapping[str, Known], looked: Sequence[Path], cure: str, trouble: Sequence[str]
) -> DataError:
    elsewhere = "" if root is not None else f"; or set DNNKIT_DATA to the folder that holds {folder}/"
    lines = [f"put {_listed(files)}, plain or gzipped (.gz), into one of these folders{elsewhere}", *([cure] if cure else [])]
    cause = [f"no files of {folder} were found; looked in:", *map(str, looked), *trouble]
    return DataError("\n    ".join(cause), "\n  ".join(lines))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
