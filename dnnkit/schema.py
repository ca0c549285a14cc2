"""Signatures to settings: validation, JSON Schema, and the default config node of every component.

The signature is the schema. Each setting is judged by pydantic in strict mode, as JSON: no number is made from text, no
truth value counts as a number, and infinities and NaN are not numbers.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated, Any, Literal, Protocol

from annotated_types import Ge, Interval
from pydantic import ConfigDict, TypeAdapter, ValidationError

from dnnkit.errors import PluginError, Problem, nearest
from dnnkit.registry import KINDS, REGISTRIES, Component, parameters

#: How OmegaConf writes a value that has to be given.
MISSING = "???"

Count = Annotated[int, Ge(1)]
Fraction = Annotated[float, Interval(gt=0, lt=1)]
Share = Annotated[float, Interval(gt=0, le=1)]


class Keyed(Protocol):
    """Whatever holds a whole config by its keys: a `Config`, or plain data."""

    def __getitem__(self, key: str, /) -> Any: ...


@dataclass(frozen=True)
class DataSettings:
    """Settings of every data source."""

    batch_size: Count = 32
    """Examples in a minibatch, over all devices together."""

    root: str | None = None
    """The folder that the files are in; null looks in $DNNKIT_DATA, in data/ of the working folder and in the user's cache."""

    val_size: Count | Fraction = 0.1
    """Validation examples: a count or a share, where the source has no such split of its own."""

    test_size: Count | Fraction = 0.2
    """Test examples: a count or a share, where the source has no such split of its own."""

    train_size: Count | Fraction | None = None
    """A count or a share of what is left for training after validation and test are taken, stratified; null for all of it."""

    split: Literal["stratified", "random", "tail"] = "stratified"
    """How validation and test examples are chosen: with equal shares of the classes, at random, or the last ones."""

    standardize: Literal["auto", "channel", "feature", "none"] = "auto"
    """What is brought to mean 0 and standard deviation 1, by the training examples; `auto` channels of images, else features."""

    standardize_target: bool = True
    """Whether a regression's target is standardised too; its metrics keep the target's own units."""

    loader: Literal["auto", "resident", "stream"] = "auto"
    """`resident` keeps all examples on the device, `stream` standardises and moves them minibatch by minibatch.

    `auto` streams what would take more than `memory_share` of the free memory.
    """

    memory_share: Share = 0.5
    """The share of the free memory that `loader=auto` lets the examples take."""

    workers: Annotated[int, Ge(0)] = 0
    """Processes that prepare minibatches of a stream ahead; 0 prepares them as they are needed."""


@dataclass(frozen=True)
class ModelSettings:
    """Settings of every model."""

    use_bias: Literal["auto"] | bool = "auto"
    """`auto` drops the bias of a layer that feeds straight into a normalization with an offset."""


@dataclass(frozen=True)
class NormalizationSettings:
    """Settings of every normalization."""

    position: Literal["pre", "post"] = "pre"
    """Before or after the activation."""

    on_input: bool = False
    """Whether the input is normalized too."""


#: What a parameter is for: a kernel, an offset, a part of a normalization, or one that an activation learns.
Role = Literal["weight", "bias", "norm", "slope"]


#: Of what a rule of the linter finds: an error ends the run before it begins, a warning is said, a hint is said on request. A remark
#: is said on request too and offers no override: what one would change was measured, and it did not help.
Severity = Literal["error", "warning", "hint", "remark"]


@dataclass(frozen=True)
class DropoutSettings:
    """Settings of every dropout."""

    mc_samples: Annotated[int, Ge(0)] = 0
    """Passes with dropout on over the test split, whose mean and spread are recorded as test/mc_…; 0 makes none.

    That is Monte-Carlo dropout. It is about all dropout layers of the network, also about those that a model names itself.
    """


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings of every optimizer."""

    groups: list[Any] | None = None
    """Settings of their own for some parameters, `[{match: output, lr_scale: 0.1}, …]`.

    An entry says which parameters it is about, by `match` (a role: weight, bias, norm, slope; `output`; or a layer's name or
    pattern), `role` or `depth`, and what is special about them: `lr_scale`, `weight_decay`, `clipping`. The first entry that
    fits a parameter counts.
    """


@dataclass(frozen=True)
class SchedulerSettings:
    """Settings of every scheduler: a linear warm-up before it, after which the schedule runs over the steps that are left."""

    warmup_steps: Annotated[int, Ge(0)] | Fraction = 0
    """How long the warm-up is: optimizer steps, or a share of the run."""

    warmup_start_factor: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """The warm-up climbs from this factor of the schedule's first value to that value."""


#: Settings that belong to a kind: declared once, added to every node of it, third parties' too.
_KIND_SETTINGS = {
    "data": DataSettings,
    "model": ModelSettings,
    "normalization": NormalizationSettings,
    "dropout": DropoutSettings,
    "optimizer": OptimizerSettings,
    "scheduler": SchedulerSettings,
}
KIND_SETTINGS: Mapping[str, type] = types.MappingProxyType(_KIND_SETTINGS)


def field_docs(declared: type) -> dict[str, str]:
    """What the text below each field of a class says about it, by name; ValueError for a field without one."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(declared))).body
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    for line, below in itertools.pairwise([*tree.body, ast.Pass()]):
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        if not isinstance(below, ast.Expr) or not isinstance(below.value, ast.Constant) or not isinstance(below.value.value, str):
            raise ValueError(f"{declared.__name__}.{line.target.id} has no text below it that says what it is")
        found[line.target.id] = inspect.cleandoc(below.value.value)
    return found


@dataclass(frozen=True)
class Check:
    """What a type cannot say, as metadata beside it: `Annotated[list[Any], Check(problems)]`.

    `problems` maps a value of that type and its config path to everything wrong with it. `schema` gives what a JSON Schema can
    say of it, from what is registered now; None where that is no more than the type says.
    """

    problems: Callable[[Any, str], list[Problem]]
    schema: Callable[[], dict[str, Any]] | None = None


class Settings:
    """A set of typed, bounded settings with defaults, read from a signature."""

    def __init__(self, declared: Sequence[inspect.Parameter]) -> None:
        self._declared = {parameter.name: parameter for parameter in declared}

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Settings:
        """The settings of a function or dataclass all of whose parameters are settings."""
        return cls(list(inspect.signature(function, eval_str=True).parameters.values()))

    def __contains__(self, name: object) -> bool:
        return name in self._declared

    def __or__(self, other: Settings) -> Settings:
        return Settings([*self._declared.values(), *other._declared.values()])

    def names(self) -> list[str]:
        """The names, in the order of the signature."""
        return list(self._declared)

    def annotation(self, name: str) -> Any:
        """The type of one setting, with its bounds."""
        return self._declared[name].annotation

    def defaults(self) -> dict[str, Any]:
        """Name to default, `???` for a setting that has to be given."""
        empty = inspect.Parameter.empty
        return {name: MISSING if p.default is empty else p.default for name, p in self._declared.items()}

    def validate(self, values: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[Problem]]:
        """The values with defaults filled in, and everything wrong with them; `where` is the config path of the node."""
        problems = [
            Problem(_path(where, str(key)), _unknown(where, self.names()), nearest(str(key), self.names()))
            for key in values
            if key not in self._declared
        ]
        valid: dict[str, Any] = {}
        for name, value in {**self.defaults(), **values}.items():
            if name not in self._declared:
                continue
            if isinstance(value, str) and value == MISSING:
                problems.append(Problem(_path(where, name), f"has to be given: {words(self.annotation(name))}"))
                continue
            try:
                valid[name] = self._adapters[name].validate_json(json.dumps(value), strict=True)
            except (ValidationError, ValueError, TypeError):
                problems.append(_invalid(_path(where, name), self.annotation(name), value))
            else:
                problems += _checked(_path(where, name), self.annotation(name), valid[name])
        return valid, problems

    def json_schema(self) -> dict[str, Any]:
        """A JSON Schema of the object that holds these settings."""
        properties = {}
        for name, parameter in self._declared.items():
            properties[name] = _written(self._adapters[name], parameter.annotation)
            if parameter.default is not parameter.empty:
                properties[name]["default"] = json.loads(json.dumps(parameter.default))  # a tuple is a list
        required = [name for name, parameter in self._declared.items() if parameter.default is parameter.empty]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    @cached_property
    def _adapters(self) -> dict[str, TypeAdapter[Any]]:
        config = ConfigDict(strict=True, allow_inf_nan=False)
        return {name: TypeAdapter(parameter.annotation, config=config) for name, parameter in self._declared.items()}


def _written(adapter: TypeAdapter[Any], annotation: Any) -> dict[str, Any]:
    """The JSON Schema of one setting. Text that says that a value has to be given is no value."""
    schema = adapter.json_schema()
    told = [part.schema() for part in getattr(annotation, "__metadata__", ()) if isinstance(part, Check) and part.schema is not None]
    try:
        adapter.validate_json(json.dumps(MISSING), strict=True)
    except ValidationError:
        return {**schema, "allOf": told} if told else schema
    return {**schema, "allOf": told, "not": {"const": MISSING}} if told else {**schema, "not": {"const": MISSING}}


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _unknown(where: str, names: Sequence[str]) -> str:
    known = ", ".join(names) if names else "none"
    return f"unknown setting; {where} has: {known}" if where else f"unknown key; there are: {known}"


def _checked(where: str, annotation: Any, value: Any) -> list[Problem]:
    checks = annotation.__metadata__ if typing.get_origin(annotation) is Annotated else ()
    return [problem for check in checks if isinstance(check, Check) for problem in check.problems(value, where)]


def _invalid(where: str, annotation: Any, value: Any) -> Problem:
    close = nearest(value, [str(choice) for choice in _choices(annotation)]) if isinstance(value, str) else ()
    return Problem(where, f"must be {words(annotation)}, got {value!r}", close)


def spelt_values(annotation: Any) -> list[str]:
    """Those values of a type that can be told one by one, as a command line has them: choices, truth values, null."""
    if annotation is bool:
        return ["true", "false"]
    if annotation in (None, type(None)):
        return ["null"]
    if typing.get_origin(annotation) is Literal:
        return list(dict.fromkeys(map(str, typing.get_args(annotation))))
    members = typing.get_args(annotation)
    members = members[:1] if typing.get_origin(annotation) not in (typing.Union, types.UnionType) else members
    return [value for member in members for value in spelt_values(member)]


def _choices(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is Literal:
        return typing.get_args(annotation)
    return tuple(choice for member in typing.get_args(annotation) for choice in _choices(member))


_WORDS: Mapping[Any, str] = {
    int: "an integer",
    float: "a finite number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    None: "null",
}
_PLURALS: Mapping[Any, str] = {Any: "values", int: "integers", float: "finite numbers", str: "texts", bool: "truth values"}
_SIGNS: Mapping[str, str] = {
    "gt": "greater than {}",
    "ge": "at least {}",
    "lt": "less than {}",
    "le": "at most {}",
    "multiple_of": "a multiple of {}",
    "min_length": "at least {} long",
    "max_length": "at most {} long",
}


def words(annotation: Any) -> str:
    """The rule that a type states, as a reader says it: "an integer at least 1 or null"."""
    return _words(annotation, _WORDS)


def _words(annotation: Any, table: Mapping[Any, str]) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        stated = [(sign, getattr(item, name, None)) for item in arguments[1:] for name, sign in _SIGNS.items()]
        bounds = [sign.format(bound) for sign, bound in stated if bound is not None]
        return " ".join([_words(arguments[0], table), " and ".join(bounds)]).strip()
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(dict.fromkeys(str(choice) for choice in arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(member, table) for member in arguments)
    if origin in (list, tuple, Sequence):
        inner = [member for member in arguments if member is not Ellipsis]
        return f"a list of {_words(inner[0], _PLURALS)}" if inner else "a list"
    if origin is dict or annotation is dict:
        return "a mapping"
    return table.get(annotation, getattr(annotation, "__name__", str(annotation)))


@cache
def kind_settings(group: str) -> Settings:
    """The settings that every node of this config group has."""
    return Settings.of(KIND_SETTINGS[group]) if group in KIND_SETTINGS else Settings([])


def component_settings(component: Component) -> Settings:
    """A component's own settings followed by those of its kind; PluginError where one hides the other."""
    own, shared = Settings(parameters(component.kind, component.function)), kind_settings(component.kind.group)
    clash = [name for name in own.names() if name in shared]
    if clash:
        where = f"{component.kind.group}={component.name} ({component.origin})"
        message = f"{where}: the setting {clash[0]!r} belongs to every {component.kind.name}"
        raise PluginError(message, "rename it in the component's signature")
    return own | shared


def node(group: str, name: str) -> dict[str, Any]:
    """The config node of one choice: `{"name": name, …settings with their defaults}`."""
    if name in KINDS[group].switches:
        return {"name": name, **kind_settings(group).defaults()}
    return {"name": name, **component_settings(REGISTRIES[group].get(name)).defaults()}


def validate_node(group: str, values: Any) -> tuple[dict[str, Any], list[Problem]]:
    """A group's node with defaults filled in, and everything wrong with it."""
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        return {}, [Problem(group, f"must be chosen by name, as {group}=NAME, got {values!r}")]
    name, rest = values["name"], {key: value for key, value in values.items() if key != "name"}
    choices = [*REGISTRIES[group].names(), *KINDS[group].switches]
    if name not in choices:
        message = f"no {KINDS[group].name} is called {name!r}; there are: {', '.join(choices)}"
        return {}, [Problem(f"{group}.name", message, nearest(name, choices))]
    settings = kind_settings(group) if name in KINDS[group].switches else component_settings(REGISTRIES[group].get(name))
    valid, problems = settings.validate(rest, group)
    return {"name": name, **valid}, problems


def choice_schema(
    choices: Mapping[str, dict[str, Any]], summaries: Mapping[str, str] = types.MappingProxyType({}), key: str = "name"
) -> dict[str, Any]:
    """The JSON Schema of an object that says under `key` which of several it is, and holds the settings of that one.

    `choices` are the schemas of the settings by name, `summaries` what an editor shows of a choice.
    """
    named = {"oneOf": [{"const": name, **({"description": summaries[name]} if name in summaries else {})} for name in choices]}
    branches = [
        {
            "if": {"properties": {key: {"const": name}}, "required": [key]},
            "then": {**schema, "properties": {key: True, **schema["properties"]}},
        }
        for name, schema in choices.items()
    ]
    return {"type": "object", "properties": {key: named}, "required": [key], "allOf": branches}


def own_values(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings of a node that go to the component itself: without its name and the kind's settings."""
    return {key: value for key, value in values.items() if key != "name" and key not in kind_settings(group)}
