"""The command line."""

from dnnkit.cli.main import main

__all__ = ["main"]
