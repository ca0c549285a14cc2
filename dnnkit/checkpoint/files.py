"""Checkpoints: tensors and plain values in a zip file, written whole or not at all, verified before they are read.

A checkpoint is Lightning's dictionary with our own state under the key `dnnkit`: what is needed to rebuild the network
and to feed it, without reference to any class that would have to be unpickled.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from dnnkit.disk import disk, replacing
from dnnkit.errors import CheckpointError
from dnnkit.network import build_network
from dnnkit.network.fusing import apply_structure

STATE_KEY = "dnnkit"
FORMAT = 1
FROM_A_RUN = "Use a checkpoint from a run folder."
_WHERE = "Checkpoints lie in checkpoints/ of a run folder."
_ANOTHER = "Use another checkpoint of the run (checkpoints/last.ckpt, checkpoints/best.ckpt), or train again."


@dataclass(frozen=True)
class RunState:
    """What the checkpoint says of its run beside Lightning's state.

    `config`: the resolved config, plain values; `digest`: its SHA-256; `inputs`: shape of one example; `outputs`: number of
    logits or values; `classes`: their names, or None; `mean`, `std`: the training statistics that inputs are standardised
    with, broadcastable to a batch; `seed`: the run's seed; `version`: of dnnkit; `task`: what was learnt.
    `fill`: what takes the place of a missing value, or None; `target_mean`, `target_std`: of the values of a regression or
    reconstruction, None for classes; `columns`, `targets`: names of the features and of the values, where they have names;
    `encoding`: how raw rows of a table became x, or None; `folded`: of a fused network, each batch normalization that is no
    more, and the layer that it became part of.
    """

    config: dict[str, Any]
    digest: str
    inputs: tuple[int, ...]
    outputs: int
    classes: tuple[str, ...] | None
    mean: Tensor
    std: Tensor
    seed: int
    version: str
    task: str = "classification"
    fill: Tensor | None = None
    target_mean: Tensor | None = None
    target_std: Tensor | None = None
    columns: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    encoding: dict[str, Any] | None = None
    folded: dict[str, str] = field(default_factory=dict)
    format: int = field(default=FORMAT)

    @property
    def fused(self) -> bool:
        """Whether the network is one for evaluation, whose batch normalizations are folded into its layers."""
        return bool(self.folded)

    def check_trainable(self, path: Path) -> None:
        """CheckpointError where `path`, which holds this state, is fused: what would train on is not the network that was trained."""
        if self.fused:
            cause = f"{path} is fused, for evaluation alone: its batch normalizations are no more, and cannot be trained on"
            raise CheckpointError(cause, "Use best.ckpt or last.ckpt of the run.")

    def as_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, loadable with `weights_only=True`: `checkpoint["dnnkit"] = state.as_dict()`."""
        held = {each.name: getattr(self, each.name) for each in fields(self)}
        return {key: value.detach().cpu() if isinstance(value, Tensor) else value for key, value in held.items()}

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any], path: Path) -> Self:
        """The state in a loaded checkpoint. Raises CheckpointError where `path` was not written by a dnnkit that we understand."""
        held = checkpoint.get(STATE_KEY)
        if not isinstance(held, Mapping):
            raise CheckpointError(f"{path} was not written by dnnkit: it holds no {STATE_KEY!r} state", FROM_A_RUN)
        if held.get("format") != FORMAT:
            cause = f"{path} has checkpoint format {held.get('format')!r}, this version of dnnkit reads {FORMAT}"
            raise CheckpointError(cause, f"Install dnnkit {held.get('version')}.")
        try:
            return cls(**held)
        except TypeError as error:
            raise CheckpointError(f"{path} has an incomplete {STATE_KEY!r} state: {error}", "Use another checkpoint of the run.") from error


def save(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes `checkpoint` to `path`, whole or not at all.

    Whatever happens, `path` is afterwards the old file or the new one. Raises DiskError (full disk, no permission),
    CheckpointError for an address that is no local file.
    """
    final = local_file(path)
    with disk(final):
        final.parent.mkdir(parents=True, exist_ok=True)
    with replacing(final) as file:
        _write(checkpoint, file)


def load(path: str | os.PathLike[str], map_location: Any | None = None) -> dict[str, Any]:
    """The checkpoint at `path`, on the CPU unless `map_location` says otherwise.

    The CRC-32 of every member of the zip file is verified first: torch itself does not look, and loads flipped bytes as
    weights. Loaded with `weights_only=True`: nothing in the file is executed. Raises CheckpointError.
    """
    file = local_file(path)
    return _load(file, file, map_location)


def load_with_digest(path: str | os.PathLike[str]) -> tuple[dict[str, Any], str]:
    """What `load` gives, and the SHA-256 of the very bytes that it is from: a run that goes on may replace the file meanwhile."""
    file = local_file(path)
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {file}", _WHERE) from error
    except OSError as error:
        raise CheckpointError(f"{file} is damaged or is no checkpoint: {error}", _ANOTHER) from error
    return _load(file, io.BytesIO(data)), hashlib.sha256(data).hexdigest()


def _load(file: Path, held_in: Path | io.BytesIO, map_location: Any | None = None) -> dict[str, Any]:
    """The checkpoint that is in `file`, or was when it was read; `file` is what it is called."""
    _verify(file, held_in)
    if isinstance(held_in, io.BytesIO):
        held_in.seek(0)
    try:
        held = torch.load(held_in, map_location="cpu" if map_location is None else map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{file} is not a checkpoint of tensors and plain values: {reason}", FROM_A_RUN) from error
    if not isinstance(held, dict):
        raise CheckpointError(f"{file} holds a {type(held).__name__}, not a checkpoint", FROM_A_RUN)
    return held


def load_weights(path: str | os.PathLike[str], module: nn.Module, *, prefix: str = "") -> dict[str, Any]:
    """Copies the checkpoint's weights into `module` in place and returns the whole checkpoint.

    `prefix` picks and shortens the names: `prefix="net."` loads a LightningModule's `net` into that network alone. Every name
    and shape must match. Raises CheckpointError that lists what does not, and leaves `module` untouched then.
    """
    checkpoint = load(path)
    held = checkpoint.get("state_dict")
    if not isinstance(held, Mapping):
        raise CheckpointError(f"{path} holds no weights (no state_dict)", FROM_A_RUN)
    weights = {name.removeprefix(prefix): tensor for name, tensor in held.items() if name.startswith(prefix)}
    misfits = _misfits(weights, module.state_dict())
    if misfits:
        listed = "\n".join(f"  - {line}" for line in misfits[:10]) + (f"\n  … and {len(misfits) - 10} more" if len(misfits) > 10 else "")
        raise CheckpointError(f"{path} belongs to another network:\n{listed}", "Build the network with the config of its run folder.")
    module.load_state_dict(weights)
    return checkpoint


def rebuild(path: str | os.PathLike[str], state: RunState) -> nn.Module:
    """The network of a checkpoint with its weights: in evaluation mode, on the CPU, in the run's precision.

    `state` is the checkpoint's own; its components have to be loaded. Raises CheckpointError.
    """
    network = build_network({**state.config, "task": state.task}, state.inputs, state.outputs, state.seed)
    try:
        apply_structure(network, state.folded)
    except KeyError as error:
        raise CheckpointError(f"{path} was fused, and its network has no layer {error}", "Fuse the run again.") from error
    if str(state.config["trainer"]["precision"]) == "64":
        network.double()
    load_weights(path, network, prefix="net.")
    return network.eval()


def _misfits(held: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """One line for each weight that is missing, not expected, or of another shape."""
    missing = [f"{name}: shape {tuple(wanted[name].shape)}, missing from the checkpoint" for name in wanted if name not in held]
    extra = [f"{name}: shape {tuple(held[name].shape)}, not in the network" for name in held if name not in wanted]
    shapes = [
        f"{name}: shape {tuple(held[name].shape)} in the checkpoint, {tuple(wanted[name].shape)} in the network"
        for name in wanted
        if name in held and held[name].shape != wanted[name].shape
    ]
    return [*shapes, *missing, *extra]


def local_file(path: str | os.PathLike[str]) -> Path:
    """`path` as a local file; an address is refused, because what comes from the net must be looked at first."""
    if "://" in os.fspath(path):
        raise CheckpointError(f"{os.fspath(path)} is an address, not a file", "Download the checkpoint and give the path of the file.")
    return Path(path)


def _write(checkpoint: Mapping[str, Any], file: Any) -> None:
    """`torch.save`, whose writer reports a failed write as RuntimeError and hides the operating system's reason behind it."""
    try:
        torch.save(dict(checkpoint), file)
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, OSError):
            raise cause from error
        raise


def _verify(file: Path, held_in: Path | io.BytesIO) -> None:
    try:
        with zipfile.ZipFile(held_in) as archive:
            damaged = archive.testzip()
            # The checksums do not cover the table of contents; torch reads a member that is marked as a folder as garbage.
            damaged = damaged or next((member.filename for member in archive.infolist() if member.external_attr), None)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {file}", _WHERE) from error
    except (OSError, ValueError, EOFError, RuntimeError, OverflowError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise CheckpointError(f"{file} is damaged or is no checkpoint: {error}", _ANOTHER) from error
    if damaged is not None:
        raise CheckpointError(f"{file} is damaged: the checksum of {damaged} inside it does not match", _ANOTHER)
