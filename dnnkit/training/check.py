"""What `dnnkit check` does beside validating a config: all that a run finds out before it makes anything, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from dnnkit.config import Config
from dnnkit.data.download import offline
from dnnkit.errors import DataError
from dnnkit.training.run import Prepared, prepare_run


class _Untrained(Exception):
    """A pretraining would be trained now."""


def check_run(cfg: Config) -> str | None:
    """Why the run could not be judged by its data, or None where it was: they would have to be downloaded first.

    Nothing is downloaded, trained or written. Raises what such a run raises before it begins: ConfigError, DataError,
    CheckpointError, PluginError.
    """
    with offline() as missing:
        try:
            prepare_run(cfg, pretrain=_not_here)
        except DataError:
            if not missing:
                raise
            return f"data={cfg.values['data']['name']} would have to be downloaded"
        except _Untrained:
            pass  # it is found possible, and to fit, before it is asked for
    return None


def _not_here(run: Prepared, told: str) -> NoReturn:
    """What a run would train at this place: `prepare_run` calls it once all its phases are known to be possible."""
    raise _Untrained(f"{told} in {Path(run.tracking.runs)}")
