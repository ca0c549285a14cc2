"""The card of a data set for reading in a terminal: what was found, how it is split, what is odd about it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnnkit.errors import ConfigError, DnnkitError, Problem, nearest

MOST_NAMES, MOST_CLASSES = 12, 30
_LINES = (
    "description", "kind", "task", "inputs", "outputs", "columns", "standardize", "loader", "constant_features", "missing", "origin",
    "fingerprint",
)  # fmt: skip
#: Shown elsewhere than in a line of their own, or in one of _LINES.
_TOLD = {*_LINES, "name", "classes", "sizes", "splits", "class_balance", "label_balance", "target"}


def loaded_card(name: str, overrides: Sequence[str], figure: Path | None, config_dir: str | None = None) -> dict[str, Any]:
    """Load the data that the overrides describe; its card, and the sample figure where one is asked for.

    Raises ConfigError, PluginError and DataError as a run would, and DiskError for the figure.
    """
    from dnnkit.config import compose
    from dnnkit.training.assemble import load_data

    for word in overrides:
        if word.lstrip("+~").split("=")[0] == "data":
            raise ConfigError([Problem(word, f"the command already says which data: {name}")])
    data = load_data(compose([f"data={name}", *overrides], config_dir=config_dir))
    if figure is not None:
        from dnnkit.record.sample import sample_figure

        sample_figure(data, figure)
    return data.card


def card_if_there(name: str) -> tuple[dict[str, Any] | None, str]:
    """The card of data that needs no settings and is on this machine; else None and why there is none. Nothing is downloaded."""
    from dnnkit.data.download import offline

    try:
        with offline():
            return loaded_card(name, [], None), ""
    except ConfigError as error:
        return None, "\n".join([*map(str, error.problems), f"give what is missing: dnnkit describe data {name} data.SETTING=VALUE"])
    except DnnkitError as error:
        return None, str(error)


def figure_path(default: str, words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file that `--figure [FILE.png]` names, `default` where it names none, and the other words."""
    rest: list[str] = []
    path: Path | None = None
    given = list(words)
    while given:
        word = given.pop(0)
        option, equals, value = word.partition("=")
        if option != "--figure":
            rest.append(word)
            continue
        if not equals:
            value = given.pop(0) if given and given[0].lower().endswith(".png") else default
        if not value.lower().endswith(".png"):
            raise ConfigError([Problem(word, "the figure is a PNG file: --figure FILE.png")])
        path = Path(value).expanduser()
    options = ("--json", "--figure")
    for word in rest:
        if word.startswith("-"):
            raise ConfigError([Problem(word, f"there is no such option; there are: {', '.join(options)}", nearest(word, options))])
    return path, rest


def card_text(card: Mapping[str, Any]) -> str:
    """The card in lines; whatever a source adds to it comes last."""
    parts = [f"data={card['name']}", _facts(card), _splits(card)]
    # A single class is what a source says that needed no targets.
    if any(len(counts) > 1 for counts in card.get("class_balance", {}).values()):
        parts.append(_balance(card))
    if "label_balance" in card:
        parts.append(_label_balance(card))
    if "target" in card:
        parts.append(_target(card["target"]))
    parts += [_note(key, value) for key, value in card.items() if key not in _TOLD and value not in ([], {}, None)]
    return "\n\n".join(parts)


def _facts(card: Mapping[str, Any]) -> str:
    rows = [(key, _fact(key, card[key])) for key in _LINES if key in card and card[key] is not None]
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"  {key.replace('_', ' '):<{width}}  {text}" for key, text in rows)


def _fact(key: str, value: Any) -> str:
    if key == "inputs":
        return " × ".join(map(str, value))
    if isinstance(value, Mapping):
        return _listed([f"{name} ({count})" for name, count in value.items()])
    return _listed(value) if isinstance(value, list) else str(value)


def _listed(names: Sequence[object]) -> str:
    shown = ", ".join(one_line(str(name)) for name in names[:MOST_NAMES]) or "none"
    return shown + (f", … ({len(names)} in all)" if len(names) > MOST_NAMES else "")


def one_line(text: str) -> str:
    """The text with line breaks, and whatever else a terminal would act on, escaped."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _splits(card: Mapping[str, Any]) -> str:
    total = sum(card["sizes"].values())
    rows = [[part, f"{size:,}", f"{size / total:.1%}", card["splits"].get(part, "")] for part, size in card["sizes"].items()]
    return _table(["split", "rows", "share", "from"], rows, left=(0, 3))


def _balance(card: Mapping[str, Any]) -> str:
    """Rows for each class and split, each with its share of the split."""
    balance, classes = card["class_balance"], card["classes"]
    count = len(next(iter(balance.values())))
    names = classes if classes is not None else [str(index) for index in range(count)]
    rows = []
    for index, name in enumerate(names[:MOST_CLASSES]):
        cells = [[f"{counts[index]:,}", f"{counts[index] / max(1, sum(counts)):.1%}"] for counts in balance.values()]
        rows.append([one_line(name), *(cell for pair in cells for cell in pair)])
    head = ["class", *(cell for part in balance for cell in (part, "share"))]
    more = f"\n  … {count - MOST_CLASSES} more classes: --json shows all" if count > MOST_CLASSES else ""
    return _table(head, rows, left=(0,)) + more


def _label_balance(card: Mapping[str, Any]) -> str:
    """Rows for each label and split: how many examples have it, and their share of the split."""
    balance, sizes = card["label_balance"], card["sizes"]
    names = list(balance["train"])
    rows = [
        [one_line(name), *(cell for part, counts in balance.items() for cell in (f"{counts[name]:,}", f"{counts[name] / sizes[part]:.1%}"))]
        for name in names[:MOST_CLASSES]
    ]
    head = ["label", *(cell for part in balance for cell in (part, "share"))]
    more = f"\n  … {len(names) - MOST_CLASSES} more labels: --json shows all" if len(names) > MOST_CLASSES else ""
    return _table(head, rows, left=(0,)) + more


def _target(target: Mapping[str, Mapping[str, float]]) -> str:
    keys = list(next(iter(target.values())))
    rows = [[one_line(name), *(f"{values[key]:.6g}" for key in keys)] for name, values in list(target.items())[:MOST_CLASSES]]
    more = f"\n  … {len(target) - MOST_CLASSES} more targets: --json shows all" if len(target) > MOST_CLASSES else ""
    return _table(["target (in training)", *keys], rows, left=(0,)) + more


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = zip(row, widths, strict=True)
        padded = [cell.ljust(width) if column in left else cell.rjust(width) for column, (cell, width) in enumerate(cells)]
        lines.append("  " + "  ".join(padded).rstrip())
    return "\n".join(lines)


def _note(key: str, value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n".join([f"  {key.replace('_', ' ')}:", *(f"    - {item}" for item in value)])
    text = json.dumps(value, ensure_ascii=False)
    return f"  {key.replace('_', ' ')}: " + (text if len(text) <= 200 else f"{text[:180]}… (--json shows all)")
