"""Several labels for each example: from files of two kinds to a run, its measures and its predictions."""

from __future__ import annotations

import ast
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dnnkit
from dnnkit.checkpoint import RunState, load
from dnnkit.data import Examples, Source, prepare
from dnnkit.data.tasks import task_named
from dnnkit.errors import ConfigError, DataError, PluginError
from dnnkit.record import read_journal
from dnnkit.record.figures import draw_learning_curves
from dnnkit.record.sample import sample_figure
from dnnkit.registry import losses, metrics, tasks
from dnnkit.training.assemble import load_data
from dnnkit.training.evaluate import evaluate
from dnnkit.training.finished import open_run
from dnnkit.training.predict import predict, predict_file, predict_spread

ROOT = Path(__file__).parent.parent
QUIET = ("tracking=none", "trainer.progress_bar=false", "model.hidden=[24]")
NAMES = ("left", "above", "far")


def examples(n: int = 500, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points of the plane, each with a label for the side it is on, for the half, and for being far away."""
    x = np.random.default_rng(seed).normal(size=(n, 2))
    return x, np.stack([x[:, 0] < 0, x[:, 1] > 0.5, np.hypot(*x.T) > 1.5], 1).astype(np.int64)


def arrays(path: Path, **changes: Any) -> str:
    x, y = examples()
    np.savez(path, **{"x": x.astype(np.float32), "y": y, **changes})
    return f"data.path={path}"


def table(path: Path, words: tuple[str, str] = ("0", "1"), n: int = 500) -> str:
    x, y = examples(n)
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["a", "b", *NAMES])
        lines.writerows([*map(repr, map(float, row)), *(words[label] for label in labels)] for row, labels in zip(x, y, strict=True))
    return f"data.path={path}"


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


TARGETS = f"data.target=[{','.join(NAMES)}]"


# What it is measured by


def logits(n: int = 400, labels: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Some equal to one another and some exactly 0; of one label there is none, and it is never given."""
    rng = np.random.default_rng(1)
    z, y = np.round(rng.normal(size=(n, labels)) * 2, 1), rng.integers(0, 2, (n, labels))
    z[:, -1], y[:, -1] = -1.0, 0
    return z, y


def measured(record: Any, z: np.ndarray, y: np.ndarray) -> float:
    dnnkit.compose([])
    return float(record.function(torch.from_numpy(z), torch.from_numpy(y)))


def test_the_loss_is_the_mean_cross_entropy_of_the_labels() -> None:
    z, y = logits()
    p = 1 / (1 + np.exp(-z))
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    assert measured(losses_("binary_cross_entropy"), z, y) == pytest.approx(expected, rel=1e-12)
    assert measured(losses_("binary_cross_entropy"), 0 * z, y) == pytest.approx(np.log(2), rel=1e-14)
    with pytest.raises(PluginError, match="one shape"):
        measured(losses_("binary_cross_entropy"), z, y[:, 0])


def losses_(name: str) -> Any:
    dnnkit.compose([])
    return losses.get(name)


def metric(name: str) -> Any:
    dnnkit.compose([])
    return metrics.get(name)


def test_macro_f1_is_the_mean_over_the_labels_that_are_there_or_given() -> None:
    z, y = logits()
    found = []
    for label in range(5):
        tp = sum(1 for a, b in zip(z[:, label], y[:, label], strict=True) if a >= 0 and b)
        wrong = sum(1 for a, b in zip(z[:, label], y[:, label], strict=True) if (a >= 0) != bool(b))
        found.append(2 * tp / (2 * tp + wrong))
    assert measured(metric("macro_f1"), z, y) == pytest.approx(np.mean(found), rel=1e-6)
    assert np.isnan(measured(metric("macro_f1"), z[:, -1:], y[:, -1:]))


def test_mean_average_precision_is_the_sum_of_precision_over_the_steps_of_recall() -> None:
    z, y = logits()
    found = []
    for label in range(5):
        score, there, before, area = z[:, label], y[:, label], 0.0, 0.0
        for threshold in sorted(set(score), reverse=True):
            taken = score >= threshold
            recall = there[taken].sum() / there.sum()
            area += (recall - before) * there[taken].mean()
            before = recall
        found.append(area)
    assert measured(metric("mean_average_precision"), z, y) == pytest.approx(np.mean(found), rel=1e-12)
    assert np.isnan(measured(metric("mean_average_precision"), z[:, -1:], y[:, -1:]))


def test_right_logits_get_the_best_of_every_metric() -> None:
    y = torch.from_numpy(logits()[1])
    right = task_named("multi_label").right(y, y.shape[1])
    assert {float(metric(name).function(right, y)) for name in ("macro_f1", "mean_average_precision")} == {1.0}


def test_what_passes_say_together_is_the_mean_of_their_probabilities() -> None:
    z = np.random.default_rng(2).normal(size=(9, 30, 4)) * 3
    p = 1 / (1 + np.exp(-z))
    mean = p.mean(0)
    found = task_named("multi_label").spread(torch.from_numpy(z))

    def entropy(p: np.ndarray) -> np.ndarray:
        return np.asarray(-(p * np.log(p) + (1 - p) * np.log(1 - p)).sum(-1))

    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.std, p.std(0), atol=1e-13)
    np.testing.assert_allclose(found.output, np.log(mean / (1 - mean)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.entropy, entropy(mean), rtol=1e-12)
    np.testing.assert_allclose(found.mutual_information, entropy(mean) - entropy(p).mean(0), rtol=1e-9, atol=1e-12)


# Targets


def loaded(*words: str) -> Any:
    return load_data(dnnkit.compose(list(words)))


@pytest.mark.parametrize("kind", [np.uint8, np.int32, bool])
def test_whole_numbers_in_rows_are_labels_by_themselves(tmp_path: Path, kind: type) -> None:
    x, y = examples()
    data = loaded("data=npz", arrays(tmp_path / "a.npz", y=y.astype(kind)))
    assert (data.task, data.outputs, data.target_scaling, data.classes) == ("multi_label", 3, None, None)
    assert data.train.y.dtype == torch.float32
    rows = {tuple(row) for row in np.hstack([x, y]).round(4).tolist()}
    back = torch.cat([data.scaling.undo(data.train.x), data.train.y.double()], 1).numpy().round(4).tolist()
    assert {tuple(row) for row in back} <= rows  # each example still has its own labels
    assert sum(sum(counts.values()) for counts in data.card["label_balance"].values()) == y.sum()


def test_floating_numbers_in_rows_are_labels_where_the_task_says_so(tmp_path: Path) -> None:
    path = arrays(tmp_path / "a.npz", y=examples()[1].astype(np.float32))
    assert loaded("data=npz", path).task == "regression"
    assert loaded("data=npz", path, "task=multi_label").outputs == 3
    x, y = examples()
    source = Source(Examples(torch.from_numpy(x), torch.from_numpy(y).double()), None, targets=NAMES)
    data = prepare("mine", source, val_size=50, test_size=50, split="random", standardize="auto", seed=0, task="multi_label")
    assert list(data.card["label_balance"]["train"]) == list(NAMES)


def test_rows_with_a_single_1_may_be_either_and_the_answer_names_both(tmp_path: Path) -> None:
    path = arrays(tmp_path / "a.npz", y=np.eye(3, dtype=np.int64)[np.arange(500) % 3])
    with pytest.raises(DataError, match=r"(?s)one-hot.*argmax\(1\).*task=multi_label"):
        loaded("data=npz", path)
    assert loaded("data=npz", path, "task=multi_label").outputs == 3


@pytest.mark.parametrize(
    ("y", "says"),
    [
        (examples()[1] * 2, "0 and 1 for labels, got 2 in row"),
        (examples()[1][:, 0], r"rows of labels.*got int64 of shape \(500,\)"),
        (np.array(["a", "b"])[examples()[1]], "rows of labels"),
        (np.zeros((500, 3), dtype=np.int64), "none of 350 training rows has any of 3 labels"),
    ],
)
def test_what_are_no_labels_is_refused(tmp_path: Path, y: np.ndarray, says: str) -> None:
    with pytest.raises(DataError, match=f"(?s){says}"):
        loaded("data=npz", arrays(tmp_path / "a.npz", y=y), "task=multi_label", "data.val_size=50", "data.test_size=100")


def test_labels_are_no_classes_and_no_values_and_a_reconstruction_needs_none(tmp_path: Path) -> None:
    path = arrays(tmp_path / "a.npz")
    with pytest.raises(DataError, match="one label for each row"):
        loaded("data=npz", path, "task=classification")
    with pytest.raises(ConfigError, match="data=digits has classes for targets, which is classification, got multi_label"):
        loaded("data=digits", "task=multi_label")
    assert loaded("data=npz", path, "task=reconstruction").outputs == 2


@pytest.mark.parametrize("words", [("0", "1"), ("no", "yes"), ("false", "true")])
def test_columns_of_two_values_are_labels(tmp_path: Path, words: tuple[str, str]) -> None:
    data = loaded("data=csv", table(tmp_path / "t.csv", words), TARGETS)
    assert (data.task, data.targets, data.columns) == ("multi_label", NAMES, ("a", "b"))
    there = {name: sum(counts[name] for counts in data.card["label_balance"].values()) for name in NAMES}
    assert list(there.values()) == examples()[1].sum(0).tolist()
    assert (
        data.card["decisions"][0] == f"data.target 'left' has the values {words[0]} and {words[1]}: a label, there where it is {words[1]}"
    )


def test_a_single_column_may_be_a_label_and_several_numbers_are_a_regression(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv")
    assert loaded("data=csv", path, "data.target=left", "task=multi_label").outputs == 1
    assert loaded("data=csv", path, "data.target=left").task == "classification"
    values = loaded("data=csv", path, "data.target=[a,b]", "data.ignore=[far]")
    assert (values.task, values.targets, values.train.y.shape[1]) == ("regression", ("a", "b"), 2)
    np.testing.assert_allclose(values.card["target"]["a"]["mean"], examples()[0][:, 0].mean(), atol=0.1)


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (["data.target=[left,a]", "task=multi_label"], DataError, "'a' has 500 distinct values, and a label has two"),
        ([TARGETS, "task=classification"], ConfigError, "task=classification takes one column"),
        (["data.target=[left,left]"], ConfigError, "each once"),
        (["data.target=[left,lefft]"], DataError, "(?s)lefft.*left"),
        (["data.target=[left,above]", "data.ignore=[above]"], ConfigError, "'above' is the target"),
    ],
)
def test_columns_that_are_no_row_of_labels_are_refused(tmp_path: Path, words: list[str], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        loaded("data=csv", table(tmp_path / "t.csv"), *words)


def test_a_stratified_split_keeps_the_rarest_labels_in_proportion() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random((1000, 3)) < [0.5, 0.2, 0.02]).astype(np.int64)
    source = Source(Examples(torch.from_numpy(rng.normal(size=(1000, 2))), torch.from_numpy(y)), None)
    sizes: dict[str, Any] = {"val_size": 0.25, "test_size": 0.25, "standardize": "auto", "split": "stratified"}
    for seed in range(5):
        data = prepare("mine", source, seed=seed, **sizes)
        counts = [data.card["label_balance"][part]["label_2"] for part in ("validation", "test")]
        # A quarter of the rows, and a quarter of the three quarters that are left.
        assert abs(counts[1] - y[:, 2].sum() / 4) < 1
        assert abs(counts[0] - (y[:, 2].sum() - counts[1]) / 4) < 1


# A run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """One on a table whose labels are said in words."""
    folder = tmp_path_factory.mktemp("labels")
    words = ["data=csv", table(folder / "t.csv", ("no", "yes")), TARGETS, "trainer.max_epochs=12", "dropout=dropout", "dropout.p=0.1"]
    return folder, dnnkit.train(dnnkit.compose([*words, *QUIET, f"tracking.runs={folder / 'runs'}", "dropout.mc_samples=3"]))


def test_a_run_learns_and_records_what_the_task_is_measured_by(trained: tuple[Path, Any]) -> None:
    _, result = trained
    assert result.metrics["test/macro_f1"] > 0.85
    assert result.metrics["test/mean_average_precision"] > 0.9
    assert 0 < result.metrics["test/mc_std"] < 0.5
    assert {"test/mc_macro_f1", "test/mc_loss"} <= set(result.metrics)
    keys = {row.key for row in read_journal(result.run_dir / "metrics.jsonl")}
    assert {f"{part}/{name}" for part in ("train", "val") for name in ("loss", "macro_f1", "mean_average_precision")} <= keys
    path = result.run_dir / "checkpoints" / "best.ckpt"
    state = RunState.of(load(path), path)
    assert (state.task, state.outputs, state.targets, state.classes, state.target_mean) == ("multi_label", 3, NAMES, None, None)


def test_the_learning_curves_have_the_first_of_its_metrics_beside_the_loss(trained: tuple[Path, Any]) -> None:
    _, result = trained
    figure = draw_learning_curves(result.run_dir)
    assert figure is not None
    assert [axes.get_ylabel() for axes in figure.axes] == ["Loss", "Macro F1"]
    curve = next(line for line in figure.axes[1].lines if line.get_label() == "validation")
    assert max(curve.get_ydata()) == max(row.value for row in read_journal(result.run_dir / "metrics.jsonl") if row.key == "val/macro_f1")


def test_evaluate_finds_what_the_run_recorded(trained: tuple[Path, Any]) -> None:
    _, result = trained
    found = evaluate(result.run_dir)
    assert found.metrics == found.recorded
    assert {"loss", "macro_f1", "mean_average_precision"} <= set(found.metrics)


@pytest.mark.parametrize("ending", ["csv", "npz"])
def test_predict_writes_a_probability_for_each_label(trained: tuple[Path, Any], tmp_path: Path, ending: str) -> None:
    folder, result = trained
    found = predict_file(result.run_dir, folder / "t.csv", tmp_path / f"told.{ending}")
    run = open_run(result.run_dir)
    x = torch.from_numpy(examples()[0])
    with torch.no_grad():
        z = run.network()(run.scaling.apply(x)).double().numpy()
    p = 1 / (1 + np.exp(-z))
    np.testing.assert_allclose(predict(run, x), p, rtol=1e-12)
    if ending == "csv":
        rows = rows_of(tmp_path / "told.csv")
        assert list(rows[0]) == ["row", "prediction", *(f"p_{name}" for name in NAMES)]
        np.testing.assert_allclose([[float(row[f"p_{name}"]) for name in NAMES] for row in rows], p, rtol=1e-12)
        given = [[name for name, share in zip(NAMES, row, strict=True) if share >= 0.5] for row in p]
        assert [row["prediction"] for row in rows] == [";".join(names) for names in given]
    else:
        with np.load(tmp_path / "told.npz") as held:
            np.testing.assert_allclose(held["probabilities"], p, rtol=1e-12)
            assert held["labels"].tolist() == list(NAMES)
            assert (held["prediction"] == (p >= 0.5)).all()
    y = examples()[1]
    assert found.metrics["loss"] == pytest.approx(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(), rel=1e-5)


def test_predict_says_how_far_passes_with_dropout_are_apart(trained: tuple[Path, Any], tmp_path: Path) -> None:
    folder, result = trained
    predict_file(result.run_dir, folder / "t.csv", tmp_path / "told.csv", mc_samples=4)
    rows = rows_of(tmp_path / "told.csv")
    shares, deviations = [f"p_{name}" for name in NAMES], [f"std_{name}" for name in NAMES]
    assert list(rows[0]) == ["row", "prediction", *shares, *deviations, "entropy", "mutual_information"]
    spread = predict_spread(open_run(result.run_dir), torch.from_numpy(examples()[0]), 4)
    np.testing.assert_allclose([[float(row[key]) for key in deviations] for row in rows], spread.std, rtol=1e-12)


def test_labels_in_arrays_are_trained_streamed_and_predicted_alike(tmp_path: Path) -> None:
    words = ["data=npz", arrays(tmp_path / "a.npz"), "trainer.max_epochs=2", *QUIET, f"tracking.runs={tmp_path / 'runs'}"]
    resident, streamed = (dnnkit.train(dnnkit.compose([*words, f"data.loader={loader}"])) for loader in ("resident", "stream"))
    assert resident.metrics == pytest.approx(
        {key: value for key, value in streamed.metrics.items() if not key.startswith("time/")}
        | {key: value for key, value in resident.metrics.items() if key.startswith("time/")}
    )
    found = predict_file(resident.run_dir, tmp_path / "a.npz", tmp_path / "told.csv")
    assert found.metrics.keys() == {"loss", "macro_f1", "mean_average_precision"}
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, x=examples()[0].astype(np.float32), y=examples()[1] * 3)
    notices = predict_file(resident.run_dir, wrong, tmp_path / "told.npz").notices
    assert [notice for notice in notices if "must hold 0 and 1 for labels" in notice]


def test_a_sample_of_the_data_is_drawn_by_label(tmp_path: Path) -> None:
    data = loaded("data=csv", table(tmp_path / "t.csv"), TARGETS)
    assert sample_figure(data, tmp_path / "sample.png").stat().st_size > 1000
    groups = dict(task_named("multi_label").groups(data, torch.arange(len(data.train.y))))
    assert {name: len(rows) for name, rows in groups.items()} == data.card["label_balance"]["train"]


def test_it_is_one_file_and_its_registration() -> None:
    """Nothing else, of the framework or of the components, has the task, its loss or its metrics in its code."""
    own = {"multi_label", "MultiLabel", "binary_cross_entropy", "macro_f1", "mean_average_precision"}
    assert tasks.get("multi_label").origin.module == losses.get("binary_cross_entropy").origin.module == "dnnkit_plugins.multi_label"
    mentioning = set()
    for path in [*(ROOT / "dnnkit").rglob("*.py"), *(ROOT / "plugins" / "dnnkit_plugins").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            said = {
                getattr(node, field, None)
                for field in ("id", "attr", "value", "name")
                if not isinstance(getattr(node, field, None), ast.AST)
            }
            if any(one in own for one in said if isinstance(one, str)):
                mentioning.add(path.relative_to(ROOT).as_posix())
    assert mentioning == {"plugins/dnnkit_plugins/multi_label.py", "plugins/dnnkit_plugins/__init__.py"}
