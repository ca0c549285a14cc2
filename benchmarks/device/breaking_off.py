"""A run that gets a SIGTERM in the midst of an epoch, and goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.device.setting import train

_PATIENCE_S = 60


def broken_off_and_resumed(words: Sequence[str]) -> tuple[Path, int]:
    """The folder of the run, whole in the end, and the step at which it was stopped.

    RuntimeError where the signal came too late to stop anything.
    """
    from dnnkit.checkpoint import load
    from dnnkit.errors import Interrupted
    from dnnkit.training.resume import resume

    before, runs = _runs(), threading.Thread(target=_stop, args=(_runs(),), daemon=True)
    runs.start()
    try:
        train(*words)
    except Interrupted:
        pass
    else:
        raise RuntimeError("the run was over before it could be stopped")
    finally:
        runs.join()
    (folder,) = _runs() - before
    step = int(load(folder / "checkpoints" / "last.ckpt")["global_step"])
    resume(folder)
    return folder, step


def _stop(before: set[Path]) -> None:
    """A SIGTERM to this process when the first new run has timed its first epoch."""
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        timed = [run / "timing.jsonl" for run in _runs() - before]
        if any("time/epoch_s" in path.read_text("utf-8") for path in timed if path.exists()):
            os.kill(os.getpid(), signal.SIGTERM)
            return
        time.sleep(0.002)


def _runs() -> set[Path]:
    return {path for path in Path("runs").absolute().glob("[!.]*") if path.is_dir()}
