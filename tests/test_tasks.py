"""What is learnt: classes, values or the example itself, from a source's targets to what is trained on and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dnnkit
from dnnkit.data import DataSet, Examples, Source, prepare
from dnnkit.data.stored import StoredRows
from dnnkit.errors import ConfigError, DataError
from dnnkit.record import read_journal
from dnnkit.registry import data_sources, losses, metrics, models, tasks
from dnnkit.training.summary import data_lines

ROWS = 400
SIZES: dict[str, Any] = {"val_size": 0.2, "test_size": 0.25, "split": "stratified", "standardize": "auto", "seed": 0}


def values(n: int = ROWS, outputs: int = 1) -> Source:
    """Targets that are a linear function of three features, in units far from 1."""
    rng = np.random.default_rng(0)
    x = rng.normal(5, 3, (n, 3))
    y = 1000 + 50 * x @ rng.normal(size=(3, outputs))
    names = tuple(f"y{index}" for index in range(outputs))
    return Source(Examples(torch.from_numpy(x), torch.from_numpy(y)), None, columns=("a", "b", "c"), targets=names)


def prepared(source: Source, **changes: Any) -> DataSet:
    return prepare("mine", source, **{**SIZES, **changes})


def test_values_are_standardised_with_the_training_rows_alone() -> None:
    source = values(outputs=2)
    data = prepared(source, split="tail")
    train = source.train.y.numpy()[:240]
    assert data.task == "regression"
    assert data.outputs == 2
    assert data.train.y.dtype == torch.float32
    np.testing.assert_allclose(data.target_scaling.mean, train.mean(0), rtol=1e-13)
    np.testing.assert_allclose(data.target_scaling.std, train.std(0), rtol=1e-12)
    np.testing.assert_allclose(data.target_scaling.undo(data.test.y), source.train.y[300:], rtol=1e-6)
    assert data.card["target"]["y1"]["max"] == train[:, 1].max()


def test_values_can_keep_their_units() -> None:
    source = values()
    data = prepared(source, split="tail", standardize_target=False)
    torch.testing.assert_close(data.train.y, source.train.y[:240].float(), rtol=0, atol=0)


def test_a_stratified_split_of_values_takes_from_every_decile_alike() -> None:
    source = values()
    data = prepared(source)
    edges = np.quantile(source.train.y.numpy(), np.linspace(0, 1, 11))[1:-1]
    for part, share in (("test", 10), ("validation", 6), ("train", 24)):
        counts = np.bincount(np.digitize(data.target_scaling.undo(getattr(data, part).y).numpy()[:, 0], edges), minlength=10)
        assert abs(counts - share).max() <= 1, (part, counts)


def test_whole_numbers_without_names_can_be_values() -> None:
    source = Source(Examples(torch.rand(50, 2), torch.arange(50)), None)
    assert prepared(source).task == "classification"
    data = prepared(source, task="regression", split="tail")
    torch.testing.assert_close(data.target_scaling.undo(data.test.y)[:, 0], torch.arange(38, 50).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "task", "says"),
    [
        (Source(Examples(torch.rand(50, 2), torch.arange(50) % 2), None, classes=("a", "b")), "regression", "has classes"),
        (values(), "classification", "has values"),
    ],
)
def test_targets_that_do_not_fit_the_task_are_refused(source: Source, task: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"task: data=mine {says}.*got {task}"):
        prepared(source, task=task)


def test_a_reconstruction_is_of_the_standardised_example_itself() -> None:
    images = torch.randint(0, 256, (60, 1, 4, 4), dtype=torch.uint8)
    data = prepared(Source(Examples(images, torch.arange(60) % 3), None, kind="image"), task="reconstruction", split="tail")
    assert data.outputs == 16
    assert torch.equal(data.train.y, data.train.x.reshape(len(data.train.x), 16))
    torch.testing.assert_close(data.target_scaling.undo(data.test.y), images[45:].flatten(1).double(), rtol=0, atol=1e-4)


def test_a_missing_value_becomes_the_mean_of_the_known_training_values() -> None:
    x = values().train.x.clone()
    holes = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    x[holes] = torch.nan
    data = prepared(Source(Examples(x, torch.arange(ROWS) % 2), None, columns=("a", "b", "c"), missing=True), split="tail")
    known = np.ma.masked_invalid(x.numpy()[:240])
    np.testing.assert_allclose(data.scaling.mean, known.mean(0), rtol=1e-13)
    np.testing.assert_allclose(data.scaling.std, known.std(0), rtol=1e-12)
    assert (data.train.x[holes[:240]] == 0).all()
    assert data.card["missing"] == dict(zip("abc", holes.sum(0).tolist(), strict=True))
    raw = prepared(Source(Examples(x, torch.arange(ROWS) % 2), None, missing=True), split="tail", standardize="none")
    np.testing.assert_allclose(raw.train.x[holes[:240]], np.broadcast_to(known.mean(0), (240, 3))[holes[:240].numpy()], rtol=1e-6)


def test_a_feature_that_no_training_row_knows_stays_finite() -> None:
    x = torch.rand(100, 2, dtype=torch.float64)
    x[:, 1] = torch.nan
    x[-1, 1] = 7.0
    data = prepared(Source(Examples(x, torch.arange(100) % 2), None, columns=("a", "b"), missing=True), split="tail")
    assert data.card["constant_features"] == ["b"]
    assert all(split.x.isfinite().all() for split in (data.train, data.validation, data.test))


def test_an_infinity_is_no_missing_value() -> None:
    x = torch.tensor([[1.0], [torch.nan], [torch.inf]])
    with pytest.raises(DataError, match="the first is row 2"):
        prepared(Source(Examples(x, torch.tensor([0, 1, 0])), None, missing=True))


@pytest.mark.parametrize("task", ["auto", "reconstruction"])
def test_streamed_examples_are_the_resident_ones_bit_for_bit(task: str) -> None:
    images = torch.randint(0, 256, (60, 3, 4, 4), dtype=torch.uint8)
    source = Source(Examples(images, torch.arange(60) % 3), None, kind="image")
    resident, streamed = prepared(source, task=task), prepared(source, task=task, stream=True)
    for part in ("train", "validation", "test"):
        mine, theirs = getattr(streamed, part), getattr(resident, part)
        assert isinstance(mine.x, StoredRows)
        assert mine.x.shape == theirs.x.shape
        assert torch.equal(mine.x[:], theirs.x)
        assert torch.equal(mine.y[:], theirs.y)
    assert streamed.card["loader"] == "stream"


@pytest.fixture
def linear(registries: None) -> None:
    """Data whose targets are a linear function of the features."""

    @data_sources.register("linear_values")
    def linear_values(root: Path | None, outputs: int = 1) -> Source:
        return values(outputs=outputs)


TRAIN = ("tracking=none", "trainer.progress_bar=false", "model.hidden=[]", "initializer=lecun_normal", "trainer.max_epochs=30")


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_linear_model_of_linear_values_is_exact_and_measured_in_their_units(workdir: Path, linear: None, outputs: int) -> None:
    result = dnnkit.train(dnnkit.compose(["data=linear_values", f"data.outputs={outputs}", *TRAIN]))
    assert result.metrics["test/r2"] > 0.9999
    data = prepared(values(outputs=outputs), val_size=0.1, test_size=0.2)
    with torch.no_grad():
        predicted = data.target_scaling.undo(result.module(data.test.x))
    error = predicted - data.target_scaling.undo(data.test.y)
    assert result.metrics["test/mse"] == pytest.approx(float(error.square().mean()), rel=1e-3)
    assert result.metrics["test/mae"] == pytest.approx(float(error.abs().mean()), rel=1e-3)
    assert {row.key for row in read_journal(result.run_dir / "metrics.jsonl")} >= {
        f"{part}/{name}" for part in ("train", "val", "test") for name in ("loss", "mse", "mae", "r2")
    }
    assert not (result.run_dir / "figures" / "confusion_matrix.png").exists()


def test_a_metric_or_loss_of_another_task_is_refused_when_the_data_are_known(workdir: Path, linear: None) -> None:
    with pytest.raises(ConfigError, match="metrics: acc is for classification, the task is regression") as caught:
        dnnkit.train(dnnkit.compose(["data=linear_values", "metrics=[acc]", "loss=cross_entropy", *TRAIN]))
    assert [problem.where for problem in caught.value.problems] == ["loss", "metrics"]
    assert not Path("runs").exists()


def test_a_metric_or_loss_of_another_task_is_refused_at_once_when_the_task_is_given() -> None:
    with pytest.raises(ConfigError, match="loss: cross_entropy is for classification, the task is regression"):
        dnnkit.compose(["task=regression", "loss=cross_entropy"])


def test_a_metric_that_the_data_have_no_use_for_is_refused_before_anything_is_made(workdir: Path) -> None:
    with pytest.raises(ConfigError, match="5 likeliest; with 3 classes"):
        dnnkit.train(dnnkit.compose(["data=iris", "metrics=[acc,top_k]", *TRAIN]))
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.limit_val_batches=0.5", "less than one of 1 validation minibatches, got 0.5"),
        ("trainer.limit_train_batches=0.01", "less than one of 41 training minibatches, got 0.01"),
        ("trainer.val_check_interval=0.01", "less than one of 41 training minibatches, got 0.01"),
        ("trainer.val_check_interval=50", "must be at most 41, the minibatches of an epoch, got 50"),
    ],
)
def test_a_part_of_an_epoch_without_a_minibatch_is_refused_before_anything_is_made(workdir: Path, override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        dnnkit.train(dnnkit.compose([override, *TRAIN]))
    assert not Path("runs").exists()


def test_a_monitor_that_is_not_defined_on_the_validation_rows_is_refused_before_anything_is_made(workdir: Path) -> None:
    with pytest.raises(ConfigError, match=r"val/auroc is not defined on these 12 validation rows"):
        dnnkit.train(dnnkit.compose(["data=iris", "data.split=tail", "metrics=[auroc]", *TRAIN]))
    assert not Path("runs").exists()


def test_a_class_without_training_examples_is_told(workdir: Path) -> None:
    result = dnnkit.train(dnnkit.compose(["data=iris", "data.split=tail", "data.val_size=30", *TRAIN, "trainer.max_epochs=1"]))
    assert "no training example is of class virginica" in (result.run_dir / "run.log").read_text()


@pytest.mark.parametrize("data", [("data=diabetes",), ("data=synthetic", "task=regression")])
def test_the_defaults_do_not_diverge_on_a_regression(workdir: Path, data: tuple[str, ...]) -> None:
    result = dnnkit.train(dnnkit.compose([*data, "tracking=none", "trainer.progress_bar=false"]))
    assert result.metrics["test/r2"] > 0.2


def test_one_class_is_nothing_to_learn(workdir: Path, registries: None) -> None:
    @data_sources.register("one_class")
    def one_class(root: Path | None) -> Source:
        return Source(Examples(torch.rand(50, 2), torch.zeros(50, dtype=torch.int64)), None)

    with pytest.raises(DataError, match="one class only"):
        dnnkit.train(dnnkit.compose(["data=one_class", *TRAIN]))


def test_a_metric_that_is_not_defined_is_left_out_and_told_once(workdir: Path, registries: None, caplog: Any) -> None:
    @metrics.register("undefined", better="higher", mean=False)
    def undefined(prediction: Tensor, target: Tensor) -> Tensor:
        return torch.tensor(torch.nan)

    cfg = dnnkit.compose(["metrics=[acc,undefined]", "trainer.max_epochs=2", "tracking=none", "trainer.progress_bar=false"])
    result = dnnkit.train(cfg)
    assert not any(row.key.endswith("/undefined") for row in read_journal(result.run_dir / "metrics.jsonl"))
    log = (result.run_dir / "run.log").read_text()
    assert log.count("val/undefined") == 1


def test_the_tasks_that_components_name_are_tasks() -> None:
    known = set(tasks.names())
    assert {"classification", "regression", "reconstruction"} <= known
    for registry in (losses, metrics):
        for record in registry:
            assert set(record.facts["tasks"]) <= known, record.name
    assert {record.facts.get("task", "auto") for record in models} <= known | {"auto"}


def test_a_run_says_what_it_trains_on_and_what_was_decided() -> None:
    card = {"name": "csv", "task": "regression", "sizes": {"train": 1200, "test": 30}, "loader": "stream"}
    assert data_lines(card) == ["csv: regression; 1,200 train, 30 test, streamed"]
    lines = data_lines({**card, "decisions": [f"column {index}" for index in range(50)]})
    assert lines[1:3] == ["  column 0", "  column 1"]
    assert len(lines) == 14
    assert lines[-1] == "  … and 38 more; run.log has all"
