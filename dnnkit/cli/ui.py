"""The subcommand that opens MLflow where the runs are: dnnkit ui."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from dnnkit.cli.discover import asks_help
from dnnkit.cli.finished import RUN, Words, take_apart
from dnnkit.errors import ConfigError, Problem, nearest

UI = f"""\
dnnkit ui [RUN] [tracking.uri=URI] [tracking.experiment=NAME] [--port N] [--no-browser] [--runs DIR]

Opens MLflow on the page that shows the runs; with RUN, on the page of that run. MLflow is started on this machine alone, on
MLflow's usual port 5000 or another that is free, the address is printed, and Ctrl-C ends it. In a terminal with a screen a
browser is opened. Where the runs are on a server, its address is printed and opened, and nothing is started.

Which store that is: that of RUN; else tracking.uri; else the variable MLFLOW_TRACKING_URI; else mlflow.db in this folder.
tracking.experiment is the experiment to show, without it dnnkit.

{RUN}

  --port N             the port, where it has to be a certain one
  --no-browser         print the address only
  --runs DIR           where run folders are (default: runs)

Exit codes: 0 ended by Ctrl-C, or nothing to start; 1 MLflow did not start, or ended by itself; 2 command line, or no database
there; 6 no such run; 143 ended by SIGTERM."""

_OVERRIDES = ("tracking.uri", "tracking.experiment")


@dataclass(frozen=True)
class Wanted:
    """What to show: the store, credentials included, and the experiment by name, or a run by its MLflow id."""

    uri: str
    experiment: str
    run_id: str | None = None
    experiment_id: str | None = None


def open_ui(words: list[str]) -> int:
    """Open MLflow where the runs are: dnnkit ui."""
    if asks_help(words, UI):
        return 0
    given = take_apart(words, ("--port", "--runs"), ("--no-browser",), UI.splitlines()[0], least=0)
    wanted, port = _wanted(given), given.number("--port", 0) or None
    browser = "--no-browser" not in given.flags and sys.stdout.isatty() and _has_screen()
    from dnnkit.record import strip_credentials
    from dnnkit.sender.page import is_served, missing_database, remote_experiment

    if is_served(wanted.uri):
        found = wanted.experiment_id or remote_experiment(wanted.uri, name=wanted.experiment, run_id=wanted.run_id)
        _show(strip_credentials(wanted.uri), found, wanted.run_id, browser)
        return 0
    missing = missing_database(wanted.uri)
    if missing is not None:
        message = f"there is no {missing}: nothing has been recorded there; go to the folder of your runs, or name the database"
        raise ConfigError([Problem("tracking.uri", message, ("tracking.uri=sqlite:///FOLDER/mlflow.db",))])
    return _serve(wanted, port, browser)


def _wanted(given: Words) -> Wanted:
    settings = dict(word.split("=", 1) for word in given.rest if "=" in word)
    names = [word for word in given.rest if "=" not in word]
    problems = [
        Problem(key, f"is no setting of this command; there are: {', '.join(_OVERRIDES)}", nearest(key, _OVERRIDES))
        for key in settings
        if key not in _OVERRIDES
    ]
    problems += [Problem(word, "one run at a time is shown") for word in names[1:]]
    if problems:
        raise ConfigError(problems)
    if names:
        return _of_run(names[0], given.options.get("--runs", "runs"), settings)
    from dnnkit.sender.address import resolve_uri

    uri = resolve_uri(settings.get("tracking.uri"), Path.cwd(), os.environ)
    return Wanted(uri, settings.get("tracking.experiment", "dnnkit"))


def _of_run(word: str, runs: str, settings: dict[str, str]) -> Wanted:
    """The store that a run was recorded to, and what the run is there. Raises CheckpointError for one that is unknown, or not in MLflow."""
    from dnnkit.errors import CheckpointError
    from dnnkit.record import RunRecord
    from dnnkit.record.folder import read_files
    from dnnkit.sender.address import resolve_uri, uri_of
    from dnnkit.sender.find import find_run
    from dnnkit.sender.mark import MARK

    folder = find_run(word, runs)
    record, mark = RunRecord.read(folder), read_files(folder, MARK)
    if mark.get("run_id") is None:
        reason = "it ran with tracking=none" if record.tracking_uri is None else f"bring it there: python -m dnnkit.sender {folder}"
        raise CheckpointError(f"the run {folder.name} is not in MLflow", f"{reason[0].upper()}{reason[1:]}.")
    explicit = settings.get("tracking.uri")
    uri = uri_of(record, Path.cwd(), os.environ) if explicit is None else resolve_uri(explicit, Path.cwd(), os.environ)
    return Wanted(uri, record.experiment, mark["run_id"], mark.get("experiment_id"))


def _serve(wanted: Wanted, port: int | None, browser: bool) -> int:
    from dnnkit.sender.page import Server

    with _ended_by_sigterm():
        try:
            print("MLflow is starting …", file=sys.stderr)
            server = Server.start(wanted.uri, port)
            try:
                found = server.experiment_id(wanted.experiment) if wanted.run_id is None else server.experiment_of(wanted.run_id)
                _show(server.address, found, wanted.run_id, browser, view=found is not None and server.has_view(found))
                print("Ctrl-C ends it.", file=sys.stderr)
                server.process.wait()
                print(f"MLflow ended by itself: {server.last_words()}", file=sys.stderr)
                return 1
            finally:
                server.end()
        except KeyboardInterrupt:
            return 0
        except _Ended:
            return 128 + signal.SIGTERM


def _show(address: str, experiment_id: str | None, run_id: str | None, browser: bool, view: bool = False) -> None:
    """Prints where the runs are, their metrics as a table and as curves, and the page of a single one; opens the fittest."""
    from dnnkit.sender.page import charts_page, experiment_page, run_page, table_page

    pages = {"runs": experiment_page(address, experiment_id)}
    if experiment_id is not None and view:
        pages["table"] = table_page(address, experiment_id)
    if experiment_id is not None:
        pages["curves"] = charts_page(address, experiment_id)
    if run_id is not None and experiment_id is not None:
        pages["this run"] = run_page(address, experiment_id, run_id)
    for name, page in pages.items():
        print(f"{name:<8} {page}", flush=True)
    if browser:
        import webbrowser

        webbrowser.open(next(pages[name] for name in ("this run", "table", "runs") if name in pages))


def _has_screen() -> bool:
    """Whether a browser would be a window: elsewhere Python takes one for the terminal, over what is printed there."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class _Ended(BaseException):
    """SIGTERM, or a terminal that is gone."""


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP are raised, so that what was started is ended."""

    def handle(number: int, frame: FrameType | None) -> NoReturn:
        raise _Ended

    before: dict[int, Any] = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
