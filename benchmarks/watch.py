"""`python -m benchmarks.watch MODULE REPORT …` is `python -m MODULE …`, and says on the descriptor REPORT when the first update is done.

Nothing is imported for that: the optimizers' base class is wrapped when the module imports torch by itself.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from benchmarks.meter import children_cpu

_WATCHED = "torch.optim.optimizer"


class _Finder(MetaPathFinder):
    """Calls `imported` with the watched module when that has been imported."""

    def __init__(self, imported: Callable[[ModuleType], None]) -> None:
        self._imported = imported

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_tell(module: ModuleType) -> None:
            execute(module)
            self._imported(module)

        spec.loader.exec_module = execute_and_tell  # type: ignore[method-assign]
        return spec


def main() -> None:
    module, report = sys.argv[1], os.fdopen(int(sys.argv[2]), "w")

    def first() -> None:
        print(json.dumps({"at": time.monotonic(), "cpu_s": time.process_time() + (children_cpu() or 0.0)}), file=report, flush=True)

    sys.meta_path.insert(0, _Finder(lambda found: _tell_of_the_first_step(found.Optimizer, first)))
    sys.argv[1:] = sys.argv[3:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _tell_of_the_first_step(optimizer: Any, first: Callable[[], None]) -> None:
    """Not by a hook: an optimizer with hooks may be run in another way. The class of each that is made has its `step` wrapped."""
    make, waiting = optimizer.__init__, [first]

    def make_and_watch(made: Any, *args: Any, **named: Any) -> None:
        make(made, *args, **named)
        if waiting:
            _wrap_step(type(made), waiting)

    optimizer.__init__ = make_and_watch


def _wrap_step(kind: Any, waiting: list[Callable[[], None]]) -> None:
    own = kind.step

    @wraps(own)  # with the mark that tells torch not to wrap it again
    def watched(*args: Any, **named: Any) -> Any:
        result = own(*args, **named)
        while waiting:
            waiting.pop()()
        return result

    kind.step = watched


if __name__ == "__main__":
    main()
