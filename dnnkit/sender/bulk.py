"""Points by the thousand into MLflow's tables, several times as fast as by `log_batch`.

`log_batch` makes an object of SQLAlchemy's for every point and judges each point twice: 0.14 to 0.18 ms of CPU a point, where `Bulk` and
all that precedes it take 0.024. `Bulk` puts the rows of a batch into MLflow's own tables, in one transaction of the store's own, with
MLflow's own judgement of keys, values and runs. Whether that leaves the same tables as `log_batch` is for `proof` to find out, before
the first row of a run goes this way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import mlflow.utils.validation
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient
from mlflow.tracking.fluent import get_active_model_id
from mlflow.tracking.metric_value_conversion_utils import convert_metric_value_to_float_if_possible
from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import IntegrityError

from dnnkit.record import Row
from dnnkit.sender.points import Plain

Cells = dict[tuple[str, int, float, bool], dict[str, Any]]  # by what tells rows of one run and one time apart
_validation: Any = mlflow.utils.validation  # which has no types
_METRICS: Any = SqlMetric.__table__
_LATEST: Any = SqlLatestMetric.__table__


class Bulk:
    """To a SQLite store of MLflow's own, one transaction for thousands of points. Raises TypeError for any other store."""

    # CPU a point: 0.034 ms with 1000 rows at once, 0.024 with 5000, 0.021 with 10,000, which keep the other runs of a sweep waiting longer.
    most = 5000

    def __init__(self, client: MlflowClient) -> None:
        self._plain = Plain(client)
        self._store = own_sqlite_store(client)
        self._valid: set[str] = set()  # keys that MLflow has accepted

    def send(self, run_id: str, timestamp: int, rows: Sequence[Row]) -> None:
        """What `log_batch` does with them. Raises MlflowException: for a run that is deleted or not there, and for a locked database."""
        # What MLflow refuses is for MLflow to say; metrics of a model that it was told of go into other tables too.
        if get_active_model_id() is None and self._are_valid(rows, timestamp):
            self._insert(run_id, timestamp, self._cells(run_id, timestamp, rows))
        else:
            self._plain.send(run_id, timestamp, rows)

    def _are_valid(self, rows: Sequence[Row], timestamp: int) -> bool:
        """Whether MLflow accepts every key, each of which it is asked about once."""
        for row in rows:
            if row.key not in self._valid:
                try:
                    _validation._validate_metric(row.key, row.value, timestamp, row.step)
                except MlflowException:
                    return False
                self._valid.add(row.key)
        return True

    def _cells(self, run_id: str, timestamp: int, rows: Sequence[Row]) -> Cells:
        """The rows as the table has them, of equal ones the first."""
        cells: Cells = {}
        for step, key, number in rows:
            is_nan, value = self._store.sanitize_metric_value(convert_metric_value_to_float_if_possible(number))
            one = {"run_uuid": run_id, "key": key, "value": value, "timestamp": timestamp, "step": step, "is_nan": is_nan}
            cells.setdefault((key, step, value, is_nan), one)
        return cells

    def _insert(self, run_id: str, timestamp: int, cells: Cells) -> None:
        with self._store.ManagedSessionMaker(read_only=False) as session:
            self._store._check_run_is_active(self._store._get_run(run_uuid=run_id, session=session))
            try:
                session.execute(_METRICS.insert(), list(cells.values()))
            except IntegrityError:  # some are there already, as after a kill: they are left alone
                session.rollback()
                there = set(map(tuple, session.execute(_held(run_id, timestamp, cells))))
                cells = {identity: cell for identity, cell in cells.items() if identity not in there}
                if not cells:
                    return
                session.execute(_METRICS.insert(), list(cells.values()))
            # After the insertion, from which on no other process writes until this transaction ends.
            known = session.execute(select(_LATEST).where(_LATEST.c.run_uuid == run_id))
            latest = _latest(cells.values(), {row.key: (row.step, row.timestamp, row.value) for row in known})
            if latest:
                session.execute(_put_latest(), latest)


def _held(run_id: str, timestamp: int, cells: Cells) -> Any:
    """The question which rows the database holds that may be among the cells; the primary key answers it."""
    table, steps = _METRICS.c, [step for _, step, *_ in cells]
    same = table.run_uuid == run_id, table.timestamp == timestamp, table.key.in_({key for key, *_ in cells})
    return select(table.key, table.step, table.value, table.is_nan).where(*same, table.step.between(min(steps), max(steps)))


def _latest(cells: Iterable[dict[str, Any]], held: dict[str, tuple[int, int, float]]) -> list[dict[str, Any]]:
    """Of each key the cell that is strictly later than all before it, by (step, timestamp, value), if there is one."""
    found: dict[str, dict[str, Any]] = {}
    for cell in cells:
        key, moment = cell["key"], (cell["step"], cell["timestamp"], cell["value"])
        if key not in held or moment > held[key]:
            held[key], found[key] = moment, cell
    return list(found.values())


def _put_latest() -> Any:
    """The statement that puts a row into `latest_metrics` or in the place of the one for the same run and key."""
    put, place = insert(_LATEST), list(_LATEST.primary_key)
    return put.on_conflict_do_update(place, set_={column.name: put.excluded[column.name] for column in _LATEST.c if column not in place})


def own_sqlite_store(client: MlflowClient) -> Any:
    """The store behind a client. Raises TypeError where it is not MLflow's own on SQLite."""
    store: Any = client._tracking_client.store
    if type(store) is not SqlAlchemyStore or store.db_type != "sqlite":
        raise TypeError(f"the store is a {type(store).__name__} on {getattr(store, 'db_type', 'no database')}")
    return store
