"""Slips of the keyboard: every name and key of every shipped experiment, misspelt, is refused with the right one."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from dnnkit import plugins
from dnnkit.config import Composer
from dnnkit.config.loader import shipped
from dnnkit.config.sections import GROUPS, SECTIONS, top_level
from dnnkit.errors import ConfigError
from dnnkit.registry import REGISTRIES

plugins.load()

FOLDER = shipped("conf") / "experiment"
EXPERIMENTS = {str(path.relative_to(FOLDER).with_suffix("")): path for path in sorted(FOLDER.rglob("*.yaml"))}
LETTERS = "abcdefghijklmnopqrstuvwxyz_"


@dataclass(frozen=True)
class Word:
    """One name or key, with the override that it is a part of: `before + word + after`."""

    before: str
    word: str
    after: str

    def typed(self, word: str) -> str:
        return self.before + word + self.after


def words() -> list[Word]:
    """Every name and key of every experiment, once, as it is typed on a command line."""
    found: dict[Word, None] = {}
    for name, path in EXPERIMENTS.items():
        found[Word("+experiment=", name, "")] = None
        for word in _of(yaml.safe_load(path.read_text())):
            found[word] = None
    return list(found)


def _of(held: Mapping[str, Any]) -> Iterator[Word]:
    for choice in held.pop("defaults", []):
        if isinstance(choice, Mapping):
            for group, name in choice.items():
                group = group.removeprefix("override ").lstrip("/")
                yield from (Word("", group, f"={name}"), Word(f"{group}=", str(name), ""))
    for key, value in held.items():
        if not isinstance(value, Mapping) or key not in (*GROUPS, *SECTIONS):
            yield Word("", key, f"={_text(value)}")
            continue
        for setting, given in value.items():
            yield from (Word("", key, f".{setting}={_text(given)}"), Word(f"{key}.", setting, f"={_text(given)}"))
            if isinstance(given, str) and given in REGISTRIES.get(key, ()):
                yield Word(f"{key}.{setting}=", given, "")


def _text(value: Any) -> str:
    """In Hydra's grammar."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_text(held)}' for key, held in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return f'"{value}"' if isinstance(value, str) else json.dumps(value)


def mutants(word: str, draw: random.Random) -> Iterator[str]:
    """Two of each: a letter left out, put in, swapped with its neighbour, mistaken for another."""
    for _ in range(2):
        at, letter = draw.randrange(len(word)), draw.choice(LETTERS)
        yield word[:at] + word[at + 1 :]
        yield word[:at] + letter + word[at:]
        yield word[:at] + word[at : at + 2][::-1] + word[at + 2 :]
        yield word[:at] + letter + word[at + 1 :]


def is_valid(word: Word, mutant: str) -> bool:
    """Whether the mutant is a name or a key that there is."""
    group = word.before.rstrip("=.")
    known = {"+experiment": set(EXPERIMENTS), "": {*top_level(), "experiment", "sweeps"}}.get(group, set())
    if word.before == f"{group}=" and group in REGISTRIES:
        known |= set(REGISTRIES[group].names()) | {path.stem for path in (shipped("conf") / group).glob("*.yaml")} | {"auto", "none"}
    return not mutant or mutant == word.word or mutant in known


@pytest.mark.slow(minutes=8)
def test_a_misspelt_name_or_key_is_refused_and_the_right_one_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    draw, composer = random.Random(0), Composer()
    every = [(word, mutant) for word in words() for mutant in dict.fromkeys(mutants(word.word, draw)) if not is_valid(word, mutant)]
    chosen = draw.sample(every, 2000)
    refused = first = among_three = 0
    seconds, missed = [], []
    for word, mutant in chosen:
        began = time.process_time()
        try:
            composer.one([word.typed(mutant)])
        except ConfigError as error:
            seconds.append(time.process_time() - began)
            refused += 1
            offered = [name for problem in error.problems for name in problem.nearest][:3]
            right = [_leads_to(name, word) for name in offered]
            first += right[:1] == [True]
            among_three += any(right)
            if right[:1] != [True]:
                missed.append((word.typed(mutant), word.word, offered))
        else:
            missed.append((word.typed(mutant), word.word, ["not refused"]))
    count = len(chosen)
    with capsys.disabled():
        print(f"\n{count} of {len(every)} mutants of {len(words())} names and keys")
        print(f"{refused / count:.1%} refused, in {max(seconds):.2f} s of CPU at most")
        print(f"of those the right word came first for {first / refused:.1%}, among the first three for {among_three / refused:.1%}")
    assert refused / count >= 0.99, missed
    assert first / refused >= 0.93, missed
    assert among_three / refused >= 0.99, missed


def _leads_to(name: str, word: Word) -> bool:
    """Whether a suggestion is the right word: bare, as a path, or as the override to type."""
    return name in (word.word, word.before + word.word, word.typed(word.word))


def test_no_shipped_experiment_is_refused() -> None:
    composer = Composer()
    for name in EXPERIMENTS:
        assert composer.one([f"+experiment={name}"]).overrides == (f"+experiment={name}",)


def test_a_refusal_is_by_the_config_alone() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'selu_mnist'"):
        Composer().one(["+experiment=selu_mnsit"])
