"""dnnkit: a few names become a trained, diagnosed, tracked network.

    cfg = dnnkit.compose(["+experiment=selu_mnist", "trainer.max_epochs=1"])
    net = dnnkit.build(cfg)
    result = dnnkit.train(cfg)

Importing dnnkit imports no torch; using it does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dnnkit.config import Config, compose
    from dnnkit.training import Result, build, train

    __version__: str

_HOMES = {"compose": "config", "Config": "config", "build": "training", "train": "training", "Result": "training"}

__all__ = ["Config", "Result", "build", "compose", "train"]


def __dir__() -> list[str]:
    """What there is to use, in tab completion too; none of it has been imported yet."""
    return sorted([*__all__, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("dnnkit")
    if name not in _HOMES:
        raise AttributeError(f"module 'dnnkit' has no attribute {name!r}")
    return getattr(import_module(f"dnnkit.{_HOMES[name]}"), name)
