"""What a config from a stranger may never do: run code, read the environment, write a file, steer Hydra."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hydra.types import RunMode

from dnnkit.cli import main
from dnnkit.config import Composer, doors
from dnnkit.errors import ConfigError


@pytest.fixture
def canary(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A path that an attack would create and a secret that it would show; afterwards nothing may have happened."""
    monkeypatch.setenv("DNNKIT_SECRET", "sesame")
    path = workdir / "canary"
    yield path
    assert not path.exists()


#: One override each; CANARY stands for a path that must not come into being.
ATTACKS = [
    "_target_=os.mkdir",
    "+_target_=os.mkdir",
    "++optimizer._target_=os.mkdir",
    "+optimizer={_target_: os.mkdir, path: CANARY}",
    "++optimizer.lr={_target_: os.mkdir, path: CANARY}",
    "model.hidden=[{_target_: os.mkdir, path: CANARY}]",
    "+metrics=[[{a: {_target_: os.mkdir, path: CANARY}}]]",
    "+optimizer._partial_=true",
    "++optimizer._args_=[CANARY]",
    "hydra.callbacks.x._target_=os.mkdir",
    "+hydra.callbacks.x._target_=os.mkdir",
    "++hydra.callbacks.x={_target_: os.mkdir, path: CANARY}",
    "+hydra.callbacks={x: {_target_: os.mkdir, path: CANARY}}",
    "~hydra.callbacks",
    "hydra={callbacks: {x: {_target_: os.mkdir, path: CANARY}}}",
    "++hydra={job_logging: {root: {level: DEBUG}}}",
    "hydra.job_logging.handlers.x.()=os.mkdir",
    "+hydra.job_logging.handlers={x: {class: logging.FileHandler, filename: CANARY}}",
    "hydra.hydra_logging.handlers.x.class=logging.FileHandler",
    "hydra/job_logging=default",
    "hydra/hydra_logging=colorlog",
    "override hydra/job_logging=default",
    "hydra.searchpath=[file://CANARY]",
    "hydra.searchpath=[pkg://os]",
    "hydra.job.env_set.PATH=CANARY",
    "+hydra.job.env_set={DNNKIT_DEBUG: '1'}",
    "hydra.job.env_copy=[DNNKIT_SECRET]",
    "hydra.job.chdir=true",
    "hydra.run.dir=CANARY",
    "hydra.sweep.dir=CANARY",
    "hydra.output_subdir=CANARY",
    "hydra.verbose=true",
    "hydra/launcher=evil",
    "hydra.launcher._target_=os.mkdir",
    "hydra.sweeper._target_=os.mkdir",
    "hydra.launcher={_target_: os.mkdir, path: CANARY}",
    "+hydra.sweeper.params={+hydra.callbacks.x._target_: os.mkdir}",
    "hydra.launcher.n_jobs=${oc.env:DNNKIT_SECRET}",
    "+hydra.sweeper.params.name=${name}",
    "name=${oc.env:DNNKIT_SECRET}",
    "name='${oc.env:DNNKIT_SECRET}'",
    "name=x${oc.env:DNNKIT_SECRET}y",
    "name=${oc.decode:${oc.env:DNNKIT_SECRET}}",
    "name=${${name}:DNNKIT_SECRET}",
    "name=$${name}{oc.env:DNNKIT_SECRET}",
    "name=${oc.select:seed}",
    "name=${hydra:runtime.cwd}",
    "name=${hydra.runtime.cwd}",
    "name=${now:%Y}",
    "name=${python_version:}",
    "name='\\${name}'",
    "model.hidden=[1,'${oc.env:DNNKIT_SECRET}']",
    "metrics=[{a: '${oc.env:DNNKIT_SECRET}'}]",
    "+${oc.env:DNNKIT_SECRET}=1",
    "activation=${oc.env:DNNKIT_SECRET}",
    "+experiment=${oc.env:DNNKIT_SECRET}",
    "+experiment=../../../../../../../../../../etc/hostname",
    "+experiment@hydra.callbacks=selu_mnist",
    "+experiment@_global_.hydra.callbacks=selu_mnist",
    "activation@hydra.launcher=selu",
    "+hydra/callbacks=x",
    "+../../etc=x",
]


def run_and_sweep(attacks: Iterable[str], concern_hydra: Callable[[str], bool]) -> list[tuple[str, list[str]]]:
    """Every attack on a run, and those that concern Hydra on a sweep too, where Hydra acts."""
    return [(attack, []) for attack in attacks] + [(attack, ["-m", "seed=0,1"]) for attack in attacks if concern_hydra(attack)]


@pytest.mark.parametrize(("attack", "more"), run_and_sweep(ATTACKS, lambda attack: "logging" in attack or "callbacks." in attack))
def test_an_attack_by_the_command_line_is_refused_without_effect(
    attack: str, more: list[str], canary: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([attack.replace("CANARY", str(canary)), *more]) == 2
    told = capsys.readouterr()
    assert "sesame" not in told.out + told.err
    assert "Traceback" not in told.err
    assert list(workdir.iterdir()) == []


_SWEEP = "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
#: Nine values, each of which is nine of the one before.
_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
#: An experiment file each.
FILE_ATTACKS = {
    "target": "_target_: os.mkdir\npath: CANARY\n",
    "nested target": "optimizer:\n  lr:\n    _target_: os.mkdir\n    path: CANARY\n",
    "target in a list": "model:\n  hidden:\n    - [{_target_: os.mkdir, path: CANARY}]\n",
    "target by alias": "x: &x {_target_: os.mkdir, path: CANARY}\noptimizer:\n  lr: *x\n",
    "target by merge key": "x: &x {_target_: os.mkdir, path: CANARY}\noptimizer:\n  <<: *x\n",
    "target with blanks": "optimizer:\n  ' _target_ ': os.mkdir\n",
    "callbacks": "hydra:\n  callbacks:\n    x:\n      _target_: os.mkdir\n      path: CANARY\n",
    "dotted callbacks": "hydra.callbacks:\n  x: {_target_: os.mkdir, path: CANARY}\n",
    "callbacks without target": "hydra:\n  callbacks: {x: {a: 1}}\n",
    "logging factory": "hydra:\n  job_logging:\n    handlers:\n      x:\n        (): os.mkdir\n        path: CANARY\n",
    "logging class": "hydra:\n  job_logging:\n    handlers:\n      x: {class: logging.FileHandler, filename: CANARY}\n",
    "search path": "hydra:\n  searchpath: [file:///tmp]\n",
    "environment variables": "hydra:\n  job:\n    env_set: {DNNKIT_DEBUG: '1'}\n",
    "folders": "hydra:\n  run:\n    dir: CANARY\n  sweep:\n    dir: CANARY\n",
    "hydra as a list": "hydra: [{callbacks: {}}]\n",
    "hydra as nothing": "hydra: null\n",
    "launcher": "hydra:\n  launcher:\n    _target_: os.mkdir\n    path: CANARY\n",
    "resolver": "name: ${oc.env:DNNKIT_SECRET}\n",
    "resolver in a list": "model:\n  hidden: ['${oc.env:DNNKIT_SECRET}']\n",
    "resolver in pieces": "name: ${data.root}${tracking.uri}\ndata:\n  root: $\ntracking:\n  uri: '{oc.env:DNNKIT_SECRET}'\n",
    "escaped resolver": "name: '\\${oc.env:DNNKIT_SECRET}'\n",
    "resolver in a key": "'${oc.env:DNNKIT_SECRET}': 1\n",
    "resolver in the defaults": "defaults:\n  - override /activation: ${oc.env:DNNKIT_SECRET}\n",
    "resolver as a file": "defaults:\n  - ${oc.env:DNNKIT_SECRET}\n",
    "override of logging": "defaults:\n  - override /hydra/job_logging: default\n",
    "override of the launcher": "defaults:\n  - override /hydra/launcher: evil\n",
    "package in the defaults": "defaults:\n  - part@hydra.callbacks\n",
    "group with a package": "defaults:\n  - /experiment@hydra.callbacks: part\n",
    "group with a global package": "defaults:\n  - /experiment@_global_.hydra.job_logging: part\n",
    "override with a package": "defaults:\n  - override /activation@hydra.launcher: selu\n",
    "package header": "# @package hydra.callbacks\nx:\n  a: 1\n",
    "another package header": "# @package _global_.hydra.job_logging\nroot: {level: DEBUG}\n",
    "path out of the folder": "defaults:\n  - ../../outside\n",
    "path from the top": "defaults:\n  - /../outside\n",
    "path through an installed package": "defaults:\n  - /../../../../../../../../../../../../../../../../../..OUTSIDE\n",
    "group path": "defaults:\n  - /activation/../../..: outside\n",
    "dotted hydra group": "defaults:\n  - /./hydra/job_logging: default\n",
    "sweep over logging": f"{_SWEEP}      ++hydra.job_logging.handlers.x: '{{class: logging.FileHandler, filename: CANARY}}'\n",
    "sweep over a target": f"{_SWEEP}      ++optimizer.x: '{{_target_: os.mkdir, path: CANARY}}'\n",
    "sweep with a resolver": f"{_SWEEP}      name: a,${{oc.env:DNNKIT_SECRET}}\n",
    "sweep in pieces": f"name: $\n{_SWEEP}      tracking.uri: ${{name}}{{oc.env:DNNKIT_SECRET}}\n",
    "python object": "name: !!python/object/apply:os.mkdir [CANARY]\n",
    "python name": "name: !!python/name:os.mkdir\n",
    "huge by aliases": _BOMB,
    "alias of itself": "a: &a\n  b: *a\n",
    "deep nesting": "a: " + "[" * 5000 + "]" * 5000 + "\n",
    "long texts by references": "k0: xx\n" + "".join(f"k{n}: ${{k{n - 1}}}${{k{n - 1}}}\n" for n in range(1, 60)),
    "huge number": f"seed: {'9' * 5000}\n",
    "itself": "defaults:\n  - /experiment: evil\n",
}


CONCERN_HYDRA = [name for name, text in FILE_ATTACKS.items() if "hydra" in text and "launcher" not in name]


@pytest.mark.parametrize(("attack", "more"), run_and_sweep(FILE_ATTACKS, CONCERN_HYDRA.__contains__))
def test_an_attack_by_an_experiment_file_is_refused_without_effect(
    attack: str, more: list[str], canary: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path_factory.mktemp("stranger")
    text = FILE_ATTACKS[attack].replace("CANARY", str(canary)).replace("OUTSIDE", str(home / "outside"))
    files = {"presets/experiment/evil.yaml": text, "presets/experiment/part.yaml": "x: {a: 1}\n", "outside.yaml": _OUTSIDE}
    for name, content in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(content.replace("CANARY", str(canary)), encoding="utf-8")
    assert main(["--config-dir", str(home / "presets"), "+experiment=evil", *more]) == 2
    told = capsys.readouterr()
    assert "sesame" not in told.out + told.err
    assert "Traceback" not in told.err
    assert "experiment/evil" in told.err or "long texts" in attack
    assert list(canary.parent.iterdir()) == []


_OUTSIDE = "# @package _global_\nhydra:\n  callbacks:\n    x: {_target_: os.mkdir, path: CANARY}\n"


#: What each door lets through and what it does not.
DOORS: list[tuple[Callable[[str], str], list[str], list[str]]] = [
    (
        doors.refused_key,
        ["optimizer.lr", "hydra.mode", "hydra.sweeper.params.x", "hydra.launcher.n_jobs", "hydrant", "model.a_b"],
        ["_target_", "a._target_", " _target_ .x", "_args_", "a.()", "x.(f)", "hydra", "hydra.callbacks", "hydra.modes", "hydra.sweep.dir"],
    ),
    (
        doors.refused_text,
        ["", "$", "{a}", "${a}", "x${a.b_c}y${.d}", "${a.b[0]}", "${..a}", "$5"],
        ["${", "${}", "${a:b}", "${a.}", "${oc.env:X}", "${${a}}", "$${a}{b}", "\\${a}", "${a b}", "${a\n}"],
    ),
    (
        partial(doors.refused_value, "hydra.sweeper.params.x"),
        ["", "relu,selu", "$"],
        ["${a}", "${oc.env:X}", "x${name}"],
    ),
    (doors.refused_group, ["activation", "hydra/launcher", "hydra/sweeper"], ["hydra", "hydra/job_logging", "hydra/launcher/x"]),
    (
        doors.refused_path,
        ["config", "experiment/mine", "experiment/a.b-c", "hydra/launcher/basic", "x/mit Leerzeichen"],
        ["", "..", "../x", "a/../b", "a//b", "/a", "a/.", "a/./b", ".hidden", "a/${b}", "a/b@c", "~/x", "a\\b"],
    ),
    (
        doors.refused_yaml,
        ["", "a: 1", "a: &x [1]\nb: *x\nc: {<<: {d: 1}}", "a: " + "[" * 15 + "]" * 15, f"a: [{'1,' * 9000}]"],
        ["a: &x [*x]", "a: " + "[" * 40 + "]" * 40, f"a: [{'1,' * 11000}]", _BOMB, "# x\n" * 300_000],
    ),
]


@pytest.mark.parametrize(("door", "opens", "stays_shut"), DOORS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_door_lets_through_what_it_should_and_nothing_else(door: Callable[[str], str], opens: list[str], stays_shut: list[str]) -> None:
    assert [text[:40] for text in opens if door(text)] == []
    assert [text[:40] for text in stays_shut if not door(text)] == []


def test_the_guard_reads_no_file_outside_the_folders_of_presets(tmp_path: Path) -> None:
    (tmp_path / "outside.yaml").write_text("seed: 7\n", encoding="utf-8")
    guard = Composer().loader.guard
    outside = f"{'../' * 40}{tmp_path}/outside".replace("//", "/")
    assert guard.sources[0].is_config(outside)  # Hydra itself would read it, and as a part of an installed package
    found = guard.load_config(outside)
    assert found is not None
    assert found.config == {}
    assert "other paths are not allowed" in guard.problems[0].message


@pytest.mark.parametrize("value", [3, None, "x", ["x"]])
def test_a_node_of_hydras_is_chosen_by_name(value: object) -> None:
    assert doors.refused_value("hydra.sweeper", value)
    assert not doors.refused_value("hydra.sweeper", {"params": {}})
    assert not doors.refused_value("hydra.sweeper.x", 3)


@pytest.mark.parametrize("file", ["hydra/launcher/evil.yaml", "hydra/job_logging/evil.yaml", "hydra/callbacks/evil.yaml"])
def test_a_file_in_a_group_of_hydras_is_refused(
    file: str, presets: Callable[[dict[str, str]], Path], canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = presets({file: "x: 1\n"})
    assert main(["--config-dir", str(folder), "-m", "seed=0,1", f"{file.rpartition('/')[0]}=evil", "tracking=none"]) == 2
    assert ("may not take a place in Hydra's own groups" in capsys.readouterr().err) == ("launcher" in file)


def test_a_study_of_the_working_folder_is_inspected_like_any_file(canary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = canary.parent / "sweeps" / "evil.yaml"
    study.parent.mkdir()
    for name in ("callbacks", "sweep over logging", "huge by aliases"):
        study.write_text(FILE_ATTACKS[name].replace("CANARY", str(canary)), encoding="utf-8")
        assert main(["-m", "+sweeps=evil"]) == main(["+sweeps=evil"]) == 2
        assert "sesame" not in capsys.readouterr().err
    study.write_text("a: [\n", encoding="utf-8")
    assert main(["-m", "+sweeps=evil"]) == 2
    assert Composer().one(["seed=1"]).seed == 1


def test_what_hydra_acts_on_is_checked_behind_every_other_door() -> None:
    composer = Composer()
    with pytest.raises(ConfigError, match=r"hydra\.callbacks: may not be set"):
        composer.loader.load_configuration("config", ["+hydra.callbacks.x=1"], RunMode.MULTIRUN)
    with pytest.raises(ConfigError, match=r"hydra\.job: may not be set"):
        composer.loader.load_configuration("config", ["+hydra.job.env_set.A=b"], RunMode.MULTIRUN)
    master = composer.loader.load_configuration("config", ["hydra.sweep.dir=x", "+sweeps=lr"], RunMode.MULTIRUN)
    with pytest.raises(ConfigError, match=r"hydra\.job_logging: may not be set"):
        composer.loader.load_sweep_config(master, ["+hydra.job_logging.handlers={a: {class: b}}"])
    assert composer.loader.load_sweep_config(master, ["seed=1"]).seed == 1
