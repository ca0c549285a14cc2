"""JSON lines over a pipe, in both directions, with neither end ever waiting for the other."""

from __future__ import annotations

import json
import os
import select
from typing import Any


class LineWriter:
    """Writes JSON lines into a pipe. What a full pipe does not take is kept and tried again at the next call."""

    def __init__(self, handle: int | None) -> None:
        """`handle`: the pipe's file descriptor; None for a pipe that never came to be, which counts as ended."""
        self._handle = -1 if handle is None else handle
        self._left = b""
        self.open = handle is not None
        if handle is not None:
            os.set_blocking(handle, False)

    def write(self, message: dict[str, Any]) -> None:
        """Queues one line and writes what the pipe takes."""
        self._left += json.dumps(message).encode("utf-8") + b"\n"
        self.flush()

    def flush(self) -> None:
        """Writes what is left, as far as the pipe takes it; notes in `open` that the other end is gone."""
        while self._left and self.open:
            try:
                self._left = self._left[os.write(self._handle, self._left) :]
            except BlockingIOError:
                return
            except BrokenPipeError:
                self.open = False


class LineReader:
    """Reads the JSON lines that have arrived in a pipe."""

    def __init__(self, handle: int | None) -> None:
        """`handle`: the pipe's file descriptor; None for a pipe that never came to be, which counts as ended."""
        self._handle = -1 if handle is None else handle
        self._left = b""
        self.open = handle is not None
        if handle is not None:
            os.set_blocking(handle, False)

    def read(self, timeout: float) -> list[dict[str, Any]]:
        """The lines that are there now, after waiting up to `timeout` seconds for the first; notes in `open` that the pipe has ended."""
        if self.open and timeout > 0:
            select.select([self._handle], [], [], timeout)
        while self.open:
            try:
                data = os.read(self._handle, 65536)
            except BlockingIOError:
                break
            self.open = bool(data)
            self._left += data
        *whole, self._left = self._left.split(b"\n")
        return [json.loads(line) for line in whole if line]
