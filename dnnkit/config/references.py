"""References between settings: `${optimizer.lr}` stands for the value of that key.

Resolved here and not by OmegaConf, which would also call resolvers, among them the one that reads the environment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dnnkit.config.doors import REFERENCE, leaves, refused_text
from dnnkit.errors import Problem, nearest

#: Text that references have made longer than this is no setting; doubling it a few times more would fill the memory.
LONGEST_TEXT = 10_000

Path = tuple[str | int, ...]


class _Unresolved(Exception):
    """A reference leads nowhere, to itself, or to something that cannot stand there."""


def resolve(tree: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The tree with every reference replaced by what it names, or by null where a problem says why it cannot be."""
    resolver = _Resolver(tree)
    plain = resolver.plain(tree, ())
    assert isinstance(plain, dict)
    return plain, resolver.problems


class _Resolver:
    def __init__(self, tree: Mapping[str, Any]) -> None:
        self._tree = tree
        self._known: dict[Path, Any] = {}
        self._open: list[Path] = []
        self.problems: list[Problem] = []

    def plain(self, value: Any, path: Path) -> Any:
        """The value that stands at `path`, without references."""
        if isinstance(value, Mapping):
            return {str(key): self.plain(member, (*path, key)) for key, member in value.items()}
        if isinstance(value, list):
            return [self.plain(member, (*path, index)) for index, member in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        try:
            return self._text(value, path)
        except _Unresolved as error:
            names = [name for name, member in leaves(self._tree) if not isinstance(member, dict)]
            close = [f"${{{name}}}" for found in REFERENCE.finditer(value) for name in nearest(found.group(2), names) if not found.group(1)]
            self.problems.append(Problem(_spelt(path), f"the reference {value!r} {error}", tuple(close) if "nowhere" in str(error) else ()))
            return None

    def _text(self, text: str, path: Path) -> Any:
        """What a text with references stands for: a value of any type where it is one reference and nothing else."""
        if path in self._known:
            return self._known[path]
        if path in self._open:
            raise _Unresolved("leads to itself")
        self._open.append(path)
        try:
            whole = REFERENCE.fullmatch(text)
            result = self._named(whole, path) if whole else REFERENCE.sub(lambda found: self._inline(found, path), text)
        finally:
            self._open.pop()
        if isinstance(result, str) and ("${" in result or refused_text(result)):
            raise _Unresolved("makes a text that would be a reference again")
        if isinstance(result, str) and len(result) > LONGEST_TEXT:
            raise _Unresolved(f"makes a text longer than {LONGEST_TEXT} letters")
        self._known[path] = result
        return result

    def _inline(self, found: re.Match[str], path: Path) -> str:
        value = self._named(found, path)
        return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

    def _named(self, found: re.Match[str], path: Path) -> Any:
        """The value of the key that a reference names; relative ones count their dots from the text's own place."""
        dots, name = found.groups()
        if len(dots) > len(path):
            raise _Unresolved("leads nowhere")
        target: Path = (*path[: len(path) - len(dots)], *_steps(name)) if dots else _steps(name)
        value: Any = self._tree
        for key in target:
            inside = key in value if isinstance(value, Mapping) else isinstance(value, list) and isinstance(key, int) and key < len(value)
            if not inside:
                raise _Unresolved("leads nowhere")
            value = value[key]
        if isinstance(value, Mapping):
            raise _Unresolved("names a group of settings, not one value")
        if isinstance(value, list) and "${" in str(value):
            raise _Unresolved("names a list that holds references itself")
        if value == "???":
            raise _Unresolved("names a setting that has no value yet")
        return self._text(value, target) if isinstance(value, str) and "${" in value else value


def _steps(name: str) -> Path:
    return tuple(int(step) if step.isdigit() else step for step in re.findall(r"[^.\[\]]+", name))


def _spelt(path: Path) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
