"""One run, from config to record."""

from dnnkit.training.run import Prepared, Result, build, prepare_run, train

__all__ = ["Prepared", "Result", "build", "prepare_run", "train"]
