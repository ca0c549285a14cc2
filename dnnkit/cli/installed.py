"""What to type where a package that dnnkit needs is not installed. Standard library only, since nothing else may be there."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires
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
    return "\n".join([cause, *(f"  {line}" for line in _what_to_type(words, NEEDED[top]))])


def _what_to_type(words: Sequence[str], package: str) -> list[str]:
    checkout = Path(__file__).parent.parent.parent
    if not (checkout / "pyproject.toml").is_file():
        return ["install it for this Python:", f"  {shlex.join([sys.executable, '-m', 'pip', 'install', _requirement(package)])}"]
    made = checkout / ".venv"
    typed = shlex.join([_from_here(made / "bin" / "python"), "-m", "dnnkit", *words])
    # The mark is `make run`'s last act. Where this very Python is that of .venv, not everything is in it any more.
    if any(made.glob(".ready-*")) and Path(sys.prefix).resolve() != made.resolve():
        return ["`make run` has installed everything in .venv; type:", f"  {typed}"]
    inside = "" if Path.cwd() == checkout else f"cd {shlex.quote(_from_here(checkout))} && "
    return ["make .venv, with everything in it, and train the default network once; then use it:", f"  {inside}make run", f"  {typed}"]


def _requirement(package: str) -> str:
    """The package with the versions that dnnkit works with, as far as its own installation says."""
    try:
        declared = requires("dnnkit") or ()
    except PackageNotFoundError:
        return package
    return next((line for line in declared if re.match(r"[\w.-]+", line)[0] == package), package)  # type: ignore[index]


def _from_here(path: Path) -> str:
    """The path as it would be typed: relative inside the working folder, else absolute."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
