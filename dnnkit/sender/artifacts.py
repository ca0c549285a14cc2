"""The files of a run folder that MLflow shows, and the loadable model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow.tracking import MlflowClient

from dnnkit.errors import CheckpointError

EARLY = ("config", "environment")
FOLDERS = (*EARLY, "diagnostics", "figures", "model")
FILES = {"checkpoints/best.ckpt": "checkpoints", "run.log": None}
BEST = Path("checkpoints") / "best.ckpt"


def upload(
    client: MlflowClient, run_id: str, run_dir: Path, folders: Sequence[str] = FOLDERS, files: Mapping[str, str | None] = FILES
) -> None:
    """Uploads what is there of `folders` and `files`; uploading again replaces. The journals stay at home: their rows are metrics."""
    for name in folders:
        if (run_dir / name).is_dir() and any((run_dir / name).iterdir()):
            client.log_artifacts(run_id, str(run_dir / name), name)
    for name, folder in files.items():
        if (run_dir / name).is_file():
            client.log_artifact(run_id, str(run_dir / name), folder)


def save_model(run_dir: Path) -> Path:
    """Writes `model/`, which `mlflow.pytorch.load_model("runs:/<id>/model")` loads: the network with the best weights.

    Stored as an exported graph (pt2), which holds no pickled code; a batch may have any size. Its input is standardised,
    as the network's is. Raises CheckpointError, and whatever `torch.export` raises for a network that it cannot trace.
    """
    import mlflow.pytorch
    import numpy
    import torch

    from dnnkit import plugins
    from dnnkit.checkpoint import RunState, load, rebuild

    best, target, building = run_dir / BEST, run_dir / "model", run_dir / ".model.tmp"
    if not best.exists():
        raise CheckpointError(f"there is no {best}, from which the model would be saved", "Train at least one epoch with checkpoints on.")
    state = RunState.of(load(best), best)
    plugins.load()
    network = rebuild(best, state)
    precision = next((str(p.dtype).removeprefix("torch.") for p in network.parameters()), "float32")
    for old in (building, target):
        if old.exists():
            shutil.rmtree(old)
    mlflow.pytorch.save_model(
        network,
        str(building),
        # Two rows: torch.export takes a batch of one for a constant.
        input_example=numpy.zeros((2, *state.inputs), dtype=precision),
        pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", f"mlflow=={mlflow.__version__}", "numpy"],
        serialization_format="pt2",
        metadata={"classes": None if state.classes is None else list(state.classes), "config_digest": state.digest},
    )
    return building.rename(target)
