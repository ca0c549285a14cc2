"""The text of docs/catalogue.md, read off the registry: signatures, docstrings, facts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dnnkit.cli.catalogue import switches
from dnnkit.registry import KINDS, Component, parameters
from dnnkit.schema import KIND_SETTINGS, MISSING, Settings, field_docs, words
from docs.generate.figures import CAPTIONS
from docs.generate.records import builtin

PAGE = "catalogue.md"

#: Heading and what the members are for, in the order of the page.
HEADINGS = {
    "activation": ("Activations", "The nonlinearity after each hidden layer."),
    "initializer": ("Initializers", "How the weights begin; biases begin at 0."),
    "normalization": ("Normalizations", "Before or after the activation of each hidden layer, and on the input where that is wanted."),
    "dropout": ("Dropouts", "After each hidden layer, in training only."),
    "regularizer": ("Regularizers", "A term that is added to the training loss."),
    "constraint": ("Constraints", "Brings the weights back into bounds after each optimizer step."),
    "clipping": ("Clippings", "Bounds the gradient before each optimizer step."),
    "optimizer": ("Optimizers", "What a step does with the gradient. `optimizer.lr` is the peak rate, which the schedule multiplies."),
    "scheduler": ("Schedulers", "The factor of `optimizer.lr` at each optimizer step."),
    "task": ("Tasks", "What is learnt: what targets have to be, what an output means, and what it is trained and measured by unless told."),
    "loss": ("Losses", "What training minimises. A classification's loss takes logits."),
    "metrics": ("Metrics", "What is measured besides the loss: `metrics=[NAME,…]`, or `{name: NAME, …}` for one with settings."),
    "model": ("Models", "How layers are put together."),
    "data": ("Data", "What is learnt from."),
    "augmentation": ("Augmentations", "Changes training examples anew in each epoch."),
    "lint": ("Rules", "What is right by itself and does not go together, found before a run; `lint.ignore=[NAME]` leaves one out."),
}

INTRODUCTION = """\
# The catalogue

Every component that comes with dnnkit, by the name that it has on a command line: what it computes, its settings with their
bounds and defaults, and where it is from. `dnnkit describe GROUP NAME` shows the same in a terminal, and also of components
that other packages bring.

`make docs` writes this page and its figures from the code, so every word of it is a docstring or a signature: to change the
page, change those."""


def text() -> str:
    """The whole page."""
    groups = [group for group in HEADINGS if builtin(group)]
    missing = sorted(group for group in KINDS if group not in HEADINGS and builtin(group))
    if missing:
        raise ValueError(f"docs/generate/page.py has no heading for: {', '.join(missing)}")
    rows = [f"- [{HEADINGS[group][0]}](#{HEADINGS[group][0].lower()}): {', '.join(map(_link, builtin(group)))}" for group in groups]
    parts = [INTRODUCTION, "\n".join(rows), *(part for group in groups for part in _section(group))]
    return "\n\n".join(parts) + "\n"


def _link(record: Component) -> str:
    # As GitHub makes the anchor of the heading `group=name`: without the sign.
    return f"[{record.name}](#{record.kind.group}{record.name})"


def _section(group: str) -> Iterator[str]:
    heading, about = HEADINGS[group]
    yield f"## {heading}"
    yield about if group in ("metrics", "lint") else f"{about} One is chosen by `{group}=NAME`."
    chosen = switches(group, {record.name: record.facts for record in builtin("task")})
    if chosen:
        yield "\n".join(f"- `{group}={name}`: {escaped(summary)}." for name, summary in chosen.items())
    if group in KIND_SETTINGS:
        yield from prose(str(KIND_SETTINGS[group].__doc__))
        yield _table(group, Settings.of(KIND_SETTINGS[group]), field_docs(KIND_SETTINGS[group]))
    if group in CAPTIONS:
        names = ", ".join(f"`{record.name}`" for record in builtin(group))
        yield f"![{heading}](catalogue/{group}.png)"
        yield f"{CAPTIONS[group]} Drawn: {names}."
    for record in builtin(group):
        yield from _entry(record)


def _entry(record: Component) -> Iterator[str]:
    group = record.kind.group
    yield f"### `{group}={record.name}`"
    yield from prose(record.doc)
    own = Settings(parameters(record.kind, record.function))
    if own.names():
        yield _table(group, own)
    if record.facts:
        yield "; ".join(f"{key.replace('_', ' ')}: {_value(value)}" for key, value in sorted(record.facts.items())) + "."


def _table(group: str, settings: Settings, docs: Mapping[str, str] | None = None) -> str:
    """A row for each setting; with `docs`, what it means."""
    heads = ["setting", "is", "default", *([] if docs is None else ["meaning"])]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, default in settings.defaults().items():
        told = "has to be given" if default == MISSING else _value(default)
        cells = [f"`{group}.{name}`", _cell(words(settings.annotation(name))), told]
        cells += [] if docs is None else [_cell(" ".join(docs[name].split()))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return escaped(text).replace("|", "\\|")


def _value(value: Any) -> str:
    """As it is written on a command line."""
    if isinstance(value, str):
        return f"`{value}`"
    return "`" + json.dumps(value, ensure_ascii=False).replace("|", "\\|") + "`"


def prose(doc: str) -> Iterator[str]:
    """The paragraphs of a docstring in Markdown; an indented one stays as it is, which is how Markdown writes code."""
    lines = doc.strip().splitlines()
    indent = min((len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()), default=0)
    paragraphs = re.split(r"\n\s*\n", "\n".join([lines[0], *(line[indent:] for line in lines[1:])]))
    for paragraph in paragraphs:
        if paragraph.startswith("    "):
            yield paragraph
        else:
            # A line that ends a sentence ends a thought: the next one begins a line of its own.
            yield escaped(re.sub(r"^Source:", "\\\nSource:", paragraph, flags=re.MULTILINE)).replace("\n\\\n", "\\\n").removeprefix("\\\n")


def escaped(text: str) -> str:
    """Markdown's signs taken literally, but for code between backticks."""
    pieces = re.split(r"(`[^`]*`)", text)
    literal = "".join(piece if piece.startswith("`") else re.sub(r"([*<]|\](?=\())", r"\\\1", piece) for piece in pieces)
    # A line of prose may begin with what would begin a list, a heading or a quotation.
    return re.sub(r"^(\s*\d*)([-+#>.] )", r"\1\\\2", literal, flags=re.MULTILINE)
