"""Sweeps: every job is checked before the first starts, each is a run of its own, and one that fails stops no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra.errors import HydraException
from rich.console import Console

from dnnkit import sweep
from dnnkit.cli import main
from dnnkit.config import Composer, Config
from dnnkit.errors import ConfigError, Interrupted
from dnnkit.sweep import CHECKED_ONE_BY_ONE, MOST_VALUES, check_sweep, is_sweep, run_sweep, spelt_out
from dnnkit.training import Result

COMPOSER = Composer()
SHORT = ["trainer=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "tracking=none", "model.hidden=[5]"]
QUIET = Console(quiet=True)


def untrained(cfg: Config) -> Result:
    """What a run gives, without the run."""
    return Result({"test/acc": 0.5}, None, Path(f"runs/{cfg.seed}"), None, "uuid", None)  # type: ignore[arg-type]


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The jobs that are composed, as they are asked for; they are not really composed, and none is wrong."""
    jobs: list[list[str]] = []
    monkeypatch.setattr(Composer, "one", lambda _self, words: jobs.append(list(words)))
    return jobs


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_sweep(COMPOSER, overrides)
    return [str(problem) for problem in caught.value.problems]


def test_a_mistake_on_any_axis_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "got -1" in "".join(problems("activation=relu,selu", "optimizer.lr=0.1,-1", "seed=1"))
    assert "'selu'" in "".join(problems("activation=relu,sellu", "seed=0,1"))
    assert len(problems("activation=sellu,tanhh", "optimizer.lr=0,-1", "seed=a", "name=${nam}", "foo=1,2")) == 8
    monkeypatch.setattr(sweep, "CHECKED_ONE_BY_ONE", 3)
    assert "greater than 0, got 0" in "".join(problems("seed=0,1", "optimizer.lr=0.1,0"))


def test_all_jobs_of_a_small_grid_are_checked_and_every_value_of_a_large_one(composed: list[list[str]]) -> None:
    check_sweep(COMPOSER, ["seed=0,1", "activation=relu,selu,tanh", "optimizer.lr=0.1"])
    assert len(composed) == 6
    assert ["seed=1", "activation=tanh", "optimizer.lr=0.1"] in composed
    composed.clear()
    check_sweep(COMPOSER, ["seed=range(0,30)", "data.batch_size=range(1,21)"])
    assert CHECKED_ONE_BY_ONE < 30 * 20
    assert {job[0] for job in composed} == {f"seed={seed}" for seed in range(30)}
    assert {job[1] for job in composed} == {f"data.batch_size={size}" for size in range(1, 21)}
    assert len(composed) == 50


def test_the_values_of_a_study_are_an_axis_and_the_command_line_wins(composed: list[list[str]]) -> None:
    assert check_sweep(COMPOSER, ["+sweeps=activations"]) == "activations"
    assert [job[0] for job in composed] == [f"activation={name}" for name in ("sigmoid", "tanh", "relu", "leaky_relu", "elu", "selu")]
    composed.clear()
    assert check_sweep(COMPOSER, ["seed=1,2"]) == "sweep"
    check_sweep(COMPOSER, ["+sweeps=lr", "optimizer.lr=0.3"])
    assert [job[0] for job in composed[2:]] == ["optimizer.lr=0.3"]


TYPED = ["hydra.sweeper.params={seed: '1,2'}", "+hydra.sweeper.params.seed='1,2'", "hydra.sweeper.params.seed=1,2"]


@pytest.mark.parametrize("word", TYPED)
def test_axes_may_be_typed_as_settings_of_the_sweeper(word: str, composed: list[list[str]]) -> None:
    check_sweep(COMPOSER, ["activation=relu", word])
    assert composed == [["activation=relu", "seed=1"], ["activation=relu", "seed=2"]]
    assert spelt_out([word]) == ["seed=1,2"]
    assert is_sweep(["hydra.mode=MULTIRUN", word])


def test_every_shape_of_an_axis_is_spelt_out(composed: list[list[str]]) -> None:
    check_sweep(COMPOSER, ["activation=glob(*elu)"])
    assert [job[0] for job in composed] == [
        f"activation={name}" for name in ("celu", "elu", "gelu", "leaky_relu", "prelu", "relu", "rrelu", "selu")
    ]
    composed.clear()
    check_sweep(COMPOSER, ["optimizer.lr=interval(0.1,0.5)", "model.hidden=[3],[4,5]", "seed=choice(1,2)"])
    assert ["optimizer.lr=0.5", "model.hidden=[4,5]", "seed=2"] in composed
    assert len(composed) == 8


def test_a_range_that_is_a_slip_of_the_keyboard_is_refused_at_once() -> None:
    assert f"more than {MOST_VALUES} values" in "".join(problems("seed=range(0,1000000000)"))
    assert "gives no value" in "".join(problems("activation=glob(qqq*)"))


def test_a_sweep_is_asked_for_by_the_mode_typed_or_in_a_study(workdir: Path) -> None:
    assert is_sweep(["+sweeps=lr"])
    assert is_sweep(["hydra.mode=MULTIRUN", "seed=1,2"])
    assert not is_sweep(["hydra.mode=RUN"])
    assert not is_sweep(["seed=1", "+experiment=selu_mnist"])
    (workdir / "sweeps").mkdir()
    (workdir / "sweeps" / "plain.yaml").write_text("seed: 3\n", encoding="utf-8")
    assert not is_sweep(["+sweeps=plain"])


def test_a_study_of_the_working_folder_is_found_and_wins(workdir: Path, composed: list[list[str]]) -> None:
    (workdir / "sweeps").mkdir()
    for name in ("mine", "lr"):
        text = "# Mine.\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 5,6,7\n"
        (workdir / "sweeps" / f"{name}.yaml").write_text(text, encoding="utf-8")
        composed.clear()
        assert check_sweep(Composer(), [f"+sweeps={name}"]) == name
        assert [job[0] for job in composed] == ["seed=5", "seed=6", "seed=7"]


#: Command lines of sweeps with something wrong that is not in the jobs.
WRONG = [
    ["+sweeps=lrr"],
    ["seed=1,2", "hydra.sweeper.max_batch_sise=1"],
    ["seed=1,2", "hydra.sweeper=3"],
    ["hydra.sweeper.params={seeds: '1,2'}"],
    ["seed=1,2", "hydra.sweeper.max_batch_size=0"],
    ["seed=1,2", "hydra/launcher=joblibb"],
    ["seed=1,2", "hydra.mode=x"],
    ["seed=1,2", "hydra.sweeper.max_batch_size=x"],
    ["seed=1,2", "hydra.sweeper.max_batch_size=1.5"],
    ["seed=1,2", "optimizer.lr=interval(0.1,0.2)"],
    ["seed=1,2", "optimizer.lr=tag(a,interval(0.1,0.2))"],
    ["+hydra.sweeper.params.optimizer.lr='interval(0.1,0.2)'"],
    ["seed=int(interval(1,2))"],
    ["seed=choice()"],
    ["seed=range(5,1)"],
    ["seed=1,2", "hydra.launcher.no_such=1"],
    ["seed=1,2", "hydra/sweeper=basic,basic"],
    ["seed=1,"],
]
#: Every form of an axis, and of what a sweep is run by, with nothing wrong.
GOOD = [
    ["seed=choice(1,2)"],
    ["seed=range(1,3)"],
    ["optimizer.lr=range(0.1,0.3,0.1)"],
    ["seed=sort(2,1)"],
    ["activation=sort(selu,relu,reverse=true)"],
    ["seed=shuffle(range(1,4))"],
    ["seed=tag(a,b,choice(1,2))"],
    ["activation=glob(se*)"],
    ["optimizer.lr=float(1,2)"],
    ["model.hidden=[3],[4,5]"],
    ["activation=selu,selu"],
    ["seed=1,2", "seed=3,4"],
    ["seed=7"],
    ["seed=1,2", "hydra.sweeper.max_batch_size=1"],
    ["hydra.sweeper.params={seed: '1,2'}"],
    ["+sweeps=lr"],
]


@pytest.mark.parametrize("overrides", WRONG, ids=lambda words: " ".join(words))
def test_a_sweep_that_cannot_be_run_ends_with_2_and_leaves_nothing(
    overrides: list[str], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for command in (["-m"], ["check", "-m"]):
        assert main([*command, *overrides, *SHORT]) == 2
        said.append(capsys.readouterr().err)
        assert "Traceback" not in said[-1]
    assert said[0] == said[1]
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize("overrides", GOOD, ids=lambda words: " ".join(words))
def test_a_sweep_that_is_found_valid_is_run(
    overrides: list[str], workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[Config] = []
    monkeypatch.setattr(sweep.Job, "_train", lambda _self, cfg, _console: trained.append(cfg) or untrained(cfg))
    words = [*overrides, *SHORT, "data=iris"]
    assert main(["check", "-m", *words]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert trained == []
    assert [outcome.exit_code for outcome in run_sweep(words, console=QUIET)] == [0] * len(trained)
    assert said == (f"all {len(trained)} jobs are valid" if len(trained) > 1 else "the one job is valid")


def test_an_interval_is_refused_with_values_that_could_be_tried_instead(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "-m", "optimizer.lr=interval(0.1,1)", *SHORT]) == 2
    said = capsys.readouterr().err
    assert "optimizer.lr=interval(0.1,1): is an interval, from which only an adaptive sweeper can draw" in said
    assert "Did you mean 'optimizer.lr=0.1,1'?" in said


def test_an_interval_of_a_study_is_refused_with_its_file(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workdir / "sweeps").mkdir()
    text = "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      optimizer.lr: interval(0.1,1)\n"
    (workdir / "sweeps" / "mine.yaml").write_text(text, encoding="utf-8")
    for command in ([], ["check"]):
        assert main([*command, "+sweeps=mine", "model.hidden=[5]", *SHORT]) == 2
        said = capsys.readouterr().err
        assert "optimizer.lr=interval(0.1,1): is an interval, from which only an adaptive sweeper can draw" in said
        assert "sweeps/mine.yaml)" in said
        assert "command line" not in said


def test_what_else_hydra_refuses_beside_an_interval_is_told_in_its_words() -> None:
    (problem,) = sweep._refused(HydraException("no such launcher"), COMPOSER, ["optimizer.lr=interval(0.1,1)"])
    assert str(problem) == "the sweep: cannot be run: no such launcher."


def test_a_bad_value_leaves_no_folder_and_starts_no_run(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "seed=0,1", "optimizer.lr=0.1,-1", *SHORT]) == 2
    assert "greater than 0, got -1 (command line: optimizer.lr=-1)" in capsys.readouterr().err
    assert list(workdir.iterdir()) == []


def test_each_job_is_a_run_of_its_own_and_nothing_else_is_left(workdir: Path) -> None:
    outcomes = run_sweep(["seed=3,4", *SHORT], console=QUIET)
    assert [(outcome.job, outcome.exit_code, outcome.overrides[0]) for outcome in outcomes] == [(0, 0, "seed=3"), (1, 0, "seed=4")]
    assert [path.name for path in workdir.iterdir()] == ["runs"]
    folders = sorted((workdir / "runs").iterdir())
    assert sorted(Path(outcome.run_dir or "") for outcome in outcomes) == folders
    assert len(folders) == 2
    assert outcomes[0].metrics["test/loss"] != outcomes[1].metrics["test/loss"]
    assert not [path for path in workdir.rglob("*") if path.name in ("multirun", "outputs", ".hydra", "multirun.yaml")]
    tags = [json.loads((folder / "tags.json").read_text(encoding="utf-8")) for folder in folders if (folder / "tags.json").is_file()]
    assert len({tag["dnnkit.sweep"] for tag in tags}) <= 1


def test_a_job_that_fails_stops_no_other_and_the_sweep_ends_with_7(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = workdir / "nowhere"
    nowhere.mkdir()
    assert main(["-m", "data=mnist,digits", f"data.root={nowhere}", *SHORT]) == 7
    err = capsys.readouterr().err
    assert "1 of 2 jobs failed: 0" in err
    assert "Traceback" not in err
    assert len(list((workdir / "runs").iterdir())) == 1


def test_what_is_in_brackets_is_shown_and_so_is_the_folder_of_a_job_that_failed(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["-m", "metrics=[acc],[acc,f1]", "optimizer.lr=1e30,0.01", *SHORT, "trainer.limit_train_batches=1.0"]) == 7
    out = capsys.readouterr().out
    assert out.count("metrics=[acc] ") == out.count("metrics=[acc,f1] ") == 4  # two jobs of each, in the heading and in the table
    folders = list((workdir / "runs").iterdir())
    assert len(folders) == 4
    # Of a job that diverged twice: its last healthy weights are there too.
    assert all(out.count(f"runs/{folder.name}") in (1, 2) for folder in folders)


def test_text_that_needs_quotes_is_the_same_in_each_job(composed: list[list[str]]) -> None:
    check_sweep(COMPOSER, ["seed=0,1", "tracking.experiment=é=;"])
    assert composed == [[f"seed={seed}", "tracking.experiment='é=;'"] for seed in (0, 1)]


def test_a_signal_ends_the_sweep_with_its_own_number(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_self: sweep.Job, _cfg: Config, _console: Console) -> Result:
        raise Interrupted(15, "stopped")

    monkeypatch.setattr(sweep.Job, "_train", interrupted)
    with pytest.raises(Interrupted) as caught:
        run_sweep(["seed=0,1", *SHORT], console=QUIET)
    assert caught.value.exit_code == 143
    assert main(["-m", "seed=0,1", *SHORT]) == 143


def test_a_fault_of_ours_in_one_job_is_noted_and_the_others_run(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(_self: sweep.Job, cfg: Config, _console: Console) -> Result:
        if cfg.seed == 0:
            raise ZeroDivisionError("oops")
        return untrained(cfg)

    monkeypatch.setattr(sweep.Job, "_train", faulty)
    first, second = run_sweep(["seed=0,1", *SHORT], console=QUIET)
    assert (first.exit_code, first.message, second.exit_code) == (1, "ZeroDivisionError: oops", 0)


def test_a_fault_of_ours_beside_the_jobs_is_no_mistake_in_the_sweep(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def faulty(_self: sweep.Job, _outcome: sweep.Outcome) -> None:
        raise TypeError("oops")

    monkeypatch.setattr(sweep.Job, "_train", lambda _self, cfg, _console: untrained(cfg))
    monkeypatch.setattr(sweep.Job, "_note", faulty)
    assert main(["-m", "seed=0,1", *SHORT]) == 1
    assert "internal error: TypeError: oops" in capsys.readouterr().err


def test_an_experiment_that_asks_for_a_sweep_gets_one(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep.Job, "_train", lambda _self, cfg, _console: untrained(cfg))
    path = workdir / "presets" / "experiment" / "grid.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 1,2,3\n", encoding="utf-8")
    assert main(["check", "--config-dir", str(path.parent.parent), "+experiment=grid", *SHORT]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "all 3 jobs are valid"
    outcomes = run_sweep(["+experiment=grid", *SHORT], config_dir=str(path.parent.parent), console=QUIET)
    assert [outcome.overrides[0] for outcome in outcomes] == ["seed=1", "seed=2", "seed=3"]
    assert main(["--config-dir", str(path.parent.parent), "+experiment=grid", *SHORT]) == 0
    assert "seed=3" in capsys.readouterr().out
