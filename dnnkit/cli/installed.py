"""What to type where a package that dnnkit needs is not installed. Standard library only, since nothing else may be there."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

#: What dnnkit cannot do without, by the name that Python imports; the value is the name that pip installs.
NEEDED = {
    "annotated_types": "annotated-types",
    "filelock": "filelock",
    "hydra": "hydra-core",
    "matplotlib": "matplotlib",
    "mlflow": "mlflow",
    "numpy": "numpy",
    "omegaconf": "omegaconf",
    "pandas": "pandas",
    "PIL": "pillow",
    "pyarrow": "pyarrow",
    "pydantic": "pydantic",
    "pytorch_lightning": "pytorch-lightning",
    "rich": "rich",
    "sklearn": "scikit-learn",
    "torch": "torch",
    "yaml": "pyyaml",
}


def missing_package(error: ModuleNotFoundError, words: Sequence[str]) -> str | None:
    """What to type in place of `words` where `error` says that a package dnnkit needs is missing; None where it says something else."""
    top = (error.name or "").partition(".")[0]
    if top not in NEEDED:
        return None
    cause = f"dnnkit needs the package {NEEDED[top]}, which is not installed for this Python ({sys.executable})."
    return "\n".join([cause, *(f"  {line}" for line in _what_to_type(words))])


def _what_to_type(words: Sequence[str]) -> list[str]:
    checkout = Path(__file__).parent.parent.parent
    if not (checkout / "pyproject.toml").is_file():
        return ["install it with all that it needs: python -m pip install --force-reinstall dnnkit"]
    python = checkout / ".venv" / "bin" / "python"
    typed = shlex.join([_from_here(python), "-m", "dnnkit", *words])
    if python.exists():
        return ["`make run` has installed everything in .venv; type:", f"  {typed}"]
    inside = "" if Path.cwd() == checkout else f"cd {shlex.quote(_from_here(checkout))} && "
    return ["make .venv, with everything in it, and train the default network once; then use it:", f"  {inside}make run", f"  {typed}"]


def _from_here(path: Path) -> str:
    """The path as it would be typed: relative inside the working folder, else absolute."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
