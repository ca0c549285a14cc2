"""Compose a config from names, and judge it before anything else happens."""

from dnnkit.config.composer import Composer, compose
from dnnkit.config.config import Config
from dnnkit.config.sections import Checkpoint, Tracking, Trainer

__all__ = ["Checkpoint", "Composer", "Config", "Tracking", "Trainer", "compose"]
