"""What a run is called in MLflow, and the command that makes it again: from the words that it was composed from."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence

#: Where, how long and on what to compute, and where to write it down: this tells no experiment from another.
_ASIDE = ("trainer", "tracking", "checkpoint", "diagnostics", "lint", "study", "hydra", "name", "metrics")
_ASIDE_SETTINGS = ("data.root", "data.loader", "data.workers", "data.memory_share")
#: A choice of these says nothing without its group.
_SWITCHES = ("none", "auto", "null", "true", "false")
LONGEST = 120


def title(name: str, words: Sequence[str], swept: Collection[str] | None = None) -> str:
    """`name`, and after it what was chosen on the command line: `selu_mnist · relu · optimizer.lr=0.1 · seed 2`.

    `words`: the overrides of the run; with `name=…` among them, its name is that alone. `swept`: of a sweep's job, the keys that differ
    from job to job, which alone are told. A choice whose name is in `name` already is left out; at most 120 characters.
    """
    pairs = {key: value for key, value in map(_pair, words) if value is not None}
    if "name" in pairs:
        return name
    chosen = {key: value for key, value in pairs.items() if (key in swept if swept is not None else not _is_aside(key))}
    parts = [part for part in (_told(key, value, name) for key, value in chosen.items()) if part]
    whole = " · ".join([name, *parts])
    return whole if len(whole) <= LONGEST else f"{whole[: LONGEST - 1]}…"


def command(words: Sequence[str], config_dir: str | None = None) -> str:
    """The command line that trains the run again, quoted for a shell."""
    presets = [] if config_dir is None else ["--config-dir", config_dir]
    return shlex.join(["dnnkit", *presets, *words])


def _pair(word: str) -> tuple[str, str | None]:
    key, equals, value = word.lstrip("+").partition("=")
    return key, value.strip("\"'") if equals else None


def _is_aside(key: str) -> bool:
    return key.partition(".")[0].partition("/")[0] in _ASIDE or key in _ASIDE_SETTINGS


def _told(key: str, value: str, name: str) -> str:
    """One override as a part of a title; nothing where the name says it."""
    if key == "seed":
        return f"seed {value}"
    if "." in key or value in _SWITCHES or not value.replace("_", "").replace("/", "").isalnum():
        return f"{key}={value}"
    choice = value.rpartition("/")[2]
    return "" if re.search(rf"(?<![^\W_]){re.escape(choice)}(?![^\W_])", name) else choice  # elu is not in selu_digits
