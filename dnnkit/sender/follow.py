"""One run folder becomes one MLflow run, while it grows or long afterwards."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from dnnkit.record import RunRecord, strip_credentials
from dnnkit.record.description import description
from dnnkit.record.folder import read_files
from dnnkit.record.identity import scrub
from dnnkit.sender.address import database
from dnnkit.sender.artifacts import EARLY, save_model, upload
from dnnkit.sender.drawer import draw_or_say
from dnnkit.sender.mark import Batch, Mark, Tail
from dnnkit.sender.store import Store

SHARE = 0.01  # of its time that a sender spends on the few rows of a run that goes on: the trainer needs the machine
LONGEST_WAIT = 5.0  # seconds, whatever a send takes
SLICE = 1.0  # seconds that one run with much to send may keep the others of a sweep waiting
ROWS_PER_BATCH = 1000  # MLflow's own limits
PARAMS_PER_BATCH = 100
PARAM_LENGTH = 6000
NOTE = "mlflow.note.content"  # the description on a run's page
ATTEMPTS_AFTER_THE_END = 3
LONGEST_PAUSE = 30.0

Emit = Callable[[dict[str, Any]], None]


class Follower:
    """Brings `run_dir` into `store`, one `advance` at a time, and tells `emit` what it has reached."""

    def __init__(self, run_dir: Path, store: Store, emit: Emit) -> None:
        self.run_dir = run_dir
        self.record = RunRecord.read(run_dir)
        self._store = store
        self._emit = emit
        self._lock = FileLock(run_dir / ".sender.lock")
        self._log = _run_logger(run_dir)
        self._read_mark()
        self.orphaned = False  # whether the process that announced the run is known to be gone
        self.behind = False  # whether there is more to send at once
        self._opened = self._drawn = False
        self._undrawn = ""  # which figures there are not, and why: told at the end, after everything that clears a message
        self._failures = self._failures_after_the_end = 0
        self._not_before = self._next_send = 0.0

    def advance(self) -> bool:
        """Sends what is new, for about a second; true once there is nothing more to do: closed, or given up after the run's end."""
        self.behind = False
        if time.monotonic() < self._not_before:
            return False
        try:
            done = self._advance()
            self._failures = 0
        except Exception as error:  # whatever MLflow, the network or the disk may raise: told, tried again, never fatal
            done = self._failed(error)
        if done:
            self.release()
        return done

    def release(self) -> None:
        """Lets another sender have the folder."""
        self._lock.release()
        for handler in self._log.handlers:
            handler.close()

    def _read_mark(self) -> None:
        self._mark = Mark.read(self.run_dir, strip_credentials(self._store.uri))
        self._tail = Tail(self.run_dir, self._mark, self.record.signal)
        self._beyond = frozenset(self._mark.beyond)

    def _advance(self) -> bool:
        record = _settled(self.run_dir, self.record, self.orphaned)  # before the journals: one that has ended has written them all
        if record.resumed != self.record.resumed:
            return True  # by another process, which has a sender of its own
        self.record = record
        self._draw()
        run_id = self._open()
        if self.record.status == "RUNNING" and time.monotonic() < self._next_send:
            return False
        self.behind = not self._send_rows(run_id)
        if self.behind or self.record.status == "RUNNING":
            return False
        self._close(run_id)
        return True

    def _open(self) -> str:
        """The id of the MLflow run, which at the first call is found or created, and described."""
        if self._opened and self._mark.run_id is not None:
            return self._mark.run_id
        if not self._lock.is_locked:
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise RuntimeError(f"another sender is following {self.run_dir}") from error
            # Whoever had the folder until now may have sent more than was known when this follower was made.
            self._read_mark()
        client, mark = self._store.client, self._mark
        if self._store.opened:
            self._log.info("%s", self._store.opened)
        if mark.run_id is None:
            mark.run_id = self._create_run()
            mark.write(self.run_dir)
        elif self.record.status == "RUNNING":
            client.update_run(mark.run_id, status="RUNNING")  # a resumed run, closed once already
            client.log_batch(mark.run_id, tags=[RunTag(key, value) for key, value in self._tags().items()])
        if not mark.described:
            self._describe(mark.run_id)
            mark.described = True
            mark.write(self.run_dir)
        self._opened = True
        self._tell("created", run_id=mark.run_id)
        return mark.run_id

    def _create_run(self) -> str:
        experiment_id = self._mark.experiment_id = self._store.experiment(self.record.experiment)
        # A sender killed between creating the run and noting its id must find it again, not create a second one.
        found = self._store.find_run(experiment_id, self.record.uuid) if self._mark.creating else None
        if found is not None:
            return found
        self._mark.creating = True
        self._mark.write(self.run_dir)
        tags = {"mlflow.source.name": "dnnkit", "mlflow.source.type": "LOCAL", "dnnkit.run_uuid": self.record.uuid, **self._tags()}
        started, name = _milliseconds(self.record.created), self.record.title or self.record.name
        run = self._store.client.create_run(experiment_id, start_time=started, tags=tags, run_name=name)
        return str(run.info.run_id)

    def _describe(self, run_id: str) -> None:
        """Parameters, the data set, and the files that say what the run is."""
        client = self._store.client
        params = [Param(key, self._fitting(key, value)) for key, value in read_files(self.run_dir, "params.json").items()]
        for start in range(0, len(params), PARAMS_PER_BATCH):
            client.log_batch(run_id, params=params[start : start + PARAMS_PER_BATCH])
        dataset = read_files(self.run_dir, "dataset.json")
        if dataset:
            client.log_inputs(run_id, [DatasetInput(Dataset(**dataset), [InputTag("mlflow.data.context", "training")])])
        upload(client, run_id, self.run_dir, folders=EARLY, files={})
        self._write_note(run_id)

    def _fitting(self, key: str, value: str) -> str:
        if len(value) > PARAM_LENGTH:
            self._log.warning("%s: %d characters cut to MLflow's %d; config/config.yaml has it whole", key, len(value), PARAM_LENGTH)
        return value[:PARAM_LENGTH]

    def _send_rows(self, run_id: str) -> bool:
        """Sends a batch that was under way, then what is new, for about `SLICE` seconds; true once nothing is left."""
        began, sent, left = time.monotonic(), False, False
        while not left and (self._mark.batch is not None or self._next_batch()):
            batch = self._mark.batch
            assert batch is not None
            if batch.rows:
                self._log_rows(run_id, batch)
            self._mark.arrived()
            sent, left = True, time.monotonic() > began + SLICE
        if sent:
            self._mark.write(self.run_dir)
            now = time.monotonic()
            self._next_send = now if left else now + min(LONGEST_WAIT, (now - began) / SHARE)
        return not left

    def _log_rows(self, run_id: str, batch: Batch) -> None:
        """Returns once MLflow has all rows of the batch; those that it has already, with the same time and value, are left alone."""
        client, rows = self._store.client, batch.rows
        for start in range(0, len(rows), ROWS_PER_BATCH):  # a batch that an earlier version left behind may be larger
            metrics = [Metric(row.key, row.value, batch.timestamp, row.step) for row in rows[start : start + ROWS_PER_BATCH]]
            # Whatever MLFLOW_ENABLE_ASYNC_LOGGING says: rows are noted as arrived when this returns.
            client.log_batch(run_id, metrics=metrics, synchronous=True)

    def _next_batch(self) -> bool:
        rows = self._tail.next_batch(ROWS_PER_BATCH, ended=self.record.status != "RUNNING")
        if rows:
            # Sent long after the run, the rows still belong to its time.
            moment = int(time.time() * 1000) if self.record.ended is None else _milliseconds(self.record.ended)
            # The end is known to the second: rows sent after it are not older than those sent within that second.
            moment = self._mark.latest = max(moment, self._mark.latest)
            beyond = self._beyond
            new, known = [row for row in rows if row not in beyond], [row for row in rows if row in beyond]
            new.sort(key=lambda row: row.key.startswith("signal"))  # the page of a run lists metrics in the order in which they arrived
            self._mark.begin(self.run_dir, Batch(moment, new, known))
        return bool(rows)

    def _close(self, run_id: str) -> None:
        """Artifacts, tags, and the end; what is closed already is brought up to date and closed again."""
        client, ended = self._store.client, self.record.ended
        if self.record.log_model and self.record.status == "FINISHED" and not (self.run_dir / "model").exists():
            self._save_model()
        if self._undrawn:
            self._tell("warning", message=self._undrawn)
        upload(client, run_id, self.run_dir)
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in self._tags().items()])
        self._write_note(run_id)
        client.set_terminated(run_id, self.record.status, end_time=None if ended is None else _milliseconds(ended))
        self._show_columns(run_id)
        self._mark.closed = True
        self._mark.write(self.run_dir)
        self._tell("closed", run_id=run_id, status=self.record.status)

    def _show_columns(self, run_id: str) -> None:
        """Final metrics become columns of the table of runs, losses last; a run that is recorded needs none of this."""
        names = sorted((key.removeprefix("test/") for key in self._tail.tests), key=lambda name: (name == "loss", name))
        try:
            experiment_id = self._mark.experiment_id or str(self._store.client.get_run(run_id).info.experiment_id)
            self._store.show_columns(experiment_id, [f"{part}/{name}" for part in ("test", "val") for name in names])
        except Exception as error:  # somebody else's view under our name, or a server that lets nobody change an experiment
            self._log.warning("no columns for the table of runs: %s", self._in_words(error))

    def _write_note(self, run_id: str) -> None:
        """The description of the run as far as it is; one that somebody has written or changed in MLflow stays."""
        client, mark = self._store.client, self._mark
        try:
            text = description(self.record, self.run_dir, self._tail.tests)
        except Exception as error:  # a damaged file of the run costs its description alone
            self._log.warning("no description: %s", self._in_words(error))
            return
        held = client.get_run(run_id).data.tags.get(NOTE)
        if text in ("", held) or (held is not None and held not in mark.notes):
            return
        mark.notes.append(text)
        mark.write(self.run_dir)  # first, or a sender that is killed now would take it for somebody else's
        client.set_tag(run_id, NOTE, text)

    def _draw(self) -> None:
        """Once the run has ended, and whether or not MLflow can be reached."""
        if self._drawn or self.record.status == "RUNNING":
            return
        self._drawn = True
        self._undrawn = draw_or_say(self.run_dir, self._log)

    def _save_model(self) -> None:
        try:
            save_model(self.run_dir)
        except Exception as error:  # a network that cannot be exported is still a run worth recording
            self._log.exception("no model/")
            self._tell("warning", message=f"model/ could not be saved: {self._in_words(error)}")

    def _tags(self) -> dict[str, str]:
        return {**read_files(self.run_dir, "tags.json"), "dnnkit.status": self.record.dnnkit_status}

    def _failed(self, error: Exception) -> bool:
        """Notes a failure, plans the next attempt; true if there will be none."""
        ended = self.record.status != "RUNNING"
        self._failures += 1
        self._failures_after_the_end += ended
        final = self._failures_after_the_end >= ATTEMPTS_AFTER_THE_END
        self._not_before = time.monotonic() + min(LONGEST_PAUSE, 0.5 * 2**self._failures)
        message = self._in_words(error)
        if self._failures == 1:
            self._log.error("%s", scrub(logging.Formatter().formatException((type(error), error, error.__traceback__)), self._store.uri))
        else:
            self._log.error("attempt %d: %s", self._failures, message)
        if final and self._mark.run_id is not None:
            self._end_anyway(self._mark.run_id)
        self._tell("failed", message=message, final=final)
        return final

    def _end_anyway(self, run_id: str) -> None:
        """A run that could not be sent whole should at least not look as if it were still going."""
        try:
            self._store.client.set_terminated(run_id, self.record.status)
        except Exception as error:  # the store is gone, which has been told
            self._log.error("not closed either: %s", self._in_words(error))

    def _in_words(self, error: BaseException) -> str:
        """One line for people, without secrets. Of a server that does not answer MLflow tells the whole story: the point is enough."""
        chain: list[BaseException] = []
        link: BaseException | None = error
        while link is not None:
            chain.append(link)
            link = link.__cause__ or link.__context__
        network = next((one for one in chain if isinstance(one, ConnectionError | TimeoutError | socket.gaierror)), None)
        if network is not None and database(self._store.uri) is None:
            return f"no answer from {strip_credentials(self._store.uri)}: {network.strerror or type(network).__name__}"
        return scrub(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}", self._store.uri)

    def _tell(self, event: str, **facts: Any) -> None:
        if event != "failed":
            self._log.info("%s %s", event, facts)
        self._emit({"event": event, "run": str(self.run_dir), **facts})


def _settled(run_dir: Path, known: RunRecord, orphaned: bool) -> RunRecord:
    """`run.json`, after marking a run as killed whose process is gone without having said how it ended.

    `orphaned`: the process of the run as `known` is gone for certain; if it has been resumed, that is another process.
    """
    record = RunRecord.read(run_dir)
    if _is_lost(record, known, orphaned):
        record = RunRecord.read(run_dir)  # it may have ended properly, or been resumed, between the two looks
        if _is_lost(record, known, orphaned):
            record = record.ended_as("KILLED", "killed", None)
            record.write(run_dir)
    return record


def _is_lost(record: RunRecord, known: RunRecord, orphaned: bool) -> bool:
    gone = (orphaned and record.resumed == known.resumed) or record.process_is_gone()
    return record.status == "RUNNING" and gone


def _milliseconds(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1000)


def _run_logger(run_dir: Path) -> logging.Logger:
    """Writes `sender.log`; not registered with logging, so that the logs of many runs do not mix or pile up."""
    logger = logging.Logger("dnnkit.sender", logging.INFO)
    handler = logging.FileHandler(run_dir / "sender.log", encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logger.addHandler(handler)
    return logger
