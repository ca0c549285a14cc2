"""What is printed into a pipe: whole lines, however long; in a terminal, lines that fit it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import dnnkit
from dnnkit.cli.sweep_table import sweep_table
from dnnkit.console import open_console
from dnnkit.sweep import Outcome
from dnnkit.training.summary import Layer, table

ROOT = Path(dnnkit.__file__).parent
LONG = "a_name_that_alone_is_longer_than_a_line_of_eighty_characters_" + "x" * 60
TABLES: dict[str, Callable[[], object]] = {
    "layers": lambda: table([Layer(f"{LONG}_{index}", "Linear", f"{LONG}(scale=2)", (3, 4), 12, 0) for index in range(3)]),
    "sweep": lambda: sweep_table([Outcome(job, [f"name={LONG}{job}", "seed=1"], 0, {}, f"runs/{LONG}{job}") for job in range(3)]),
}


@contextmanager
def output(monkeypatch: pytest.MonkeyPatch, ends: tuple[int, int]) -> Iterator[Callable[[], str]]:
    """Inside, what is printed goes into the second of two connected ends; the function reads it at the first."""
    reading, writing = ends
    with open(writing, "w", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdout", file)
        yield lambda: (file.flush(), os.read(reading, 100_000).decode())[1]
    os.close(reading)


@pytest.fixture(autouse=True)
def nothing_said_of_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("what", TABLES)
@pytest.mark.parametrize("variable", ["", "COLUMNS=40", "FORCE_COLOR=1", "TTY_COMPATIBLE=1"])
def test_a_table_in_a_pipe_has_one_line_for_each_row(what: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    if variable:
        monkeypatch.setenv(*variable.split("="))
    with output(monkeypatch, os.pipe()) as read:
        open_console().print(TABLES[what]())
        printed = read()
    assert ("\x1b[" in printed) == (variable in ("FORCE_COLOR=1", "TTY_COMPATIBLE=1"))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", printed).splitlines()
    rows = [line for line in lines if LONG in line]
    assert len(rows) == 3
    assert all(line.count(LONG) == 2 and len(line) > 240 for line in rows)
    assert max(map(len, lines)) < 600  # nothing is filled up to the end of the line that there is none of


@pytest.mark.parametrize("what", TABLES)
def test_a_table_in_a_terminal_fits_it(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("TERM", "xterm")
    with output(monkeypatch, os.openpty()) as read:
        open_console().print(TABLES[what]())
        lines = re.sub(r"\x1b\[[0-9;]*m", "", read()).splitlines()
    assert max(map(len, lines)) <= 70
    assert len(lines) > 5


def test_no_console_of_the_framework_is_made_elsewhere() -> None:
    """rich's own would break the lines of a pipe. The download's console prints unbroken lines on the error output."""
    made = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if re.search(r"\bConsole\(", path.read_text(encoding="utf-8"))}
    assert made == {"console.py", "cli/doctor.py", "data/download.py"}
