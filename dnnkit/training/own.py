"""What a process of dnnkit's own may do to reach its first step sooner; one that imports dnnkit keeps its ways.

Measured in processor seconds on the machine of docs/performance.md: importing Lightning 5.9, of it torchmetrics' matplotlib 0.7 and
scipy.signal 1.0, neither of which training uses.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from types import ModuleType
from typing import Any

#: What torchmetrics imports only because it is installed.
EXTRAS = ("matplotlib", "scipy")
_own = False


def begin() -> None:
    """From now on until Lightning is imported nothing collects garbage: what imports leave behind is there to stay."""
    global _own
    _own = True
    gc.disable()


@contextmanager
def importing_lightning() -> Iterator[None]:
    """Where `begin` was called: around Lightning's first import, after which garbage is collected again, of what is new."""
    if not _own:
        yield
        return
    try:
        with without_extras():
            yield
    finally:
        gc.freeze()  # or every full collection would walk half a million objects of modules
        gc.enable()


@contextmanager
def without_extras() -> Iterator[None]:
    """Around the first import of torchmetrics, which Lightning needs: as if Matplotlib and SciPy were not installed.

    It imports them only if they are: Matplotlib for the method `plot` of its metrics, which then says that Matplotlib is
    missing; scipy.signal to give an old name back to it. Its metrics that compute with SciPy look for it when they do.
    Where lightning_utilities is not what it was in 0.15, nothing is left out.
    """
    from lightning_utilities.core import imports

    kept: dict[str, Any] = {name: getattr(imports, name, None) for name in ("package_available", "_version")}
    if not all(map(callable, kept.values())):
        yield
        return

    def package_available(name: str) -> bool:
        return name not in EXTRAS and bool(kept["package_available"](name))

    def version(name: str) -> str:
        if name in EXTRAS:
            raise PackageNotFoundError(name)
        return str(kept["_version"](name))

    try:
        _put(imports, {"package_available": package_available, "_version": version})
        yield
    finally:
        _put(imports, kept)
        imports.module_available.cache_clear()
        _look_again()


def _put(module: ModuleType, functions: Mapping[str, Any]) -> None:
    for name, function in functions.items():
        setattr(module, name, function)


def _look_again() -> None:
    """Have torchmetrics look for SciPy anew; Matplotlib it has missed for good."""
    for known in vars(sys.modules.get("torchmetrics.utilities.imports", object)).values():
        if str(getattr(known, "requirement", "")).startswith("scipy"):
            vars(known).pop("available", None)
