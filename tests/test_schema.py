"""Signatures become settings: what is valid, what is not, and that the JSON Schema says the same."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from annotated_types import Ge, Gt, Interval, Len

from dnnkit import plugins
from dnnkit.config.sections import GROUPS, SECTIONS, Top
from dnnkit.errors import PluginError
from dnnkit.registry import KINDS, REGISTRIES, Component, Registry
from dnnkit.schema import KIND_SETTINGS, MISSING, Check, Settings, component_settings, kind_settings, node, own_values, validate_node, words

plugins.load()

EVERY = [component for components in REGISTRIES.values() for component in components]
CHOICES = [(group, name) for group in KINDS for name in [*REGISTRIES[group].names(), *KINDS[group].switches]]
DECLARED = [component_settings(component) for component in EVERY] + [Settings.of(declared) for declared in (Top, *SECTIONS.values())]


def component_id(component: Component) -> str:
    return f"{component.kind.group}={component.name}"


def valid(annotation: Any, value: Any) -> bool:
    """Whether a setting of this type takes the value."""

    def declared(setting: Any) -> None: ...

    declared.__annotations__["setting"] = annotation
    return not Settings.of(declared).validate({"setting": value}, "group")[1]


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The values with a text for each that has to be given."""
    return {key: "given" if value == MISSING else value for key, value in values.items()}


@pytest.mark.parametrize("component", EVERY, ids=component_id)
def test_every_default_is_valid_by_its_own_rule(component: Component) -> None:
    settings = component_settings(component)
    asked = given(settings.defaults())
    values, problems = settings.validate(asked, component.kind.group)
    assert problems == []
    assert values == asked
    missing = {key for key, value in settings.defaults().items() if value == MISSING}
    assert missing == {setting.name for setting in component.settings if setting.required}


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_node_is_valid_and_comes_back_as_it_was(group: str, name: str) -> None:
    values, problems = validate_node(group, given(node(group, name)))
    assert (values, problems) == (given(node(group, name)), [])
    assert json.loads(json.dumps(values)) == values
    assert set(kind_settings(group).names()) <= set(values)
    if name in REGISTRIES[group]:
        assert set(own_values(group, values)) == {setting.name for setting in REGISTRIES[group].get(name).settings}


#: A type, values that it takes, values that it does not.
STRICT: list[tuple[Any, list[Any], list[Any]]] = [
    (int, [0, -3, 10**20], [1.0, 1.5, True, "3", None, [1], math.nan]),
    (float, [1, 1.5, -2, 0], [True, "1.5", None, [1.0], math.nan, math.inf, -math.inf]),
    (bool, [True, False], [0, 1, "true", None, 1.0]),
    (str, ["", "3", "true"], [3, True, None, ["a"], 1.5]),
    (int | None, [3, None], ["", False, 1.5, "null"]),
    (list[int], [[], [1, 2]], [[1.5], [True], ["1"], [None], 1, {"0": 1}, None, [[1]]]),
    (list[Annotated[int, Ge(1)]], [[1, 3]], [[1, 0], [-1]]),
    (Annotated[float, Gt(0)], [1e-300, 5], [0, 0.0, -0.0, -1, math.nan, math.inf]),
    (Annotated[float, Interval(ge=0, lt=1)], [0, 0.999], [1, 1.0, -1e-9]),
    (Annotated[int, Ge(1)] | Annotated[float, Interval(gt=0, lt=1)], [1, 500, 0.5], [0, 1.0, 0.0, 1.5, True]),
    (Annotated[str, Len(1, 3)], ["a", "abc"], ["", "abcd"]),
    (Literal["auto", "min"], ["auto"], ["Auto", "max", None, True]),
    (Literal[32, "32"], [32, "32"], [33, "33", 32.5]),
    (Literal["auto"] | bool, ["auto", True], [1, "true", None]),
]


@pytest.mark.parametrize(("annotation", "takes", "refuses"), STRICT, ids=lambda value: str(value)[:40])
def test_a_value_is_never_bent_to_fit_its_type(annotation: Any, takes: list[Any], refuses: list[Any]) -> None:
    assert [value for value in takes if not valid(annotation, value)] == []
    assert [value for value in refuses if valid(annotation, value)] == []


def test_a_valid_value_has_the_declared_type() -> None:
    def declared(rate: float, widths: list[int]) -> None: ...

    values, problems = Settings.of(declared).validate({"rate": 1, "widths": [1, 2]}, "x")
    assert problems == []
    assert (type(values["rate"]), values["widths"]) == (float, [1, 2])


def test_what_is_wrong_names_the_place_the_rule_and_the_value() -> None:
    def declared(lr: Annotated[float, Gt(0)], mode: Literal["min", "max"] = "min", steps: int = 3) -> None: ...

    _, problems = Settings.of(declared).validate({"lr": -1, "mode": "mni", "stepps": 4, "steps": None}, "group")
    told = {problem.where: (problem.message, problem.nearest[:1]) for problem in problems}
    assert told == {
        "group.lr": ("must be a finite number greater than 0, got -1", ()),
        "group.mode": ("must be one of min, max, got 'mni'", ("min",)),
        "group.stepps": ("unknown setting; group has: lr, mode, steps", ("steps",)),
        "group.steps": ("must be an integer, got None", ()),
    }


def test_a_setting_without_default_has_to_be_given() -> None:
    def declared(path: str, depth: int = 3) -> None: ...

    settings = Settings.of(declared)
    assert settings.defaults() == {"path": MISSING, "depth": 3}
    assert [str(problem) for problem in settings.validate({}, "data")[1]] == ["data.path: has to be given: text."]
    assert settings.validate({"path": "x"}, "data") == ({"path": "x", "depth": 3}, [])
    assert settings.json_schema()["required"] == ["path"]


@pytest.mark.parametrize("values", [None, 3, "selu", [], {}, {"name": None}, {"name": 3}, {"name": ["selu"]}])
def test_a_node_without_a_name_is_refused(values: Any) -> None:
    (problem,) = validate_node("activation", values)[1]
    assert "must be chosen by name, as activation=NAME" in problem.message


def test_a_node_with_a_wrong_name_is_answered_with_the_nearest() -> None:
    (problem,) = validate_node("activation", {"name": "sellu"})[1]
    assert (problem.where, problem.nearest[0]) == ("activation.name", "selu")
    assert validate_node("clipping", {"name": "none"}) == ({"name": "none"}, [])
    assert validate_node("activation", {"name": "none"})[1]


#: Types and the rule as a reader says it.
WORDS: list[tuple[Any, str]] = [
    (int, "an integer"),
    (Annotated[int, Ge(0)], "an integer at least 0"),
    (Annotated[int, Ge(1)] | None, "an integer at least 1 or null"),
    (Annotated[float, Interval(gt=0, le=1)], "a finite number greater than 0 and at most 1"),
    (list[Annotated[int, Ge(1)]], "a list of integers at least 1"),
    (Literal["a", "b"] | list[str], "one of a, b or a list of texts"),
    (Literal["auto"] | bool, "auto or true or false"),
    (Annotated[str, Len(min_length=1, max_length=200)], "text at least 1 long and at most 200 long"),
    (dict[str, int], "a mapping"),
    (tuple[float, ...], "a list of finite numbers"),
]


@pytest.mark.parametrize(("annotation", "text"), WORDS, ids=[text for _, text in WORDS])
def test_a_rule_is_put_into_words(annotation: Any, text: str) -> None:
    assert words(annotation) == text


def test_every_setting_there_is_has_a_rule_in_words() -> None:
    rules = [words(settings.annotation(name)) for settings in DECLARED for name in settings.names()]
    assert len(rules) > 80
    assert all(rule and "typing" not in rule and "<" not in rule and "[" not in rule for rule in rules)


def random_value(draw: random.Random, depth: int = 0) -> Any:
    """A JSON value: of every type, and often at a bound."""
    kinds: list[Callable[[], Any]] = [
        lambda: draw.choice([0, 1, -1, 2, 32, 64, 2**32 - 1, 2**32]),
        lambda: draw.choice([0.5, -0.5, 1e-9, 0.999, 1.5, 2.5, -1e300]),
        lambda: draw.choice([True, False, None]),
        lambda: draw.choice(["", "auto", "none", "min", "tail", "tanh", "32", "x" * 201, "selu"]),
        lambda: [random_value(draw, depth + 1) for _ in range(draw.randrange(3))],
        lambda: {"a": random_value(draw, depth + 1)},
    ]
    return draw.choice(kinds[: 4 if depth > 1 else 6])()


def test_the_json_schema_accepts_what_validation_accepts_and_nothing_else() -> None:
    draw, seen = random.Random(0), {True: 0, False: 0}
    for settings in DECLARED:
        validator = jsonschema.Draft202012Validator(settings.json_schema())
        for name in settings.names():
            for _ in range(12):
                values = {name: random_value(draw)}
                fits = not settings.validate(values, "x")[1]
                # What a Check says of a value, a schema of its type does not.
                looser = any(isinstance(part, Check) for part in getattr(settings.annotation(name), "__metadata__", ()))
                assert validator.is_valid(values) == fits or (looser and not fits), (name, values)
                seen[fits] += 1
    assert min(seen.values()) > 100


@pytest.mark.parametrize("settings", DECLARED, ids=lambda settings: "-".join(settings.names())[:30])
def test_every_json_schema_is_one_and_takes_the_defaults(settings: Settings) -> None:
    schema = settings.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    asked = json.loads(json.dumps(given(settings.defaults())))
    jsonschema.validate(asked, schema)
    for wrong in ({**asked, "no_such_setting": 1}, *({**asked, name: MISSING} for name in asked)):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_a_setting_of_the_kind_cannot_be_hidden_by_a_component() -> None:
    def batchy(root: Any, batch_size: int = 3) -> None: ...

    sources = Registry(KINDS["data"])
    sources.register("batchy")(batchy)
    with pytest.raises(PluginError, match="'batch_size' belongs to every data_source"):
        component_settings(sources.get("batchy"))


def test_the_settings_of_a_kind_are_those_of_groups_that_a_config_has() -> None:
    assert set(KIND_SETTINGS) <= set(GROUPS) <= set(KINDS)
