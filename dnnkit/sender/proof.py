"""Whether `bulk` leaves the same database as `log_batch`, found out with this MLflow and with the tables of this database.

Batches of every kind go both ways, each into a scratch database of its own, and all that the two files hold is compared: every row of
every table. So tables that another MLflow, or somebody else, has made differently keep `log_batch`.
"""

from __future__ import annotations

import math
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient
from sqlalchemy import text

from dnnkit.record import Row
from dnnkit.sender.bulk import Bulk, own_sqlite_store
from dnnkit.sender.points import Plain

_HUGE = sys.float_info.max
_FIRST = [
    *(Row(step, "plain", step / 7) for step in range(5)),
    *(Row(step, "older after newer", 0.5) for step in (3, 1, 2, -1)),
    *(Row(1, "larger after smaller", value) for value in (1.0, 2.0)),
    *(Row(1, "smaller after larger", value) for value in (2.0, 1.0)),
    *(Row(1, "nan then zero", value) for value in (math.nan, 0.0)),
    *(Row(1, "zero then nan", value) for value in (0.0, math.nan)),
    *(Row(1, "nans", float("nan")) for _ in range(2)),  # two objects, which are not equal
    *(Row(1, "negative then nan", value) for value in (-1.0, math.nan)),
    *(Row(step, "infinite", value) for step, value in enumerate((math.inf, -math.inf))),
    *(Row(2, "infinite or huge", value) for value in (_HUGE, math.inf, -math.inf, -_HUGE)),
    *(Row(1, "zeros", value) for value in (-0.0, 0.0)),
    *(Row(1, "twice", 0.25) for _ in range(2)),
    Row(1, "integer", 7),
    Row(2, "integer", 2**53 + 1),
    Row(2**62, "path/größe: a.b-c", 5e-324),
]
#: Times, and the rows that carry them; what is special about each batch beyond its rows is its place.
BATCHES: list[tuple[int, list[Row]]] = [
    (2000, _FIRST),
    (2000, [*_FIRST[:3], Row(5, "plain", 1.0), Row(0, "new among repeated", 1.0), *_FIRST[3:]]),
    (2000, [Row(4, "plain", -1.0), Row(1, "nans", -1.0), Row(1, "twice", 0.5), Row(1, "zeros", -0.5), Row(1, "new", 1.0)]),
    (3000, [*_FIRST, Row(0, "new", 2.0)]),
    (3000, [Row(0, "new", 2.0)]),
    (1000, [Row(6, "plain", math.nan), Row(5, "plain", 0.1), Row(1, "twice", math.inf), Row(1, "new", 3.0), Row(0, "newer", -math.inf)]),
    (4000, [Row(6, "plain", -1.0), Row(6, "plain", 0.0), Row(0, "newer", 0.0)]),
]


@dataclass(frozen=True)
class Proof:
    """`bulk`: None where there is none; `said`: what was found, in words for a log."""

    bulk: Bulk | None
    said: str


def prove(client: MlflowClient) -> Proof:
    """Finds out whether `Bulk` may be used for the store of `client`; some tenths of a second, and no trace of it afterwards."""
    began = time.monotonic()
    try:
        bulk = Bulk(client)
        difference = _difference(own_sqlite_store(client))
    except Exception as error:  # another MLflow inside, a full disk, another kind of store: a run needs none of this
        difference = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if difference:
        return Proof(None, f"points go by log_batch: {difference}")
    return Proof(bulk, f"points go in bulk: it left the same database as log_batch ({time.monotonic() - began:.2f} s)")


def _difference(store: Any) -> str:
    """How the databases differ that both ways leave, in words; empty where they do not."""
    with tempfile.TemporaryDirectory(prefix="dnnkit-") as name:
        files = [Path(name) / way for way in ("log_batch.db", "bulk.db")]
        _copy_tables(store, files[0])
        with _opened(files[0]) as client:
            run_id = client.create_run("0", run_name="proof").info.run_id
            shutil.copy(files[0], files[1])
            _send(Plain(client), run_id)
        with _opened(files[1]) as client:
            _send(Bulk(client), run_id)
        pairs = zip_longest(*map(_content, files))
        return next((f"log_batch left {theirs!r}, in bulk {ours!r}" for theirs, ours in pairs if theirs != ours), "")


def _send(way: Plain | Bulk, run_id: str) -> None:
    for moment, rows in BATCHES:
        way.send(run_id, moment, rows)


def _copy_tables(store: Any, file: Path) -> None:
    """A database with the tables of the store's, and what their version is; nothing of any run."""
    with store.ManagedSessionMaker() as session:
        made = session.execute(text("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT GLOB 'sqlite_*' ORDER BY rowid"))
        statements = [sql for (sql,) in made]
        kept = {name: session.execute(text(f"SELECT * FROM {name}")).all() for name in ("alembic_version", "workspaces")}
    scratch = sqlite3.connect(file)
    try:
        scratch.execute("BEGIN")  # or each table would be a transaction, which waits for the disk
        for sql in statements:
            scratch.execute(sql)
        for name, rows in kept.items():
            scratch.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(rows[0]))})", map(tuple, rows))
        scratch.commit()
    finally:
        scratch.close()


@contextmanager
def _opened(file: Path) -> Iterator[MlflowClient]:
    """A client of that database, whose connections are closed in the end."""
    uri = f"sqlite:///{file}"
    client = MlflowClient(tracking_uri=uri)
    store = own_sqlite_store(client)
    try:
        yield client
    finally:
        store._dispose_engine()
        SqlAlchemyStore._engine_map.pop(uri, None)


def _content(file: Path) -> list[str]:
    """All tables and rows, as SQL that would make them again."""
    database = sqlite3.connect(file)
    try:
        return list(database.iterdump())
    finally:
        database.close()
