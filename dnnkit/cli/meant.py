"""Words of a command line that are not where or what they should be, and what was meant by them."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence

from dnnkit.errors import ConfigError, Problem, nearest

#: Options that may stand before a subcommand, with the number of words that follow each.
_LEADING = {"-m": 0, "--multirun": 0, "--config-dir": 1, "-cd": 1, "--cfg": 0, "-c": 0, "--json": 0, "-h": 0, "--help": 0}
#: Groups whose choices are added to the config by a plus.
_ADDED = ("experiment", "sweeps")
_TRAIN = ("train", "run", "fit", "start", "go", "training", "experiment")
_SWEEP = ("sweep", "sweeps", "multirun", "search", "tune", "optimise", "optimize", "hpo", "grid", "study")
#: The names that commands have in other programs.
_COMMANDS = {
    "test": "evaluate", "eval": "evaluate", "score": "evaluate", "validate": "check", "verify": "check", "lint": "check",
    "infer": "predict", "inference": "predict", "continue": "resume", "restart": "resume", "ls": "list", "show": "describe",
    "info": "describe", "explain": "describe", "diagnose": "doctor", "find-lr": "doctor --lr", "lr-find": "doctor --lr",
    "lr_find": "doctor --lr", "config": "--cfg", "cfg": "--cfg", "tracking": "ui", "mlflow": "ui",
}  # fmt: skip


def subcommand_first(words: Sequence[str], commands: Collection[str]) -> list[str]:
    """The words with a subcommand put before the options that were typed before it: `--config-dir D check`."""
    place = 0
    while place < len(words) and words[place].partition("=")[0] in _LEADING:
        place += 1 + ("=" not in words[place] and _LEADING[words[place]])
    if 0 < place < len(words) and words[place] in commands:
        return [words[place], *words[:place], *words[place + 1 :]]
    return list(words)


def no_such_command(words: Sequence[str], commands: Collection[str]) -> Problem:
    """That the first word is no subcommand, with the command that was meant."""
    word, *rest = words
    if word in _TRAIN:
        return Problem(word, "is no command: to train, leave the word out", (_training([_chosen(part, "experiment") for part in rest]),))
    if word in _SWEEP:
        return Problem(word, "is no command: a sweep is run by -m", (_training(["-m", *(_chosen(part, "sweeps") for part in rest)]),))
    message = f"there is no such command; there are: {', '.join(commands)}"
    known = _COMMANDS.get(word, "")
    if known.partition(" ")[0] in (*commands, "--cfg"):
        return Problem(word, message, (_command([*known.split(), *rest]),))
    return Problem(word, message, nearest(word, commands) or _choosing(word, rest))


def _choosing(name: str, rest: Sequence[str]) -> tuple[str, ...]:
    """The commands that train with what a bare name chooses."""
    from dnnkit.cli.catalogue import everywhere

    return tuple(_training([_choice(group, full), *rest]) for group, full in everywhere(name)[:3])


def _chosen(word: str, first: str) -> str:
    """The override that a bare name stands for, that of the group `first` before those of others; any other word as it is."""
    from dnnkit.cli.catalogue import everywhere

    if "=" in word or word.startswith("-"):
        return word
    found = sorted(everywhere(word), key=lambda one: one[0] != first)
    return _choice(*found[0]) if found else word


def _choice(group: str, name: str) -> str:
    return f"{'+' * (group in _ADDED)}{group}={name}"


def _training(words: Sequence[str]) -> str:
    """The command that trains with these words, a sweep where one of them asks for it."""
    sweep = any(word in ("-m", "--multirun") or word.startswith("+sweeps=") for word in words)
    return _command([*["-m"] * sweep, *(word for word in words if word not in ("-m", "--multirun"))])


def bare_word(word: str, before: str, commands: Collection[str]) -> Problem | None:
    """What is wrong with a word without an equals sign, where that is known from the words alone."""
    if before and "=" not in before and not before.startswith("-"):
        joined = (f"{before}={word}",) if before not in commands else ()
        return Problem(f"{before} {word}", "is not of the form KEY=VALUE: a key and its value are one word", joined)
    if word in commands:
        return Problem(word, "is not of the form KEY=VALUE; a subcommand comes first", (f"dnnkit {word}",))
    return None


def no_such_option(word: str, value: str, known: Sequence[str], commands: Collection[str]) -> Problem:
    """That there is no such option, with the option, the subcommand or the override that was meant.

    `value` is the next word, which is the option's where it is neither an override nor another option.
    """
    name, equals, given = word.partition("=")
    value = "" if "=" in value or value.startswith("-") else value
    key = name.lstrip("-")
    message = f"there is no such option; there are: {', '.join(known)}"
    if key in commands:
        return Problem(word, message, (f"dnnkit {key}",))
    close = tuple(option for option in known if option.lstrip("-") in nearest(key, [other.lstrip("-") for other in known]))
    if close or key.startswith("hydra") or not (equals or value):
        return Problem(word, message, close)
    settings = "there is no such option; settings are words of the form KEY=VALUE, without dashes"
    return Problem(word, settings, _as_override(key.replace("-", "_"), given if equals else value))


def _as_override(key: str, value: str) -> tuple[str, ...]:
    """The override that sets this, or those that are near; found by composing with it."""
    from dnnkit.config import Composer

    text = f"{key}={value}"
    try:
        Composer().one([text])
    except ConfigError as error:
        there = not any(problem.where == text for problem in error.problems)
        return (text,) if there else next((problem.nearest for problem in error.problems if problem.nearest), ())
    return (text,)


def _command(words: Sequence[str]) -> str:
    return " ".join(["dnnkit", *([shlex.join(words)] if words else [])])
