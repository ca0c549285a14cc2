"""The JSON Schema of a whole config says of every node what validation says, and takes every file that is shipped."""

from __future__ import annotations

import copy
import json
import random
import sys
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml
from torch import nn

import dnnkit
from dnnkit import plugins
from dnnkit.cli.main import main
from dnnkit.config.groups import group_problems
from dnnkit.config.json_schema import config_schema
from dnnkit.config.loader import shipped
from dnnkit.config.sections import GROUPS, SECTIONS, validate
from dnnkit.registry import KINDS, REGISTRIES, activations
from dnnkit.schema import MISSING, node, validate_node

plugins.load()
layer_list = sys.modules["dnnkit_plugins.layer_list"]

CHOICES = [(group, name) for group in GROUPS for name in [*REGISTRIES[group].names(), *KINDS[group].switches]]
FILES = [path for folder in ("conf/experiment", "sweeps") for path in sorted(shipped(folder.split("/")[0]).rglob("*.yaml"))]
PRESETS = [path for path in dict.fromkeys(FILES) if {"experiment", "sweeps"} & set(path.parts)]


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return config_schema()


def judge(schema: dict[str, Any]) -> Any:
    return jsonschema.Draft202012Validator(schema)


def value(draw: random.Random, depth: int = 0) -> Any:
    """What may stand in YAML; a number such as 3.0, which is an integer to a JSON Schema, is left out."""
    scalars = [
        None,
        True,
        False,
        0,
        1,
        2,
        -1,
        7,
        0.5,
        1.5,
        1e-9,
        -0.1,
        1e9 + 0.5,
        "",
        "text",
        "auto",
        "none",
        "relu",
        "acc",
        MISSING,
        "norm",
    ]
    if depth < 2 and draw.random() < 0.2:
        many = draw.randrange(3)
        if draw.random() < 0.5:
            return [value(draw, depth + 1) for _ in range(many)]
        return {draw.choice(["name", "p", "match", "lr_scale", "a"]): value(draw, depth + 1) for _ in range(many)}
    return draw.choice(scalars)


def changed(held: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """With a few keys changed, left out or added."""
    held = copy.deepcopy(held)
    for _ in range(draw.choice([0, 1, 1, 2])):
        key = draw.choice([*held, "no_such_setting"])
        if draw.random() < 0.2:
            held.pop(key, None)
        else:
            held[key] = value(draw)
    return held


def problems_of(group: str, held: dict[str, Any]) -> list[Any]:
    valid, problems = validate_node(group, held)
    return problems if problems or group != "optimizer" else group_problems(valid)[1]


def test_the_schema_is_one(whole: dict[str, Any]) -> None:
    for schema in (whole, config_schema(preset=True)):
        jsonschema.Draft202012Validator.check_schema(schema)
        json.dumps(schema)


@pytest.mark.parametrize("group", GROUPS)
def test_of_every_generated_node_schema_and_validation_say_the_same(group: str, whole: dict[str, Any]) -> None:
    draw, validator, seen = random.Random(group), judge(whole["properties"][group]), {True: 0, False: 0}
    names = [name for known, name in CHOICES if known == group]
    for index in range(400):
        held = {key: 0.1 if setting == MISSING else setting for key, setting in node(group, names[index % len(names)]).items()}
        if "path" in held:
            held |= {"path": "file", "target": "y"} if "target" in held else {"path": "file"}
        if group == "model" and held["name"] == "sequential":
            held.pop("layers", None)  # judged below
        held = changed(held, draw)
        fits = not problems_of(group, held)
        assert validator.is_valid(held) == fits, (held, problems_of(group, held))
        seen[fits] += 1
    assert min(seen.values()) > 40, seen


@pytest.mark.parametrize("section", SECTIONS)
def test_of_every_generated_section_too(section: str, whole: dict[str, Any]) -> None:
    draw, validator = random.Random(section), judge(whole["properties"][section])
    default = dnnkit.compose().values
    for _ in range(300):
        held = changed(default[section], draw)
        fits = not validate({**default, section: held})[1]
        # That the best weights need a metric that is measured, and several devices a trainer, is said of the whole config.
        apart = section in ("checkpoint", "trainer")
        assert validator.is_valid(held) == fits or (apart and not fits), held


def entries(draw: random.Random) -> Iterator[Any]:
    clippings = [
        "norm",
        "none",
        "no_such",
        {"name": "norm", "max_norm": 2.0},
        {"name": "norm", "max_norm": -1},
        {"name": "none", "x": 1},
        {},
    ]
    for _ in range(600):
        entry: dict[str, Any] = {}
        for key, values in {
            "match": ["output", "00_*", "", 3],
            "role": ["bias", "norm", "no_such"],
            "depth": [0, 3, -1, [0, 2], [0, "a"]],
            "lr_scale": [0.1, 1, 0, -1, "a", None],
            "weight_decay": [0.0, 0.1, -0.1],
            "clipping": clippings,
            "lr": [0.1],
        }.items():
            if draw.random() < 0.3:
                entry[key] = draw.choice(values)
        yield entry
    yield from ("text", 3, None, [])


def test_of_every_generated_group_of_parameters_too(whole: dict[str, Any]) -> None:
    draw, validator, seen = random.Random(0), judge(whole["properties"]["optimizer"]), {True: 0, False: 0}
    for entry in entries(draw):
        held = {**node("optimizer", draw.choice(["adamw", "sgd", "rmsprop"])), "groups": [entry]}
        fits = not problems_of("optimizer", held)
        backwards = isinstance(entry, dict) and isinstance(entry.get("depth"), list)  # that a range rises
        assert validator.is_valid(held) == fits or (backwards and not fits), (held, problems_of("optimizer", held))
        seen[fits] += 1
    assert min(seen.values()) > 40, seen


def layers(draw: random.Random) -> Iterator[Any]:
    named = ["relu", "leaky_relu", "softmax", "no_such", "he_normal", "auto", {"name": "leaky_relu", "negative_slope": 0.1}]
    named += [{"name": "leaky_relu", "negative_slope": 7}, {"name": "softmax", "x": 1}, {"name": "normal", "std": 0.1}, {}, None, 3]
    for _ in range(1500):
        kind = draw.choice([*layer_list.KINDS, "no_such"])
        entry = {
            kind: draw.choice([None, 2, 30, 0, 0.2, 1.5, -0.1, "auto", "relu", "batch_norm", "dropout", "alpha_dropout", "no_such", True])
        }
        for key, values in {
            "activation": named,
            "initializer": named,
            "use_bias": ["auto", True, None, 3],
            "kernel": [3, 0],
            "stride": [1, None],
            "padding": ["same", "no_such"],
            "negative_slope": [0.1],
            "momentum": [0.1, 2],
            "p": [0.1, 2],
        }.items():
            if draw.random() < 0.15 and key not in entry:
                entry[key] = draw.choice(values)
        yield entry
    yield from (*layer_list.KINDS, "relu", 3, None, [], {})


def test_of_every_generated_layer_too(whole: dict[str, Any]) -> None:
    draw, seen = random.Random(0), {True: 0, False: 0}
    held = node("model", "sequential")
    validator = judge(whole["properties"]["model"])
    for layer in layers(draw):
        fits = not layer_list._read(layer, "x")[1]
        assert validator.is_valid({**held, "layers": [layer]}) == fits, (layer, layer_list._read(layer, "x")[1])
        seen[fits] += 1
    assert min(seen.values()) > 50, seen


@pytest.mark.parametrize(
    ("key", "right", "wrong"),
    [
        (
            "metrics",
            ["auto", ["acc", "f1"], [{"name": "top_k", "k": 3}], []],
            ["acc", ["no_such"], [{"name": "top_k", "k": 0}], [{"k": 3}], 3],
        ),
        (
            "init_from",
            [None, "abc", 12345678, {"run": "abc", "layers": ["00_*"]}, {"experiment": "selu_digits"}],
            ["", {}, {"run": 3}, [1]],
        ),
        ("freeze", [None, ["00_*"], [{"match": "a", "until": 3}], []], ["a", [3], [{"until": 3}], [{"match": "a", "until": 1}]]),
        ("seed", [0, 2**32 - 1], [-1, 2**32, "0", 1.5]),
        ("task", ["auto", "regression"], ["no_such", None]),
        ("name", ["a"], ["", 3]),
    ],
)
def test_what_stands_at_the_top_is_judged_as_validation_does(key: str, right: list[Any], wrong: list[Any], whole: dict[str, Any]) -> None:
    default, validator = dnnkit.compose().values, judge(whole["properties"][key])
    for given in (*right, *wrong):
        found = [problem for problem in validate({**default, key: given})[1] if problem.where.split(".")[0].split("[")[0] == key]
        assert (not found) == validator.is_valid(given) == (given in right), (given, found)


def test_a_resolved_config_fits_and_with_any_key_misspelt_does_not(whole: dict[str, Any]) -> None:
    validator = judge(whole)
    for overrides in ([], ["+experiment=bn_net_a"], ["metrics=[acc,f1]", "freeze=[00_*]", "optimizer.groups=[{role: bias, lr_scale: 2}]"]):
        config = dnnkit.compose(overrides).values
        validator.validate(config)
        for key in config:
            assert not validator.is_valid({**{other: held for other, held in config.items() if other != key}, f"{key}x": config[key]})


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: str(path.relative_to(path.parents[1])))
def test_every_shipped_experiment_and_sweep_fits_the_schema_of_presets(path: Any) -> None:
    validator = judge(PRESET)
    held = yaml.safe_load(path.read_text())
    validator.validate(held)
    assert not validator.is_valid({**held, "optimiser": {"lr": 0.1}})
    assert not validator.is_valid({**held, "optimizer": {"rate": 0.1}})
    assert not validator.is_valid({**held, "data": {"batch_size": 0}})


PRESET = config_schema(preset=True)


def test_a_preset_may_name_a_component_and_refer_to_other_values() -> None:
    validator = judge(PRESET)
    validator.validate({"optimizer": {"name": "adam", "lr": "${seed}"}, "name": "${data.name}_x", "trainer": {"max_epochs": "${seed}"}})
    assert not validator.is_valid({"optimizer": {"name": "adam", "momentum": 0.9}})  # momentum's setting
    assert validator.is_valid({"optimizer": {"momentum": 0.9}})
    assert not validator.is_valid({"name": "${oc.env:HOME}", "seed": "${oc.env:HOME}"})


def test_components_of_other_packages_are_in_it(registries: None) -> None:
    activations.register("somebody_elses")(nn.ReLU)
    validator = judge(config_schema()["properties"]["activation"])
    assert validator.is_valid({"name": "somebody_elses", "inplace": False})
    assert not validator.is_valid({"name": "somebody_elses", "inplace": 3})


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str], whole: dict[str, Any]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(whole))
    assert main(["schema", "--preset"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(PRESET))
    assert main(["schema", "--presets"]) == 2
