"""What plugins register, kept from one command to the next, so that looking it up needs no PyTorch.

The records cannot be read off the source without running it. What running it gave is kept as JSON in the user's cache folder,
together with what it was read from: every file that any loaded module came from, every file of the plugins' own packages, the
folders that modules are looked for in, the entry points, the interpreter. It is used while all of that is as it was, by size,
modification and change time and inode; the change time no tool can set back. Otherwise, or in any doubt, plugins are imported.

Not seen, because nothing on disk says so: a plugin that registers by the hour, by a variable or by what a server tells it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dnnkit.disk import user_cache, write_to_cache
from dnnkit.errors import DiskError
from dnnkit.registry import ENTRY_POINTS

log = logging.getLogger(__name__)

#: Raised whenever what is kept changes its shape.
FORMAT = 2
#: A file as young as this might have changed after it was read and still look the same: clocks of file systems are coarse.
_SETTLED_NS = 2 * 10**9
_Stamp = list[int]


def kept(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives, from the cache where it holds; else made anew, and kept where everything it came from is known.

    `make` imports the plugins; what it gives are JSON values, and `keep` among them says whether they may be kept.
    """
    began = time.time_ns()
    try:
        path = _path()
    except OSError:  # the working folder is gone
        return make()
    held = _held(path)
    if held is not None:
        return held
    made = make()
    if made["keep"]:
        _keep(path, made, began)
    return made


def last() -> tuple[dict[str, Any], bool]:
    """What was kept last, and whether it still holds; nothing where there is none. Raises OSError where there is no cache."""
    path = _path()
    held = _held(path)
    if held is not None:
        return held, True
    try:
        return dict(json.loads(path.read_text("utf-8"))["content"]), False
    except (OSError, ValueError, KeyError, TypeError):
        return {}, False


def _path() -> Path:
    """A file for each interpreter with the folders it looks in."""
    return user_cache() / "catalogue" / f"{_digest(_identity())[:32]}.json"


def _identity() -> dict[str, Any]:
    """What decides which modules are found and how they are read; not the working folder, which `_hidden` looks at."""
    return {
        "format": FORMAT,
        "python": [sys.version, sys.executable, sys.prefix, list(sys.flags)],
        "path": _folders(),
        "plugins": sorted([entry.name, entry.value, *_distribution(entry.dist)] for entry in _entries()),
    }


def _entries() -> Iterable[importlib.metadata.EntryPoint]:
    return importlib.metadata.entry_points(group=ENTRY_POINTS)


def _distribution(dist: Any) -> list[str]:
    return ["", ""] if dist is None else [dist.name, dist.version]


def _folders() -> list[str]:
    """Where modules are looked for, but the working folder and the script's own, which are not the same for every command."""
    beside = {"", os.getcwd(), str(Path(sys.executable).parent)}
    return [folder for folder in sys.path if folder not in beside]


def _held(path: Path) -> dict[str, Any] | None:
    """What is kept, if it is whole and nothing that it came from has changed."""
    try:
        held = json.loads(path.read_text("utf-8"))
        content = held["content"]
        if held["digest"] != _digest([content, held["files"], held["names"]]) or _hidden(held["names"], held["files"]):
            return None
        there = {**_stamps(held["files"]), **_stamps([*_own_files(), *_folders()])}
        return dict(content) if there == held["files"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, content: dict[str, Any], began: int) -> None:
    """Write it down, unless something that it came from is too young, lies in the working folder, or is no file."""
    modules = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    own = _own_files()
    files = _stamps([*(file for file in modules.values() if file), *own, *_folders()])
    names = sorted({name.partition(".")[0] for name, file in modules.items() if file})
    young = any(stamp and max(stamp[1:3]) > began - _SETTLED_NS for stamp in files.values())
    if young or not own or _hidden(names, files):
        return
    whole = {"digest": _digest([content, files, names]), "content": content, "files": files, "names": names}
    try:
        write_to_cache(path, json.dumps(whole).encode("utf-8"))
    except (DiskError, OSError) as error:
        log.debug("the catalogue is not kept: %s", error)


def _stamps(paths: Iterable[str]) -> dict[str, _Stamp]:
    """Size, modification and change time in ns, and inode, by path; nothing for what is not there."""
    stamps: dict[str, _Stamp] = {}
    for path in paths:
        try:
            found = os.stat(path)
        except OSError:
            stamps[path] = []
        else:
            stamps[path] = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    return stamps


def _own_files() -> list[str]:
    """Every file and folder of the packages that plugins come from; none at all where one of them cannot be told."""
    files: list[str] = []
    for entry in _entries():
        found = find_spec(entry.module.partition(".")[0])
        if found is None or found.origin is None or not os.path.isfile(found.origin):
            return []
        files.append(found.origin)
        for top in found.submodule_search_locations or ():
            for folder, folders, names in os.walk(top):
                folders[:] = [name for name in folders if name != "__pycache__"]
                files += [folder, *(os.path.join(folder, name) for name in names)]
    return sorted(set(files))


def _hidden(names: Iterable[str], files: Iterable[str]) -> bool:
    """Whether the working folder, where Python looks in it first, has a module that another was taken for, or gave one itself."""
    here = os.getcwd()
    if not {"", here} & set(sys.path) or here in _elsewhere(here):
        return False
    wanted = set(names)
    if any(entry.partition(".")[0] in wanted for entry in os.listdir(here)):
        return True
    return any(file.startswith(os.path.join(here, "")) and not _installed(file, here) for file in files)


def elsewhere(folder: Path) -> Path:
    """Where `python -m dnnkit` makes what the working folder can use: `folder`, which has no random.py that Python would take for its own.

    A checkout is looked in wherever one stands; what is kept for it as the working folder has to be made in it.
    """
    here = os.getcwd()
    return Path(here) if _elsewhere(here) else folder


def _elsewhere(here: str) -> list[str]:
    """The folders after the first that name the working folder too, as a checkout's installation does."""
    return [folder for folder in sys.path[1:] if folder == here]


def _installed(file: str, here: str) -> bool:
    """Whether a file below the working folder was found by another folder of the path, such as a virtual environment in it."""
    return any(file.startswith(os.path.join(folder, "")) for folder in _folders() if folder != here)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
