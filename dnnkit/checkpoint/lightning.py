"""Lightning's door to checkpoint files; by itself, because importing Lightning takes seconds."""

from __future__ import annotations

import os
from typing import Any

from pytorch_lightning.plugins import CheckpointIO

from dnnkit.checkpoint.files import load, local_file, save
from dnnkit.errors import CheckpointError


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's door to checkpoint files: atomic when it writes, suspicious when it reads."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None) -> None:
        """`save`; storage options belong to remote file systems and are refused with TypeError."""
        if storage_options is not None:
            raise TypeError("storage_options are for remote file systems; checkpoints are saved to local files only")
        save(checkpoint, path)

    def load_checkpoint(self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """`load`; `weights_only=False` is refused with CheckpointError, every other value means True."""
        if weights_only is False:
            raise CheckpointError(f"{path} is not loaded with weights_only=False, which runs code in the file", "Leave weights_only out.")
        return load(path, map_location)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Deletes the file; one that is gone already is no error."""
        local_file(path).unlink(missing_ok=True)
