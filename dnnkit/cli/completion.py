"""dnnkit completion: the script by which a shell completes dnnkit's words, and the answers that it asks for."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dnnkit.cli.candidates import Candidate, candidates
from dnnkit.cli.discover import asks_help
from dnnkit.cli.shells import SCRIPTS
from dnnkit.cli.stored import elsewhere, last
from dnnkit.disk import user_cache
from dnnkit.errors import ConfigError, Problem, nearest

#: The word by which a script asks for what may come next.
ASK = "__complete"
_WARMING_S = 30.0

HELP = """\
dnnkit completion bash|zsh|fish

Prints the script by which a shell completes dnnkit's words at the TAB key: subcommands and their options, groups, the names in
them, settings of what is chosen, values, experiments, studies, runs, and files.

  bash   source <(dnnkit completion bash)          for good: that line in ~/.bashrc
  zsh    source <(dnnkit completion zsh)           for good: that line in ~/.zshrc, after compinit
  fish   dnnkit completion fish | source           for good: dnnkit completion fish > ~/.config/fish/completions/dnnkit.fish

It asks the very dnnkit that is typed, also as python -m dnnkit, so that each environment completes what is installed in it.
What can be chosen is kept from one command to the next; while that is made anew, after an installation, only subcommands,
options and groups are completed."""


def print_script(words: list[str]) -> int:
    """Print a shell's completion script: dnnkit completion bash."""
    if asks_help(words, HELP):
        return 0
    shell = words[0] if len(words) == 1 else ""
    if shell not in SCRIPTS:
        message = "the command is: dnnkit completion bash, zsh or fish"
        raise ConfigError([Problem(" ".join(words) or "nothing", message, nearest(shell, SCRIPTS))])
    print(SCRIPTS[shell], end="")
    _known()
    return 0


def answer(words: Sequence[str], commands: Mapping[str, Callable[[list[str]], int]], help_text: str) -> int:
    """Print what may come next, for a script: `__complete SHELL [BREAKS] PROGRAM LINE`, one candidate a line.

    LINE is the command line up to the cursor; BREAKS are the characters at which bash takes words apart, which are no part of
    a completion there.
    """
    shell, *rest = words
    breaks, program, line = rest if shell == "bash" else ["", *rest]
    typed, quote = split(line)
    *before, current = _after_program(typed, program)
    for found in candidates(before, current, commands, help_text, _known()):
        print(_printed(found, shell, current, quote, breaks))
    return 0


def split(line: str) -> tuple[list[str], str]:
    """The words of an unfinished command line, and the quote that is open at its end; the last word is the one at the cursor."""
    words, word, quote, begun = [], "", "", False
    letters = iter(line)
    for letter in letters:
        if letter == "\\" and quote != "'":
            word, begun = word + next(letters, ""), True
        elif quote:
            word, quote = (word, "") if letter == quote else (word + letter, quote)
        elif letter in "'\"":
            quote, begun = letter, True
        elif letter.isspace():
            words += [word] if word or begun else []
            word, begun = "", False
        else:
            word += letter
    return [*words, word], quote


def _after_program(words: Sequence[str], program: str) -> list[str]:
    """The words behind the program, or behind `python -m dnnkit`; at least the one at the cursor."""
    start = next((index + 1 for index, word in enumerate(words) if word == program), 1)
    module = list(words[start : start + 2]) == ["-m", "dnnkit"]
    return list(words[start + 2 * module :]) or [""]


def _printed(found: Candidate, shell: str, current: str, quote: str, breaks: str) -> str:
    """A candidate as a script reads it: in bash the part behind the last break, elsewhere the word, a tab and what it is about."""
    if shell != "bash":
        return f"{found.word}\t{' '.join(found.about.split())}"
    kept = 0 if quote else max((current.rfind(mark) + 1 for mark in breaks if not mark.isspace()), default=0)
    text = found.word[kept:]
    if quote:
        return text  # bash itself closes the quote
    return re.sub(r"([\s'\"\\$&;|<>()`!*?#])", r"\\\1", text) + (" " if found.final else "")


def _known() -> Mapping[str, Any]:
    """The kept catalogue, the old one while it is made anew beside; empty where there never was one."""
    try:
        content, current = last()
        if not current:
            _warm()
    except OSError:
        return {}
    return content


def _warm() -> None:
    """Have the catalogue made by a process that nobody waits for; not again at once, if it cannot be kept."""
    mark = user_cache() / "catalogue" / "being-made"
    if mark.exists() and time.time() - mark.stat().st_mtime < _WARMING_S:
        return
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    command = [sys.executable, "-m", "dnnkit", "list"]
    nowhere = subprocess.DEVNULL
    subprocess.Popen(command, cwd=elsewhere(mark.parent), stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True)
