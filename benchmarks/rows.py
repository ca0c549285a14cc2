"""The rows of a benchmark, prepared once for each number of them and deleted at its end."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.jobs import DIGITS, MNIST, SYNTHETIC, write_rows

NAMES = {MNIST: "MNIST", SYNTHETIC: "synthetic images in MNIST's shape", DIGITS: "digits"}


def find_data() -> str:
    """MNIST where DNNKIT_DATA has it, else synthetic images."""
    root = os.environ.get("DNNKIT_DATA")
    return MNIST if root and Path(root, "mnist").is_dir() else SYNTHETIC


class Prepared:
    """Folders of rows, for `Work.folder`."""

    def __init__(self, data: str) -> None:
        self.data = data
        self._root = tempfile.TemporaryDirectory(prefix="bench-rows-")

    def folder(self, rows: int) -> str:
        folder = Path(self._root.name, str(rows))
        if not folder.exists():
            folder.mkdir()
            write_rows(self.data, rows, folder)
        return str(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._root.cleanup()
