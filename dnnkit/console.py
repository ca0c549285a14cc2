"""Where commands print for people: as wide as the terminal, and in lines of any length where there is none."""

from __future__ import annotations

from rich.console import Console

#: Characters in a line of a pipe or a file, whose reader can scroll or cut: more than any table needs.
UNWRAPPED = 100_000


def open_console(*, quiet: bool = False, force_terminal: bool | None = None) -> Console:
    """A console on the standard output, which breaks no line where that is neither a terminal nor a notebook.

    The variable COLUMNS is about terminals: it narrows them alone. rich by itself would break a pipe's lines after 80 characters.
    """
    console = Console(quiet=quiet, force_terminal=force_terminal)
    # FORCE_COLOR makes rich take a pipe for a terminal; it asks for colours there, and its lines stay whole.
    if not (force_terminal or console.file.isatty() or console.is_jupyter):
        console.width = UNWRAPPED
    return console
