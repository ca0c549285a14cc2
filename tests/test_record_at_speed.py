"""The record of long runs: every point arrives once, whatever is killed; memory stays flat; a fresh database is a copy.

What arrived is read with MLflow's own client and compared with what was logged.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dnnkit.record import Journal, Row, RunFolder, figures, new_run, read_journal
from dnnkit.record.curves import MOST_GROUPS, Curve, read_curves
from dnnkit.record.journal import METRICS, cut_journals, last_values, read_from, stream_journal
from dnnkit.sender import Sender, artifact_root, resolve_uri
from dnnkit.sender.mark import Mark, Tail
from dnnkit.sender.sync import sync
from tests.helpers import eventually

PATIENT = 120.0
KEYS = ("train/loss", "train/acc", "lr", "grad_norm", "signal/00_dense/second_moment")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds a template, made once: making one takes seconds."""
    from dnnkit.sender import template

    home = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        assert "begins as a copy of" in template.place(home / "first.db")
    return home


@pytest.fixture
def uri(workdir: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The default address of an empty working folder, on a machine that has a template."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return resolve_uri(None, workdir, {})


def value(key: str, step: int) -> float:
    """A number of its own for every key and step; now and then one that is none."""
    return math.nan if (step + len(key)) % 997 == 0 else step / 7 + len(key)


def written(run: RunFolder, steps: range) -> None:
    for step in steps:
        run.journal.log(step, {key: value(key, step) for key in KEYS})
        if step % 100 == 0:
            run.journal.time(step, {"time/epoch_s": step / 3})


def arrived(uri: str, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each key, in the order of their times; MLflow writes NaN as such."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = {}
    for key in client.get_run(run_id).data.metrics:
        history = sorted(client.get_metric_history(run_id, key), key=lambda metric: (metric.timestamp, metric.step))
        found[key] = [(metric.step, metric.value) for metric in history]
    return found


def same(found: dict[str, list[tuple[int, float]]], steps: range) -> bool:
    expected = {key: [(step, value(key, step)) for step in steps] for key in KEYS}
    expected["time/epoch_s"] = [(step, step / 3) for step in steps if step % 100 == 0]
    return repr({key: found[key] for key in sorted(found)}) == repr({key: expected[key] for key in sorted(expected)})  # NaN is not NaN


def sent(run: Path) -> int:
    mark = run / "sender.json"
    return sum(json.loads(mark.read_text())["sent"].values()) if mark.exists() else 0


# Every point once


def test_the_points_of_a_long_run_arrive_whole_and_in_order_although_its_sender_is_killed_on_the_way(uri: str, workdir: Path) -> None:
    sender = Sender.start(uri)
    run = new_run(workdir / "runs", "long", tracking_uri=uri)
    sender.announce(run.path)
    eventually(lambda: sender.run_id(run.path))
    written(run, range(2100))
    assert sender._process is not None
    eventually(lambda: sent(run.path) > 2000)
    sender._process.send_signal(signal.SIGKILL)
    sender.close(PATIENT)
    assert sent(run.path) < 10_000, "it was killed too late for this test"
    written(run, range(2100, 4100))
    run.finish("FINISHED", "finished", 0)
    outcome = sync(run.path)
    assert outcome.state == "closed"
    assert same(arrived(uri, str(outcome.run_id)), range(4100))


class Killed(BaseException):
    """Stands for SIGKILL: no `except Exception` sees it."""


def test_a_sender_killed_before_it_has_noted_that_a_batch_arrived_sends_it_again_and_mlflow_keeps_one(
    uri: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dnnkit.sender import follow

    monkeypatch.setattr(follow, "SLICE", 3600.0)  # at the end of each it is noted, which on a busy machine would be too early
    run = new_run(workdir / "runs", "killed", tracking_uri=uri)
    written(run, range(700))  # still going, so that each batch is sent with the time of the day
    begin, batches = Mark.begin, []

    def killed_at_the_third(mark: Mark, folder: Path, batch: Any) -> None:
        batches.append(batch)
        if len(batches) == 3:
            raise Killed
        begin(mark, folder, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Mark, "begin", killed_at_the_third)
        with pytest.raises(Killed):
            sync(run.path)
    time.sleep(0.01)  # another millisecond: a row that were sent again with a new time would be a second row
    outcome = sync(run.path)
    assert same(arrived(uri, str(outcome.run_id)), range(700))


def test_a_run_with_much_to_send_does_not_hold_up_the_others_of_its_sender(
    uri: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dnnkit.sender import follow
    from dnnkit.sender.store import Store

    monkeypatch.setattr(follow, "SLICE", 0.0)
    store = Store(uri, artifact_root(uri, workdir))
    events: list[dict[str, Any]] = []
    runs = [new_run(workdir / "runs", name, tracking_uri=uri) for name in ("long", "short")]
    written(runs[0], range(500))
    written(runs[1], range(10))
    for run in runs:
        run.finish("FINISHED", "finished", 0)
    followers = [follow.Follower(run.path, store, events.append) for run in runs]
    ended: list[str] = []
    while len(ended) < 2:
        for run, follower in zip(runs, followers, strict=True):
            if run.record.name not in ended and follower.advance():
                ended.append(run.record.name)
            assert follower.behind == (run.record.name not in ended)
    assert ended == ["short", "long"]
    closed = {event["run"]: event["run_id"] for event in events if event["event"] == "closed"}
    assert same(arrived(uri, closed[str(runs[0].path)]), range(500))


def test_the_few_rows_of_a_run_that_goes_on_are_gathered_and_at_its_end_all_are_sent_at_once(
    uri: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dnnkit.sender import follow
    from dnnkit.sender.store import Store

    monkeypatch.setattr(follow, "LONGEST_WAIT", 3600.0)
    monkeypatch.setattr(follow, "SHARE", 1e-9)
    run = new_run(workdir / "runs", "slow", tracking_uri=uri)
    follower = follow.Follower(run.path, Store(uri, artifact_root(uri, workdir)), lambda event: None)
    counts = []
    for step in range(3):
        written(run, range(step, step + 1))
        assert not follower.advance()
        counts.append(sent(run.path))
    assert counts == [len(KEYS) + 1] * 3  # the first ones are not kept waiting
    run.finish("FINISHED", "finished", 0)
    assert follower.advance()
    assert sent(run.path) == 3 * len(KEYS) + 1


def test_rows_are_handed_out_in_the_order_of_the_journal_as_many_as_are_asked_for(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for step in range(1000):
            journal.log(step, {"a": step, "b": -step})
    mark = Mark("sqlite://", sent={"a": 100, "b": 40})
    tail, rows = Tail(tmp_path, mark), []
    while new := tail.next_batch(7):
        assert len(new) <= 7
        rows += new
    expected = [row for row in read_journal(tmp_path / METRICS) if row.step >= {"a": 100, "b": 40}[row.key]]
    assert rows == expected


# The journal


@pytest.mark.parametrize(
    "number",
    [
        0.1,
        -0.0,
        5e-324,
        1.7976931348623157e308,
        1e16,
        123456789012345678,
        7,
        True,
        math.inf,
        -math.inf,
        math.nan,
        np.float32(0.1),
        torch.tensor(0.1),
        torch.tensor(0.1, dtype=torch.float64),
    ],
)
@pytest.mark.parametrize("key", ["train/loss", 'a "quoted" \\ key', "größe/∂L", "tab\tand\nline"])
def test_a_line_of_the_journal_is_what_json_makes_of_it(tmp_path: Path, key: str, number: Any) -> None:
    with Journal(tmp_path) as journal:
        journal.log(3, {key: number})
        journal.log(torch.tensor(4), {key: number})  # type: ignore[arg-type]
    row = {"step": 3, "key": key, "value": float(number)}
    lines = [json.dumps(one, separators=(",", ":")) + "\n" for one in (row, {**row, "step": 4})]
    assert (tmp_path / METRICS).read_bytes() == "".join(lines).encode()


def test_a_call_with_a_key_of_the_wrong_kind_writes_nothing_at_all(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for _ in range(2):
            with pytest.raises(ValueError, match="wall-clock"):
                journal.log(1, {"train/loss": 1.0, "time/epoch_s": 1.0})
    assert (tmp_path / METRICS).read_bytes() == b""


@pytest.mark.parametrize("torn", [1, 70_000, 200_000])
def test_a_torn_line_of_any_length_is_removed_when_the_journal_is_opened_again(tmp_path: Path, torn: int) -> None:
    whole = b'{"step":1,"key":"a","value":1.0}\n'
    for before in (b"", whole, whole * 5000):
        (tmp_path / METRICS).write_bytes(before + b"x" * torn)
        Journal(tmp_path).close()
        assert (tmp_path / METRICS).read_bytes() == before


def test_a_damaged_line_among_many_is_named_and_two_rows_on_a_line_are_damage(tmp_path: Path) -> None:
    good = '{"step":1,"key":"a","value":1.0}'
    for bad in ('{"step":1,"key":"a"}', '{"step":1,"key":"b",', f"{good},{good}", "[]", ""):
        (tmp_path / METRICS).write_text("\n".join([good] * 50 + [bad] + [good] * 50) + "\n")
        with pytest.raises(ValueError, match="no journal row") as caught:
            list(stream_journal(tmp_path / METRICS))
        assert repr(bad.encode())[2:-1] in str(caught.value)


def test_a_journal_read_in_pieces_of_any_size_is_the_journal(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for step in range(1500):
            journal.log(step, {"a": step / 7, "b": step})
    rows = [Row(step, key, float(number)) for step in range(1500) for key, number in (("a", step / 7), ("b", step))]
    assert read_journal(tmp_path / METRICS) == list(stream_journal(tmp_path / METRICS)) == rows
    assert last_values(tmp_path / METRICS) == {"a": 1499 / 7, "b": 1499.0}
    for most in (1, 999, 5000):
        seen, offset = read_from(tmp_path / METRICS, 0, most)
        assert (seen, len(seen) <= most) == (rows[:most], True)
        assert read_from(tmp_path / METRICS, offset)[0] == rows[most:]


# Memory


@pytest.fixture(scope="module")
def long_journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a journal of 40,000 rows, 2 MB."""
    folder = tmp_path_factory.mktemp("long")
    with Journal(folder) as journal:
        for step in range(20_000):
            journal.log(step, {"train/loss": value("train/loss", step), "lr": 0.1})
    return folder


READERS: dict[str, Callable[[Path], Any]] = {
    "opening it": lambda folder: Journal(folder).close(),
    "the last values": lambda folder: last_values(folder / METRICS),
    "a batch for MLflow": lambda folder: Tail(folder, Mark("sqlite://")).next_batch(1000),
    "all batches, sent before": lambda folder: Tail(folder, Mark("sqlite://", sent={"train/loss": 20_000, "lr": 20_000})).next_batch(1000),
    "cutting back": lambda folder: cut_journals(folder, 20_000),
    "bringing the mark into line": lambda folder: Mark("sqlite://").cut_back(stream_journal(folder / METRICS), 10_000),
    "the curves": lambda folder: [len(curve.points) for curve in read_curves(folder / METRICS, ["train/loss", "lr"]).values()],
}


@pytest.mark.parametrize("what", READERS)
def test_whatever_reads_a_long_journal_holds_a_small_part_of_it(long_journal: Path, what: str) -> None:
    READERS[what](long_journal)  # what is imported and cached at the first call is not counted
    assert peak(lambda: READERS[what](long_journal)) < peak(lambda: read_journal(long_journal / METRICS)) / 2


def peak(work: Callable[[], Any]) -> int:
    """The most bytes that Python held while it did the work."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


LONG_RUN = """
import json, os, sys, time
from pathlib import Path
from dnnkit.record import new_run
from dnnkit.sender import Sender
from tests.test_record_at_speed import KEYS, resident_mb, value
uri, steps = sys.argv[1], int(sys.argv[2])
sender = Sender.start(uri)
run = new_run(Path("runs"), "million", tracking_uri=uri)
sender.announce(run.path)
run.journal.log(0, {key: value(key, 0) for key in KEYS})
run.journal.time(0, {"time/epoch_s": 0.0})
while sender.run_id(run.path) is None:
    time.sleep(0.1)
print(json.dumps({"run": str(run.path), "sender": sender._process.pid}), flush=True)
memory = []
for step in range(1, steps):
    run.journal.log(step, {key: value(key, step) for key in KEYS})
    if step in (steps // 10, steps - 1):
        memory.append(resident_mb(os.getpid()))
    if step % 100 == 0:
        run.journal.time(step, {"time/epoch_s": step / 3})
run.finish("FINISHED", "finished", 0)
outcome = sender.wait(run.path, 1500)
print(json.dumps({"state": outcome.state, "run_id": outcome.run_id, "memory": memory}), flush=True)
"""


def resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory of another process is read from /proc")
def test_a_million_points_arrive_whole_and_neither_process_grows_on_the_way(uri: str, workdir: Path) -> None:
    steps = 200_000
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", LONG_RUN, uri, str(steps)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as trainer:
        assert trainer.stdout is not None
        begun = json.loads(trainer.stdout.readline())
        run, memory = Path(begun["run"]), []
        while trainer.poll() is None:
            share = sent(run) / (len(KEYS) * steps)
            if 0.1 < share < 1:
                memory.append(resident_mb(begun["sender"]))
            time.sleep(0.5)
        ended = json.loads(trainer.stdout.readlines()[-1])
    assert (trainer.returncode, ended["state"]) == (0, "closed")
    assert same(arrived(uri, ended["run_id"]), range(steps))
    assert len(memory) > 10
    # A list of the rows would take 200 MB.
    assert max(memory) - memory[0] < 20
    assert ended["memory"][1] - ended["memory"][0] < 10


# Curves


def noise(count: int) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(count, generator=generator, dtype=torch.float64).cumsum(0)
    return list(walk.tolist())


def curve(values: list[float]) -> Curve:
    made = Curve()
    for step, number in enumerate(values):
        made.add(step, number)
    return made


def test_a_curve_that_can_be_seen_is_kept_point_for_point() -> None:
    values = noise(MOST_GROUPS)
    assert curve(values).points == list(enumerate(values))


@pytest.mark.parametrize("count", [MOST_GROUPS + 1, 10_001, 100_000])
def test_a_thinned_curve_has_few_points_and_the_same_range_in_every_column_of_dots(count: int) -> None:
    values = noise(count)
    thin = curve(values).points
    assert len(thin) <= 4 * MOST_GROUPS + 4
    assert set(thin) <= set(enumerate(values))
    assert thin == sorted(thin)
    assert (thin[0], thin[-1]) == ((0, values[0]), (count - 1, values[-1]))
    for low in (min, max):
        assert low(thin, key=lambda point: point[1]) == (values.index(low(values)), low(values))
    # At most 2,400 groups and at least half as many: no column of 500 is narrower than two of them.
    width = count / 500
    steps, numbers = np.array([step for step, _ in thin]), np.array([number for _, number in thin])
    for column in range(500):
        inside = np.array(values[math.ceil(column * width) : math.ceil((column + 1) * width)])
        kept = numbers[((column - 1) * width <= steps) & (steps < (column + 2) * width)]
        assert kept.min() <= inside.min()
        assert kept.max() >= inside.max()


def picture(steps: Sequence[int], values: Sequence[float]) -> Any:
    """The dots of a panel with that curve, `(height, width, 3)`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = figures.blank_figure(4.6, 3.5)
    figure.add_subplot().plot(steps, values, linewidth=1.2)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def test_a_thinned_curve_is_drawn_in_the_same_dots() -> None:
    values = noise(60_000)
    whole, thin = picture(range(60_000), values), curve(values)
    every_eighth = picture(range(0, 60_000, 8), values[::8])
    drawn = (whole.min(axis=2) < 250).sum()
    ours, plain = ((abs(whole - other).max(axis=2) > 64).sum() / drawn for other in (picture(thin.steps, thin.values), every_eighth))
    assert ours < 0.04
    assert plain > 2 * ours  # as many points, taken without looking


def test_the_earliest_of_equal_extremes_is_kept_and_a_long_gap_stays_a_gap() -> None:
    values = [float(step % 5) for step in range(20_000)]
    values[10_000:12_000] = [math.inf] * 2000
    thin = curve(values)
    assert next(step for step, number in thin.points if number == 4.0) == 4
    gap = [step for step, number in thin.points if math.isnan(number)]
    assert min(gap) == 10_000
    assert max(gap) == 11_999


# A database from a template


def opened(folder: Path) -> Any:
    """The client of a fresh database in `folder`, and what was said of it."""
    from dnnkit.sender.store import Store

    store = Store(f"sqlite:///{folder}/mlflow.db", folder / "mlruns")
    return store.client, store.opened


def content(file: Path) -> dict[str, Any]:
    """The tables with their SQL, and their rows; of the time of creation, that there is one."""
    connection = sqlite3.connect(file)
    try:
        sql = dict(connection.execute("select name, sql from sqlite_master where name not like 'sqlite_%'").fetchall())
        tables = {name: sorted(re.findall(r"[\w']+", text)) for name, text in sql.items()}  # MLflow writes a set into a CHECK
        names = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table' order by name")]
        rows = {name: connection.execute(f'select * from "{name}"').fetchall() for name in names}
        now = time.time() * 1000
        recent = lambda cell: "recent" if isinstance(cell, int) and abs(now - cell) < 3_600_000 else cell  # noqa: E731
        return {"tables": tables, "rows": {name: [tuple(map(recent, row)) for row in held] for name, held in rows.items() if held}}
    finally:
        connection.close()


def test_a_copy_of_the_template_is_the_database_that_mlflow_makes_and_opens_without_a_migration(
    workdir: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    (workdir / "theirs").mkdir()
    monkeypatch.chdir(workdir / "theirs")
    MlflowClient(tracking_uri=f"sqlite:///{workdir}/theirs/mlflow.db")
    (workdir / "ours").mkdir()
    monkeypatch.chdir(workdir / "ours")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    with monkeypatch.context() as patch:
        patch.setattr("alembic.command.upgrade", lambda *arguments, **keywords: pytest.fail("a migration ran"))
        _, said = opened(workdir / "ours")
    assert "mlflow.db begins as a copy of " in said
    ours, theirs = content(workdir / "ours/mlflow.db"), content(workdir / "theirs/mlflow.db")
    assert ours["tables"] == theirs["tables"]
    [default] = ours["rows"]["experiments"]
    assert str(workdir / "ours" / "mlruns/0") in default
    expected = [cell.replace("theirs", "ours") if isinstance(cell, str) else cell for cell in theirs["rows"]["experiments"][0]]
    assert ours["rows"] == {**theirs["rows"], "experiments": [tuple(expected)]}


def test_the_template_knows_of_no_run_and_no_folder(cache: Path) -> None:
    [template] = (cache / "dnnkit/mlflow").glob("*.db")
    assert set(content(template)["rows"]) == {"alembic_version", "workspaces"}
    held = template.read_bytes()
    for folder in (str(cache), str(Path.cwd()), str(Path.home())):
        assert folder.encode() not in held


@pytest.mark.parametrize("name", ["mlflow.db", "mlflow.db-journal", "mlflow.db-wal"])
def test_nothing_is_put_over_or_beside_what_is_there(workdir: Path, uri: str, name: str) -> None:
    from dnnkit.sender import template

    (workdir / name).write_bytes(b"mine")
    assert template.place(workdir / "mlflow.db") == ""
    assert [path.name for path in workdir.iterdir()] == [name]
    assert (workdir / name).read_bytes() == b"mine"


def test_a_database_that_another_program_makes_at_the_same_moment_is_kept(workdir: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dnnkit.sender import template

    find = template._template

    def meanwhile() -> tuple[bytes, Path]:
        (workdir / "mlflow.db").write_bytes(b"theirs")
        return find()

    monkeypatch.setattr(template, "_template", meanwhile)
    assert template.place(workdir / "mlflow.db") == ""
    assert {path.name: path.read_bytes() for path in workdir.iterdir()} == {"mlflow.db": b"theirs"}


@pytest.mark.parametrize("damage", ["one byte", "half of it", "another version", "another revision"])
def test_a_template_that_is_damaged_or_of_another_version_is_not_used_and_one_is_made_anew(
    workdir: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    from dnnkit.sender import template

    [good] = (cache / "dnnkit/mlflow").glob("*.db")
    held = good.read_bytes()
    name, bad = good.name, held[:5000] + bytes([held[5000] ^ 1]) + held[5001:]
    if damage == "half of it":
        bad = held[: len(held) // 2]
    elif "version" in damage:
        name = name.replace("mlflow-3.", "mlflow-2.")
    elif "revision" in damage:
        name = "-".join([*name.split("-")[:2], "000000000000." + name.split(".", 3)[3]])
    home = workdir / "cache"
    (home / "dnnkit/mlflow").mkdir(parents=True)
    (home / "dnnkit/mlflow" / name).write_bytes(bad)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    made: list[Path] = []

    def migrated(path: Path) -> bytes:
        made.append(path)
        return held  # what MLflow would make, which takes seconds

    monkeypatch.setattr(template, "_migrated", migrated)
    assert "begins as a copy" in template.place(workdir / "mlflow.db")
    assert len(made) == 1
    assert (workdir / "mlflow.db").read_bytes() == held
    assert (home / "dnnkit/mlflow" / good.name).read_bytes() == held
    assert "begins as a copy" in template.place(workdir / "second.db")
    assert len(made) == 1


def test_where_no_template_can_be_kept_mlflow_makes_the_database_and_the_reason_is_said(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dnnkit.sender import template

    (workdir / "cache").write_text("a file is in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(workdir / "cache"))
    said = template.place(workdir / "mlflow.db")
    assert said.startswith("mlflow.db is made without a template: NotADirectoryError")
    assert not (workdir / "mlflow.db").exists()


def test_the_record_of_a_run_says_that_its_database_began_as_a_copy(workdir: Path, uri: str) -> None:
    run = new_run(workdir / "runs", "first", tracking_uri=uri)
    run.finish("FINISHED", "finished", 0)
    assert sync(run.path).state == "closed"
    assert "mlflow.db begins as a copy of " in (run.path / "sender.log").read_text()


PLACE = """
import sys
from pathlib import Path
from dnnkit.sender import template
from mlflow.tracking import MlflowClient
file = Path(sys.argv[1]) / "mlflow.db"
print(template.place(file))
MlflowClient(tracking_uri=f"sqlite:///{file}").create_run("0")
"""


@pytest.mark.slow
def test_processes_that_find_no_template_at_once_make_one_and_all_use_it(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(workdir / "cache"))
    for number in range(4):
        (workdir / str(number)).mkdir()
    command = [sys.executable, "-c", PLACE]
    started = [subprocess.Popen([*command, str(workdir / str(number))], stdout=subprocess.PIPE, text=True) for number in range(4)]
    said = [one.communicate(timeout=300)[0] for one in started]
    assert [one.returncode for one in started] == [0] * 4
    assert Counter("begins as a copy of" in one for one in said) == {True: 4}
    assert len(list((workdir / "cache/dnnkit/mlflow").glob("*.db"))) == 1
    assert not list((workdir / "cache/dnnkit/mlflow").glob(".building*"))
