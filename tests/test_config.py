"""From overrides and files to a config, or to every problem with them: exit 2, the right suggestion, and nothing created."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import dnnkit
from dnnkit.cli import main
from dnnkit.config import Checkpoint, Composer, Config, Tracking, Trainer, compose
from dnnkit.config.loader import shipped
from dnnkit.config.sections import GROUPS, top_level
from dnnkit.errors import ConfigError, Problem
from dnnkit.registry import KINDS, REGISTRIES
from dnnkit.schema import MISSING, kind_settings, node

COMPOSER = Composer()
EXPERIMENTS = COMPOSER.loader.options("experiment")
CHOICES = [(group, name) for group in GROUPS for name in [*REGISTRIES[group].names(), *KINDS[group].switches]]
ROWS = max(Counter(group for group, _ in CHOICES).values())


def problems(*overrides: str, config_dir: Path | None = None) -> tuple[Problem, ...]:
    """What is wrong with a command line."""
    composer = COMPOSER if config_dir is None else Composer(str(config_dir))
    with pytest.raises(ConfigError) as caught:
        composer.one(overrides)
    assert caught.value.exit_code == 2
    return caught.value.problems


# ------------------------------------------------------------------------------------------------ what composes


def test_the_default_config_is_the_promised_one() -> None:
    cfg = COMPOSER.one([])
    assert (cfg.data.name, cfg.model.name, list(cfg.model.hidden)) == ("digits", "mlp", [300, 100])
    assert (cfg.activation.name, cfg.initializer.name) == ("selu", "auto")
    assert (cfg.optimizer.name, cfg.optimizer.lr, cfg.scheduler.name) == ("momentum", 0.05, "one_cycle")
    assert (cfg.data.batch_size, cfg.trainer.max_epochs, cfg.seed) == (32, 20, 0)
    assert set(cfg.values) == set(top_level())


def compose_on_top(experiment: str, row: int) -> None:
    """Compose an experiment with the choice in this row of every group, or one from its beginning again, and look at their settings."""
    chosen = {group: names[row % len(names)] for group in GROUPS if (names := [name for known, name in CHOICES if known == group])}
    chosen["loss"] = "auto" if REGISTRIES["model"].get(chosen["model"]).facts.get("task") else chosen["loss"]
    given = [f"{group}.{key}=given" for group, name in chosen.items() for key, value in node(group, name).items() if value == MISSING]
    values = COMPOSER.one([f"+experiment={experiment}", *(f"{group}={name}" for group, name in chosen.items()), *given]).values
    for group, name in chosen.items():
        shared = {*kind_settings(group).names(), *KINDS[group].required}
        own = {key: "given" if value == MISSING else value for key, value in node(group, name).items() if key not in shared}
        assert {key: values[group][key] for key in own} == own, (group, name)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_choices_compose_on_top_of_an_experiment(experiment: str) -> None:
    """Two rows for each experiment: every choice on top of many."""
    place = EXPERIMENTS.index(experiment)
    for row in (place, place + ROWS // 2):
        compose_on_top(experiment, row % ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_choice_composes_on_top_of_every_experiment(experiment: str) -> None:
    for row in range(ROWS):
        compose_on_top(experiment, row)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_sets_names_and_settings_common_to_a_group(experiment: str) -> None:
    text = next(iter((shipped("conf") / "experiment").glob(f"{experiment}.yaml"))).read_text(encoding="utf-8")
    assert text.startswith(f"# python -m dnnkit +experiment={experiment}\n")
    for key, value in yaml.safe_load(text).items():
        if key in GROUPS:
            shared = {*kind_settings(key).names(), *KINDS[key].required}
            assert set(value) <= shared


def test_every_file_that_is_shipped_is_sound_yaml() -> None:
    files = [*shipped("conf").rglob("*.yaml"), *shipped("sweeps").glob("*.yaml")]
    assert len(files) > 10
    assert all(isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict) for file in files)


@pytest.mark.parametrize(("group", "name", "declared"), [("trainer", "auto", Trainer), ("tracking", "mlflow", Tracking)])
def test_the_defaults_in_files_are_those_of_the_code(group: str, name: str, declared: type) -> None:
    held = yaml.safe_load((shipped("conf") / group / f"{name}.yaml").read_text(encoding="utf-8"))
    assert held | {"precision": "32"} == vars(declared()) | {"precision": "32"}
    assert list(held) == list(vars(declared()))


def test_the_checkpoint_defaults_in_the_main_file_are_those_of_the_code() -> None:
    assert yaml.safe_load((shipped("conf") / "config.yaml").read_text(encoding="utf-8"))["checkpoint"] == vars(Checkpoint())


def test_composing_needs_no_working_folder_of_ours(workdir: Path) -> None:
    assert compose(["+experiment=selu_mnist", "trainer=cpu"]).data.name == "mnist"
    assert list(workdir.iterdir()) == []


def test_the_same_words_give_the_same_config() -> None:
    words = ["+experiment=bn_elu_fashion", "optimizer=nadam", "optimizer.lr=1e-3"]
    assert compose(words) == compose(words) == dnnkit.compose(words)
    assert compose(words) != compose([*words, "seed=1"])
    assert compose(words).overrides == tuple(words)


def test_a_config_is_read_only() -> None:
    cfg = COMPOSER.one([])
    for change in (lambda: setattr(cfg, "seed", 1), lambda: setattr(cfg.optimizer, "lr", 1), lambda: cfg.model.hidden.append(3)):
        with pytest.raises(Exception, match="read-only"):
            change()
    cfg.values["optimizer"]["lr"] = 7
    assert cfg.optimizer.lr == cfg.values["optimizer"]["lr"] == 0.05


def test_a_config_written_as_yaml_reads_back_as_itself() -> None:
    cfg = COMPOSER.one(["+experiment=selu_fashion", "model.hidden=[7]", "tracking.uri=null"])
    assert yaml.safe_load(cfg.to_yaml()) == cfg.values
    assert Config(yaml.safe_load(cfg.to_yaml())).values == cfg.values


def test_values_are_of_the_declared_type_however_they_are_written() -> None:
    cfg = COMPOSER.one(["optimizer.lr=1", "trainer.precision=64", "data.val_size=10", "trainer.limit_train_batches=0.5"])
    assert (type(cfg.optimizer.lr), cfg.trainer.precision, cfg.data.val_size) == (float, "64", 10)
    assert cfg.trainer.limit_train_batches == 0.5


def test_a_reference_stands_for_the_value_of_another_key() -> None:
    cfg = COMPOSER.one(["name=lr_${optimizer.lr}_${model.hidden[1]}", "scheduler.warmup=${.start_factor}", "tracking.experiment=${name}"])
    assert (cfg.name, cfg.scheduler.warmup, cfg.tracking.experiment) == ("lr_0.05_100", 0.1, "lr_0.05_100")


def test_a_folder_of_presets_is_found(presets: Callable[[dict[str, str]], Path]) -> None:
    folder = presets(
        {
            "experiment/mine.yaml": "defaults:\n  - override /activation: huge_leak\n  - /experiment: selu_digits\nname: mine\n",
            "activation/huge_leak.yaml": "defaults: [leaky_relu, _self_]\nnegative_slope: 0.2\n",
            "trainer/quick.yaml": "defaults: [cpu, _self_]\nmax_epochs: 1\n",
        }
    )
    cfg = compose(["activation=huge_leak", "trainer=quick"], config_dir=str(folder))
    assert cfg.values["activation"] == {"name": "leaky_relu", "negative_slope": 0.2}
    assert (cfg.trainer.name, cfg.trainer.max_epochs) == ("cpu", 1)
    assert compose(["activation=huge_leak", "activation.negative_slope=0.3"], config_dir=str(folder)).activation.negative_slope == 0.3
    assert "huge_leak" not in Composer().loader.options("activation")


def test_an_experiment_may_build_on_another(presets: Callable[[dict[str, str]], Path]) -> None:
    folder = presets({"experiment/mine.yaml": "defaults:\n  - selu_digits\n  - _self_\nname: mine\ndata:\n  batch_size: 64\n"})
    cfg = compose(["+experiment=mine"], config_dir=str(folder))
    assert (cfg.name, cfg.initializer.name, cfg.data.batch_size) == ("mine", "lecun_normal", 64)


# ------------------------------------------------------------------------------------- what is wrong, and what would be right

#: The override, what its message has to say of the value and the rule, and the right suggestion.
MISTAKES = [
    ("activation=sellu", ["no activation called 'sellu'", "relu"], "selu"),
    ("activaton=selu", ["no key 'activaton'"], "activation=selu"),
    ("optmizer.lr=0.1", ["no key 'optmizer'"], "optimizer.lr=0.1"),
    ("optimizer.lrr=0.1", ["no setting 'lrr'", "momentum"], "optimizer.lr"),
    ("trainer.max_epoch=3", ["no setting 'max_epoch'"], "trainer.max_epochs"),
    ("activation.negative_slope=0.1", ["activation=selu has no setting 'negative_slope'"], "activation=leaky_relu"),
    ("+experiment=selu_mnits", ["no experiment called 'selu_mnits'", "bn_elu_fashion"], "selu_mnist"),
    ("experiment=selu_mnist", ["added with a plus sign"], "+experiment=selu_mnist"),
    ("trainer=gppu", ["no trainer called 'gppu'", "auto, cpu, ddp, ddp_cpu, gpu"], "gpu"),
    ("+expermnt=mine", ["no key 'expermnt'"], "+experiment=mine"),
    ("+optimizer.lrr=1", ["unknown setting", "lr, momentum"], "lr"),
    ("+foo.bar=1", ["no key 'foo'", "activation"], ""),
    ("+seed=1", ["there already"], "seed=1"),
    ("+activation=relu", ["without a plus sign"], "activation=relu"),
    ("activation@dropout=relu", ["without @"], "activation=relu"),
    ("~optimizer.lr", ["every key has its place"], ""),
    ("optimizer={lr: 1}", ["chosen by its name", "one by one, as optimizer.KEY=VALUE"], ""),
    ("checkpoint={mode: min}", ["one by one, as checkpoint.KEY=VALUE"], ""),
    ("trainer=null", ["no trainer called 'null'"], ""),
    ("optimizer.lr=abc", ["'abc'", "a finite number greater than 0"], ""),
    ("optimizer.lr='0.1'", ["'0.1'", "a finite number greater than 0"], ""),
    ("seed=1.5", ["1.5", "an integer at least 0"], ""),
    ("seed=true", ["True", "an integer at least 0"], ""),
    ("trainer.max_epochs=[1]", ["[1]", "an integer at least 1"], ""),
    ("data.split=strattified", ["'strattified'", "one of stratified, random, tail"], "stratified"),
    ("model.use_bias=1", ["must be auto or true or false", "1"], ""),
    ("optimizer.lr=-0.1", ["-0.1", "a finite number greater than 0"], ""),
    ("optimizer.lr=0", ["got 0", "greater than 0"], ""),
    ("optimizer.lr=nan", ["nan", "a finite number"], ""),
    ("optimizer.lr=inf", ["inf", "a finite number"], ""),
    ("optimizer.momentum=1.5", ["1.5", "at least 0 and less than 1"], ""),
    ("model.hidden=[300,-1]", ["-1", "a list of integers at least 1"], ""),
    ("model.hidden=-300", ["-300", "a list of integers"], ""),
    ("seed=12345678901234567890", ["12345678901234567890", "at most 4294967295"], ""),
    ("data.val_size=0", ["got 0", "an integer at least 1 or a finite number greater than 0 and less than 1"], ""),
    ("data.val_size=1.0", ["got 1.0", "less than 1"], ""),
    ("trainer.devices=2", ["must be 1 for trainer=auto", "got 2"], "trainer=ddp_cpu"),
    ("metrics=[ac]", ["no metric is called 'ac'"], "acc"),
    ("metrics=[accuracy]", ["no metric is called 'accuracy'"], "acc"),
    ("metrics=acc", ["must be auto or a list"], "metrics=[acc]"),
    ("metrics=[acc,acc]", ["holds acc more than once"], ""),
    ("metrics=[{name: top_k, k: 0}]", ["metrics[0].k", "an integer at least 1, got 0"], ""),
    ("metrics=[acc,{name: top_k, kk: 3}]", ["metrics[1].kk", "unknown setting"], "k"),
    ("metrics=[[acc]]", ["got ['acc']"], ""),
    ("metrics.top_k.k=3", ["metrics=[acc,{name: top_k, k: 3}]"], ""),
    ("+metrics.top_k.k=3", ["metrics=[acc,{name: top_k, k: 3}]"], ""),
    ("checkpoint.monitor=val/f1", ["may be measured, not val/f1", "metrics=[f1]"], ""),
    ("model.hidden={dense: 3}", ["must be a list, in square brackets"], "model.hidden=[{dense: 3}]"),
    ("model.hidden=[10000000000]", ["at most 1000000, got [10000000000]"], ""),
    ("tracking.uri=,", ["in quotes inside quotes: \"tracking.uri=','\""], ""),
    ("checkpoint.monitor=val/lss", ["'val/lss'", "val/loss"], "val/loss"),
    ("name=''", ["''", "at least 1 long"], ""),
    ("optimizer.lr=${optimizer.lrr}", ["leads nowhere"], "${optimizer.lr}"),
    ("name=${nam}", ["'${nam}' leads nowhere"], "${name}"),
    ("name=${name}", ["'${name}' leads to itself"], ""),
    ("optimizer.lr", ["KEY=VALUE"], ""),
    ("optimizer.lr=[1", ["KEY=VALUE"], ""),
    ("optimizer.lr=0.1,0.2", ["add -m"], ""),
    ("hydra.sweeper.max_batch_size=3", ["matters to a sweep alone"], ""),
    ("hydra/launcher=basicc", ["no hydra/launcher called 'basicc'"], "basic"),
    ("seed=" + "9" * 5000, ["KEY=VALUE"], ""),
    ("name=" + "[" * 3000, ["KEY=VALUE"], ""),
]


@pytest.mark.parametrize(("override", "says", "suggestion"), MISTAKES, ids=[mistake[0][:40] for mistake in MISTAKES])
def test_a_mistake_is_answered_with_the_value_the_rule_and_the_right_thing(
    override: str, says: list[str], suggestion: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([override]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("1 problem in the config:\n  - ")
    assert all(part in told.err for part in says), told.err
    assert f"Did you mean {suggestion!r}" in told.err if suggestion else "Did you mean" not in told.err
    assert "command line" in told.err or override.startswith("optimizer.lr=0.1,")
    assert len(told.err) < 800
    assert (told.out, "Traceback" in told.err, list(workdir.iterdir())) == ("", False, [])


MISPLACED = ["name=${..x}", "name=${.name}", "name=${checkpoint}", "seed=${model.hidden[7]}", "name=${model.hidden.x}"]


@pytest.mark.parametrize("override", MISPLACED)
def test_a_reference_that_cannot_stand_where_it_is_is_refused(override: str) -> None:
    (problem,) = problems(override)
    assert "the reference" in problem.message


def test_references_in_a_circle_are_found() -> None:
    found = problems("name=${tracking.uri}", "tracking.uri=${tracking.runs}", "tracking.runs=${name}")
    assert all("leads to itself" in problem.message for problem in found)


def test_files_that_take_each_other_into_their_defaults_lists_are_refused(presets: Callable[[dict[str, str]], Path]) -> None:
    folder = presets({"experiment/a.yaml": "defaults: [b]\n", "experiment/b.yaml": "defaults: [a]\n"})
    assert "lead back to themselves" in str(problems("+experiment=a", config_dir=folder)[0])


def test_every_mistake_of_a_command_is_reported_at_once() -> None:
    five = ["activation=sellu", "optimizer.lr=-1", "trainr.max_epochs=2", "+expermnt=x", "name=${nowhere}"]
    assert [problem.nearest[:1] for problem in problems(*five)] == [("selu",), ("trainer.max_epochs=2",), ("+experiment=x",), (), ()]
    again = problems(*five, "seed=-1", "initializer=he_norml", "data.split=x", "optimizer={}", "hydra.verbose=true")
    assert len(again) == 10
    assert len(problems("optimizer.lr=-1", "+experiment=selu_mnits", "optimizer.momentum=2", "trainer.threads=0", "seed=a")) == 5


def test_a_wrong_choice_or_an_unreadable_word_brings_no_false_problem_with_it() -> None:
    assert [problem.where for problem in problems("data=imag_folder", "data.path=x")] == ["data=imag_folder"]
    assert [problem.where for problem in problems("metrics.top_k.k=3", "data=npz", "data.path=x")] == ["metrics.top_k.k=3"]
    assert [problem.where for problem in problems("data=csv", "data.target=y", "data.path=,")] == ["data.path=,"]
    assert [problem.where for problem in problems("data=csv", "data.target=y", "data.path=a,b")] == ["data.path=a,b"]
    found = [problem.where for problem in problems("loss.delta=-1", "metrics=[msee]", "checkpoint.mode=up")]
    assert found == ["loss.delta=-1", "metrics", "checkpoint.mode"]


TEXTS = ["d/été.csv", "d/a=b.csv", "~/x.csv", "种类 y", ";", "|", "a b (1).csv", "a#b", "ü[1].csv", "100%"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_taken_as_it_is_typed(text: str) -> None:
    assert COMPOSER.one(["data=csv", "data.target=y", f"data.path={text}"]).data.path == text
    quotes = [f"data.path='{text}'", "data=csv", "data.target=y"]
    assert COMPOSER.one(quotes).data.path == text


@pytest.mark.parametrize("word", ["name=a${b:c}é", "name=é\\${name}", "hydra.verbose=é", "hydra.job.name=é", "_target_=é", "+a._target_=é"])
def test_text_that_needs_quotes_opens_no_door(word: str) -> None:
    assert len(problems(word)) == 1


def test_metrics_may_have_settings_and_keep_them_in_the_config() -> None:
    cfg = COMPOSER.one(["metrics=[acc,{name: top_k, k: 3},{name: f1}]", "checkpoint.monitor=val/top_k"])
    assert cfg.values["metrics"] == ["acc", {"name": "top_k", "k": 3}, {"name": "f1"}]


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        (["task=classification"], {"acc"}),
        (["task=regression"], {"mse", "mae", "r2"}),
        (["model=autoencoder"], {"mse"}),
        (["task=classification", "metrics=[f1,auroc]"], {"f1", "auroc"}),
        (["metrics=[]"], set()),
    ],
)
def test_only_what_is_measured_can_be_monitored(words: list[str], allowed: set[str]) -> None:
    for name in REGISTRIES["metrics"].names():
        asked = [*words, f"checkpoint.monitor=val/{name}"]
        if name in allowed:
            assert COMPOSER.one(asked).checkpoint.monitor == f"val/{name}"
        else:
            assert [problem.where for problem in problems(*asked)] == ["checkpoint.monitor"]


NOT_FOR_THE_DATA = [
    (["data=iris", "checkpoint.monitor=val/f1"], "metrics=[f1]"),
    (["data=iris", "checkpoint.monitor=val/mse"], "regression, the task is classification"),
    (["data=iris", "augmentation=flip"], "flip needs images"),
    (["data=iris", "augmentation=shift"], "shift needs images"),
    (["augmentation=shift", "augmentation.pixels=8"], "less than the sides of the images, 8 × 8, got 8"),
    (["model.hidden=[1000000,1000000]"], "does not fit into memory: model.hidden=[1000000, 1000000]"),
    (["metrics=[acc,{name: top_k, k: 10}]"], "with 10 classes it always is"),
]


@pytest.mark.parametrize(("words", "says"), NOT_FOR_THE_DATA, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_what_does_not_fit_the_data_is_refused_before_a_folder_is_made(
    words: list[str], says: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trainer=cpu", "tracking=none", *words]) == 2
    assert says in capsys.readouterr().err
    assert list(workdir.iterdir()) == []


def test_a_mistake_does_not_hide_what_the_right_words_set() -> None:
    (problem,) = problems("activation=leaky_relu", "activation.negative_slope=2", "optimizer=adam")
    assert problem.where == "activation.negative_slope"


#: An experiment file, what its problem says, and the suggestion.
FILE_MISTAKES = [
    ("defaults:\n  - override /activation: sellu\n", "no activation called 'sellu'", "selu"),
    ("defaults:\n  - override /activaton: selu\n", "no config group 'activaton'", "activation"),
    ("defaults:\n  - override activation: selu\n", "a group of the whole config", "override /activation: selu"),
    ("defaults:\n  - /activation: selu\n", "has a choice already", "override /activation: selu"),
    ("defaults:\n  - selu_mnits\n", "no experiment called 'selu_mnits'", "selu_mnist"),
    ("defaults:\n  - /experimnt: selu_mnist\n", "no config group 'experimnt'", "experiment"),
    ("optimizer:\n  lrr: 0.1\n", "unknown setting", "lr"),
    ("optimzer:\n  lr: 0.1\n", "unknown key", "optimizer"),
    ("optimizer:\n  lr: fast\n", "'fast'", ""),
    ("optimizer:\n  lr: -1\n", "greater than 0, got -1", ""),
    ("model:\n  hidden: [3, 0]\n", "a list of integers at least 1 and at most 1000000, got [3, 0]", ""),
    ("activation:\n  name: sellu\n", "no activation is called 'sellu'", "selu"),
    ("trainer: 3\n", "must hold its settings", ""),
    ("optimizer: null\n", "must be chosen by name", ""),
    ("name: ${nam}\n", "leads nowhere", "${name}"),
    ("- a list\n", "has to be a mapping", ""),
    ("seed: [1\n", "cannot be read", ""),
    ("seed: 1\nseed: 2\n", "cannot be read", ""),
    ("seed: !!python/object/apply:os.getcwd []\n", "cannot be read", ""),
    ("name: !!binary aGk=\n", "text", ""),
    ("name: 2026-01-01\n", "", ""),
]


@pytest.mark.parametrize(("text", "says", "suggestion"), FILE_MISTAKES, ids=[mistake[0].replace("\n", " ") for mistake in FILE_MISTAKES])
def test_a_mistake_in_a_file_names_the_file_and_the_right_thing(
    text: str, says: str, suggestion: str, presets: Callable[[dict[str, str]], Path]
) -> None:
    if text == "name: 2026-01-01\n":  # not a date: YAML as Hydra reads it has none
        assert compose(["+experiment=mine"], config_dir=str(presets({"experiment/mine.yaml": text}))).name == "2026-01-01"
        return
    (problem,) = problems("+experiment=mine", config_dir=presets({"experiment/mine.yaml": text}))
    assert says in str(problem)
    assert "experiment/mine" in str(problem)
    assert (problem.nearest[0] if problem.nearest else "") == suggestion


def test_the_file_that_set_a_value_last_is_named(presets: Callable[[dict[str, str]], Path]) -> None:
    files = {"experiment/mine.yaml": "trainer:\n  max_epochs: 0\n", "trainer/quick.yaml": "defaults: [cpu, _self_]\nmax_epochs: -1\n"}
    folder = presets(files)
    assert problems("+experiment=mine", config_dir=folder)[0].origin.endswith("experiment/mine.yaml")
    assert problems("trainer=quick", config_dir=folder)[0].origin.endswith("trainer/quick.yaml")
    assert "command line" in problems("+experiment=mine", "trainer.max_epochs=-2", config_dir=folder)[0].origin


COMPONENTS = [("activation", "selu"), ("optimizer", "adam"), ("initializer", "auto"), ("normalization", "none")]


@pytest.mark.parametrize(("group", "name"), COMPONENTS)
def test_a_file_named_like_a_component_is_refused(group: str, name: str, presets: Callable[[dict[str, str]], Path]) -> None:
    folder = presets({f"{group}/{name}.yaml": f"name: {name}\n"})
    with pytest.raises(ConfigError, match=f"hides the registered {group}={name}"):
        compose([], config_dir=str(folder))


@pytest.mark.parametrize("name", ["config", "experiment/selu_mnist", "trainer/cpu"])
def test_a_file_that_would_be_ignored_for_one_of_the_same_name_is_refused(name: str, presets: Callable[[dict[str, str]], Path]) -> None:
    folder = presets({f"{name}.yaml": "seed: 7\n"})
    (problem,) = problems("+experiment=selu_mnist", "trainer=cpu", config_dir=folder)
    assert "two of this name" in problem.message
    assert str(folder / f"{name}.yaml") in problem.message


@pytest.mark.parametrize("folder", ["nowhere", ""])
def test_a_folder_of_presets_that_is_not_there_is_refused(folder: str, workdir: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        compose([], config_dir=folder)
    assert main(["--config-dir", folder, "seed=1"]) == main(["--config-dir"]) == 2


def test_no_config_reaches_omegaconf_with_a_reference_in_it() -> None:
    cfg: Any = COMPOSER.one(["name=${activation.name}"])
    assert "${" not in cfg.to_yaml()
