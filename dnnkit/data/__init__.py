"""Data: from a source's raw tensors to standardised training, validation and test sets."""

from dnnkit.data.base_task import BaseTask, Told
from dnnkit.data.class_task import ClassTask
from dnnkit.data.preparation import prepare
from dnnkit.data.source import DataSet, Examples, Source, Split

__all__ = ["BaseTask", "ClassTask", "DataSet", "Examples", "Source", "Split", "Told", "prepare"]
