"""MLflow's page: which address shows an experiment or a run, and a server on this machine for a store that has none.

MLflow 3 opens an experiment on its page for language models, which is empty; `workflowType=machine_learning` is the one with the runs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote

from dnnkit.errors import ConfigError, DnnkitError, Problem
from dnnkit.record.identity import scrub
from dnnkit.sender.address import SQLITE, artifact_root, database

#: The view of an experiment's runs that `Store.show_columns` keeps, and the tag that it is kept in.
VIEW = "dnnkit"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
LOOPBACK = "127.0.0.1"
USUAL_PORT = 5000
PATIENCE_S = 180.0  # a loaded machine takes long to import MLflow
_FAREWELL_S = 5.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: A proxy, which the variable http_proxy may name, does not know this machine's own servers.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def is_served(uri: str) -> bool:
    """Whether a store is a server, whose address has the pages."""
    return uri.startswith(("http://", "https://"))


def experiment_page(address: str, experiment_id: str) -> str:
    """Where an experiment's runs are shown."""
    return f"{address.rstrip('/')}/#/experiments/{quote(experiment_id)}?workflowType=machine_learning"


def run_page(address: str, experiment_id: str, run_id: str) -> str:
    """Where one run is shown."""
    return f"{address.rstrip('/')}/#/experiments/{quote(experiment_id)}/runs/{quote(run_id)}?workflowType=machine_learning"


@dataclass(frozen=True)
class Server:
    """An MLflow server on this machine that belongs to this process: `address` is where it answers. End it with `end`."""

    address: str
    process: subprocess.Popen[bytes]
    said: IO[bytes]
    uri: str

    @classmethod
    def start(cls, uri: str, port: int | None = None) -> Self:
        """Starts one on loopback for a store that is no server, at `port` or at a free one, and waits until it answers.

        Raises ConfigError where `port` cannot be had, DnnkitError where the server does not answer.
        """
        said = tempfile.TemporaryFile()  # noqa: SIM115 - the process writes into it as long as it lives
        server = None
        try:
            # The server inherits the port: from here on nobody else can answer there.
            with listen(port) as ours, held_signals():
                server = cls(f"http://{LOOPBACK}:{ours.getsockname()[1]}", _spawn(uri, ours, said), said, uri)
            server.await_answer()
        except BaseException:
            if server is None:
                said.close()
            else:
                server.end()
            raise
        return server

    def await_answer(self) -> None:
        """Waits until the server answers. Raises DnnkitError where it ends before that, or takes more than three minutes."""
        until = time.monotonic() + PATIENCE_S
        while not _answers(f"{self.address}/health"):
            if self.process.poll() is not None:
                raise DnnkitError(f"MLflow did not start: {self.last_words()}")
            if time.monotonic() > until:
                raise DnnkitError(f"MLflow does not answer at {self.address} after {PATIENCE_S:g} s: {self.last_words()}")
            time.sleep(0.1)

    def last_words(self) -> str:
        """The last line that it printed, without secrets."""
        self.said.seek(0)
        lines = self.said.read().decode("utf-8", "replace").strip().splitlines()
        return scrub(lines[-1] if lines else f"it ended with code {self.process.returncode}", self.uri)

    def experiment_id(self, name: str) -> str | None:
        """The id of an experiment, None where there is none of that name."""
        found = self._ask(f"experiments/get-by-name?experiment_name={quote(name)}")
        return None if found is None else str(found["experiment"]["experiment_id"])

    def experiments(self) -> list[str]:
        """The names of the experiments that there are, the latest first; of very many the latest thousand."""
        found = self._ask("experiments/search?max_results=1000") or {}
        return [str(one["name"]) for one in found.get("experiments", [])]

    def has_view(self, experiment_id: str) -> bool:
        """Whether an experiment has our view of its runs."""
        found = self._ask(f"experiments/get?experiment_id={quote(experiment_id)}")
        return found is not None and any(tag["key"] == VIEW_TAG for tag in found["experiment"].get("tags", []))

    def experiment_of(self, run_id: str) -> str | None:
        """The id of the experiment that holds a run, None where the store does not know the run."""
        found = self._ask(f"runs/get?run_id={quote(run_id)}")
        return None if found is None else str(found["run"]["info"]["experiment_id"])

    def _ask(self, question: str) -> dict[str, Any] | None:
        """What the server answers; None for what it does not know."""
        try:
            with _DIRECT.open(f"{self.address}/api/2.0/mlflow/{question}", timeout=60) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise DnnkitError(f"MLflow answered {error.code} to {question}: {self.last_words()}") from error
        except (OSError, ValueError) as error:
            raise DnnkitError(f"MLflow gave no answer to {question}: {error}; it said: {self.last_words()}") from error

    def end(self) -> None:
        """Ends the server and all processes that it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(_FAREWELL_S)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self.process.wait()
        self.said.close()


def listen(port: int | None = None) -> socket.socket:
    """A socket that listens on loopback at `port`; without one at MLflow's usual port, or where that is taken at one that is free.

    Raises ConfigError where `port` cannot be had.
    """
    if port is not None:
        try:
            return _listening(port)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or "it has to be below 65536"
            message = f"the port {port} cannot be had: {reason}; without --port a free one is taken"
            raise ConfigError([Problem("--port", message)]) from error
    try:
        return _listening(USUAL_PORT)
    except OSError:
        return _listening(0)


def _listening(port: int) -> socket.socket:
    one = socket.socket()
    try:
        # Connections of a server that has just ended keep nobody from its port.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it. The server, which does not know what kind of socket it is given, would not set it.
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.bind((LOOPBACK, port))
        one.listen(128)
    except BaseException:
        one.close()
        raise
    return one


@contextmanager
def held_signals() -> Iterator[None]:
    """Within, a signal waits: one that came while a process is being started would leave that process running, known to nobody.

    One that is ignored, as after nohup, stays so.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield  # no handler runs in this thread
        return
    heeded = [ending for ending in _ENDING if is_heeded(ending)]
    before = {ending: signal.signal(ending, lambda number, frame: came.append(number)) for ending in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for late in came:
        signal.raise_signal(late)


def is_heeded(number: signal.Signals) -> bool:
    """Whether a signal does anything here, and what it does was set by Python, which alone can be put back."""
    return signal.getsignal(number) not in (signal.SIG_IGN, None)


def _spawn(uri: str, ours: socket.socket, said: IO[bytes]) -> subprocess.Popen[bytes]:
    """The server's process, in a session of its own so that Ctrl-C reaches this process alone, which then ends all of it.

    Its standard input is the listening socket: MLflow hands no other file on to the uvicorn that it starts.
    """
    file = database(uri)
    root = artifact_root(uri, Path.cwd())
    # In a variable no list of processes shows the password of a database. Nothing here runs MLflow's jobs for language models.
    settings = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    if root is not None:
        settings["MLFLOW_DEFAULT_ARTIFACT_ROOT"] = root.as_uri()
    # What lies in the folder of the database is no module: a random.py there would be taken for Python's, by uvicorn as well.
    settings["PYTHONSAFEPATH"] = "1"
    options = ["--workers", "1", "--uvicorn-opts", f"--fd 0 --app-dir {os.devnull}"]
    settings["MLFLOW_GUNICORN_OPTS"] = ""  # for another kind of server, which MLflow would refuse beside these
    command = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(ours.getsockname()[1]), *options]
    folder = file.parent if file is not None else Path.cwd()
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **settings},
        stdin=ours.fileno(),
        stdout=said,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _answers(address: str) -> bool:
    try:
        with _DIRECT.open(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def table_page(address: str, experiment_id: str) -> str:
    """Where an experiment's runs are shown with the columns of our view, which the experiment has to have."""
    return f"{address.rstrip('/')}/#/experiments/{quote(experiment_id)}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def charts_page(address: str, experiment_id: str) -> str:
    """Where the curves of an experiment's runs are shown side by side."""
    return f"{address.rstrip('/')}/#/experiments/{quote(experiment_id)}/runs?workflowType=machine_learning&compareRunsMode=CHART"


@dataclass(frozen=True)
class Remote:
    """A server elsewhere, asked as `Server` is, with the credentials that MLflow itself would use. Imports MLflow.

    Every question raises DnnkitError where the server does not answer.
    """

    uri: str

    def experiment_id(self, name: str) -> str | None:
        """The id of an experiment, None where there is none of that name."""
        found = self._ask(lambda client: client.get_experiment_by_name(name))
        return None if found is None else str(found.experiment_id)

    def experiments(self) -> list[str]:
        """The names of the experiments that there are, the latest first; of very many the latest thousand."""
        found = self._ask(lambda client: client.search_experiments(max_results=1000))
        return [str(one.name) for one in found or ()]

    def experiment_of(self, run_id: str) -> str | None:
        """The id of the experiment that holds a run, None where the store does not know the run."""
        found = self._ask(lambda client: client.get_run(run_id))
        return None if found is None else str(found.info.experiment_id)

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        try:
            return question(MlflowClient(tracking_uri=self.uri))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise DnnkitError(scrub(f"MLflow does not tell where that is: {str(error).splitlines()[0]}", self.uri)) from error


def missing_database(uri: str) -> Path | None:
    """The file of a SQLite store that is not there; None where it is, and for every other store."""
    file = database(uri) if uri.startswith(SQLITE) else None
    return None if file is None or file.exists() else file
