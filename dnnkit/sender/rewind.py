"""Before a run is resumed: what MLflow knows of it is brought into line with the journals that are about to be cut back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from filelock import FileLock, Timeout

from dnnkit.disk import read_json
from dnnkit.errors import CheckpointError
from dnnkit.record import RunRecord
from dnnkit.record.journal import METRICS, TIMING, stream_journal
from dnnkit.sender.mark import MARK, Mark
from dnnkit.sender.summaries import Shown

log = logging.getLogger("dnnkit")


@contextmanager
def rewound(run_dir: Path, step: int, wait_s: float) -> Iterator[list[int]]:
    """Inside, no sender has the folder, whose journals, still whole, are about to be cut back to the rows up to `step`.

    `sender.json` is brought into line with that. A sender that is still bringing the earlier part of the run into MLflow is
    waited for, up to `wait_s` seconds. Gives the steps beyond `step` of which MLflow holds rows, which it never forgets.
    Raises CheckpointError where the sender is not done by then, DiskError.
    """
    lock = FileLock(run_dir / ".sender.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("the earlier part of the run is still on its way to MLflow: waiting for it, up to %g s", wait_s)
        try:
            lock.acquire(timeout=wait_s)
        except Timeout as error:
            cause = f"the earlier part of the run in {run_dir} is still on its way to MLflow after {wait_s:g} s"
            raise CheckpointError(cause, "Resume it later, or wait longer: tracking.wait_s=600.") from error
    try:
        yield _cut_back(run_dir, step)
    finally:
        lock.release(force=True)


def _cut_back(run_dir: Path, step: int) -> list[int]:
    if not (run_dir / MARK).exists():
        return []
    mark = Mark.read(run_dir, str(read_json(run_dir / MARK)["tracking_uri"]))
    shown = Shown(RunRecord.read(run_dir).signal).all(stream_journal(run_dir / METRICS))
    mark.cut_back(chain(shown, stream_journal(run_dir / TIMING)), step)
    mark.write(run_dir)
    return sorted({row.step for row in mark.beyond})
