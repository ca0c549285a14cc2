"""The subcommands that show what there is: list, describe, plugins, schema."""

from __future__ import annotations

import json
from collections.abc import Sequence
from textwrap import indent

from dnnkit.errors import ConfigError, Problem


def asks_help(words: list[str], text: str) -> bool:
    """Whether a subcommand is asked for its help; prints it then."""
    if "-h" in words or "--help" in words:
        print(text)
        return True
    return False


def list_choices(words: list[str]) -> int:
    """Print the groups, or what can be chosen in one: dnnkit list [GROUP]."""
    as_json, rest = _json_flag(words)
    if asks_help(rest, "dnnkit list [GROUP] [--json]\n\nThe groups of choices, or what can be chosen in one, each with a line about it."):
        return 0
    from dnnkit.cli.catalogue import choices, groups

    rows = groups() if not rest else choices(_one(rest, "list [GROUP]", most=1)[0])
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        print(f"{row['name']:<{width}}  {row['summary']}{_foreign(row.get('origin', 'dnnkit'))}".rstrip())
    return 0


def _foreign(origin: str) -> str:
    """Where a choice comes from, if not from dnnkit itself."""
    return "" if origin.split()[0] == "dnnkit" else f" [{origin}]"


_DESCRIBE = """\
dnnkit describe [GROUP] NAME [--json]
dnnkit describe [GROUP] NAME [OVERRIDES] --figure [FILE.png] [--json]
dnnkit describe data NAME [OVERRIDES] [--figure [FILE.png]] [--json]

Formula, settings with bounds and defaults, source and origin of one choice. Of an experiment, a study or another preset: the
command that runs it, the overrides that it stands for, and what to expect. A name that one group alone has needs no GROUP.
Of data also the card: kind, splits, classes or targets, constant and missing columns, fingerprint. Without overrides it
follows the description where the data is on this machine; with any, such as data.path=my.csv data.target=price, it is
all that is printed. --figure writes a sample of the training data, by default to NAME_sample.png.
Of an activation --figure draws the function and its derivative, of an initializer the law of its weights, of a scheduler the
factor of the rate, with the settings that are given, such as activation.negative_slope=0.2; by default to GROUP_NAME.png."""


def describe(words: list[str]) -> int:
    """Print all that is known of one choice: dnnkit describe GROUP NAME."""
    as_json, rest = _json_flag(words)
    if asks_help(rest, _DESCRIBE):
        return 0
    from dnnkit.cli.catalogue import page, record

    rest = _with_group(_figure_last(rest))
    if rest[:1] == ["data"] and len(rest) >= 2:
        return _describe_data(rest[1], rest[2:], as_json)
    from dnnkit.cli.component_figure import asks_figure

    if asks_figure(rest):
        return _describe_drawn(rest, as_json)
    group, name = _one(rest, "describe GROUP NAME", most=2, least=2)
    found = record(group, name)
    print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else page(found))
    return 0


def _describe_drawn(words: list[str], as_json: bool) -> int:
    """The page of a choice, and the file that its figure was written to."""
    from dnnkit.cli.card import figure_path
    from dnnkit.cli.catalogue import page, record
    from dnnkit.cli.component_figure import draw_component

    figure, rest = figure_path("_".join(words[:2]) + ".png", words)
    group, name = _one(rest[:2], "describe GROUP NAME [OVERRIDES] --figure [FILE.png]", most=2, least=2)
    found = record(group, name)
    assert figure is not None
    path = draw_component(group, name, rest[2:], figure)
    told = {**found, "figure": str(path)}
    print(json.dumps(told, indent=2, ensure_ascii=False) if as_json else f"{page(found)}\n\n  figure: {path}")
    return 0


def _figure_last(words: list[str]) -> list[str]:
    """The words with `--figure [FILE.png]`, which may stand anywhere, behind all others."""
    place = next((place for place, word in enumerate(words) if word.partition("=")[0] == "--figure"), len(words))
    file = words[place + 1 : place + 2] if words[place : place + 1] == ["--figure"] else []
    end = place + 1 + any(word.lower().endswith(".png") for word in file)
    return [*words[:place], *words[end:], *words[place:end]]


def _with_group(words: list[str]) -> list[str]:
    """The words with the group put before a name that stands by itself, also `activation=selu` taken apart."""
    from dnnkit.cli.catalogue import found_choice

    if not words or words[0].startswith("-"):
        return words
    group, equals, name = words[0].lstrip("+").partition("=")
    if equals:
        return [group, name, *words[1:]]
    if len(words) > 1 and "=" not in words[1] and not words[1].startswith("-"):
        return words
    return [*found_choice(words[0]), *words[1:]]


def _describe_data(name: str, words: list[str], as_json: bool) -> int:
    """The page of a data source with its card where the data is there; with overrides or a figure, the card alone."""
    from dnnkit.cli.card import card_if_there, card_text, figure_path, loaded_card
    from dnnkit.cli.catalogue import page, record

    found = record("data", name)
    figure, overrides = figure_path(f"{name}_sample.png", words)
    if overrides or figure is not None:
        card = loaded_card(name, overrides, figure)
        print(json.dumps(card, indent=2, ensure_ascii=False) if as_json else card_text(card))
        if figure is not None and not as_json:
            print(f"\n  figure: {figure}")
        return 0
    there, reason = card_if_there(name)
    if as_json:
        print(json.dumps({**found, "card": there}, indent=2, ensure_ascii=False))
        return 0
    print(page(found), end="\n\n")
    print(card_text(there) if there is not None else "no card:\n" + indent(reason, "  "))
    return 0


def list_plugins(words: list[str]) -> int:
    """Print the plugin packages and what became of them: dnnkit plugins."""
    as_json, rest = _json_flag(words)
    if asks_help(rest, "dnnkit plugins [--json]\n\nThe installed plugin packages, what each registered, and why one failed."):
        return 0
    from dnnkit.cli.catalogue import registered

    _one(rest, "plugins", most=0)
    rows = registered()["plugins"]
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        state = f"failed: {row['error']}" if row["error"] else f"{len(row['components'])} components"
        print(f"{row['name']}  {row['package']} {row['version']}  {state}")
    return 0


_SCHEMA = """\
dnnkit schema [--preset]

The JSON Schema of a whole resolved config, as config/config.yaml of a run holds it, from all components that are installed, those of
other packages too. --preset: of a file of experiment/ or sweeps/, for an editor that completes and checks it:

  dnnkit schema --preset > dnnkit.schema.json
  # yaml-language-server: $schema=../../dnnkit.schema.json     (the first line of conf/experiment/mine.yaml)"""


def print_schema(words: list[str]) -> int:
    """Print the JSON Schema of a config: dnnkit schema [--preset]."""
    _, rest = _json_flag(words)  # it is JSON anyway
    if asks_help(rest, _SCHEMA):
        return 0
    _one([word for word in rest if word != "--preset"], "schema [--preset]", most=0)
    from dnnkit import plugins
    from dnnkit.config.json_schema import config_schema

    plugins.load()
    print(json.dumps(config_schema(preset="--preset" in rest), indent=2, ensure_ascii=False))
    return 0


def _json_flag(words: Sequence[str]) -> tuple[bool, list[str]]:
    return "--json" in words, [word for word in words if word != "--json"]


def _one(words: Sequence[str], usage: str, *, most: int, least: int = 0) -> list[str]:
    """The words, if there are as many as the command takes."""
    if not least <= len(words) <= most or any(word.startswith("-") for word in words):
        raise ConfigError([Problem(" ".join(words) or "nothing", f"the command is: dnnkit {usage} [--json]")])
    return list(words)
