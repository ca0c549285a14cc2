"""One run, from config to record."""

from dnnkit.training.run import Prepared, build, prepare_run, train
from dnnkit.training.senders import Result, Senders

__all__ = ["Prepared", "Result", "Senders", "build", "prepare_run", "train"]
