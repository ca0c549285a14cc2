"""`run.log`: what the process said during a run, warnings included."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from dnnkit.disk import disk

_OURS = "dnnkit"
_LIGHTNING = ("pytorch_lightning", "lightning_fabric", "lightning", "lightning.pytorch", "lightning.fabric", "lightning_utilities")


class RunLog:
    """A context manager that copies log records and warnings into a file and leaves logging as it found it.

    The terminal shows what it showed before: warnings go to the logger `py.warnings`, and where the root logger had no
    handler, Python's last resort (stderr, from WARNING) stays in force.
    """

    def __init__(self, path: Path) -> None:
        with disk(path):
            self._file = logging.FileHandler(path, encoding="utf-8", delay=False)
        self._file.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
        self._undo: list[tuple[logging.Logger, logging.Handler]] = []
        self._level: int | None = None
        self._showwarning: Any = None

    def __enter__(self) -> Self:
        root, ours = logging.getLogger(), logging.getLogger(_OURS)
        if not root.handlers and logging.lastResort is not None:
            self._attach(root, logging.lastResort)
        self._attach(root, self._file)
        # A Lightning logger that has its own terminal handler does not pass its records on to the root.
        for logger in map(logging.getLogger, (_OURS, *_LIGHTNING)):
            if not logger.propagate:
                self._attach(logger, self._file)
        if ours.level == logging.NOTSET:
            self._level = ours.level
            ours.setLevel(logging.INFO)
        self._showwarning = warnings.showwarning
        warnings.showwarning = self._show
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        warnings.showwarning = self._showwarning
        if self._level is not None:
            logging.getLogger(_OURS).setLevel(self._level)
        for logger, handler in self._undo:
            logger.removeHandler(handler)
        self._file.close()

    def _attach(self, logger: logging.Logger, handler: logging.Handler) -> None:
        logger.addHandler(handler)
        self._undo.append((logger, handler))

    def _show(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Stands in for `warnings.showwarning`: to the log, unless a caller asked for a stream."""
        if file is not None:
            self._showwarning(message, category, filename, lineno, file, line)
        else:
            text = warnings.formatwarning(message, category, filename, lineno, line).rstrip()
            logging.getLogger("py.warnings").warning("%s", text)
