"""The ordinal task against its formulas written out in NumPy, and trained from a file to predictions."""

import csv
import json

import dnnkit_example.components  # noqa: F401  registers them, whether or not the package is installed
import numpy as np
import pytest
import torch
from dnnkit_example.ordinal import Ordinal, class_distance, cumulative_cross_entropy, probabilities

import dnnkit
from dnnkit.errors import ConfigError
from dnnkit.training.evaluate import evaluate
from dnnkit.training.predict import predict_file

CLASSES = 5
LOGITS = np.random.default_rng(0).normal(size=(200, CLASSES - 1)) * 3
TARGETS = np.random.default_rng(1).integers(0, CLASSES, 200)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def shares(logits):
    """P(y = k) row by row, as the docstrings say it."""
    rows = []
    for row in logits:
        exceeding = [min(sigmoid(row[: k + 1])) for k in range(len(row))]
        rows.append(np.array([1.0, *exceeding]) - np.array([*exceeding, 0.0]))
    return np.array(rows)


def median(row):
    return next(k for k in range(len(row)) if row[k + 1 :].sum() <= 0.5)


def test_the_loss_is_the_mean_over_samples_of_a_cross_entropy_at_each_threshold():
    expected = 0.0
    for z, y in zip(LOGITS, TARGETS, strict=True):
        expected += -sum(np.log(sigmoid(z[k])) if y > k else np.log(1 - sigmoid(z[k])) for k in range(CLASSES - 1))
    found = cumulative_cross_entropy(torch.from_numpy(LOGITS), torch.from_numpy(TARGETS))
    assert found.item() == pytest.approx(expected / len(TARGETS), rel=1e-12)


def test_without_knowledge_the_loss_is_ln_2_for_each_threshold():
    found = cumulative_cross_entropy(torch.zeros(3, CLASSES - 1, dtype=torch.float64), torch.tensor([0, 2, 4]))
    assert found.item() == pytest.approx((CLASSES - 1) * np.log(2), rel=1e-14)


def test_probabilities_are_those_of_the_definition_even_where_thresholds_cross():
    found = probabilities(torch.from_numpy(LOGITS)).numpy()
    np.testing.assert_allclose(found, shares(LOGITS), atol=1e-14)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-14)
    assert (np.diff(LOGITS) > 0).any()  # they do cross


def test_the_answer_is_the_median_whether_from_outputs_or_from_probabilities():
    expected = [median(row) for row in shares(LOGITS)]
    outputs = torch.from_numpy(LOGITS)
    assert Ordinal().decoded(outputs).tolist() == expected
    assert Ordinal().answers(probabilities(outputs)).tolist() == expected
    distance = np.abs(np.array(expected) - TARGETS).mean()
    assert class_distance(outputs, torch.from_numpy(TARGETS)).item() == pytest.approx(distance, rel=1e-6)


def test_right_outputs_answer_with_the_target():
    target = torch.arange(CLASSES)
    right = Ordinal().right(target, CLASSES - 1)
    assert torch.equal(Ordinal().decoded(right), target)
    assert class_distance(right, target).item() == 0


def test_what_passes_say_together_is_the_mean_of_their_probabilities():
    passes = np.random.default_rng(2).normal(size=(7, 20, CLASSES - 1)) * 2
    found, each = Ordinal().spread(torch.from_numpy(passes)), np.stack([shares(one) for one in passes])
    np.testing.assert_allclose(found.mean, each.mean(0), atol=1e-13)
    np.testing.assert_allclose(found.std, each.std(0), atol=1e-13)
    np.testing.assert_allclose(probabilities(found.output), each.mean(0), atol=1e-13)
    entropy = [-sum(p * np.log(p) for p in row if p > 0) for row in each.mean(0)]
    np.testing.assert_allclose(found.entropy, entropy, rtol=1e-10)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on 600 points whose class is how many of four thresholds a sum of two features exceeds."""
    folder = tmp_path_factory.mktemp("ordinal")
    x = np.random.default_rng(3).normal(size=(600, 4)).astype(np.float32)
    y = np.digitize(x[:, 0] + x[:, 1], [-1.5, -0.5, 0.5, 1.5])
    np.savez(folder / "graded.npz", x=x, y=y)
    words = [
        "data=npz",
        f"data.path={folder / 'graded.npz'}",
        "task=ordinal",
        "model.hidden=[16]",
        "trainer.max_epochs=15",
        "tracking=none",
    ]
    result = dnnkit.train(dnnkit.compose([*words, f"tracking.runs={folder / 'runs'}", "trainer.progress_bar=false"]))
    return folder, result, x, y


def test_it_learns_from_a_file(trained):
    _, result, _, y = trained
    always_the_middle = np.abs(y - 2).mean()
    assert result.metrics["test/class_distance"] < always_the_middle / 3
    assert result.module.net(torch.zeros(1, 4)).shape == (1, CLASSES - 1)
    counts = np.array(json.loads((result.run_dir / "diagnostics" / "confusion_matrix.json").read_text())["counts"])
    assert counts.shape == (CLASSES, CLASSES)
    assert (counts * np.abs(np.subtract.outer(range(CLASSES), range(CLASSES)))).sum() / counts.sum() == pytest.approx(
        result.metrics["test/class_distance"], rel=1e-6
    )


def test_evaluate_finds_what_the_run_recorded(trained):
    _, result, _, _ = trained
    found = evaluate(result.run_dir)
    assert found.metrics == found.recorded
    assert found.metrics["class_distance"] == result.metrics["test/class_distance"]


def test_predict_writes_the_median_and_the_probability_of_each_class(trained, tmp_path):
    folder, result, _, y = trained
    found = predict_file(result.run_dir, folder / "graded.npz", tmp_path / "told.csv")
    rows = list(csv.DictReader((tmp_path / "told.csv").read_text().splitlines()))
    told = np.array([[float(row[f"p_{k}"]) for k in range(CLASSES)] for row in rows])
    np.testing.assert_allclose(told.sum(1), 1, atol=1e-12)
    answers = np.array([int(row["prediction"]) for row in rows])
    assert answers.tolist() == [median(row) for row in told]
    assert found.metrics["class_distance"] == pytest.approx(np.abs(answers - y).mean(), rel=1e-6)
    predict_file(result.run_dir, folder / "graded.npz", tmp_path / "told.npz")
    with np.load(tmp_path / "told.npz") as arrays:
        assert arrays["prediction"].tolist() == answers.tolist()
        assert arrays["classes"].tolist() == [str(k) for k in range(CLASSES)]


def test_it_is_chosen_by_its_name_alone_and_takes_no_other_loss():
    assert not Ordinal().claims(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ConfigError, match="cross_entropy is for classification, the task is ordinal"):
        dnnkit.compose(["task=ordinal", "loss=cross_entropy"])
