"""Metrics against scikit-learn in float64, on random predictions and on those that are made to mislead: ties, absent classes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as oracle
from torch import Tensor

from dnnkit import plugins
from dnnkit.errors import ConfigError, PluginError
from dnnkit.registry import REGISTRIES

plugins.load()
CLASSES = ["acc", "top_k", "f1", "auroc"]
VALUES = ["mse", "mae", "r2"]


def metric(name: str) -> Any:
    return REGISTRIES["metrics"].get(name).function


def value(name: str, *arguments: Any) -> float:
    return float(metric(name)(*arguments))


def case(n: int, classes: int, seed: int, ties: bool = False, rare: bool = False) -> tuple[Tensor, Tensor]:
    """Logits and targets that have something to do with each other; with ties the logits are whole numbers."""
    draw = np.random.default_rng(seed)
    p = np.array([1.0, *[0.02] * (classes - 1)]) if rare else np.ones(classes)
    target = np.concatenate([np.arange(classes), draw.choice(classes, n - classes, p=p / p.sum())])
    logits = draw.normal(size=(n, classes)) * 2 + 1.5 * np.eye(classes)[target]
    return torch.from_numpy(np.round(logits) if ties else logits), torch.from_numpy(target)


CASES = [
    pytest.param(case(n, classes, seed, ties, rare), id=f"{n}x{classes}{' ties' * ties}{' rare' * rare}")
    for seed, (n, classes) in enumerate([(40, 2), (500, 2), (60, 3), (700, 10)])
    for ties in (False, True)
    for rare in (False, True)
]


def probabilities(logits: Tensor) -> Any:
    """As scikit-learn wants them: those of class 1 where there are two classes.

    Each sum is rounded once, so that rows that differ in nothing but order are true ties.
    """
    weights = np.exp(logits.numpy() - logits.numpy().max(1, keepdims=True))
    p = weights / np.array([[math.fsum(row)] for row in weights])
    return p[:, 1] if p.shape[1] == 2 else p


# Classification


@pytest.mark.parametrize("given", CASES)
def test_acc_is_the_accuracy_of_scikit_learn(given: tuple[Tensor, Tensor]) -> None:
    logits, target = given
    assert value("acc", logits, target) == pytest.approx(oracle.accuracy_score(target, logits.argmax(1)), abs=1e-7)


@pytest.mark.parametrize("given", CASES)
def test_f1_is_the_macro_f1_of_scikit_learn(given: tuple[Tensor, Tensor]) -> None:
    logits, target = given
    assert value("f1", logits, target) == pytest.approx(
        oracle.f1_score(target, logits.argmax(1), average="macro", zero_division=0), abs=1e-6
    )


def test_f1_leaves_out_a_class_that_is_neither_target_nor_answer_and_counts_one_that_is_never_right() -> None:
    answers, target = torch.tensor([0, 0, 1, 3]), torch.tensor([0, 1, 1, 0])
    logits = torch.nn.functional.one_hot(answers, 5).float()
    assert value("f1", logits, target) == pytest.approx((2 / 4 + 2 / 3 + 0) / 3)  # classes 0, 1 and 3; 2 and 4 are nowhere
    assert value("f1", logits, target) == pytest.approx(oracle.f1_score(target, answers, average="macro", zero_division=0))


@pytest.mark.parametrize("given", CASES)
def test_auroc_is_that_of_scikit_learn_one_against_the_rest(given: tuple[Tensor, Tensor]) -> None:
    logits, target = given
    expected = oracle.roc_auc_score(target, probabilities(logits), multi_class="ovr", average="macro")
    assert value("auroc", logits, target) == pytest.approx(expected, abs=1e-12)


def test_auroc_is_the_share_of_pairs_that_are_in_order_and_ties_count_half() -> None:
    score, target = np.array([0.0, 1, 1, 1, 2, 2, 5]), np.array([0, 0, 1, 0, 1, 0, 1])
    pairs = [(p > q) + (p == q) / 2 for p in score[target == 1] for q in score[target == 0]]
    logits = torch.from_numpy(np.stack([7 - score, 7 + score], axis=1))  # the difference counts, not the logit of class 1
    assert value("auroc", logits, torch.from_numpy(target)) == sum(pairs) / len(pairs)
    assert value("auroc", torch.zeros(7, 2), torch.from_numpy(target)) == 0.5


def test_auroc_of_float32_logits_far_from_zero_is_not_blurred_by_saturated_probabilities() -> None:
    logits = torch.tensor([[0.0, 40.0], [0.0, 50.0], [0.0, 60.0], [0.0, 70.0]])
    assert value("auroc", logits, torch.tensor([0, 0, 1, 1])) == 1


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("only", [0, 1])
def test_auroc_of_samples_that_lack_a_class_is_not_defined(classes: int, only: int) -> None:
    assert np.isnan(value("auroc", torch.randn(20, classes), torch.full((20,), only)))


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("ties", [False, True])
def test_top_k_is_that_of_scikit_learn_also_where_logits_tie(k: int, ties: bool) -> None:
    logits, target = case(400, 10, 3, ties)
    assert value("top_k", logits, target, k) == pytest.approx(oracle.top_k_accuracy_score(target, logits, k=k), abs=1e-7)


@pytest.mark.parametrize("classes", [3, 5])
def test_top_k_of_no_more_than_k_classes_is_refused(classes: int) -> None:
    with pytest.raises(ConfigError, match=f"among the 5 likeliest; with {classes} classes it always is"):
        metric("top_k")(torch.zeros(4, classes), torch.zeros(4, dtype=torch.long))


def test_an_answer_that_is_not_a_number_is_not_right() -> None:
    assert value("top_k", torch.full((4, 10), torch.nan), torch.tensor([0, 3, 5, 9])) == 0


# Values


@pytest.mark.parametrize("shape", [(40, 1), (300, 3)])
def test_errors_and_r2_are_those_of_scikit_learn(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    target = draw.normal(size=shape) * np.arange(1, shape[1] + 1) + 100
    prediction = target + draw.normal(size=shape)
    given = torch.from_numpy(prediction), torch.from_numpy(target)
    assert value("mse", *given) == pytest.approx(oracle.mean_squared_error(target, prediction), rel=1e-12)
    assert value("mae", *given) == pytest.approx(oracle.mean_absolute_error(target, prediction), rel=1e-12)
    assert value("r2", *given) == pytest.approx(oracle.r2_score(target, prediction, multioutput="uniform_average"), rel=1e-12)


def test_r2_of_float32_values_far_from_zero_is_exact() -> None:
    target = torch.tensor([[1e6], [1e6 + 1], [1e6 + 2], [1e6 + 3]])
    assert value("r2", target + 1, target) == pytest.approx(1 - 4 / 5, rel=1e-12)


def test_r2_is_1_for_the_truth_0_for_the_mean_and_negative_for_worse() -> None:
    target = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
    assert [value("r2", prediction, target) for prediction in (target, torch.full((4, 1), 3.0), -target)] == [
        1,
        0,
        pytest.approx(-13.29, abs=0.01),
    ]


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e8 + 0.1])
def test_r2_of_a_constant_target_is_not_defined(constant: float) -> None:
    target = torch.full((7, 1), constant)
    assert np.isnan(value("r2", target + 1, target))
    assert np.isnan(value("r2", target, target))
    assert np.isnan(value("r2", torch.randn(7, 2), torch.cat([target, torch.randn(7, 1)], 1)))


@pytest.mark.parametrize("name", VALUES)
def test_shapes_that_would_be_spread_against_each_other_are_refused(name: str) -> None:
    with pytest.raises(PluginError, match=rf"metric {name} needs prediction and target of one shape, got \(8, 1\) and \(8,\)"):
        metric(name)(torch.zeros(8, 1), torch.zeros(8))


# All


@pytest.mark.parametrize("name", [*CLASSES, *VALUES])
def test_a_metric_is_a_scalar_and_says_where_it_is_best_and_what_it_is_for(name: str) -> None:
    facts = REGISTRIES["metrics"].get(name).facts
    assert facts["better"] == ("lower" if name in ("mse", "mae") else "higher")
    assert facts["tasks"] == (["classification"] if name in CLASSES else ["regression", "reconstruction"])
    given = case(50, 10, 0) if name in CLASSES else (torch.randn(50, 2), torch.randn(50, 2))
    assert metric(name)(*given).shape == ()


@pytest.mark.parametrize("name", [*CLASSES, *VALUES])
def test_a_metric_says_whether_it_is_the_mean_over_its_samples(name: str) -> None:
    prediction, target = (
        case(60, 10, 1, rare=True) if name in CLASSES else (torch.randn(60, 2), torch.randn(60, 2) + torch.arange(60)[:, None])
    )
    whole = value(name, prediction, target)
    halves = [value(name, prediction[part], target[part]) for part in (slice(0, 30), slice(30, 60))]
    assert (np.mean(halves) == pytest.approx(whole, rel=1e-5)) == REGISTRIES["metrics"].get(name).facts["mean"]


def test_a_metric_of_a_config_is_measured_with_its_settings_under_its_name() -> None:
    from dnnkit.config import compose
    from dnnkit.training.assemble import measures

    logits = torch.arange(10.0).expand(4, 10)  # class 9 is the likeliest, then 8, 7, …
    for k, share in ((1, 0.25), (2, 0.5), (3, 0.75), (4, 0.75)):
        _, metrics = measures(compose([f"metrics=[acc,{{name: top_k, k: {k}}}]"]), "classification", None)
        assert list(metrics) == ["acc", "top_k"]
        assert float(metrics["top_k"](logits, torch.tensor([9, 8, 7, 0]))) == share
