"""Taking SIGINT and SIGTERM over, and giving them back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


def take_signals(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Handle SIGINT and SIGTERM from now on; the handlers of before. Outside the main thread nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}


def give_signals(before: dict[int, Any]) -> None:
    """Put handlers back."""
    for number, handler in before.items():
        signal.signal(number, handler)
