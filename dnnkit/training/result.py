"""What a run leaves in Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dnnkit.module import Module


@dataclass(frozen=True)
class Result:
    """What a run leaves in Python: final metrics by key, the MLflow run's id (None without one), its folder, its module.

    The module holds the best weights. `message` says why MLflow does not have everything, if it does not,
    or which figure is missing.
    """

    metrics: Mapping[str, float]
    run_id: str | None
    run_dir: Path
    module: Module
    uuid: str
    tracking_uri: str | None
    message: str = ""
