"""How dnnkit is called from the shell in which it was called: a command that works there when it is pasted."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def pasteable(*words: str) -> str:
    """`dnnkit` with these words, as a line for that shell: by name where the shell finds it, else by a path."""
    return shlex.join([*_program(), *words])


def _program() -> list[str]:
    """`dnnkit` or `python -m dnnkit` where the shell finds this installation by that name, else by the path of script or interpreter."""
    here = Path(sys.executable).absolute()
    if _is(shutil.which("dnnkit"), here.with_name("dnnkit")):
        return ["dnnkit"]
    for name in ("python", "python3"):
        if _is(shutil.which(name), here) or _is(shutil.which(name), here.with_name(name)):
            return [name, "-m", "dnnkit"]
    return [_shortest(here), "-m", "dnnkit"]


def _is(found: str | None, wanted: Path) -> bool:
    """Whether the shell found this very file; a virtual environment's links to an interpreter are not followed."""
    return found is not None and Path(found).absolute() == wanted


def _shortest(path: Path) -> str:
    """The path from the working folder, where it is in it, else the whole one."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
