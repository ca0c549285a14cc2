"""A preset file as it is described: the command that runs it, the overrides that it is short for, and what to expect."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dnnkit.config.sections import SECTIONS

#: How a file of each kind is chosen on a command line; of other groups as `group=name`.
_CHOSEN = {"experiment": "+experiment={}", "sweeps": "-m +sweeps={}"}
_PLAIN = re.compile(r"[A-Za-z_][\w./*-]*")
_COMMAND = re.compile(r"(?:python3? -m )?dnnkit\s.*")


def preset(group: str, name: str, path: Path) -> dict[str, Any]:
    """All that is known of a preset: `command`, `overrides`, `about`, `expect` and `compare`, the last two "" where it says nothing."""
    commands, about, compare = _comment(path)
    text, _, expect = about.partition("Expect ")
    chosen = _CHOSEN.get(group, f"{group}={{}}").format(name)
    return {
        "file": str(path),
        "command": commands[0] if commands else f"python -m dnnkit {chosen}",
        "overrides": list(_overrides(group, path)),
        "about": text.strip(),
        "expect": f"Expect {expect}" if expect else "",
        "compare": compare,
    }


def preset_page(found: Mapping[str, Any]) -> str:
    """A preset for reading in a terminal."""
    parts = [f"{found['kind']}={found['name']}", found["about"] or found["summary"], f"run it:\n  {found['command']}"]
    if found["overrides"]:
        parts.append("it sets:\n" + "\n".join(f"  {word}" for word in found["overrides"]))
    parts += [found["expect"]] if found["expect"] else []
    parts += [f"compare: {found['compare']}"] if found["compare"] else []
    return "\n\n".join([part for part in parts if part] + [f"from {found['origin']} ({found['file']})"])


def _comment(path: Path) -> tuple[list[str], str, str]:
    """A file's opening comment: the commands in it, the text, and what it says to compare with."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    commands = [line for line in lines if _COMMAND.fullmatch(line)]
    text = " ".join(line for line in lines if line and line not in commands and not line.startswith("@"))
    about, _, compare = text.partition("Compare: ")
    return commands, about.strip(), compare.strip()


def _overrides(group: str, path: Path) -> Iterator[str]:
    """What the file sets, as words of a command line: choices first, then values, a study's axes as they are swept."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    listed = tree.pop("defaults", None) or []
    whole = group in _CHOSEN
    for entry in listed:
        if isinstance(entry, dict):
            yield from (f"{key.removeprefix('override ').lstrip('/')}={_spelt(value)}" for key, value in entry.items())
        elif entry != "_self_" and group not in SECTIONS:
            yield f"{group}={entry}"
    params = ((tree.pop("hydra", None) or {}).get("sweeper") or {}).get("params") or {}
    yield from (f"{key}={value}" for key, value in params.items())
    yield from (f"{key}={_spelt(value)}" for key, value in _leaves(tree, "" if whole else f"{group}.") if key != f"{group}.name")


def _leaves(tree: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        whole = not isinstance(value, dict) or above + key in ("init_from", "lint.severity")
        yield from [(above + key, value)] if whole else _leaves(value, f"{above}{key}.")


def _spelt(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_spelt(member)}" for key, member in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_spelt, value)) + "]"
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and value not in ("null", "true", "false") else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)
