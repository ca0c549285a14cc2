"""One run, from config to record.

The names below are imported when they are used: who starts the sender process needs `Senders` before PyTorch is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dnnkit.training.result import Result
    from dnnkit.training.run import Prepared, build, prepare_run, train
    from dnnkit.training.senders import Senders

_HOMES = {"Prepared": "run", "Result": "result", "Senders": "senders", "build": "run", "prepare_run": "run", "train": "run"}

__all__ = ["Prepared", "Result", "Senders", "build", "prepare_run", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dnnkit.training' has no attribute {name!r}")
    return getattr(import_module(f"dnnkit.training.{_HOMES[name]}"), name)
