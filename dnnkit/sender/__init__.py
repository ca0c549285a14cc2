"""Run folders become MLflow runs, in a process of their own.

The training process uses `Sender`, which starts `python -m dnnkit.sender` and imports no MLflow; the process follows the
announced run folders (`follow`), writes to the store (`store`) and uploads the artifacts (`artifacts`).
"""

from dnnkit.sender.address import artifact_root, resolve_uri
from dnnkit.sender.client import Outcome, Sender, Spare

__all__ = ["Outcome", "Sender", "Spare", "artifact_root", "resolve_uri"]
