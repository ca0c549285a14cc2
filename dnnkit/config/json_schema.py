"""One JSON Schema for a whole config, from all that is registered now: for editors, and for whoever else has to judge a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dnnkit.config.groups import entry_schema
from dnnkit.config.sections import GROUPS, SECTIONS, Top
from dnnkit.config.transfer import Freeze, InitFrom
from dnnkit.registry import KINDS, REGISTRIES
from dnnkit.schema import Settings, choice_schema, component_settings, kind_settings

Schema = dict[str, Any]

DRAFT = "https://json-schema.org/draft/2020-12/schema"
#: `${data.name}`: a value that stands elsewhere in the config.
_REFERENCE: Schema = {"type": "string", "pattern": r"^\$\{[^:}]+\}$"}


def config_schema(preset: bool = False) -> Schema:
    """The schema of a whole resolved config, or of a `preset`: a file of `experiment/` or `sweeps/`, which changes some of it.

    What it says of one node it says as validation does, but that 3.0 is an integer to any JSON Schema; what is wrong between nodes,
    or only with data, it cannot say. A preset
    may leave out anything, a component's name too, has a defaults list, and refers to other values as `${data.name}`.
    """
    properties: Schema = {key: _referable(schema) if preset else schema for key, schema in _top().items()}
    properties |= {section: _section(declared, preset) for section, declared in SECTIONS.items()}
    properties |= {group: _preset_node(group) if preset else _node(group) for group in GROUPS}
    if not preset:
        return _whole("dnnkit: a resolved config", properties, [*GROUPS, *SECTIONS])
    defaults = {
        "type": "array",
        "items": {"type": ["string", "object"]},
        "description": "what it is made from: - override /activation: selu",
    }
    return _whole("dnnkit: an experiment or a sweep", {"defaults": defaults, **properties, "hydra": {"type": "object"}}, [])


def _whole(title: str, properties: Schema, required: Sequence[str]) -> Schema:
    whole = {"$schema": DRAFT, "title": title, "type": "object", "properties": properties, "additionalProperties": False}
    return {**whole, "required": list(required)} if required else whole


def _top() -> Schema:
    own = dict(Settings.of(Top).json_schema()["properties"])
    metrics = [*({"const": name} for name in REGISTRIES["metrics"].names()), _chosen("metrics")]
    one_of_two = [{"required": [key], "properties": {key: {"type": "string"}}} for key in ("run", "experiment")]
    return {
        **own,
        "metrics": {"anyOf": [{"const": "auto"}, {"type": "array", "items": {"anyOf": metrics}}], "default": "auto"},
        "init_from": {
            "anyOf": [
                {"type": ["null", "integer"]},
                {"type": "string", "minLength": 1},
                {**Settings.of(InitFrom).json_schema(), "oneOf": one_of_two},
            ],
            "default": None,
        },
        "freeze": {
            "anyOf": [
                {"type": "null"},
                {"type": "array", "items": {"anyOf": [{"type": "string", "minLength": 1}, Settings.of(Freeze).json_schema()]}},
            ],
            "default": None,
        },
    }


def _section(declared: type, preset: bool) -> Schema:
    schema = Settings.of(declared).json_schema()
    return _with_references(schema) if preset else schema


def _settings(group: str, name: str) -> Schema:
    """The schema of a choice's settings, without its name."""
    settings = kind_settings(group) if name in KINDS[group].switches else component_settings(REGISTRIES[group].get(name))
    schema = settings.json_schema()
    if "groups" in schema["properties"] and group == "optimizer":
        entries = {"type": "array", "items": entry_schema(name)}
        schema["properties"]["groups"] = {"anyOf": [{"type": "null"}, entries], "default": None}
    return schema


def _choices(group: str) -> dict[str, Schema]:
    return {name: _settings(group, name) for name in [*REGISTRIES[group].names(), *KINDS[group].switches]}


def _chosen(group: str) -> Schema:
    """A component of a group, with its settings, without the group's switches."""
    return choice_schema({record.name: _settings(group, record.name) for record in REGISTRIES[group]}, _summaries(group))


def _node(group: str) -> Schema:
    return choice_schema(_choices(group), _summaries(group))


def _preset_node(group: str) -> Schema:
    """A node that may leave out its name, where it holds settings of any choice of the group."""
    choices = _choices(group)
    named = choice_schema({name: {**_with_references(schema), "required": []} for name, schema in choices.items()}, _summaries(group))
    held: dict[str, list[Schema]] = {}
    for schema in choices.values():
        for key, value in schema["properties"].items():
            plain = {word: part for word, part in value.items() if word != "default"}  # of which choice is not known
            if plain not in held.setdefault(key, []):
                held[key].append(plain)
    anonymous = {key: _referable(several[0] if len(several) == 1 else {"anyOf": several}) for key, several in held.items()}
    return {"if": {"required": ["name"]}, "then": named, "else": {"type": "object", "properties": anonymous, "additionalProperties": False}}


def _summaries(group: str) -> Mapping[str, str]:
    return {record.name: record.summary for record in REGISTRIES[group]}


def _with_references(schema: Schema) -> Schema:
    return {**schema, "properties": {key: _referable(value) for key, value in schema["properties"].items()}}


def _referable(schema: Schema) -> Schema:
    return {"anyOf": [schema, _REFERENCE]}
