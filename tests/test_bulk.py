"""Points in bulk leave what `log_batch` leaves, in every table, or go by `log_batch`. The oracle is MLflow's own method."""

from __future__ import annotations

import math
import random
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dnnkit.record import Row, RunFolder, new_run
from dnnkit.sender import Sender, artifact_root
from dnnkit.sender.sync import sync
from tests.helpers import ask

PATIENT = 90.0
SPECIAL = (math.nan, math.inf, -math.inf, sys.float_info.max, -sys.float_info.max, 0.0, -0.0, 1.0, -1.0, 7, 2**53 + 1, 5e-324)


@pytest.fixture
def client(uri: str) -> Iterator[Any]:
    from dnnkit.sender.proof import _opened

    with _opened(Path(uri.removeprefix("sqlite:///"))) as opened:
        yield opened


@pytest.fixture
def plain_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that went by `log_batch`."""
    from dnnkit.sender.points import Plain

    sizes: list[int] = []
    send = Plain.send

    def counted(self: Plain, run_id: str, timestamp: int, rows: Sequence[Row]) -> None:
        sizes.append(len(rows))
        send(self, run_id, timestamp, rows)

    monkeypatch.setattr(Plain, "send", counted)
    return sizes


def tables(file: Path) -> dict[str, list[str]]:
    """Every row of every table, as SQLite holds it."""
    connection = sqlite3.connect(file)
    try:
        names = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        return {name: sorted(map(repr, connection.execute(f'select * from "{name}"'))) for name in names}
    finally:
        connection.close()


def generated(seed: int, batches: int = 40) -> Iterator[tuple[int, list[Row]]]:
    """Batches of few keys, steps, times and values, so that everything meets everything; some repeat rows of earlier ones."""
    draw = random.Random(seed)
    earlier: list[tuple[int, list[Row]]] = []
    for number in range(batches):
        values = [*SPECIAL, *(draw.gauss(0, 1) for _ in range(5))]
        keys = [f"key {name}" for name in range(draw.choice((1, 4, 30)))] + [f"only in {number}"]
        rows = [Row(draw.randint(-2, 9), draw.choice(keys), draw.choice(values)) for _ in range(draw.choice((1, 3, 20, 80)))]
        moment = draw.choice((1000, 1000 + number, 5000 - number))
        if earlier and draw.random() < 0.3:
            moment, held = draw.choice(earlier)
            rows += draw.sample(held, draw.randint(1, len(held)))
            draw.shuffle(rows)
        earlier.append((moment, rows))
        yield moment, rows


@pytest.mark.parametrize("seed", range(4))
def test_batches_of_every_kind_leave_the_same_rows_in_every_table_as_by_log_batch(
    uri: str, workdir: Path, client: Any, plain_batches: list[int], seed: int
) -> None:
    from dnnkit.sender.bulk import Bulk
    from dnnkit.sender.points import Plain
    from dnnkit.sender.proof import _opened

    run_id = client.create_run("0").info.run_id
    shutil.copy(workdir / "mlflow.db", workdir / "other.db")
    with _opened(workdir / "other.db") as other:
        bulk, plain = Bulk(client), Plain(other)
        for moment, rows in generated(seed):
            plain_batches.clear()
            bulk.send(run_id, moment, rows)
            assert not plain_batches
            plain.send(run_id, moment, rows)
            assert tables(workdir / "mlflow.db") == tables(workdir / "other.db")


# The proof


def test_the_proof_holds_for_this_mlflow_and_leaves_no_trace(uri: str, workdir: Path, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    from dnnkit.sender.proof import prove

    (workdir / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(workdir / "tmp"))
    before, engines = tables(workdir / "mlflow.db"), dict(SqlAlchemyStore._engine_map)
    proof = prove(client)
    assert proof.bulk is not None
    assert proof.said.startswith("points go in bulk: it left the same database as log_batch (")
    assert tables(workdir / "mlflow.db") == before
    assert SqlAlchemyStore._engine_map == engines
    assert not list((workdir / "tmp").iterdir())


def the_last_is_the_latest(cells: Any, held: Any) -> Any:
    return list({cell["key"]: cell for cell in cells}.values())


def an_equal_one_is_later(cells: Any, held: Any) -> Any:
    found = {}
    for cell in cells:
        moment = (cell["step"], cell["timestamp"], cell["value"])
        if cell["key"] not in held or moment >= held[cell["key"]]:
            held[cell["key"]], found[cell["key"]] = moment, cell
    return list(found.values())


def only_the_step_counts(cells: Any, held: Any) -> Any:
    found = {}
    for cell in cells:
        if cell["key"] not in held or cell["step"] > held[cell["key"]][0]:
            held[cell["key"]], found[cell["key"]] = (cell["step"],), cell
    return list(found.values())


def what_was_there_is_forgotten(cells: Any, held: Any) -> Any:
    from dnnkit.sender.bulk import _latest

    return _latest(cells, {})


WRONG = [the_last_is_the_latest, an_equal_one_is_later, only_the_step_counts, what_was_there_is_forgotten, lambda cells, held: []]


@pytest.mark.parametrize("latest", WRONG)
def test_the_proof_finds_every_other_idea_of_what_is_the_latest(client: Any, monkeypatch: pytest.MonkeyPatch, latest: Any) -> None:
    from dnnkit.sender import bulk
    from dnnkit.sender.proof import prove

    if latest is what_was_there_is_forgotten:
        kept = bulk._latest
        latest = lambda cells, held: kept(cells, {})  # noqa: E731
    monkeypatch.setattr(bulk, "_latest", latest)
    proof = prove(client)
    assert proof.bulk is None
    assert 'points go by log_batch: log_batch left \'INSERT INTO "latest_metrics"' in proof.said


@pytest.mark.parametrize("of", ["nan", "infinity", "a row"])
def test_the_proof_finds_values_and_rows_that_are_written_otherwise(client: Any, monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    from dnnkit.sender.bulk import Bulk
    from dnnkit.sender.proof import prove

    cells = Bulk._cells

    def otherwise(self: Bulk, run_id: str, timestamp: int, rows: Sequence[Row]) -> Any:
        made = cells(self, run_id, timestamp, rows)
        for cell in made.values():
            cell["is_nan"] = cell["is_nan"] and of != "nan"
            cell["value"] = math.inf if of == "infinity" and cell["value"] == sys.float_info.max else cell["value"]
        return dict(list(made.items())[1:]) if of == "a row" and len(made) > 1 else made

    monkeypatch.setattr(Bulk, "_cells", otherwise)
    assert prove(client).bulk is None


def another_log_batch(patch: pytest.MonkeyPatch, name: str, change: Callable[..., None]) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    method = getattr(SqlAlchemyStore, name)

    def other(self: Any, *arguments: Any, **keywords: Any) -> Any:
        return change(self, method, *arguments, **keywords)

    patch.setattr(SqlAlchemyStore, name, other)


CHANGES: dict[str, tuple[str, Callable[..., Any]]] = {
    "small numbers are left out": (
        "_log_metrics",
        lambda self, method, run_id, metrics: method(self, run_id, [one for one in metrics if not abs(one.value) < 1e-300]),
    ),
    "the latest are kept elsewhere": ("_update_latest_metrics_if_necessary", lambda self, method, metrics, session: None),
    "it counts its batches in a tag": (
        "log_batch",
        lambda self, method, run_id, metrics, params, tags: method(self, run_id, metrics, params, [RunTag("batch", str(len(metrics)))]),
    ),
    "it raises": ("log_batch", lambda self, method, *arguments, **keywords: 1 // 0),
    "a run is looked up otherwise": ("_get_run", lambda self, method, session, run_id: method(self, session, run_id)),
}


class RunTag:
    """MLflow's, without importing it."""

    def __init__(self, key: str, value: str) -> None:
        self.key, self.value = key, value


@pytest.mark.parametrize("change", CHANGES)
def test_another_mlflow_keeps_its_log_batch(client: Any, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    from dnnkit.sender.proof import prove

    another_log_batch(monkeypatch, *CHANGES[change])
    proof = prove(client)
    assert proof.bulk is None
    assert proof.said.startswith("points go by log_batch: ")
    assert "\n" not in proof.said


def test_what_somebody_has_put_into_the_database_counts_too(uri: str, workdir: Path, client: Any) -> None:
    from dnnkit.sender.proof import prove

    connection = sqlite3.connect(workdir / "mlflow.db")
    connection.execute("create table noted (key)")
    connection.execute("create trigger note before insert on latest_metrics begin insert into noted values (new.key); end")
    connection.close()
    assert 'log_batch left \'INSERT INTO "noted"' in prove(client).said


@pytest.mark.parametrize("kind", ["a subclass", "another database"])
def test_a_store_that_is_not_mlflows_own_on_sqlite_keeps_log_batch(client: Any, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    from dnnkit.sender.proof import prove

    class Theirs(SqlAlchemyStore):  # type: ignore[misc]
        pass

    store = client._tracking_client.store
    monkeypatch.setattr(store, *(("__class__", Theirs) if kind == "a subclass" else ("db_type", "postgresql")))
    proof = prove(client)
    assert proof.bulk is None
    assert ("Theirs on sqlite" if kind == "a subclass" else "SqlAlchemyStore on postgresql") in proof.said


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "postgresql://nobody@nowhere/none"])
def test_nothing_is_tried_with_a_server_or_another_database(tmp_path: Path, address: str) -> None:
    from dnnkit.sender.store import Store

    assert Store(address, tmp_path).proof is None


# What is not plain


@pytest.mark.parametrize("what", ["a deleted run", "no such run", "a key that MLflow refuses", "a key that is too long"])
def test_what_log_batch_refuses_is_refused_in_the_same_words_and_leaves_the_same(uri: str, workdir: Path, client: Any, what: str) -> None:
    from mlflow.exceptions import MlflowException

    from dnnkit.sender.bulk import Bulk
    from dnnkit.sender.points import Plain

    key = {"a key that MLflow refuses": "a?", "a key that is too long": "k" * 251}.get(what, "a")
    said, left = [], []
    for way in (Plain(client), Bulk(client)):
        run_id = "f" * 32 if what == "no such run" else client.create_run("0").info.run_id
        if what == "a deleted run":
            client.delete_run(run_id)
        with pytest.raises(MlflowException) as caught:
            way.send(run_id, 1000, [Row(0, "b", 1.0), Row(1, key, 2.0)])
        said.append((caught.value.error_code, caught.value.message.replace(run_id, "…")))
        left.append(ask(workdir, f"select key, step, value from metrics where run_uuid = '{run_id}'"))
    assert said[0] == said[1]
    assert left[0] == left[1]


def test_metrics_of_a_model_that_mlflow_was_told_of_go_by_log_batch(
    client: Any, monkeypatch: pytest.MonkeyPatch, plain_batches: list[int]
) -> None:
    from dnnkit.sender import bulk

    run_id = client.create_run("0").info.run_id
    way = bulk.Bulk(client)
    way.send(run_id, 1000, [Row(0, "a", 1.0)])
    assert plain_batches == []
    monkeypatch.setattr(bulk, "get_active_model_id", lambda: "m-1")
    way.send(run_id, 1000, [Row(1, "a", 1.0)])
    assert plain_batches == [1]


def test_rows_are_there_when_log_batch_returns_whatever_mlflow_was_told_of_logging_later(
    uri: str, workdir: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dnnkit.sender.points import Plain

    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    run_id = client.create_run("0").info.run_id
    Plain(client).send(run_id, 1000, [Row(0, "a", 1.0)])
    assert ask(workdir, "select key, step, value from metrics") == [("a", 0, 1.0)]


def test_a_database_that_another_process_writes_to_is_waited_for(uri: str, workdir: Path, client: Any) -> None:
    from dnnkit.sender.bulk import Bulk

    run_id = client.create_run("0").info.run_id
    other = sqlite3.connect(workdir / "mlflow.db", check_same_thread=False, isolation_level=None)
    other.execute("begin exclusive")
    release = threading.Timer(0.5, lambda: other.execute("commit"))
    release.start()
    Bulk(client).send(run_id, 1000, [Row(0, "a", 1.0)])
    release.join()
    other.close()
    assert ask(workdir, "select key, step, value from metrics") == [("a", 0, 1.0)]


# The way of a run


def written(folder: Path, uri: str, steps: int) -> RunFolder:
    """A run folder with two rows a step, of which some are not finite and some are written twice."""
    run = new_run(folder / "runs", "long", tracking_uri=uri)
    for step in range(steps):
        run.journal.log(step, {"train/loss": math.nan if step % 997 == 0 else 1 / (step + 1), "lr": 0.1})
        if step % 1000 == 0:
            run.journal.log(step, {"lr": 0.1})
    return run


def arrived(uri: str, run_id: str) -> dict[str, list[tuple[int, str]]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    keys = client.get_run(run_id).data.metrics
    return {key: sorted((one.step, repr(one.value)) for one in client.get_metric_history(run_id, key)) for key in keys}


def expected(steps: int) -> dict[str, list[tuple[int, str]]]:
    losses = [(step, repr(math.nan if step % 997 == 0 else 1 / (step + 1))) for step in range(steps)]
    return {"lr": [(step, "0.1") for step in range(steps)], "train/loss": losses}


def test_a_long_run_goes_in_bulk_through_a_sender_of_its_own_and_arrives_whole(uri: str, workdir: Path) -> None:
    sender = Sender.start(uri)
    run = written(workdir, uri, 10_000)
    run.finish("FINISHED", "finished", 0)
    sender.announce(run.path)
    outcome = sender.wait(run.path, PATIENT)
    sender.close(PATIENT)
    assert outcome.state == "closed"
    assert arrived(uri, str(outcome.run_id)) == expected(10_000)
    assert (run.path / "sender.log").read_text().count("points go in bulk") == 1
    latest = ask(workdir, "select key, step, value from latest_metrics order by key")
    assert latest == [("lr", 9999, 0.1), ("train/loss", 9999, 1 / 10_000)]


def test_a_run_whose_way_could_not_be_proven_goes_by_log_batch_and_says_why_once(
    uri: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    another_log_batch(monkeypatch, *CHANGES["small numbers are left out"])
    run = written(workdir, uri, 4000)
    run.finish("FINISHED", "finished", 0)
    outcome = sync(run.path)
    assert arrived(uri, str(outcome.run_id)) == expected(4000)
    log = (run.path / "sender.log").read_text()
    assert (log.count("points go by log_batch: log_batch left "), log.count("in bulk:")) == (1, 0)


def test_a_run_of_few_points_pays_for_no_proof(uri: str, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dnnkit.sender.store import Store

    monkeypatch.setattr(Store, "proof", property(lambda self: pytest.fail("a proof was made")))
    run = written(workdir, uri, 1900)
    run.finish("FINISHED", "finished", 0)
    assert arrived(uri, str(sync(run.path).run_id)) == expected(1900)


class Killed(BaseException):
    """Stands for SIGKILL: no `except Exception` sees it."""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_sender_killed_around_a_transaction_in_bulk_neither_loses_nor_doubles_a_row(
    uri: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, plain_batches: list[int], moment: str
) -> None:
    from dnnkit.sender.bulk import Bulk

    run = written(workdir, uri, 9000)  # still going, so that each batch is sent with the time of the day
    send, sizes = Bulk.send, []

    def killed_at_the_second_large_one(self: Bulk, run_id: str, timestamp: int, rows: Sequence[Row]) -> None:
        sizes.append(len(rows))
        if sum(size > 1000 for size in sizes) == 2 and moment == "before":
            raise Killed
        send(self, run_id, timestamp, rows)
        if sum(size > 1000 for size in sizes) == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Bulk, "send", killed_at_the_second_large_one)
        with pytest.raises(Killed):
            sync(run.path)
    time.sleep(0.01)  # another millisecond: a row that were sent again with a new time would be a second row
    outcome = sync(run.path)
    assert arrived(uri, str(outcome.run_id)) == expected(9000)
    assert max(plain_batches) == 1000  # the large batch was sent again in bulk: by `log_batch` it would hold up other runs for seconds
    assert (run.path / "sender.log").read_text().count("points go in bulk") == 2  # once in each process


def test_after_a_failure_in_bulk_the_same_batch_goes_by_log_batch(
    uri: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, plain_batches: list[int]
) -> None:
    from dnnkit.sender.bulk import Bulk
    from dnnkit.sender.follow import Follower
    from dnnkit.sender.store import Store

    store = Store(uri, artifact_root(uri, workdir))
    assert store.proof is not None
    assert store.proof.bulk is not None
    monkeypatch.setattr(Bulk, "send", lambda *arguments: 1 // 0)
    run = written(workdir, uri, 5000)
    run.finish("FINISHED", "finished", 0)
    events: list[dict[str, Any]] = []
    follower = Follower(run.path, store, events.append)
    plain_batches.clear()
    while not follower.advance():
        follower._not_before = 0.0
    assert [event["event"] for event in events] == ["created", "failed", "failed", "closed"]
    assert sum(plain_batches) == 10_005
    assert arrived(uri, events[-1]["run_id"]) == expected(5000)
