"""Every error a user can meet: a cause, a cure and the exit code that scripts rely on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar


def nearest(name: str, choices: Iterable[str], most: int = 3) -> tuple[str, ...]:
    """The valid names closest to the one given, best first; none where nothing is similar.

    First a long name with a slip or two in it, then one that the other begins with (`accuracy` for `acc`), then the fewest slips
    of the keyboard, then the longest common parts; difflib alone misses short names, such as `rl` for `lr`.
    """
    ranked = []
    for choice in choices:
        slips, likeness = _slips(name.lower(), choice.lower()), difflib.SequenceMatcher(None, name, choice).ratio()
        begins = min(len(name), len(choice)) >= 3 and (name.startswith(choice) or choice.startswith(name))
        if begins or likeness >= 0.6 or slips <= max(1, len(choice) // 3) < len(choice):
            ranked.append((slips > min(2, len(choice) // 4), not begins, slips, -likeness, choice))
    return tuple(choice for *_, choice in sorted(ranked)[:most])


def _slips(typed: str, meant: str) -> int:
    """Letters inserted, left out, mistaken or swapped with their neighbour (the optimal string alignment distance)."""
    if abs(len(typed) - len(meant)) > 40:
        return abs(len(typed) - len(meant))
    rows = [list(range(len(meant) + 1))]
    for i, letter in enumerate(typed, 1):
        row = [i]
        for j, wanted in enumerate(meant, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (letter != wanted)))
            if i > 1 and j > 1 and letter == meant[j - 2] and typed[i - 2] == wanted:
                row[j] = min(row[j], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


class DnnkitError(Exception):
    """Base of all errors that end a run with a message instead of a traceback.

    `cause` says what is wrong and names the value and the rule; `cure` says what to do about it.
    """

    code: ClassVar[str] = "internal"
    exit_code: int = 1

    def __init__(self, cause: str, cure: str = "") -> None:
        super().__init__(cause, cure)
        self.cause = cause
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.cause}\n  {self.cure}" if self.cure else self.cause


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a config.

    `where` is the config path (`optimizer.lr`) or the override as typed; `message` names the value and the rule;
    `nearest` are the valid names closest to the one given, best first; `origin` is the place that set it.
    """

    where: str
    message: str
    nearest: tuple[str, ...] = ()
    origin: str = ""

    def __str__(self) -> str:
        origin = f" ({self.origin})" if self.origin else ""
        where = self.where if len(self.where) <= 200 else f"{self.where[:180]}… ({len(self.where)} letters)"
        hint = f" Did you mean {' or '.join(repr(name) for name in self.nearest)}?" if self.nearest else ""
        return f"{where}: {self.message}{origin}.{hint}"


class ConfigError(DnnkitError):
    """The config is wrong; `problems` holds everything that is wrong with it, not only the first thing."""

    code = "config"
    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        options = bool(self.problems) and all(problem.where.startswith("--") for problem in self.problems)
        place = "on the command line" if options else "in the config"
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''} {place}"
        super().__init__("\n".join([f"{count}:", *(f"  - {problem}" for problem in self.problems)]))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


class PluginError(DnnkitError):
    """A plugin cannot be used: it failed to import, or registered something that breaks a rule."""

    code = "plugin"
    exit_code = 3


class DataError(DnnkitError):
    """Data is missing, damaged or does not fit."""

    code = "data"
    exit_code = 4


class DivergedError(DnnkitError):
    """Training produced a loss that is not finite."""

    code = "diverged"
    exit_code = 5


class CheckpointError(DnnkitError):
    """A checkpoint is missing, damaged or belongs to another network."""

    code = "checkpoint"
    exit_code = 6


class Interrupted(DnnkitError):
    """The run was stopped by a signal; its last checkpoint was saved."""

    code = "interrupted"

    def __init__(self, signal: int, cause: str, cure: str = "") -> None:
        super().__init__(cause, cure)
        self.signal = signal
        self.exit_code = 128 + signal  # what a shell reports for a process that a signal ended

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int, str, str]]:
        return type(self), (self.signal, self.cause, self.cure)


class RankError(DnnkitError):
    """One of several devices' processes died, never came, or was about to train something else."""

    code = "rank"

    def __init__(self, cause: str, cure: str = "", exit_code: int = 1) -> None:
        super().__init__(cause, cure)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type[RankError], tuple[str, str, int]]:
        return type(self), (self.cause, self.cure, self.exit_code)


class SweepError(DnnkitError):
    """Some jobs of a sweep failed; the others finished."""

    code = "sweep"
    exit_code = 7


class DiskError(DnnkitError):
    """The record cannot be written: the disk is full or the folder is not writable."""

    code = "disk"
    exit_code = 8
