"""What may come next in a command line: subcommands, options, groups, names, settings, values, runs and files.

It has to answer while a key is still warm under the finger, so nothing here imports Hydra, pydantic or PyTorch: what can be
chosen comes from the kept catalogue, and what a subcommand takes from the first lines of its own help.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from dnnkit.registry import KINDS

#: What a subcommand's usage line says it takes: an option with the value that it has, if it has one.
_OPTION = re.compile(r"(?<![\w-])(--?[a-z][\w-]*)(?:[ =]\[?([A-Za-z][\w.|]*))?")
#: A setting of the config that a usage line names, such as `[tracking.uri=URI]`; where others may follow it, it says so by a `…`.
_SETTING = re.compile(r"\[([a-z_.]+=)[A-Z]+\]")
_OPTION_LINE = re.compile(r"^  (?:(-\w), )?(--[\w-]+)(?: [A-Z]+)? {2,}(\S.*)$", re.MULTILINE)
#: Settings whose value is the path of a file or folder.
_PATHS = ("path", "root", "runs")
#: Chosen like a group, and sections of settings as well.
_SECTION_GROUPS = ("trainer", "tracking")
_ADDED = ("experiment", "sweeps")
_DEEPEST = 4


@dataclass(frozen=True)
class Candidate:
    """A whole word that may stand at the cursor, and a few words about it."""

    word: str
    about: str = ""

    @property
    def final(self) -> bool:
        """Whether nothing need be added to it."""
        return not self.word.endswith(("=", ".", "/", "[", ","))


@dataclass
class Usage:
    """What a subcommand takes.

    `options` with the value of each, "" for a flag; the words that stand by themselves, by place; and, where not every setting
    can be overridden, the `settings` that can, at any place.
    """

    options: dict[str, str] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)
    about: dict[str, str] = field(default_factory=dict)
    places: list[set[str]] = field(default_factory=list)

    @classmethod
    def of(cls, text: str) -> Usage:
        """Read off a help text, whose first paragraph holds the commands and whose lines of options say what they mean."""
        found = cls()
        for line in text.split("\n\n")[0].splitlines():
            found.options |= dict(_OPTION.findall(line))
            found.settings += _SETTING.findall(line)
            bare = [word.strip("[]…") for word in _SETTING.sub("", _OPTION.sub("", line)).split()[2:]]
            for place, word in enumerate(word for word in bare if word):
                found.places += [set()] * (place + 1 - len(found.places))
                found.places[place] = found.places[place] | {"OVERRIDES" if "=" in word else word}
        for short, long, about in _OPTION_LINE.findall(text):
            found.about |= {name: about for name in (short, long) if name}
            found.options |= {name: found.options.get(name, "") for name in (short, long) if name}
        return found

    def at(self, place: int) -> set[str]:
        """What may stand at a place; the last one is for all that follow where it is for overrides."""
        last = self.places[-1] if self.places else set()
        return self.places[place] if place < len(self.places) else last & {"OVERRIDES"}


def candidates(
    words: Sequence[str], current: str, commands: Mapping[str, Callable[[list[str]], int]], help_text: str, held: Mapping[str, Any]
) -> list[Candidate]:
    """What may take the place of `current` after `words`, those of the program itself left out.

    `held` is the kept catalogue, empty where there is none yet: then only subcommands, options and groups are known.
    """
    line = _Line(words, commands, help_text, held)
    return [found for found in dict.fromkeys(line.at(current)) if found.word.startswith(current)]


class _Line:
    """A command line up to the cursor."""

    def __init__(
        self, words: Sequence[str], commands: Mapping[str, Callable[[list[str]], int]], help_text: str, held: Mapping[str, Any]
    ) -> None:
        self.words, self.commands = list(words), commands
        bare = [word for word in words if word in commands]
        self.command = bare[0] if bare and not any(map(_is_override, words[: words.index(bare[0])])) else None
        self.usage = Usage.of(help_of(commands[self.command]) if self.command else _main_usage(help_text))
        self.options = _options(words, self.usage)
        self.config = Known(held, words, self.options.get("--config-dir"))

    def at(self, current: str) -> Iterator[Candidate]:
        before = self.words[-1] if self.words else ""
        value = self.usage.options.get(before, "")
        name, equals, _ = current.partition("=")
        if value and before.startswith("-"):
            yield from self._values(value, current, "")
        elif current.startswith("-"):
            if equals and name in self.usage.options:
                yield from self._values(self.usage.options[name], current, f"{name}=")
            else:
                yield from (Candidate(option, self.usage.about.get(option, "")) for option in self.usage.options)
        else:
            yield from self._bare(current)

    def _values(self, kind: str, current: str, before: str) -> Iterator[Candidate]:
        """The values of an option, by the word for them in the usage: DIR, FILE, RUN, or the choices themselves."""
        given = current[len(before) :]
        if "|" in kind:
            yield from (Candidate(before + choice) for choice in kind.split("|"))
        elif kind.startswith(("DIR", "FILE")):
            yield from (Candidate(before + path) for path in _paths(given, folders=kind.startswith("DIR")))
        elif kind in ("RUN", "STUDY"):
            yield from (Candidate(before + run.word, run.about) for run in _runs(self.options.get("--runs", "runs")))

    def _bare(self, current: str) -> Iterator[Candidate]:
        if self.command is None:
            if not any(map(_is_override, self.words)):
                yield from (Candidate(name, _first_sentence(command)) for name, command in self.commands.items())
            yield from self.config.overrides(current)
            return
        after = self.words[self.words.index(self.command) + 1 :]
        bare = _without_options(after, self.usage)
        yield from (Candidate(setting) for setting in self.usage.settings if not any(word.startswith(setting) for word in bare))
        place = sum(not word.startswith(tuple(self.usage.settings)) for word in bare)
        for what in sorted(self.usage.at(place)):
            yield from self._place(what, current, after)

    def _place(self, what: str, current: str, after: Sequence[str]) -> Iterator[Candidate]:
        if what == "OVERRIDES":
            yield from self.config.overrides(current)
        elif what == "GROUP":
            yield from self.config.groups()
            yield from self.config.names_everywhere() if current and any("NAME" in place for place in self.usage.places) else ()
        elif what == "NAME":
            yield from self.config.names(next((word for word in after if not word.startswith("-")), ""))
        elif what == "COMMAND":
            yield from (Candidate(name, _first_sentence(command)) for name, command in self.commands.items())
        elif "|" in what or what.startswith(("RUN", "STUDY", "FILE", "DIR")):
            yield from self._values(what, current, "")


class Known:
    """What the kept catalogue and the folders of presets know of a config, beside the words that were typed before."""

    def __init__(self, held: Mapping[str, Any], words: Sequence[str], config_dir: str | None) -> None:
        self.catalogue: Mapping[str, Any] = held.get("completion", {})
        own = [self.catalogue["conf"]] if self.catalogue else []
        mine = [os.path.expanduser(config_dir)] if config_dir else []
        self.folders = [Path(folder) for folder in (*own, *mine, *(conf for _, conf in held.get("conf", ())))]
        self.chosen = {name.lstrip("+"): value for name, _, value in (word.partition("=") for word in words) if value}

    def groups(self) -> Iterator[Candidate]:
        """Every group that can be listed."""
        yield from (Candidate(group) for group in self.catalogue.get("listed", KINDS))

    def names(self, group: str) -> Iterator[Candidate]:
        """The choices of a group: components and switches, then presets, those in folders as `folder/name`."""
        rows = self.catalogue.get("groups", {}).get(group, {})
        yield from (Candidate(name, row["summary"]) for name, row in rows.items())
        yield from (Candidate(name) for name in self._presets(group))

    def names_everywhere(self) -> Iterator[Candidate]:
        """The names of all groups, each with the groups that have it."""
        for group, rows in self.catalogue.get("groups", {}).items():
            yield from (Candidate(name, f"{group}: {row['summary']}") for name, row in rows.items())

    def overrides(self, current: str) -> Iterator[Candidate]:
        """Keys of the config, or the values of the key before the equals sign."""
        key, equals, value = current.partition("=")
        if equals:
            head, about_one = _head(value), key.removeprefix("+")
            yield from (Candidate(f"{key}={head}{found.word}", found.about) for found in self._values(about_one, value[len(head) :]))
        elif "." in key:
            section = key.partition(".")[0]
            settings = self._settings(section)
            yield from (Candidate(f"{section}.{name}=", row["rule"]) for name, row in settings.items())
        else:
            yield from self._keys()

    def _keys(self) -> Iterator[Candidate]:
        groups = [group for group in self.catalogue.get("groups", KINDS) if group != "lint"]
        yield from (Candidate(f"{group}=", f"choose {KINDS[group].name.replace('_', ' ')}") for group in groups)
        for section in self.catalogue.get("sections", _SECTION_GROUPS):
            if section in _SECTION_GROUPS:
                yield Candidate(f"{section}=", "choose one by its name")
            if section:
                yield Candidate(f"{section}.", "settings")
        yield from (Candidate(f"{group}.", "settings") for group in groups if self._settings(group))
        top = self.catalogue.get("sections", {}).get("", {})
        yield from (Candidate(f"{name}=", row["rule"]) for name, row in top.items() if name not in groups)
        yield from (Candidate(f"+{name}=", "added to everything else") for name in _ADDED)

    def _values(self, key: str, given: str) -> Iterator[Candidate]:
        section, dot, setting = key.partition(".")
        if not dot and key in (*self.catalogue.get("groups", ()), *_SECTION_GROUPS, *_ADDED):
            yield from _by_folder(self.names(key), given)
        elif key == "init_from":
            yield from (*_runs("runs"), Candidate("null"))
        elif dot and setting in _PATHS:
            yield from (Candidate(path) for path in _paths(given))
        else:
            rows = self._settings(section) if dot else self.catalogue.get("sections", {}).get("", {})
            yield from (Candidate(value) for value in rows.get(setting or key, {"values": ()})["values"])

    def _settings(self, section: str) -> Mapping[str, Any]:
        """The settings of a section, or of the component that is chosen in a group."""
        sections = self.catalogue.get("sections", {})
        if section in sections:
            return dict(sections[section])
        rows = self.catalogue.get("groups", {}).get(section, {})
        name = self.chosen.get(section) or self._of_experiment(section) or self.catalogue.get("defaults", {}).get(section, "")
        for _ in range(_DEEPEST):
            if name in rows or not name:
                break
            name = next((str(entry) for entry in self._defaults(f"{section}/{name}") if entry != "_self_"), "")
        return dict(rows.get(name, {}).get("settings", {}))

    def _of_experiment(self, group: str) -> str:
        """What the chosen experiment takes in a group, if it says."""
        listed = self._defaults(f"experiment/{self.chosen['experiment']}") if "experiment" in self.chosen else []
        return next((str(entry[key]) for entry in listed if isinstance(entry, dict) for key in entry if key.endswith(f"/{group}")), "")

    def _defaults(self, path: str) -> list[Any]:
        """The defaults list of a preset; nothing for one that is not there or cannot be read."""
        import yaml

        for folder in self.folders:
            try:
                tree = yaml.safe_load((folder / f"{path}.yaml").read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError):
                continue
            return list(tree.get("defaults") or ()) if isinstance(tree, dict) else []
        return []

    def _presets(self, group: str) -> Iterator[str]:
        own = [Path(self.catalogue["sweeps"]), Path("sweeps")] if group == "sweeps" and self.catalogue else []
        for folder in own or (folder / group for folder in self.folders):
            deep = ["/".join("*" * (depth + 1)) + ".yaml" for depth in range(_DEEPEST if group == "experiment" else 1)]
            yield from (path.relative_to(folder).with_suffix("").as_posix() for glob in deep for path in sorted(folder.glob(glob)))


def help_of(command: Callable[[list[str]], int]) -> str:
    """The help of a subcommand."""
    text = io.StringIO()
    with redirect_stdout(text):
        command(["--help"])
    return text.getvalue()


def _is_override(word: str) -> bool:
    """Whether a word sets something in the config; `--config-dir=D` does not."""
    return "=" in word and not word.startswith("-")


def _main_usage(help_text: str) -> str:
    """The help of dnnkit itself in the form of a subcommand's."""
    options = help_text.partition("Options:\n")[2]
    return f"dnnkit [OVERRIDES] [--config-dir DIR]\n\n{options}"


def _first_sentence(command: Callable[[list[str]], int]) -> str:
    return re.split(r"[:.](?:\s|$)", (command.__doc__ or "").strip())[0]


def _options(words: Sequence[str], usage: Usage) -> dict[str, str]:
    """The options that were given a value, as `--runs DIR` or `--runs=DIR`."""
    pairs = [(name, value) for name, equals, value in (word.partition("=") for word in words) if equals and name.startswith("-")]
    return {**{word: after for word, after in pairwise(words) if usage.options.get(word)}, **dict(pairs)}


def _without_options(words: Sequence[str], usage: Usage) -> list[str]:
    takes = [False, *(bool(usage.options.get(word)) for word in words)]
    return [word for word, taken in zip(words, takes, strict=False) if not taken and not word.startswith("-")]


def _head(value: str) -> str:
    """What of a value is typed already and stays: a list's members, or a sweep's values, before the last."""
    return value[: max(value.rfind(","), value.rfind("[")) + 1]


def _by_folder(names: Iterator[Candidate], given: str) -> Iterator[Candidate]:
    """The names, those below a folder as the folder until its slash is typed."""
    depth = given.count("/")
    for name in names:
        parts = name.word.split("/")
        yield name if len(parts) <= depth + 1 else Candidate("/".join(parts[: depth + 1]) + "/")


def _paths(given: str, *, folders: bool = False) -> Iterator[str]:
    """The files and folders that begin as given; a folder ends with a slash."""
    head, _, tail = given.rpartition("/")
    folder = head + "/" if "/" in given else ""
    try:
        entries = sorted(os.scandir(os.path.expanduser(folder or ".")), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir():
            yield from [f"{folder}{entry.name}/"] if not entry.name.startswith(".") or tail.startswith(".") else []
        elif not folders and (not entry.name.startswith(".") or tail.startswith(".")):
            yield folder + entry.name


def _runs(folder: str) -> Iterator[Candidate]:
    """The runs of a folder by their 8 letters, the latest first, with the name of each."""
    found = sorted(Path(os.path.expanduser(folder)).glob("*/run.json"), reverse=True)
    yield from (Candidate(path.parent.name.rpartition("_")[2], path.parent.name.rpartition("_")[0].replace("_", " ")) for path in found)
