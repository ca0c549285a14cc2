"""A task of one's own: what registering asks of it, how it is chosen, and that a run asks it alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import dnnkit
from dnnkit.cli import main
from dnnkit.config.json_schema import config_schema
from dnnkit.data import BaseTask, Examples, Source, prepare
from dnnkit.data.scaling import Scaling
from dnnkit.data.source import Form
from dnnkit.errors import ConfigError, DataError, PluginError
from dnnkit.registry import losses, tasks
from dnnkit.training.assemble import load_data
from dnnkit.training.evaluate import evaluate
from dnnkit.training.predict import predict_file

pytestmark = pytest.mark.usefixtures("registries")
SIZES: dict[str, Any] = {"val_size": 0.2, "test_size": 0.2, "split": "random", "standardize": "auto", "seed": 0}


class Counts(BaseTask):
    """Counts, by the logarithm of their mean: an example of what differs from a regression."""

    form: ClassVar[Form] = "values"

    def target_scaling(self, values: Callable[[], Scaling], examples: Scaling, inputs: tuple[int, ...]) -> Scaling | None:
        """None: a count has no unit."""
        return None

    def check(self, name: str, data: Any) -> None:
        """No count is negative."""
        if bool((data.train.y < 0).any()):
            raise DataError(f"data={name}: a count is at least 0")

    def targets(self, x: Any, y: Tensor, scaling: Scaling | None) -> Tensor:
        """As float32."""
        return y.float()

    def right(self, target: Tensor, outputs: int) -> Tensor:
        """The logarithm."""
        return target.clamp_min(1e-6).log()

    def predicted(self, output: Tensor, scaling: Scaling | None, inputs: tuple[int, ...]) -> Tensor:
        """The mean itself."""
        return output.double().exp()


def with_counts() -> None:
    @losses.register("poisson", tasks=["counts"])
    def poisson(prediction: Tensor, target: Tensor) -> Tensor:
        """The mean of e^z − y·z."""
        return (prediction.exp() - target * prediction).mean()

    dnnkit.registry.metrics.register("deviance", tasks=["counts"], better="lower", mean=True)(poisson)
    tasks.register("counts", loss="poisson", metrics=["deviance"])(Counts)


def source(y: Tensor, **named: Any) -> Source:
    return Source(Examples(torch.rand(len(y), 3), y), None, **named)


def test_a_run_of_ones_own_task_is_trained_measured_and_told_as_the_task_says(workdir: Path) -> None:
    with_counts()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 3)).astype(np.float32)
    np.savez("c.npz", x=x, y=rng.poisson(np.exp(0.5 + x[:, 0])))
    words = ["data=npz", "data.path=c.npz", "task=counts", "model.hidden=[16]", "optimizer.lr=0.01", "tracking=none"]
    result = dnnkit.train(dnnkit.compose([*words, "trainer.progress_bar=false", "trainer.max_epochs=8"]))
    assert result.metrics["test/loss"] == pytest.approx(result.metrics["test/deviance"], rel=1e-6)
    assert evaluate(result.run_dir).metrics["deviance"] == pytest.approx(result.metrics["test/deviance"], rel=1e-6)
    predict_file(result.run_dir, "c.npz", "told.npz")
    with np.load("told.npz") as told:
        assert (told["values"] > 0).all()
        assert np.corrcoef(told["values"][:, 0], np.exp(0.5 + x[:, 0]))[0, 1] > 0.9
    assert not (result.run_dir / "diagnostics" / "confusion_matrix.json").exists()


def test_a_task_may_refuse_what_cannot_be_learnt(workdir: Path) -> None:
    with_counts()
    np.savez("c.npz", x=np.zeros((50, 2)) + np.arange(50)[:, None], y=np.arange(50) - 25.0)
    with pytest.raises(DataError, match="a count is at least 0"):
        load_data(dnnkit.compose(["data=npz", "data.path=c.npz", "task=counts"]))


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (torch.arange(60) % 3, "classification"),
        (torch.rand(60), "regression"),
        (torch.rand(60, 2), "regression"),
        (torch.randint(0, 2, (60, 2)), "multi_label"),
    ],
)
def test_auto_is_the_task_that_takes_the_targets_for_its_own(y: Tensor, expected: str) -> None:
    assert prepare("mine", source(y), **SIZES).task == expected


def test_where_two_tasks_take_the_targets_auto_names_both_and_either_can_be_chosen() -> None:
    class Greedy(Counts):
        def claims(self, y: Tensor) -> bool:
            return y.is_floating_point()

    tasks.register("greedy", loss="huber", metrics=["mse"])(Greedy)
    with pytest.raises(ConfigError, match="has values for targets, which greedy and regression each take for theirs") as caught:
        prepare("mine", source(torch.rand(60)), **SIZES)
    assert caught.value.problems[0].nearest == ("task=greedy", "task=regression")
    assert [prepare("mine", source(torch.rand(60)), **SIZES, task=task).task for task in ("greedy", "regression")] == [
        "greedy",
        "regression",
    ]


def test_where_no_task_takes_the_targets_auto_says_so() -> None:
    tasks.remove("regression")
    with pytest.raises(ConfigError, match="has values for targets, which no task takes for its own"):
        prepare("mine", source(torch.rand(60)), **SIZES)


@pytest.mark.parametrize(
    ("task", "facts", "says"),
    [
        (lambda: None, {"loss": "mse", "metrics": ["mse"]}, "a class without settings; it is a function"),
        (type("Set", (BaseTask,), {"__init__": lambda self, k=3: None}), {"loss": "mse", "metrics": ["mse"]}, "has no type"),
        (Counts, {"metrics": ["mse"]}, "names what loss=auto and metrics=auto stand for"),
        (Counts, {"loss": "mse"}, "names what loss=auto and metrics=auto stand for"),
        (Counts, {"loss": "mse", "metrics": []}, "names what loss=auto and metrics=auto stand for"),
        (Counts, {"loss": "mse", "metrics": "mse"}, "names what loss=auto and metrics=auto stand for"),
    ],
)
def test_a_task_that_could_not_be_chosen_or_measured_is_refused(task: Any, facts: Mapping[str, Any], says: str) -> None:
    with pytest.raises(PluginError, match=says):
        tasks.register("mine", **facts)(task)


def test_a_task_with_a_setting_is_refused() -> None:
    class Graded(BaseTask):
        def __init__(self, grades: int = 3) -> None: ...

    with pytest.raises(PluginError, match="it has the setting 'grades'"):
        tasks.register("graded", loss="mse", metrics=["mse"])(Graded)


def test_a_task_is_chosen_by_a_registered_name_or_auto() -> None:
    with_counts()
    with pytest.raises(ConfigError, match=r"task.* must be one of auto, classification, counts, .*got 'count'"):
        dnnkit.compose(["task=count"])
    cfg = dnnkit.compose(["task=counts"])
    assert cfg.task == cfg.values["task"] == "counts"
    assert {"enum": ["auto", *tasks.names()]} in config_schema()["properties"]["task"]["allOf"]
    with pytest.raises(ConfigError, match="huber is for regression and reconstruction, the task is counts") as caught:
        dnnkit.compose(["task=counts", "loss=huber"])
    assert caught.value.problems[0].nearest == ("poisson",)


def test_tasks_are_listed_and_described_like_other_components(capsys: pytest.CaptureFixture[str]) -> None:
    with_counts()
    assert main(["list", "task", "--json"]) == 0
    rows = {row["name"]: row["summary"] for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == {"auto", *tasks.names()}
    assert rows["counts"].startswith("Counts, by the logarithm")
    assert main(["describe", "task", "classification"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("task=classification\n")
    assert "loss: cross_entropy" in page
    assert main(["list", "loss"]) == 0
    assert "cross_entropy for classification; poisson for counts" in capsys.readouterr().out
