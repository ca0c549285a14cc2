"""The captured step against the step run operation by operation: every component, alone and combined, ends in the same bits."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from math import ceil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dnnkit import plugins
from dnnkit.config import Config, compose
from dnnkit.module import Module
from dnnkit.network import build_network
from dnnkit.registry import REGISTRIES
from dnnkit.schema import node
from dnnkit.training.assemble import assemble

plugins.load()

Fit = Callable[..., SimpleNamespace]
Same = Callable[[Any, Any], None]

ROWS, BATCH, CLASSES = 806, 8, 3  # 101 minibatches an epoch, the last of 6 examples; two epochs are 202 steps
SHAPE = (1, 4, 4)
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [8, 8]},
    "cnn": {"channels": [4], "hidden": [8]},
    "resmlp": {"width": 8},
    "autoencoder": {"hidden": [8], "code": 4},
    "sequential": {
        "layers": [
            {"conv2d": 4, "kernel": 3, "padding": "same", "activation": "relu"},
            {"avg_pool": 2},
            "flatten",
            {"dropout": 0.2},
            {"dense": 8, "activation": "tanh"},
            {"normalization": "batch_norm"},
            {"dense": "auto"},
        ]
    },
}


@cache
def defaults() -> dict[str, Any]:
    return dict(compose(["metrics=[]", f"data.batch_size={BATCH}", "trainer.max_epochs=2"]).values)


@cache
def examples(task: str) -> tuple[Tensor, Tensor]:
    x = torch.randn(ROWS, *SHAPE, generator=torch.Generator().manual_seed(5))
    flat = x.flatten(1)
    targets = {"classification": flat[:, :CLASSES].argmax(1), "regression": flat[:, :CLASSES].sin(), "reconstruction": flat.clone()}
    targets["multi_label"] = (flat[:, :CLASSES] > 0).float()
    return x, targets[task]


def chosen(group: str, name: str, **settings: Any) -> dict[str, Any]:
    small = SMALL[name] if group == "model" else {}
    return {group: {**node(group, name), **small, **settings}}


def built(changes: dict[str, Any]) -> tuple[Module, Tensor, Tensor]:
    """The module that a config with these sections describes, and data for it."""
    values = {**deepcopy(defaults()), **chosen("model", "mlp"), **deepcopy(changes)}
    task = REGISTRIES["model"].get(values["model"]["name"]).facts.get("task", values["task"])
    task = "classification" if task == "auto" else task
    values["task"] = task
    x, y = examples(task)
    data = SimpleNamespace(task=task, target_scaling=None, train=SimpleNamespace(y=y))
    network = build_network(values, SHAPE, CLASSES if y.ndim == 1 else y.shape[1], seed=1)
    return assemble(Config(values), network, data), x, y  # type: ignore[arg-type]


def both(fit: Fit, changes: dict[str, Any], **settings: Any) -> tuple[SimpleNamespace, SimpleNamespace]:
    """The same config trained by both engines."""
    eager, captured = (fit(*built(changes), engine, **settings) for engine in ("eager", "captured"))
    return eager, captured


def _alone() -> dict[str, dict[str, Any]]:
    cases = {}
    for group in ("model", "activation", "initializer", "normalization", "dropout", "regularizer", "constraint", "clipping"):
        cases |= {f"{group}={name}": chosen(group, name) for name in REGISTRIES[group].names()}
    for group in ("optimizer", "scheduler"):
        cases |= {f"{group}={name}": chosen(group, name) for name in REGISTRIES[group].names()}
    for name in REGISTRIES["normalization"].names():
        cases[f"normalization={name}, images"] = {**chosen("normalization", name), **chosen("model", "cnn")}
    for loss in REGISTRIES["loss"]:
        cases[f"loss={loss.name}"] = {**chosen("loss", loss.name), "task": loss.facts["tasks"][0]}
    return cases


#: What is another computation by a setting.
SETTINGS = {
    "a slope for each unit": chosen("activation", "prelu", per_unit=True),
    "swish with a beta": chosen("activation", "swish", beta=1.5),
    "gelu by tanh": chosen("activation", "gelu", approximate="tanh"),
    "moving variance as Keras": chosen("normalization", "batch_norm", unbiased=False),
    "moving variance as Keras, images": {**chosen("normalization", "batch_norm", unbiased=False), **chosen("model", "cnn")},
    "normalized input": chosen("normalization", "batch_norm", on_input=True, position="post"),
    "smoothed labels": chosen("loss", "cross_entropy", label_smoothing=0.1),
    "averages pooled": chosen("model", "cnn", pool="avg"),
    "nothing pooled": chosen("model", "cnn", pool="none"),
    "no hidden layer": chosen("model", "mlp", hidden=[]),
    "no bias": chosen("model", "mlp", use_bias=False),
    "norm bound tightly": chosen("constraint", "max_norm", c=0.3),
    "clipped always": chosen("clipping", "norm", max_norm=0.01),
    "values clipped often": chosen("clipping", "value", threshold=0.01),
    "momentum as Keras, decoupled": chosen("optimizer", "nesterov", keras_momentum=True, weight_decay=0.1, decoupled=True),
    "rmsprop centred, with momentum": chosen("optimizer", "rmsprop", centered=True, momentum=0.5, weight_decay=0.1),
    "rmsprop with eps inside": chosen("optimizer", "rmsprop", eps_inside=True),
    "adam with eps hat": chosen("optimizer", "adam", eps_hat=True, amsgrad=True),
    "nadam, decoupled": chosen("optimizer", "nadam", weight_decay=0.1, decoupled=True),
    "warm-up before": chosen("scheduler", "cosine", warmup_steps=20),
}
ALONE = _alone() | SETTINGS


def test_every_registered_component_of_a_step_is_among_the_cases() -> None:
    """Data, augmentations, metrics and tasks are no part of a step."""
    outside = {"data", "augmentation", "metrics", "lint", "task"}
    wanted = {f"{group}={name}" for group, registry in REGISTRIES.items() if group not in outside for name in registry.names()}
    assert wanted == {name for name in ALONE if "=" in name and "," not in name}


#: What a graph contains is tried in every run of the tests; what runs beside it as it always did, among the slow ones.
IN_THE_GRAPH = ("model=", "activation=", "normalization=", "dropout=", "regularizer=", "loss=", "clipping=", "constraint=")
NAMES = [pytest.param(name, marks=[] if name.startswith(IN_THE_GRAPH) else pytest.mark.slow) for name in ALONE]


@pytest.mark.parametrize("name", NAMES)
def test_two_hundred_captured_steps_end_as_eager_ones_do(name: str, fit: Fit, assert_same: Same) -> None:
    eager, captured = both(fit, ALONE[name])
    assert (eager.graphs, captured.graphs) == (0, 1)
    assert eager.state["steps"] == 202
    assert_same(eager.state, captured.state)


def combination(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sections of a config and settings of the Trainer, drawn by a generator that `number` seeds."""
    draw = random.Random(number)

    def one(group: str, without: float = 0.0, **settings: Any) -> dict[str, Any]:
        if draw.random() < without:
            return {group: {**defaults()[group], "name": "none"}}
        name = draw.choice(REGISTRIES[group].names())
        known = node(group, name)
        return chosen(group, name, **{key: value for key, value in settings.items() if key in known})

    changes = {
        **one("model"),
        **one("activation"),
        **one("initializer"),
        **one(
            "normalization",
            0.3,
            num_groups=2,
            position=draw.choice(["pre", "post"]),
            on_input=draw.random() < 0.2,
            unbiased=draw.random() < 0.5,
        ),
        **one("dropout", 0.4),
        **one("regularizer", 0.5, factor=1e-3),
        **one("constraint", 0.6, c=draw.choice([0.5, 3.0])),
        **one("optimizer", weight_decay=draw.choice([0.0, 0.1]), decoupled=draw.random() < 0.5),
        **one("scheduler", warmup_steps=draw.choice([0, 10])),
        **one("clipping", 0.4, max_norm=draw.choice([0.1, 1.0]), threshold=0.05),
    }
    if draw.random() < 0.3:
        own = {"match": "output", "lr_scale": 0.5, "clipping": {"name": "none"} if draw.random() < 0.5 else node("clipping", "norm")}
        changes["optimizer"]["groups"] = [own, {"match": "bias", "weight_decay": 0.0}]
    if draw.random() < 0.3:
        changes["freeze"] = [{"match": "00_*", "until": draw.choice([2, None])}]
    trainer = {
        "accumulate_grad_batches": draw.choice([1, 1, 2, 4]),
        "precision": draw.choice(["32-true", "32-true", "32-true", "64-true", "bf16-mixed"]),
    }
    size = draw.choice([8, 9, 11, 16])  # none of which divides the rows, or leaves one
    updates = ceil(ceil(ROWS / size) / trainer["accumulate_grad_batches"])
    trainer["max_epochs"] = ceil(200 / updates)
    changes["data"] = {**defaults()["data"], "batch_size": size}
    changes["trainer"] = {**defaults()["trainer"], **trainer, "precision": "32"}
    return changes, {**trainer, "batch_size": size}


def words(changes: dict[str, Any], settings: dict[str, Any]) -> str:
    """A combination, to be read where it fails."""
    sections = {group: section["name"] for group, section in changes.items() if isinstance(section, dict) and group != "data"}
    return f"{sections} groups={changes['optimizer'].get('groups')} freeze={changes.get('freeze')} {settings}"


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("number", [pytest.param(number, marks=[] if number < 12 else pytest.mark.slow) for number in range(100)])
def test_two_hundred_captured_steps_of_a_random_combination_end_as_eager_ones_do(number: int, fit: Fit, assert_same: Same) -> None:
    changes, settings = combination(number)
    print(words(changes, settings))
    eager, captured = both(fit, changes, **settings)
    assert captured.graphs >= 1
    assert eager.state["steps"] >= 200
    assert_same(eager.state, captured.state)
