"""Data: from a source's raw tensors to standardised training, validation and test sets."""

from dnnkit.data.preparation import prepare
from dnnkit.data.source import DataSet, Examples, Source, Split

__all__ = ["DataSet", "Examples", "Source", "Split", "prepare"]
