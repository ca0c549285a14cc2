"""Pretraining: an experiment that another one begins with is judged with it, trained once, and found again."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest
import torch
from rich.console import Console

import dnnkit
from dnnkit.checkpoint import load
from dnnkit.cli.main import main
from dnnkit.config import Composer
from dnnkit.errors import CheckpointError, ConfigError, Interrupted
from dnnkit.training import run as run_module
from dnnkit.training.pretraining import experiment_digest, once
from dnnkit.training.run import prepare_run
from dnnkit.worker import read_config

QUICK = ("tracking=none", "trainer=cpu", "trainer.progress_bar=false", "trainer.limit_train_batches=4", "trainer.limit_val_batches=1")
HEAD = "defaults:\n  - override /model: {model}\nname: {name}\ntrainer:\n  max_epochs: 1\n"
FILES = {
    "model/first_model.yaml": "defaults:\n  - autoencoder\n  - _self_\nhidden: []\ncode: 12\n",
    "model/second_model.yaml": "defaults:\n  - autoencoder\n  - _self_\nhidden: [12]\ncode: 8\n",
    "model/third_model.yaml": "defaults:\n  - mlp\n  - _self_\nhidden: [12, 8]\n",
    "experiment/first.yaml": HEAD.format(model="first_model", name="first"),
    "experiment/second.yaml": HEAD.format(model="second_model", name="second")
    + "init_from: {experiment: first, data: same, layers: ['00_*']}\nfreeze: ['00_*']\n",
    "experiment/third.yaml": HEAD.format(model="third_model", name="third")
    + "init_from: {experiment: second, data: same, layers: ['00_*', '01_*']}\ndata:\n  train_size: 100\n",
    "experiment/ring_a.yaml": "name: ring_a\ninit_from: {experiment: ring_b}\n",
    "experiment/ring_b.yaml": "name: ring_b\ninit_from: {experiment: ring_a}\n",
    "experiment/growing.yaml": "init_from: {experiment: growing, overrides: ['name=${name}x'], layers: [a]}\n",
}
Compose = Callable[..., dnnkit.Config]


@pytest.fixture
def compose(presets: Callable[[dict[str, str]], Path], workdir: Path) -> Compose:
    folder = str(presets(FILES))
    return lambda *words: dnnkit.compose([*words, *QUICK], config_dir=folder)


def runs(name: str = "") -> list[Path]:
    return sorted(Path("runs").glob(f"2*_{name}*"))


def inner(cfg: dnnkit.Config) -> dict[str, dict[str, object]]:
    return cfg.values["init_from"]["config"]


# What it takes over


def test_a_pretraining_takes_over_how_and_where_but_not_how_long(compose: Compose) -> None:
    cfg = compose("+experiment=second", "seed=7", "trainer.precision=64", "trainer.threads=2", "trainer.max_epochs=9", "tracking.runs=here")
    phase = inner(cfg)
    assert phase["seed"] == 7
    assert phase["tracking"] == cfg.values["tracking"]
    taken = ("name", "devices", "precision", "threads", "limit_train_batches", "limit_val_batches", "progress_bar")
    assert {key: phase["trainer"][key] for key in taken} == {key: cfg.values["trainer"][key] for key in taken}
    assert phase["trainer"]["max_epochs"] == 1
    assert phase["model"]["name"] == "autoencoder"


def test_what_is_held_out_is_held_out_of_the_pretraining_and_how_many_are_trained_on_is_its_own(compose: Compose) -> None:
    phase = inner(compose("+experiment=third", "data.val_size=77", "data.split=tail", "data.batch_size=16", "data.root=d"))
    assert {key: phase["data"][key] for key in ("val_size", "split", "root")} == {"val_size": 77, "split": "tail", "root": "d"}
    assert phase["data"]["batch_size"] == 32
    assert phase["data"]["train_size"] is None
    assert phase["init_from"]["config"]["data"]["val_size"] == 77, "all the way down"


def test_the_source_of_the_data_is_taken_over_where_the_experiment_leaves_it_open(compose: Compose) -> None:
    node = "init_from={experiment: first, overrides: %s}"
    assert inner(compose("data.classes=[1,2]", node % "[]"))["data"]["classes"] == [1, 2]
    assert inner(compose("data.classes=[1,2]", node % "['data.classes=[3,4]']"))["data"]["classes"] == [3, 4]


def test_other_data_are_pretrained_on_unless_the_same_are_asked_for(compose: Compose) -> None:
    assert inner(compose("data=iris", "init_from={experiment: first}"))["data"]["name"] == "digits"
    same = inner(compose("data=iris", "data.batch_size=8", "init_from={experiment: first, data: same}"))["data"]
    assert (same["name"], same["batch_size"]) == ("iris", 32)
    chosen = inner(compose("data=iris", "data.root=d", "init_from={experiment: first, data: same, overrides: ['data=wine']}"))["data"]
    assert (chosen["name"], chosen["root"]) == ("wine", "d")


def test_its_own_overrides_come_last(compose: Compose) -> None:
    phase = inner(compose("seed=7", "init_from={experiment: first, overrides: ['seed=3', 'trainer.max_epochs=2', 'trainer.threads=1']}"))
    assert phase["seed"] == 3
    assert (phase["trainer"]["max_epochs"], phase["trainer"]["threads"]) == (2, 1)


def test_overrides_are_typed_on_a_shell_as_docs_transfer_has_them() -> None:
    text = (Path(__file__).parents[1] / "docs" / "transfer.md").read_text("utf-8")
    commands = [block.replace("\\\n", "") for block in text.split("```") if "overrides: [" in block and "python -m dnnkit" in block]
    (passed,) = (shlex.split(command)[3:] for command in commands)
    phase = inner(dnnkit.compose(passed))
    assert (phase["name"], phase["trainer"]["max_epochs"]) == ("greedy_1", 1)


# What is wrong with it


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["init_from={experiment: frist}"], ["there is no experiment called 'frist'", "Did you mean 'first'"]),
        (
            ["init_from={experiment: first, overrides: ['optimizer.lrr=1']}"],
            ["init_from (experiment=first)", "Did you mean 'optimizer.lr'"],
        ),
        (["init_from={experiment: first, overrides: ['optimizer.lr=-1', 'seed=-1']}"], ["2 problems", "optimizer.lr", "seed"]),
        (["+experiment=ring_a"], ["leads back to itself", "ring_b → ring_a"]),
        (["init_from={experiment: growing}"], ["leads"]),
    ],
)
def test_problems_of_a_pretraining_are_those_of_the_config(compose: Compose, words: list[str], told: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        compose(*words)
    for word in told:
        assert word in str(error.value)


def test_that_phases_do_not_fit_is_known_before_the_first_is_trained(compose: Compose) -> None:
    with pytest.raises(CheckpointError, match=r"these layers do not fit those of \+experiment=second"):
        dnnkit.train(compose("+experiment=third", "model.hidden=[12,9]"))
    with pytest.raises(ConfigError, match=r"trainer\.val_check_interval"):
        dnnkit.train(compose("+experiment=third", "trainer.val_check_interval=1000"))
    with pytest.raises(ConfigError, match="'07_dense' names no layer"):
        dnnkit.train(compose("+experiment=third", "freeze=[07_dense]"))
    assert not Path("runs").exists()


def test_building_does_not_train_what_is_not_there(compose: Compose) -> None:
    with pytest.raises(CheckpointError, match=r"the pretraining \+experiment=first has no finished run in runs/"):
        dnnkit.build(compose("+experiment=second"))
    assert not Path("runs").exists()


# Three phases


def test_phases_are_trained_once_in_their_order_and_hand_their_weights_on(compose: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    result = dnnkit.train(compose("+experiment=third"), console=Console())
    said = capsys.readouterr().out
    assert [path.name.split("_")[2] for path in runs()] == ["first", "second", "third"]
    assert (
        said.index("first the pretraining +experiment=first") < said.index("first the pretraining +experiment=second") < said.index("from ")
    )
    first, second, third = runs()
    weights = [load(path / "checkpoints" / "best.ckpt")["state_dict"] for path in (first, second)]
    for name in ("net.00_dense.weight", "net.00_dense.bias"):
        assert torch.equal(weights[0][name], weights[1][name]), "frozen in the second phase"
    assert read_config(third).values["init_from"]["run"] == str(second.absolute())
    assert read_config(second).values["init_from"]["run"] == str(first.absolute())
    built = prepare_run(read_config(third)).network.state_dict()
    assert all(torch.equal(built[name], weights[1][f"net.{name}"]) for name in built if not name.startswith("02"))
    assert result.run_dir == third.absolute()

    again = dnnkit.train(compose("+experiment=third", "name=again", "optimizer.lr=0.01"))
    assert [path.name.split("_")[2] for path in runs()] == ["first", "second", "third", "again"]
    assert read_config(again.run_dir).values["init_from"] == read_config(third).values["init_from"]
    net = dnnkit.build(compose("+experiment=third")).net
    assert torch.equal(net.get_parameter("01_dense.weight"), weights[1]["net.01_dense.weight"])
    # Another seed is another pretraining.
    assert experiment_digest(inner(compose("+experiment=third"))) != experiment_digest(inner(compose("+experiment=third", "seed=1")))


def test_what_changes_no_number_is_the_same_pretraining_and_what_does_is_another(compose: Compose) -> None:
    def digest(*words: str) -> str:
        return experiment_digest(inner(compose("+experiment=second", *words)))

    assert digest() == digest("tracking.runs=x", "name=y", "data.root=z", "trainer.chunk_size=3", "data.train_size=50")
    assert len({digest(), digest("seed=1"), digest("data.val_size=50"), digest("trainer.precision=64"), digest("data=iris")}) == 5


def test_only_a_finished_run_on_the_same_data_counts(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise Interrupted(2, "stopped")

    with monkeypatch.context() as patched:
        original = run_module._execute
        patched.setattr(run_module, "_execute", lambda run, *rest: original(run, *rest) if run.cfg.values["name"] == "first" else stop())
        with pytest.raises(Interrupted):
            dnnkit.train(compose("+experiment=third"))
    assert [path.name.split("_")[2] for path in runs()] == ["first", "second"], "the second was stopped"
    dnnkit.train(compose("+experiment=third"))
    assert [path.name.split("_")[2] for path in runs()] == ["first", "second", "second", "third"], "and the first found again"


def test_a_sweep_pretrains_once(compose: Compose, presets: Callable[[dict[str, str]], Path]) -> None:
    words = ["-m", "+experiment=second", "optimizer.lr=0.1,0.01", f"--config-dir={presets(FILES)}", *QUICK]
    assert main(words) == 0
    assert len(runs("first")) == 1
    assert len(runs("second")) == 2


def test_two_that_need_the_same_pretraining_at_once_have_it_done_once(compose: Compose) -> None:
    phase = prepare_run(compose("+experiment=first"))
    trained: list[Path] = []
    results: list[Path] = []

    def train() -> Path:
        time.sleep(0.5)
        trained.append(dnnkit.train(compose("+experiment=first")).run_dir)
        return trained[-1]

    threads = [
        threading.Thread(target=lambda: results.append(once(phase, "+experiment=first", train, Console(quiet=True)))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trained) == 1
    assert results == trained * 2


def test_a_config_that_asks_for_no_pretraining_is_composed_as_before(compose: Compose) -> None:
    assert compose().values["init_from"] is None
    composer = Composer()
    composer.one(["init_from={experiment: selu_digits}"])
    assert not composer.asks_for_sweep


# The effect


@pytest.mark.slow
def test_greedy_pretraining_helps_where_labels_are_few(workdir: Path, data_root: Path) -> None:
    """With 100 labels the loss is lower by 0.07 on average over five seeds, each of which has other labels."""
    words = ["+experiment=fashion/greedy_autoencoder", f"data.root={data_root}", "tracking=none", "trainer.progress_bar=false"]
    pretrained = dnnkit.train(dnnkit.compose(words)).metrics
    without = dnnkit.train(dnnkit.compose([*words, "init_from=null"])).metrics
    assert pretrained["test/acc"] > without["test/acc"]
    assert pretrained["test/loss"] < without["test/loss"]
    (layers,) = Path("runs").glob("*_greedy_2_*")

    def loss(init_from: str) -> float:
        fewer = [*words, "data.train_size=100", f"init_from={init_from}"]
        return fmean(dnnkit.train(dnnkit.compose([*fewer, f"seed={seed}"])).metrics["test/loss"] for seed in range(5))

    assert loss(f"{{run: {layers}, layers: ['00_*', '01_*']}}") < loss("null")
