"""Where the record goes: which tracking server or database, and where its artifacts lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dnnkit.record import RunRecord, strip_credentials

SQLITE = "sqlite:///"
VARIABLE = "MLFLOW_TRACKING_URI"


def resolve_uri(explicit: str | None, cwd: Path, environ: Mapping[str, str]) -> str:
    """The tracking URI: `explicit`, else the variable MLFLOW_TRACKING_URI, else `sqlite:///<cwd>/mlflow.db`.

    A relative SQLite file counts from `cwd` and comes back absolute. Credentials stay in: it is the address to use,
    not the one to write down.
    """
    chosen = explicit or environ.get(VARIABLE) or f"{SQLITE}mlflow.db"
    if not chosen.startswith(SQLITE):
        return chosen
    path, mark, options = chosen.removeprefix(SQLITE).partition("?")
    return f"{SQLITE}{Path(cwd).absolute() / path}{mark}{options}"


def database(uri: str) -> Path | None:
    """The file of a SQLite address; None for every other store."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0]) if uri.startswith(SQLITE) else None


def artifact_root(uri: str, cwd: Path) -> Path | None:
    """The folder for artifacts: `mlruns` beside a SQLite file, `<cwd>/mlruns` for another database, None where a server decides."""
    file = database(uri)
    if file is not None:
        return file.parent / "mlruns"
    return None if uri.startswith(("http", "databricks")) else Path(cwd).absolute() / "mlruns"


def uri_of(record: RunRecord, cwd: Path, environ: Mapping[str, str]) -> str:
    """The address that a run was recorded to, with the credentials of MLFLOW_TRACKING_URI where that is the same address."""
    if record.tracking_uri is None or strip_credentials(environ.get(VARIABLE, "")) == record.tracking_uri:
        return resolve_uri(None, cwd, environ)
    return record.tracking_uri
