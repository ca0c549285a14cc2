"""Checkpoints: tensors and plain values in a zip file, written whole or not at all, verified before they are read."""

from dnnkit.checkpoint.files import STATE_KEY, RunState, load, load_weights, load_with_digest, rebuild, save

__all__ = ["STATE_KEY", "RunState", "load", "load_weights", "load_with_digest", "rebuild", "save"]
