"""The command line: what it prints, and the exit codes that scripts rely on."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dnnkit import plugins
from dnnkit.cli import main
from dnnkit.cli.catalogue import LISTED, choices, record
from dnnkit.cli.main import SUBCOMMANDS
from dnnkit.config import Composer
from dnnkit.config.sections import GROUPS, SECTIONS
from dnnkit.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DiskError,
    DivergedError,
    DnnkitError,
    Interrupted,
    PluginError,
    Problem,
    SweepError,
)
from dnnkit.registry import KINDS, REGISTRIES

plugins.load()

ROOT = Path(__file__).parent.parent
COMPOSER = Composer()
KNOWN = {group: {*REGISTRIES[group].names(), *KINDS[group].switches} if group in KINDS else set() for group in LISTED}

EVERY = [(group, name) for group in [*GROUPS, "metrics"] for name in [*REGISTRIES[group].names(), *KINDS[group].switches]]


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What a command prints: on its output where it succeeds, else on the error output, and never a traceback."""
    assert main(list(words)) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert (out, err) == ((out, "") if code == 0 else ("", err))
    return out if code == 0 else err


def run(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dnnkit", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **environment})


def test_the_help_names_every_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "--help")
    assert text == told(capsys, "-h") == told(capsys, "seed=1", "--help")
    assert all(word in text for word in ("list", "describe", "check", "plugins", "-m", "--config-dir", "--cfg", "--version", "Exit codes"))
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("command", SUBCOMMANDS)
def test_every_subcommand_has_its_own_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, command, "--help")
    assert text == told(capsys, command, "-h")
    assert text.startswith(f"dnnkit {command}")
    assert len(text.split("\n\n")) >= 2


def test_help_and_version_import_no_torch(workdir: Path) -> None:
    calls = "import sys\nfrom dnnkit.cli import main\nmain(['--help']), main(['--version'])\n"
    code = f"{calls}sys.exit(bool({{'torch', 'hydra', 'mlflow'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=workdir, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1][0].isdigit()


def test_list_shows_every_group_and_every_choice(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {line.split()[0]: line for line in told(capsys, "list").splitlines()}
    assert list(rows) == list(LISTED)
    for group, name in EVERY:
        assert name in rows[group].replace(",", "").split()
    assert [row["name"] for row in json.loads(told(capsys, "list", "--json"))] == list(rows)


@pytest.mark.parametrize("group", LISTED)
def test_list_of_a_group_has_a_line_about_each_choice(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(told(capsys, "list", group, "--json"))
    assert rows
    assert all(set(row) == {"name", "summary", "origin"} and row["origin"] for row in rows)
    assert all(row["summary"] for row in rows if (group, row["name"]) not in {("tracking", "mlflow"), ("trainer", "cpu")})
    assert len({row["name"] for row in rows}) == len(rows)
    lines = told(capsys, "list", group).splitlines()
    assert [line.split()[0] for line in lines] == [row["name"] for row in rows]
    assert {name for known, name in EVERY if known == group} <= {row["name"] for row in rows}


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_every_choice_is_described_with_all_its_settings(group: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(told(capsys, "describe", group, name, "--json"))
    page = told(capsys, "describe", group, name)
    assert (record["kind"], record["name"]) == (group, name)
    assert page.startswith(f"{group}={name}\n")
    if name in REGISTRIES[group]:
        component = REGISTRIES[group].get(name)
        assert record["doc"] == component.doc
        assert component.doc in page
        assert all(f"  {group}.{setting.name} {'has to be given' if setting.required else '= '}" in page for setting in component.settings)
        assert f"from {component.origin.package} {component.origin.version}" in page


def test_a_page_says_bounds_defaults_source_and_common_settings(capsys: pytest.CaptureFixture[str]) -> None:
    page = told(capsys, "describe", "activation", "leaky_relu")
    assert "activation.negative_slope = 0.01   a finite number, ≥ 0, < 1" in page
    assert "Source: Maas, Hannun & Ng 2013." in page
    assert "pairs_with: he_normal" in page
    rule = "data.val_size = 0.1   an integer at least 1 or a finite number greater than 0 and less than 1"
    assert rule in told(capsys, "describe", "data", "digits")


@pytest.mark.parametrize("group", ["trainer", "tracking", "experiment", "sweeps"])
def test_a_preset_is_described_by_its_opening_comment(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    for row in json.loads(told(capsys, "list", group, "--json")):
        assert row["summary"] in told(capsys, "describe", group, row["name"])


#: A command line and what is said of it.
WRONG = [
    (["lst"], ["'list'", "list, describe"]),
    (["trian", "seed=1"], ["no such command"]),
    (["list", "activaton"], ["'activation'"]),
    (["list", "data_source"], ["no group of this name", "data"]),
    (["list", "activation", "loss"], ["dnnkit list [GROUP]"]),
    (["list", "--jsn"], ["dnnkit list [GROUP]"]),
    (["describe", "activation"], ["dnnkit describe GROUP NAME"]),
    (["describe"], ["dnnkit describe GROUP NAME"]),
    (["describe", "activation", "sellu"], ["'selu'", "no activation of this name"]),
    (["describe", "activatoin", "selu"], ["'activation'"]),
    (["plugins", "x"], ["dnnkit plugins"]),
    (["check", "activation=sellu"], ["'selu'"]),
    (["check", "--cofig-dir", "x"], ["'--config-dir'"]),
    (["check", "-m", "optimizer.lr=0.1,-1"], ["greater than 0, got -1"]),
    (["check", "seed=1,2"], ["add -m"]),
    (["--mutirun"], ["'--multirun'"]),
    (["seed=1", "list"], ["KEY=VALUE"]),
    (["-m", "--cfg", "seed=1,2"], ["leave -m out"]),
    (["--config-name", "x"], ["no such option"]),
    (["--config-path=/tmp"], ["no such option"]),
    (["--hydra-help"], ["no such option"]),
]


@pytest.mark.parametrize(("words", "says"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_a_wrong_command_ends_with_2_and_a_hint_and_nothing_is_made(
    words: list[str], says: list[str], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(capsys, *words, code=2)
    assert all(part in text for part in says), text
    assert list(workdir.iterdir()) == []


def test_check_says_that_a_valid_config_is_valid_and_makes_nothing(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = {"": "the config is", "+experiment=selu_mnist seed=3": "the config is", "-m optimizer=momentum,nadam": "all 2 jobs are"}
    right |= {"+sweeps=lr seed=1,2": "all 14 jobs are"}
    for words, subject in right.items():
        assert told(capsys, "check", *words.split()).startswith(f"{subject} valid")
    assert told(capsys, "check") == "the config is valid\n"
    assert list(workdir.iterdir()) == []


def test_check_says_what_it_could_not_find_out_without_the_data(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    valid = "the config is valid as far as can be told without the data: "
    absent = told(capsys, "check", "data=mnist", f"data.root={workdir}")
    assert absent == f"{valid}data=mnist would have to be downloaded\n"
    assert told(capsys, "check", "-m", "seed=1,2") == "all 2 jobs are valid\n"
    assert "there is no file" in told(capsys, "check", "data=csv", "data.path=x.csv", "data.target=y", code=4)
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optimizer.groups=[{match: zz, lr_scale: 0.1}]", "optimizer.groups[0].match: 'zz' fits no parameter"),
        ("freeze=[zz]", "freeze[0]: 'zz' names no layer"),
        ("scheduler.warmup_steps=100000", "scheduler.warmup_steps: must be less than the 820 optimizer steps"),
    ],
)
def test_check_finds_what_only_the_network_or_the_data_can_tell(
    override: str, says: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in told(capsys, "check", "tracking=none", override, code=2)
    assert list(workdir.iterdir()) == []


def test_a_pretraining_is_checked_and_not_trained(workdir: Path, data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["+experiment=fashion/greedy_autoencoder", f"data.root={data_root}"]
    assert told(capsys, "check", *words) == "the config is valid\n"  # no rule has anything to say of it
    assert list(workdir.iterdir()) == []


def test_the_name_of_a_folder_is_answered_with_some_of_what_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "check", "+experiment=fashion", code=2)
    assert "fashion is a folder of experiments, of which one is chosen: fashion/alpha_dropout, " in text
    assert " more (dnnkit list experiment)" in text
    assert "there is no experiment" not in text


def test_cfg_prints_the_composed_config_and_makes_nothing(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = yaml.safe_load(told(capsys, "--cfg", "+experiment=selu_mnist", "seed=3"))
    assert (printed["name"], printed["seed"], "hydra" in printed) == ("selu_mnist", 3, False)
    assert list(workdir.iterdir()) == []


def raising(error: BaseException):  # type: ignore[no-untyped-def]
    def command(_words: list[str]) -> int:
        raise error

    return command


CODES: list[tuple[BaseException, int]] = [
    (DnnkitError("x"), 1),
    (ConfigError([Problem("x", "y")]), 2),
    (PluginError("x"), 3),
    (DataError("x", "y"), 4),
    (DivergedError("x"), 5),
    (CheckpointError("x"), 6),
    (SweepError("x"), 7),
    (DiskError("x"), 8),
    (Interrupted(2, "x"), 130),
    (Interrupted(15, "x"), 143),
    (KeyboardInterrupt(), 130),
    (ZeroDivisionError("x"), 1),
]


@pytest.mark.parametrize(("error", "code"), CODES, ids=lambda value: type(value).__name__ if not isinstance(value, int) else str(value))
def test_every_error_has_its_exit_code_and_shows_no_traceback(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SUBCOMMANDS, "fail", raising(error))  # type: ignore[arg-type]
    assert main(["fail"]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "x" in err or isinstance(error, KeyboardInterrupt)
    assert ("fault of dnnkit" in err) == isinstance(error, ZeroDivisionError)


def test_a_variable_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DNNKIT_DEBUG", "1")
    for words, name in ((["activation=sellu"], "ConfigError"), (["fail"], "ZeroDivisionError")):
        monkeypatch.setitem(SUBCOMMANDS, "fail", raising(ZeroDivisionError("x")))  # type: ignore[arg-type]
        assert main(words) in (1, 2)
        assert "Traceback (most recent call last)" in (err := capsys.readouterr().err)
        assert name in err


def test_an_error_keeps_its_cause_cure_and_problems_across_processes() -> None:
    import pickle

    for error in (ConfigError([Problem("a", "b", ("c",), "d")]), DataError("x", "y"), Interrupted(15, "x", "y")):
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 (our own bytes)
        assert (type(again), str(again), again.exit_code) == (type(error), str(error), error.exit_code)


def test_a_mistake_in_a_real_process_ends_with_2_on_the_error_output(workdir: Path) -> None:
    done = run("activation=sellu", "optimizer.lr=-1", folder=workdir)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("2 problems in the config:\n")
    assert "Traceback" not in done.stderr
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize("words", [("list",), ("version",)], ids=" ".join)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_error(words: tuple[str, ...], unbuffered: str, workdir: Path) -> None:
    """Whether the output is written at once, as a whole at the end, or when a buffer is full."""
    reading, writing = os.pipe()
    os.close(reading)
    environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        [sys.executable, "-m", "dnnkit", *words], cwd=workdir, env=environ, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


#: What is typed, and what it is answered with: the override that was meant.
MEANT = {
    "lr=0.1": "optimizer.lr=0.1",
    "learning_rate=0.1": "optimizer.lr=0.1",
    "epochs=5": "trainer.max_epochs=5",
    "max_epoch=5": "trainer.max_epochs=5",
    "batch_size=64": "data.batch_size=64",
    "hidden=[30,20]": "model.hidden=[30,20]",
    "threads=1": "trainer.threads=1",
    "momentum=.9": "optimizer.momentum=.9",
    "weight_decay=.01": "optimizer.weight_decay=.01",
    "momentum=.9 optimizer=adam": "optimizer=momentum optimizer.momentum=.9",
    "negative_slope=0.2": "activation=leaky_relu activation.negative_slope=0.2",
    "dropout=0.2": "dropout=dropout dropout.p=0.2",
    "dropout_rate=0.2": "dropout=dropout dropout.p=0.2",
    "clipping=1.0": "clipping=norm clipping.max_norm=1.0",
    "optimizer=0.1": "optimizer.lr=0.1",
    "optim=adam": "optimizer=adam",
    "act=relu": "activation=relu",
    "lr_scheduler=cosine": "scheduler=cosine",
    "batch_norm=true": "normalization=batch_norm",
    "device=cpu": "trainer=cpu",
    "device=cuda:0": "trainer=gpu",
    "gpus=1": "trainer=gpu",
    "gpus=2": "trainer=ddp trainer.devices=2",
    "patience=3": "trainer.early_stopping=3",
    "exp=selu_mnist": "+experiment=selu_mnist",
    "experiment=selu_mnist": "+experiment=selu_mnist",
    "+experiment selu_mnist": "+experiment=selu_mnist",
    "optimizer.lr 0.1": "optimizer.lr=0.1",
    "seed=1 selu": "activation=selu",
    "--lr 0.1": "optimizer.lr=0.1",
    "--epochs=3": "trainer.max_epochs=3",
    "--optimizer.lr=0.1": "optimizer.lr=0.1",
}


@pytest.mark.parametrize("typed", MEANT)
def test_what_was_meant_is_answered_first_and_is_itself_valid(typed: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meant, words = MEANT[typed], typed.split()
    if all("=" in word and not word.startswith("-") for word in words):
        with pytest.raises(ConfigError) as caught:
            COMPOSER.one(words)
        assert [problem.nearest[0] for problem in caught.value.problems] == [meant]
    else:
        assert f"Did you mean '{meant}'" in told(capsys, "--cfg", *words, code=2)
    needs = ["optimizer=adamw"] if "weight_decay" in meant else []
    assert COMPOSER.one([*needs, *meant.split()])


COMMANDS = {
    "train seed=1": "dnnkit seed=1",
    "fit": "dnnkit",
    "run 'name=a b'": "dnnkit 'name=a b'",
    "sweep seed=1,2": "dnnkit -m seed=1,2",
    "optimise -m seed=1,2": "dnnkit -m seed=1,2",
    "experiment selu_mnist": "dnnkit +experiment=selu_mnist",
    "train selu_mnist seed=1": "dnnkit +experiment=selu_mnist seed=1",
    "train selu digits": "dnnkit activation=selu data=digits",
    "train lr": "dnnkit -m +sweeps=lr",
    "train nothing_like_it": "dnnkit nothing_like_it",
    "sweep lr": "dnnkit -m +sweeps=lr",
    "sweep --multirun lr seed=1": "dnnkit -m +sweeps=lr seed=1",
    "study activations": "dnnkit -m +sweeps=activations",
    "lr": "dnnkit -m +sweeps=lr",
    "test ab12": "dnnkit evaluate ab12",
    "ls activation": "dnnkit list activation",
    "lr-find seed=1": "dnnkit doctor --lr seed=1",
    "cfg seed=1": "dnnkit --cfg seed=1",
    "selu_mnist seed=1": "dnnkit +experiment=selu_mnist seed=1",
    "selu": "dnnkit activation=selu",
    "seed=1 list": "dnnkit list",
    "--list": "dnnkit list",
    "--check seed=1": "dnnkit check",
    "describe sellu": "dnnkit describe activation selu",
}


@pytest.mark.parametrize("typed", COMMANDS)
def test_a_word_that_is_no_command_is_answered_with_the_command_that_was_meant(
    typed: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"Did you mean {COMMANDS[typed]!r}" in told(capsys, *shlex.split(typed), code=2)
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize("words", [["--lr", "seed=1", "0.1"], ["--lr", "-m", "0.1"], ["--lr", "--cfg"]])
def test_an_option_that_there_is_not_takes_no_override_and_no_option_for_its_value(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = told(capsys, *words, code=2)
    assert "--lr: there is no such option; there are: " in said
    assert "optimizer.lr" not in said


def test_help_and_version_are_understood_as_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "help") == told(capsys, "--help")
    assert told(capsys, "help", "check") == told(capsys, "check", "--help") == told(capsys, "--help", "check")
    assert told(capsys, "version") == told(capsys, "--version")
    assert "no such command" in told(capsys, "help", "chek", code=2)


def test_options_before_a_subcommand_are_its_own(presets, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    mine = presets({"activation/steep.yaml": "defaults: [leaky_relu, _self_]\nnegative_slope: 0.9\n"})
    for words in (["--config-dir", str(mine), "check"], [f"--config-dir={mine}", "check"], ["check", "--config-dir", str(mine)]):
        assert told(capsys, *words, "activation=steep").endswith("the config is valid\n")
    assert told(capsys, "-m", "check", "seed=1,2") == "all 2 jobs are valid\n"
    assert "there is no folder 'check'" in told(capsys, "--config-dir", "check", "seed=1", code=2)


def test_a_name_is_described_without_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "describe", "selu") == told(capsys, "describe", "activation", "selu") == told(capsys, "describe", "activation=selu")
    assert told(capsys, "describe", "dropout").startswith("dropout=dropout\n")
    assert told(capsys, "describe", "leaky_relu_02").startswith("activation=leaky_relu_02\n")
    assert told(capsys, "describe", "vanishing").startswith("experiment=note_000/vanishing\n")
    assert json.loads(told(capsys, "describe", "digits", "--json"))["card"]["name"] == "digits"
    assert "Did you mean 'dnnkit list activation'" in told(capsys, "describe", "activation", code=2)
    several = told(capsys, "describe", "auto", code=2)
    lines = {f"dnnkit describe {group} auto" for group in ("task", *GROUPS, "metrics") if "auto" in KINDS[group].switches}
    assert {line.strip() for line in several.splitlines() if line.strip().startswith("dnnkit")} == {*lines, "dnnkit describe trainer auto"}


#: Every preset but the sections', whose name is the choice itself. Of experiments the quick tests take one of each folder, and
#: those that set more than choices and numbers.
PRESETS = [(group, row["name"]) for group in LISTED if group not in SECTIONS for row in choices(group) if row["name"] not in KNOWN[group]]
ODD = ("init_from", "freeze", "groups", "layers", "metrics")


def quick(group: str, name: str) -> bool:
    """Whether a preset is among those of the quick tests."""
    folder = [known for kind, known in PRESETS if kind == group and known.rpartition("/")[0] == name.rpartition("/")[0]]
    return (
        group != "experiment" or name == folder[0] or any(f"\n{key}:" in (ROOT / f"conf/experiment/{name}.yaml").read_text() for key in ODD)
    )


@pytest.mark.parametrize(
    ("group", "name"),
    [pytest.param(*each, marks=[] if quick(*each) else pytest.mark.slow(minutes=1), id="=".join(each)) for each in PRESETS],
)
def test_the_overrides_that_describe_a_preset_compose_to_the_same_config(group: str, name: str) -> None:
    """Its command and what it sets are two ways to one config; of a study, each axis is one of several valid values."""
    found = record(group, name)
    words = found["command"].split("dnnkit ")[1].split()
    if group == "sweeps":
        assert words[:2] == ["-m", f"+sweeps={name}"]
        axes = {key: values.split(",") for key, _, values in (word.partition("=") for word in found["overrides"])}
        assert all(len(values) > 1 and COMPOSER.one([f"{key}={values[-1]}"]) for key, values in axes.items())
    else:
        assert COMPOSER.one(words).values == COMPOSER.one(found["overrides"]).values


def test_an_experiment_says_what_to_expect_and_what_to_compare_with(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(told(capsys, "describe", "experiment", "fashion/dropout", "--json"))
    assert found["command"] == "python -m dnnkit +experiment=fashion/dropout"
    assert {"dropout=dropout", "optimizer.lr=0.001", "trainer.max_epochs=3"} <= set(found["overrides"])
    assert found["expect"].startswith("Expect a test accuracy of about 0.866 after 3 epochs. With ")
    assert found["compare"] == "+experiment=fashion/plain"
    page = told(capsys, "describe", "experiment", "fashion/dropout")
    assert all(found[part] in page for part in ("command", "about", "expect", "compare", "file"))
    assert all(f"\n  {word}\n" in page for word in found["overrides"])
    for row in choices("experiment"):
        assert record("experiment", row["name"])["expect"], row["name"]
