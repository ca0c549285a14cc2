"""The registry: what it records of a component, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import random
import string
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pytest
import torch
from annotated_types import Ge, Interval
from torch import nn

from dnnkit import plugins, registry
from dnnkit.errors import PluginError, nearest
from dnnkit.registry import KINDS, REGISTRIES, Kind, Registry, registering_for

plugins.load()

EVERY = [component for components in REGISTRIES.values() for component in components]


@pytest.fixture
def activations() -> Registry:
    return Registry(KINDS["activation"])


def leaky(negative_slope: Annotated[float, Interval(ge=0, lt=1)] = 0.01) -> nn.Module:
    """max(negative_slope · z, z),
    elementwise.

    Never dies.
    Source: Maas, Hannun & Ng
    2013.

    More words.
    """
    return nn.LeakyReLU(negative_slope)


def test_registering_returns_the_component_unchanged(activations: Registry) -> None:
    assert activations.register("leaky")(leaky) is leaky
    assert activations.get("leaky").function is leaky
    assert activations.register("module")(nn.ReLU6) is nn.ReLU6


def test_a_record_holds_what_signature_and_docstring_say(activations: Registry) -> None:
    with registering_for("theirs", "1.2"):
        activations.register("leaky", pairs_with="he_normal")(leaky)
    record = activations.get("leaky").to_dict()
    assert record["origin"] == {"package": "theirs", "version": "1.2", "module": __name__}
    assert record["summary"] == "max(negative_slope · z, z), elementwise."
    assert record["source"] == "Maas, Hannun & Ng 2013."
    assert record["facts"] == {"pairs_with": "he_normal"}
    slope = {"name": "negative_slope", "type": "float", "required": False, "default": 0.01, "bounds": {"ge": 0, "lt": 1}, "choices": []}
    assert record["settings"] == [slope]


def test_a_record_cannot_be_changed(activations: Registry) -> None:
    activations.register("leaky", pairs_with="he_normal")(leaky)
    record: Any = activations.get("leaky")
    for change in (record, record.settings[0], record.origin, record.kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            change.name = "other"
    with pytest.raises(TypeError):
        record.facts["pairs_with"] = "zeros"
    with pytest.raises(TypeError):
        REGISTRIES["activation"] = activations  # type: ignore[index]


def test_the_whole_registry_is_json() -> None:
    text = json.dumps([component.to_dict() for component in EVERY], allow_nan=False)
    assert len(json.loads(text)) == len(EVERY) > 40


@pytest.mark.parametrize("component", EVERY, ids=lambda component: f"{component.kind.group}={component.name}")
def test_every_built_in_component_says_where_it_is_from_and_what_it_is(component: registry.Component) -> None:
    assert component.origin.package == "dnnkit"
    assert component.origin.version
    assert component.origin.module.startswith("dnnkit_plugins.")
    assert component.summary


def test_a_taken_name_is_refused_and_both_owners_are_named(activations: Registry) -> None:
    with registering_for("ours", "1.0"):
        activations.register("leaky")(leaky)
    with registering_for("theirs", "2.0"), pytest.raises(PluginError) as caught:
        activations.register("leaky")(nn.ReLU)
    assert "activation=leaky" in str(caught.value)
    assert "ours 1.0" in str(caught.value)
    assert "theirs 2.0" in str(caught.value)
    assert activations.get("leaky").function is leaky


def test_a_component_belongs_to_whoever_registered_it_first(activations: Registry) -> None:
    for package in ("ours", "theirs"):
        with registering_for(package, "1.0"):
            activations.register("leaky")(leaky)
    assert activations.get("leaky").origin.package == "ours"


def test_a_notebook_may_redefine_its_own_component_but_no_other(activations: Registry) -> None:
    def cell() -> nn.Module:
        return nn.ReLU()

    def again() -> nn.Module:
        return nn.ELU()

    cell.__module__ = again.__module__ = "__main__"
    activations.register("mine")(cell)
    activations.register("mine")(again)
    assert activations.get("mine").function is again
    activations.register("leaky")(leaky)
    with pytest.raises(PluginError, match="registered twice"):
        activations.register("leaky")(again)


@pytest.mark.parametrize("name", ["none", "auto", "", "SELU", "leaky-relu", "leaky relu", "2x", "_relu", "relu.x", "rélu", "a/b", "relu\n"])
def test_reserved_and_malformed_names_are_refused(activations: Registry, name: str) -> None:
    with pytest.raises(PluginError, match="cannot be a component's name"):
        activations.register(name)(leaky)
    assert len(activations) == 0


def no_arguments() -> None: ...
def one_too_few(step: int) -> float: ...  # type: ignore[empty-body]
def default_first(step: int = 0, total_steps: int = 1) -> float: ...  # type: ignore[empty-body]
def keyword_first(*, step: int, total_steps: int) -> float: ...  # type: ignore[empty-body]
def star(step: int, total_steps: int, *rest: int) -> float: ...  # type: ignore[empty-body]
def stars(step: int, total_steps: int, **rest: int) -> float: ...  # type: ignore[empty-body]
def untyped(step: int, total_steps: int, factor=0.1) -> float: ...  # type: ignore[no-untyped-def,empty-body]
def named(step: int, total_steps: int, name: str = "x") -> float: ...  # type: ignore[empty-body]
def unreadable(step: int, total_steps: int, factor: Nowhere = 1) -> float: ...  # type: ignore[name-defined,empty-body]  # noqa: F821
def no_config(step: int, total_steps: int, factor: Any = object()) -> float: ...  # type: ignore[empty-body]  # noqa: B008
def endless(step: int, total_steps: int, factor: float = float("inf")) -> float: ...  # type: ignore[empty-body]


BROKEN: list[tuple[Callable[..., Any], str]] = [
    (no_arguments, r"first arguments must be \(step, total_steps\)"),
    (one_too_few, "first arguments"),
    (default_first, "without defaults"),
    (keyword_first, "first arguments"),
    (star, r"\*rest: int cannot be a setting"),
    (stars, r"\*\*rest: int cannot be a setting"),
    (untyped, "'factor' has no type"),
    (named, "name: str = 'x' cannot be a setting"),
    (unreadable, "signature cannot be read"),
    (no_config, "default of 'factor' cannot stand in a config"),
    (endless, "default of 'factor' cannot stand in a config: inf"),
]


@pytest.mark.parametrize(("function", "says"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_signature_that_breaks_the_contract_of_its_kind_is_refused(function: Callable[..., Any], says: str) -> None:
    schedulers = Registry(KINDS["scheduler"])
    with pytest.raises(PluginError, match=says) as caught:
        schedulers.register("broken")(function)
    assert "scheduler=broken" in str(caught.value)
    assert __name__ in str(caught.value)
    assert len(schedulers) == 0


def test_an_optimizer_without_a_rate_is_refused() -> None:
    def rateless(params: list[torch.Tensor], momentum: float = 0.9) -> None: ...

    with pytest.raises(PluginError, match="every optimizer needs the setting 'lr'"):
        Registry(KINDS["optimizer"]).register("rateless")(rateless)


def test_facts_that_are_not_json_are_refused(activations: Registry) -> None:
    with pytest.raises(PluginError, match="facts are not JSON"):
        activations.register("leaky", pairs_with=object())(leaky)


def test_all_parameters_of_a_class_are_settings_and_its_arguments_come_later() -> None:
    class Watching:
        """Halves the rate when the metric stops falling."""

        def __init__(self, monitor: str = "val/loss", patience: Annotated[int, Ge(1)] = 3, mode: str = "min") -> None:
            self.monitor, self.patience, self.mode = monitor, patience, mode

        def factor(self, step: int) -> float:
            return 1.0

        def observe(self, value: float) -> None: ...

    schedulers = Registry(KINDS["scheduler"])
    assert schedulers.register("watching")(Watching) is Watching
    watching = schedulers.get("watching")
    assert [setting.name for setting in watching.settings] == ["monitor", "patience"]
    assert watching.offered == ("mode",)
    assert watching.watches
    assert not REGISTRIES["scheduler"].get("constant").watches


class Blind:
    def factor(self, step: int) -> float: ...  # type: ignore[empty-body]
    def observe(self, value: float) -> None: ...


class Deaf:
    def __init__(self, monitor: str = "val/loss") -> None: ...
    def factor(self, step: int) -> float: ...  # type: ignore[empty-body]


class Rateless:
    def __init__(self, monitor: str = "val/loss") -> None: ...
    def observe(self, value: float) -> None: ...


class Shadowed:
    factor = 0.1

    def __init__(self, monitor: str = "val/loss") -> None: ...
    def observe(self, value: float) -> None: ...


class Stepless:
    def __init__(self, monitor: str = "val/loss") -> None: ...
    def factor(self) -> float: ...  # type: ignore[empty-body]
    def observe(self, value: float) -> None: ...


@pytest.mark.parametrize(
    ("watcher", "says"),
    [
        (Blind, "needs the setting 'monitor'"),
        (Deaf, r"needs the method observe\(value\)"),
        (Rateless, r"needs the method factor\(step\)"),
        (Shadowed, r"needs the method factor\(step\)"),
        (Stepless, r"needs the method factor\(step\)"),
    ],
)
def test_a_scheduler_class_that_could_not_watch_a_metric_is_refused(watcher: type, says: str) -> None:
    schedulers = Registry(KINDS["scheduler"])
    with pytest.raises(PluginError, match=says):
        schedulers.register("broken")(watcher)
    assert len(schedulers) == 0


def test_what_the_builder_offers_is_no_setting() -> None:
    batch_norm = REGISTRIES["normalization"].get("batch_norm")
    assert batch_norm.offered == ("layer",)
    assert [setting.name for setting in batch_norm.settings] == ["momentum", "eps", "unbiased"]


def test_a_missing_name_is_answered_with_the_nearest(activations: Registry) -> None:
    with pytest.raises(PluginError, match="there are: none"):
        activations.get("x")
    for name in ("selu", "elu", "tanh"):
        activations.register(name)(nn.ReLU)
    with pytest.raises(PluginError, match="did you mean selu or elu"):
        activations.get("sellu")
    with pytest.raises(PluginError, match="there are: elu, selu, tanh"):
        activations.get("qqqqqqqq")


def test_a_registry_lists_in_alphabetical_order() -> None:
    assert all(components.names() == sorted(components.names()) for components in REGISTRIES.values())
    assert [component.name for component in REGISTRIES["activation"]] == REGISTRIES["activation"].names()
    assert all(component.name in REGISTRIES[component.kind.group] for component in EVERY)


def test_every_kind_has_its_registry_under_its_group() -> None:
    assert all(REGISTRIES[group].kind is kind and kind.group == group for group, kind in KINDS.items())
    assert isinstance(KINDS["model"], Kind)
    assert registry.losses is REGISTRIES["loss"]
    assert registry.rules is REGISTRIES["lint"]


# ------------------------------------------------------------------------------------------------ nearest names

NAMES = {
    "activation": "identity relu leaky_relu rrelu prelu elu selu celu gelu silu swish mish tanh sigmoid softplus softsign",
    "initializer": "glorot_normal glorot_uniform he_normal he_uniform lecun_normal lecun_uniform variance_scaling normal uniform zeros",
    "optimizer": "sgd momentum nesterov adagrad rmsprop adam adamax nadam adamw",
    "scheduler": "constant power exponential piecewise performance one_cycle cosine cosine_restarts linear_warmup step multi_step",
    "settings": "name lr momentum beta1 beta2 eps max_epochs devices precision threads limit_train_batches limit_val_batches",
}


def slips(name: str, draw: random.Random) -> Iterator[str]:
    """The name with one letter left out, added, mistaken, or swapped with the next."""
    place, letter = draw.randrange(len(name)), draw.choice(string.ascii_lowercase + "_")
    yield name[:place] + name[place + 1 :]
    yield name[:place] + letter + name[place:]
    yield name[:place] + letter + name[place + 1 :]
    place = draw.randrange(len(name) - 1)
    yield name[:place] + name[place + 1] + name[place] + name[place + 2 :]


def test_the_first_suggestion_for_a_slip_of_the_keyboard_is_right_in_19_of_20() -> None:
    draw, right, asked = random.Random(0), 0, 0
    for names in (text.split() for text in NAMES.values()):
        for name in names * 8:
            for typed in slips(name, draw):
                if typed and typed not in names:
                    asked, right = asked + 1, right + (nearest(typed, names)[:1] == (name,))
    assert asked > 1000
    assert right / asked > 0.95


def test_nothing_is_suggested_where_nothing_is_similar() -> None:
    assert nearest("qqqqqq", NAMES["activation"].split()) == ()
    assert nearest("", ["lr"]) == nearest("x" * 5000, ["lr"]) == ()
    assert nearest("rl", ["lr", "momentum"]) == ("lr",)
    assert nearest("SELU", ["selu", "elu"])[0] == "selu"
    assert len(nearest("elu", NAMES["activation"].split())) == 3
