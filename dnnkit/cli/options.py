"""The words of a command line that are about a config: overrides, and the options beside them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dnnkit.cli.meant import bare_word, no_such_option
from dnnkit.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """What the words of a training command line ask for."""

    overrides: tuple[str, ...]
    multirun: bool = False
    show_config: bool = False
    config_dir: str | None = None


def parse_options(words: Sequence[str], commands: Collection[str] = ()) -> Options:
    """The options among the words; everything else is an override. `commands` are what is not among overrides: subcommands."""
    overrides: list[str] = []
    found: dict[str, object] = {}
    rest = iter(words)
    for word in rest:
        if word in ("-m", "--multirun"):
            found["multirun"] = True
        elif word in ("--cfg", "-c"):
            found["show_config"] = True
        elif word.split("=")[0] in ("--config-dir", "-cd"):
            found["config_dir"] = word.partition("=")[2] if "=" in word else next(rest, "")
        elif word.startswith("-"):
            known = ("--multirun", "--config-dir", "--cfg", "--version", "--help", "-m", "-h")
            raise ConfigError([no_such_option(word, next(rest, ""), known, commands)])
        else:
            problem = bare_word(word, overrides[-1] if overrides else "", commands) if "=" not in word else None
            if problem is not None:
                raise ConfigError([problem])
            overrides.append(word)
    return Options(tuple(overrides), **found)  # type: ignore[arg-type]
