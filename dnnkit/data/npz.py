"""Reading .npz archives of arrays without trusting them: nothing is unpickled, and nothing allocated on a claim."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dnnkit.data.own import absent
from dnnkit.errors import DataError, nearest

Array = NDArray[Any]

#: Deflate makes at most 1032 bytes of one: what claims more cannot hold it.
_MOST_EXPANSION = 1100
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_SAVE = "save it with numpy.savez(path, x=…, y=…)"


def read_npz(path: Path, names: Mapping[str, Sequence[str]]) -> tuple[dict[str, Array], list[str]]:
    """The arrays under the keys asked for, and the keys of the file that were not.

    `names` has for each key the spellings that the file may use, the first one there is taken; a key that the file has under
    none of them is left out of the answer.

    Raises DataError naming file and key: no such file; no zip archive; damaged; an array of Python objects; a header that
    claims more than the file holds, before anything is allocated for it.
    """
    if not path.is_file():
        raise DataError(f"{path} is a folder, not a file", "name the .npz file in it") if path.is_dir() else absent(path, "file")
    try:
        with zipfile.ZipFile(path) as archive:
            keys = [name.removesuffix(".npy") for name in archive.namelist()]
            spelled = {key: next((name for name in spellings if name in keys), None) for key, spellings in names.items()}
            arrays = {key: _read(path, archive, name) for key, name in spelled.items() if name is not None}
            return arrays, [key for key in keys if key not in spelled.values()]
    except zipfile.BadZipFile as error:
        raise _no_archive(path, error) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", "make it readable, or name another file") from error


def missing_key(path: Path, key: str, keys: Sequence[str], cure: str = "") -> DataError:
    """The error for a key that a file has not, with the nearest ones that it has and, last, another `cure`."""
    close = nearest(key, keys)
    hint = f"did you mean {' or '.join(close)}? rename it" if close else f"there are: {', '.join(keys) or 'none'}"
    return DataError(f"{path} has no key {key!r}", f"{hint}; {_SAVE}{f'; {cure}' if cure else ''}")


def _no_archive(path: Path, error: Exception) -> DataError:
    with path.open("rb") as file:
        start = file.read(6)
    if start == b"\x93NUMPY":
        return DataError(f"{path} holds one array (.npy), not an archive of arrays (.npz)", _SAVE)
    if start.startswith(b"PK"):
        return DataError(f"{path} is damaged: {error}", "put an intact copy in its place")
    return DataError(f"{path} is not an .npz archive: it begins with {start.hex(' ') or 'nothing'}", _SAVE)


def _read(path: Path, archive: zipfile.ZipFile, key: str) -> Array:
    """One member; its claims are compared with each other and with the file before it is read."""
    name = f"{key}.npy" if f"{key}.npy" in archive.namelist() else key
    info, where = archive.getinfo(name), f"{path}: key {key!r}"
    if info.compress_type not in _METHODS or info.flag_bits & 1:
        raise DataError(f"{where} is compressed by an unknown method, or encrypted", _SAVE)
    expansion = 1 if info.compress_type == zipfile.ZIP_STORED else _MOST_EXPANSION
    if info.compress_size > path.stat().st_size or info.file_size > expansion * info.compress_size + 64:
        raise _claims(where, info.file_size, f"only {min(info.compress_size, path.stat().st_size)} are there")
    try:
        with archive.open(info) as stream:
            shape, dtype = _header(where, stream)
            expected = stream.tell() + math.prod(shape) * dtype.itemsize
        if expected != info.file_size:
            raise _claims(where, expected, f"shape {shape} of {dtype}, but it holds {info.file_size}")
        with archive.open(info) as stream:
            found: Array = np.lib.format.read_array(stream, allow_pickle=False)
            return found
    except MemoryError as error:
        raise DataError(f"{where}: {info.file_size} bytes do not fit into memory", "save less of it") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        raise DataError(f"{where} is damaged: {error}", "put an intact copy in its place") from error


def _claims(where: str, claimed: int, but: str) -> DataError:
    return DataError(f"{where} claims {claimed} bytes: {but}", "it was not read; put an intact copy in its place")


def _header(where: str, stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype that a member claims; DataError for one of Python objects, ValueError for one that is no array."""
    shape, _, dtype = _read_header(stream)
    if dtype.hasobject:
        cure = "it was not unpickled; save numbers or texts, such as numpy.asarray(y, dtype=str)"
        raise DataError(f"{where} holds Python objects (pickled), it must hold numbers or texts", cure)
    if dtype.fields is not None or dtype.itemsize == 0:
        raise DataError(f"{where} holds {dtype}, it must hold numbers or texts", "save columns as x of shape (n, columns)")
    return shape, dtype


def _read_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"version {version} of the format")
