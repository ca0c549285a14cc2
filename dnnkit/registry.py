"""Names to components: one registry per kind, one frozen record per component.

A component is a documented, typed function or class. Registering it returns it unchanged; the record is read off its
signature and docstring. This room uses the standard library alone, so that listing names costs nothing.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from dnnkit.errors import PluginError, nearest

F = TypeVar("F", bound=Callable[..., Any])

#: The entry points that plugins are found by.
ENTRY_POINTS = "dnnkit.plugins"

#: Names with a meaning of their own in a config; no component may take them.
RESERVED = ("none", "auto")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_BOUNDS = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length")


@dataclass(frozen=True)
class Kind:
    """A family of components: its config group and what the builder passes to each member.

    `arguments` come first, by position, and are never settings; `offered` are passed by name to a component that asks
    for them; `required` are settings that every member must have; `switches` are the names, besides the registered
    ones, that a config may choose.
    """

    name: str
    group: str
    arguments: tuple[str, ...] = ()
    offered: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()


KINDS: Mapping[str, Kind] = types.MappingProxyType(
    {
        kind.group: kind
        for kind in (
            Kind("task", "task", switches=("auto",)),
            Kind("data_source", "data", ("root",), offered=("task",)),
            Kind("augmentation", "augmentation", ("x", "generator"), switches=("none",)),
            Kind("model", "model", ("inputs", "outputs", "parts")),
            Kind("activation", "activation", offered=("features",)),
            Kind("initializer", "initializer", ("weight",), switches=("auto",)),
            Kind("normalization", "normalization", ("features",), offered=("layer",), switches=("none",)),
            Kind("dropout", "dropout", switches=("none",)),
            Kind("regularizer", "regularizer", ("module",), switches=("none",)),
            Kind("constraint", "constraint", ("module",), switches=("none",)),
            Kind("clipping", "clipping", ("parameters",), switches=("none",)),
            Kind("loss", "loss", ("prediction", "target"), switches=("auto",)),
            Kind("metric", "metrics", ("prediction", "target"), switches=("auto",)),
            Kind("optimizer", "optimizer", ("params",), required=("lr",)),
            Kind("scheduler", "scheduler", ("step", "total_steps"), offered=("mode",)),
            Kind("rule", "lint", ("config",), offered=("network", "data", "steps", "clipped_gradients")),
        )
    }
)


@dataclass(frozen=True)
class Origin:
    """Where a component comes from: the installed package, its version, and the module."""

    package: str
    version: str
    module: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}".strip() + f" ({self.module})"


@dataclass(frozen=True)
class Setting:
    """One setting of a component, as its signature declares it; `bounds` such as `{"ge": 0, "lt": 1}`."""

    name: str
    type: str
    required: bool
    default: Any = None
    bounds: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[Any, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable; `default` is left out of a required setting."""
        row: dict[str, Any] = {"name": self.name, "type": self.type, "required": self.required}
        if not self.required:
            row["default"] = self.default
        return {**row, "bounds": dict(self.bounds), "choices": list(self.choices)}


@dataclass(frozen=True)
class Component:
    """The record of one registered component."""

    kind: Kind
    name: str
    origin: Origin
    summary: str
    doc: str
    source: str
    settings: tuple[Setting, ...]
    facts: Mapping[str, Any]
    function: Callable[..., Any] = field(repr=False, compare=False)
    offered: tuple[str, ...] = ()

    @property
    def watches(self) -> bool:
        """Whether it is a scheduler that watches a metric: a class, of which each run has an object of its own."""
        return self.kind.group == "scheduler" and inspect.isclass(self.function)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable, everything but the function itself."""
        return {
            "kind": self.kind.group,
            "name": self.name,
            "origin": {"package": self.origin.package, "version": self.origin.version, "module": self.origin.module},
            "summary": self.summary,
            "doc": self.doc,
            "source": self.source,
            "settings": [setting.to_dict() for setting in self.settings],
            "facts": dict(self.facts),
        }


_loading: ContextVar[tuple[str, str] | None] = ContextVar("loading", default=None)


@contextmanager
def registering_for(package: str, version: str) -> Iterator[None]:
    """Whatever is registered inside belongs to this package; `plugins` wraps every import in it."""
    token = _loading.set((package, version))
    try:
        yield
    finally:
        _loading.reset(token)


class Registry:
    """The components of one kind, by config name."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._components: dict[str, Component] = {}

    def register(self, name: str, **facts: Any) -> Callable[[F], F]:
        """A decorator that records the component under `name` and returns it unchanged.

        `facts` are JSON values that other components or rules may ask for, such as `pairs_with="he_normal"`.
        Raises PluginError for a name that is taken, reserved or not snake_case, and for a signature that breaks the
        contract of the kind.
        """

        def decorate(function: F) -> F:
            self._add(_record(self.kind, name, function, facts))
            return function

        return decorate

    def _add(self, new: Component) -> None:
        old = self._components.get(new.name)
        if old is not None and old.function is new.function:
            return  # it belongs to whoever registered it first
        # A notebook cell that is run again redefines its own component; nobody else may.
        redefined = old is not None and old.origin.module == new.origin.module == "__main__"
        if old is not None and not redefined:
            raise PluginError(
                f"{self.kind.group}={new.name} is registered twice: by {old.origin} and by {new.origin}",
                "rename one of them, or uninstall one of the two packages",
            )
        self._components[new.name] = new

    def get(self, name: str) -> Component:
        """The record called `name`; PluginError with the nearest names where there is none."""
        if name not in self._components:
            close = nearest(name, self._components)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(self.names()) or 'none'}"
            raise PluginError(f"no {self.kind.name} is called {name!r}", hint)
        return self._components[name]

    def remove(self, name: str) -> None:
        """Forget a component: a plugin that failed half-way leaves nothing behind."""
        del self._components[name]

    def names(self) -> list[str]:
        """All names, in alphabetical order."""
        return sorted(self._components)

    def __contains__(self, name: object) -> bool:
        return name in self._components

    def __iter__(self) -> Iterator[Component]:
        return (self._components[name] for name in self.names())

    def __len__(self) -> int:
        return len(self._components)


REGISTRIES: Mapping[str, Registry] = types.MappingProxyType({group: Registry(kind) for group, kind in KINDS.items()})

tasks = REGISTRIES["task"]
data_sources = REGISTRIES["data"]
augmentations = REGISTRIES["augmentation"]
models = REGISTRIES["model"]
activations = REGISTRIES["activation"]
initializers = REGISTRIES["initializer"]
normalizations = REGISTRIES["normalization"]
dropouts = REGISTRIES["dropout"]
regularizers = REGISTRIES["regularizer"]
constraints = REGISTRIES["constraint"]
clippings = REGISTRIES["clipping"]
losses = REGISTRIES["loss"]
metrics = REGISTRIES["metrics"]
optimizers = REGISTRIES["optimizer"]
schedulers = REGISTRIES["scheduler"]
rules = REGISTRIES["lint"]


def _record(kind: Kind, name: str, function: Callable[..., Any], facts: Mapping[str, Any]) -> Component:
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise PluginError(
            f"{kind.group}: {name!r} cannot be a component's name",
            f"use lower-case letters, digits and underscores, starting with a letter, and none of {', '.join(RESERVED)}",
        )
    origin = _origin(function)
    try:
        json.dumps(dict(facts))
    except (TypeError, ValueError) as error:
        raise PluginError(f"{kind.group}={name} ({origin}): its facts are not JSON: {error}") from error
    settings, offered = _settings(kind, name, function)
    if kind.group == "task":
        _check_task(f"task={name} ({origin})", function, facts, settings)
    doc = inspect.getdoc(function) or ""
    summary, held = doc.split("\n\n")[0].replace("\n", " "), types.MappingProxyType(dict(facts))
    return Component(kind, name, origin, summary, doc, _source(doc), settings, held, function, offered)


def _origin(function: Callable[..., Any]) -> Origin:
    module = getattr(function, "__module__", None) or "__main__"
    loading = _loading.get()
    if loading is not None:
        return Origin(*loading, module)
    package = module.partition(".")[0]
    try:
        return Origin(package, importlib.metadata.version(package), module)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return Origin(package, "", module)


def _source(doc: str) -> str:
    """The text after `Source:` in a docstring, to the end of its paragraph."""
    found = re.search(r"^Source:\s*(.+?)(?:\n\s*\n|\Z)", doc, re.MULTILINE | re.DOTALL)
    return " ".join(found.group(1).split()) if found else ""


def parameters(component_kind: Kind, function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of `function` that are settings: all but those that the builder passes.

    A class takes its settings at construction and the builder's arguments later, so all its parameters are settings.
    """
    found = list(inspect.signature(function, eval_str=True).parameters.values())
    if not inspect.isclass(function):
        found = found[len(component_kind.arguments) :]
    elif all(parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in found):
        found = []  # a class without a constructor of its own shows that of its base, such as nn.Module's
    return [parameter for parameter in found if parameter.name not in component_kind.offered]


def _settings(kind: Kind, name: str, function: Callable[..., Any]) -> tuple[tuple[Setting, ...], tuple[str, ...]]:
    where = f"{kind.group}={name} ({_origin(function)})"
    try:
        signature = inspect.signature(function, eval_str=True)
        declared = parameters(kind, function)
    except Exception as error:
        raise PluginError(f"{where}: its signature cannot be read: {error}") from error
    if not inspect.isclass(function):
        leading = list(signature.parameters.values())[: len(kind.arguments)]
        if len(leading) < len(kind.arguments) or any(_not_leading(parameter) for parameter in leading):
            raise PluginError(f"{where}: its first arguments must be ({', '.join(kind.arguments)}), without defaults")
    for parameter in declared:
        _check_setting(where, parameter)
    if kind.group == "scheduler" and inspect.isclass(function):
        _check_watcher(where, function, {parameter.name for parameter in declared})
    missing = [required for required in kind.required if required not in {parameter.name for parameter in declared}]
    if missing:
        cure = f"add it to the signature: {missing[0]}: float = …"
        raise PluginError(f"{where}: every {kind.name} needs the setting {missing[0]!r}", cure)
    offered = tuple(name for name in kind.offered if name in signature.parameters)
    return tuple(_setting(parameter) for parameter in declared), offered


def _check_watcher(where: str, watcher: type, settings: set[str]) -> None:
    """PluginError for a scheduler class that could not be told what it watches."""
    if "monitor" not in settings:
        cure = 'add it to the constructor, for example monitor: str = "val/loss"'
        raise PluginError(f"{where}: a scheduler that watches a metric needs the setting 'monitor'", cure)
    for method, arguments, why in (("factor", "step", "the factor of the rate"), ("observe", "value", "what was measured")):
        found = getattr(watcher, method, None)
        if not inspect.isfunction(found) or list(inspect.signature(found).parameters)[1:] != [arguments]:
            raise PluginError(f"{where}: a scheduler that watches a metric needs the method {method}({arguments}): {why}")


def _check_task(where: str, task: Callable[..., Any], facts: Mapping[str, Any], settings: tuple[Setting, ...]) -> None:
    """PluginError for a task that does not say what it is trained and measured by, or that a config could not choose."""
    if not inspect.isclass(task) or settings:
        what = f"it has the setting {settings[0].name!r}" if settings else "it is a function"
        raise PluginError(f"{where}: a task is a class without settings; {what}", "derive it from dnnkit.data.BaseTask")
    metrics = facts.get("metrics")
    if not isinstance(facts.get("loss"), str) or not isinstance(metrics, list) or not metrics:
        cure = '@tasks.register("…", loss="cross_entropy", metrics=["acc"])'
        raise PluginError(f"{where}: a task names what loss=auto and metrics=auto stand for", cure)


def _check_setting(where: str, parameter: inspect.Parameter) -> None:
    """PluginError for a parameter that a config could not set."""
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY) or parameter.name == "name":
        cure = "declare each setting by a name of its own, with a type and a default"
        raise PluginError(f"{where}: {parameter} cannot be a setting", cure)
    if parameter.annotation is inspect.Parameter.empty:
        cure = f"annotate it, for example {parameter.name}: float = 0.1"
        raise PluginError(f"{where}: the setting {parameter.name!r} has no type", cure)
    if parameter.default is not inspect.Parameter.empty:
        try:
            json.dumps(parameter.default, allow_nan=False)
        except (TypeError, ValueError) as error:
            message = f"{where}: the default of {parameter.name!r} cannot stand in a config: {parameter.default!r}"
            raise PluginError(message, "use numbers, texts, truth values, null, and lists and mappings of them") from error


def _not_leading(parameter: inspect.Parameter) -> bool:
    return parameter.default is not parameter.empty or parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)


def _setting(parameter: inspect.Parameter) -> Setting:
    required = parameter.default is parameter.empty
    bare, bounds = _unwrap(parameter.annotation)
    choices = typing.get_args(bare) if typing.get_origin(bare) is Literal else ()
    return Setting(parameter.name, _type_text(bare), required, None if required else parameter.default, bounds, choices)


def _unwrap(annotation: Any) -> tuple[Any, dict[str, Any]]:
    """The type without `Annotated`, and the bounds found in its metadata (annotated-types or alike, by attribute)."""
    if typing.get_origin(annotation) is not Annotated:
        return annotation, {}
    bare, *metadata = typing.get_args(annotation)
    bounds: dict[str, Any] = {}
    for item in [part for entry in metadata for part in (entry, *getattr(entry, "metadata", ()))]:
        bounds |= {bound: getattr(item, bound) for bound in _BOUNDS if getattr(item, bound, None) is not None}
    return bare, bounds


def _type_text(annotation: Any) -> str:
    if annotation is None or annotation is type(None):
        return "none"
    if typing.get_origin(annotation) is Annotated:
        bare, bounds = _unwrap(annotation)
        return _type_text(bare) + (f" {bounds}" if bounds else "")
    if typing.get_origin(annotation) is Literal:
        return "|".join(str(choice) for choice in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return "|".join(_type_text(member) for member in typing.get_args(annotation))
    if typing.get_origin(annotation) is not None:
        inner = ", ".join(_type_text(member) for member in typing.get_args(annotation) if member is not Ellipsis)
        return f"{typing.get_origin(annotation).__name__}[{inner}]"
    return getattr(annotation, "__name__", str(annotation))
