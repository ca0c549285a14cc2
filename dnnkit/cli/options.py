"""The words of a command line that are about a config: overrides, and the options beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dnnkit.errors import ConfigError, Problem, nearest


@dataclass(frozen=True)
class Options:
    """What the words of a training command line ask for."""

    overrides: tuple[str, ...]
    multirun: bool = False
    show_config: bool = False
    config_dir: str | None = None


def parse_options(words: Sequence[str]) -> Options:
    """The options among the words; everything else is an override."""
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
            raise ConfigError([Problem(word, f"there is no such option; there are: {', '.join(known)}", nearest(word, known))])
        else:
            overrides.append(word)
    return Options(tuple(overrides), **found)  # type: ignore[arg-type]
