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
from typing import TYPE_CHECKING, Any, NoReturn

from dnnkit.cli.discover import asks_help
from dnnkit.cli.finished import RUN, Words, take_apart
from dnnkit.errors import ConfigError, Problem, nearest

if TYPE_CHECKING:
    from dnnkit.sender.page import Remote, Server

UI = f"""\
dnnkit ui [RUN] [tracking.uri=URI] [tracking.experiment=NAME] [--port N] [--no-browser] [--runs DIR]

Opens MLflow on the page that shows the runs; with RUN, on the page of that run. MLflow is started on this machine alone, on
MLflow's usual port 5000 or another that is free, the address is printed, and Ctrl-C ends it. In a terminal with a screen a
browser is opened. Where the runs are on a server, its address is printed and opened, and nothing is started.

Which store that is: tracking.uri; else that of RUN; else the variable MLFLOW_TRACKING_URI; else mlflow.db in this folder.
tracking.experiment is the experiment to show, without it dnnkit; with RUN it is that of the run.

{RUN}

  --port N             the port, where it has to be a certain one and the runs are not on a server
  --no-browser         print the address only
  --runs DIR           where run folders are (default: runs)

Exit codes: 0 ended by Ctrl-C, or nothing to start; 1 MLflow did not start, or ended by itself; 2 command line, or no such
database, experiment or port; 6 no such run; 129 and 143 ended by SIGHUP and SIGTERM."""

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
    from dnnkit.sender.page import Remote, is_served, missing_database

    if is_served(wanted.uri):
        address = strip_credentials(wanted.uri)
        if port is not None:
            raise ConfigError([Problem("--port", f"the runs are on the server {address}; nothing is started here that would need a port")])
        _show(address, wanted.experiment_id or _experiment(wanted, Remote(wanted.uri)), wanted.run_id, browser)
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
    if names and "tracking.experiment" in settings:
        problems.append(Problem("tracking.experiment", f"{names[0]} is shown in the experiment that it is in; leave this out"))
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
    # The mark is about the store that the run was recorded to.
    return Wanted(uri, record.experiment, mark["run_id"], mark.get("experiment_id") if explicit is None else None)


def _serve(wanted: Wanted, port: int | None, browser: bool) -> int:
    from dnnkit.sender.page import Server

    with _ended_by_a_signal():
        try:
            print("MLflow is starting …", file=sys.stderr)
            server = Server.start(wanted.uri, port)
            try:
                found = _experiment(wanted, server)
                _show(server.address, found, wanted.run_id, browser, view=server.has_view(found))
                print("Ctrl-C ends it.", file=sys.stderr)
                server.process.wait()
                print(f"MLflow ended by itself: {server.last_words()}", file=sys.stderr)
                return 1
            finally:
                server.end()
        except KeyboardInterrupt:
            return 0
        except _Ended as ended:
            return 128 + ended.number


def _experiment(wanted: Wanted, store: Server | Remote) -> str:
    """The id of the experiment to show. Raises ConfigError for one that is not there, CheckpointError where the run is not."""
    from dnnkit.errors import CheckpointError
    from dnnkit.record import strip_credentials

    address = strip_credentials(wanted.uri)
    if wanted.run_id is not None:
        found = store.experiment_of(wanted.run_id)
        if found is None:
            raise CheckpointError(f"the run {wanted.run_id} is not in {address}", "tracking.uri=URI names another store.")
        return found
    found = store.experiment_id(wanted.experiment)
    if found is None:
        names = store.experiments()
        message = f"there is no experiment {wanted.experiment!r} in {address}; there are: {', '.join(names) or 'none'}"
        near = tuple(f"tracking.experiment={name}" for name in nearest(wanted.experiment, names))
        raise ConfigError([Problem("tracking.experiment", message, near)])
    return found


def _show(address: str, experiment_id: str, run_id: str | None, browser: bool, view: bool = False) -> None:
    """Prints where the runs are, their metrics as a table and as curves, and the page of a single one; opens the fittest."""
    from dnnkit.sender.page import charts_page, experiment_page, run_page, table_page

    pages = {"runs": experiment_page(address, experiment_id)}
    if view:
        pages["table"] = table_page(address, experiment_id)
    pages["curves"] = charts_page(address, experiment_id)
    if run_id is not None:
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

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def _ended_by_a_signal() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP are raised, so that what was started is ended; one that is ignored, as after nohup, stays so."""
    from dnnkit.sender.page import is_heeded

    def handle(number: int, frame: FrameType | None) -> NoReturn:
        raise _Ended(number)

    heeded = [number for number in (signal.SIGTERM, signal.SIGHUP) if is_heeded(number)]
    before: dict[int, Any] = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
