"""A database that MLflow has migrated already, kept for the next folder that needs one: a copy takes milliseconds, migrating seconds.

The template holds the tables and nothing of any run or folder: it is made by MLflow's own migrations, and MLflow adds its
default experiment, with the folder's own artifact location, when it opens the copy. Its name says which MLflow it is for, which
revision of the tables it holds, and the SHA-256 of its bytes.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import mlflow
import mlflow.store.db.utils
from filelock import FileLock

from dnnkit.disk import sync_folder, user_cache, write_atomically, write_to_cache

LOCK_TIMEOUT = 60.0
_tables: Any = mlflow.store.db.utils  # which has no types


def place(file: Path) -> str:
    """Puts a migrated database at `file`, unless something is there. To be called by one process at a time for each `file`.

    Says, in words for a log, what was done; empty where the database existed. Where no template can be had, nothing is placed:
    MLflow makes the database when it opens it, as ever, and the reason is said.
    """
    if any(file.with_name(file.name + ending).exists() for ending in ("", "-journal", "-wal")):
        return ""
    began = time.monotonic()
    try:
        content, origin = _template()
        placed = _link(file, content)
    except Exception as error:  # a cache that cannot be written, a full disk, another MLflow inside: a run needs none of this
        return f"{file.name} is made without a template: {type(error).__name__}: {error}"
    return f"{file.name} begins as a copy of {origin} ({time.monotonic() - began:.2f} s)" if placed else ""


def folder() -> Path:
    """Where templates are kept."""
    return user_cache() / "mlflow"


def _template() -> tuple[bytes, Path]:
    """The bytes of the template for this MLflow, made first where there is none, and the file that holds them."""
    home = folder()
    home.mkdir(parents=True, exist_ok=True)
    prefix = f"mlflow-{mlflow.__version__}-{_tables._get_latest_schema_revision()}"
    found = _verified(home, prefix)
    if found is not None:
        return found
    with FileLock(home / ".lock", timeout=LOCK_TIMEOUT):
        found = _verified(home, prefix)  # another process was quicker
        if found is not None:
            return found
        for damaged in home.glob(f"{prefix}.*.db"):
            damaged.unlink()
        content = _migrated(home / ".building.db")
        path = home / f"{prefix}.{_digest(content)}.db"
        write_to_cache(path, content)
        return content, path


def _verified(home: Path, prefix: str) -> tuple[bytes, Path] | None:
    """A template whose bytes are those that its name promises."""
    for path in sorted(home.glob(f"{prefix}.*.db")):
        content = path.read_bytes()
        if path.name == f"{prefix}.{_digest(content)}.db":
            return content, path
    return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _migrated(path: Path) -> bytes:
    """The bytes of an empty database after all of MLflow's migrations, made at `path`, which is left free."""
    for leftover in path.parent.glob(f"{path.name}*"):  # of a process that was killed here
        leftover.unlink()
    try:
        engine = _tables.create_sqlalchemy_engine(f"sqlite:///{path}")
        try:
            _tables._initialize_tables(engine)
        finally:
            engine.dispose()
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


def _link(file: Path, content: bytes) -> bool:
    """`file` with these bytes, whole or not at all and never in the place of another; whether it is ours."""
    neighbour = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        write_atomically(neighbour, content)
        os.link(neighbour, file)  # unlike a rename, refuses to replace
    except FileExistsError:
        return False
    finally:
        neighbour.unlink(missing_ok=True)
    sync_folder(file.parent)
    return True
