"""What a Python without the dependencies, or one that is too old, is answered."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from dnnkit.cli import installed, main
from dnnkit.cli.installed import NEEDED, missing_package
from dnnkit.cli.main import SUBCOMMANDS

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A checkout in which nothing has been installed."""
    for name in ("dnnkit", "plugins", "conf", "sweeps"):
        shutil.copytree(ROOT / name, tmp_path / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "checkout")
    return tmp_path / "checkout"


def answer(cwd: Path, *words: str, path: Path | None = None) -> tuple[int, str]:
    """Exit code and error text of a Python that has no packages at all (-S leaves site-packages out)."""
    environment = {} if path is None else {"PYTHONPATH": str(path)}
    command = [sys._base_executable, "-S", "-m", "dnnkit", *words]  # type: ignore[attr-defined]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_a_bare_checkout_says_what_to_type(bare):
    code, text = answer(bare, "activation=relu", "model.hidden=[30, 10]")
    assert code == 3
    assert "is not installed for this Python" in text
    assert text.splitlines()[-2:] == ["    make run", "    .venv/bin/python -m dnnkit activation=relu 'model.hidden=[30, 10]'"]


def test_beside_a_venv_that_make_run_has_finished_the_answer_is_the_same_command_by_its_python(bare):
    python = bare / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert answer(bare, "list")[1].splitlines()[-2:] == ["    make run", "    .venv/bin/python -m dnnkit list"]  # it was interrupted
    (bare / ".venv" / ".ready-123").touch()
    assert "make run` has installed everything" in answer(bare, "list")[1]
    assert answer(bare, "list")[1].splitlines()[-1].strip() == ".venv/bin/python -m dnnkit list"
    assert answer(bare.parent, "list", path=bare)[1].splitlines()[-1].strip() == "checkout/.venv/bin/python -m dnnkit list"


def test_where_the_python_of_the_venv_itself_lacks_a_package_it_is_not_what_to_type(bare, monkeypatch):
    (bare / ".venv").mkdir()
    (bare / ".venv" / ".ready-123").touch()
    monkeypatch.chdir(bare)
    monkeypatch.setattr(installed, "__file__", str(bare / "dnnkit" / "cli" / "installed.py"))
    missing = ModuleNotFoundError(name="mlflow")
    assert "has installed everything" in missing_package(missing, ["list"])
    monkeypatch.setattr(sys, "prefix", str(bare / ".venv"))
    assert missing_package(missing, ["list"]).splitlines()[-2:] == ["    make run", "    .venv/bin/python -m dnnkit list"]


def test_without_a_checkout_what_is_missing_is_installed_for_this_python(bare, monkeypatch):
    (bare / "pyproject.toml").unlink()
    text = answer(bare, "list")[1]
    package = re.search("dnnkit needs the package ([^,]+),", text)[1]
    assert text.splitlines()[-1].strip() == f"{sys._base_executable} -m pip install {package}"
    monkeypatch.setattr(installed, "__file__", str(bare / "dnnkit" / "cli" / "installed.py"))
    monkeypatch.setattr(sys, "executable", "/my env/python")
    line = missing_package(ModuleNotFoundError(name="mlflow.tracking"), []).splitlines()[-1].strip()
    assert shlex.split(line)[:4] == ["/my env/python", "-m", "pip", "install"]
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert re.split("[<>]", shlex.split(line)[4])[0] == "mlflow"
    assert set(shlex.split(line)[4].removeprefix("mlflow").split(",")) == {
        bound for row in declared if row.startswith("mlflow") for bound in row.removeprefix("mlflow").split(",")
    }


@pytest.mark.parametrize("name", ["__init__.py", "__main__.py"])
def test_what_an_old_python_reads_before_it_is_answered_is_python_that_it_can_read(name):
    ast.parse((ROOT / "dnnkit" / name).read_text(encoding="utf-8"), feature_version=(3, 7))


def test_a_python_that_is_too_old_is_told_so_before_anything_is_imported():
    code = "import runpy, sys; sys.version_info = (3, 9, 1); runpy.run_module('dnnkit', run_name='__main__')"
    done = subprocess.run([sys._base_executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "")
    first, second = done.stderr.splitlines()
    assert first == f"dnnkit needs Python 3.11 or later; this is 3.9 ({sys._base_executable})."
    assert "make run PYTHON=python3.11" in second


def test_from_another_folder_the_way_to_the_checkout_is_part_of_the_answer(bare):
    assert "cd checkout && make run" in answer(bare.parent, "check", path=bare)[1]


def test_help_needs_no_package(bare):
    command = [sys._base_executable, "-S", "-m", "dnnkit", "--help"]  # type: ignore[attr-defined]
    assert "dnnkit trains a deep network" in subprocess.run(command, cwd=bare, capture_output=True, text=True, check=True).stdout


def test_every_dependency_is_known_and_can_be_imported():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert {re.split("[<>=]", line)[0] for line in declared} == set(NEEDED.values())
    assert [name for name in NEEDED if find_spec(name) is None] == []


def test_a_package_of_somebody_else_that_is_missing_is_no_fault_of_the_installation(monkeypatch, capsys):
    assert missing_package(ModuleNotFoundError("No module named 'their_helper'", name="their_helper"), []) is None

    def fails(_words: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'their_helper'", name="their_helper")

    monkeypatch.setitem(SUBCOMMANDS, "list", fails)
    assert main(["list"]) == 1
    assert "their_helper" in capsys.readouterr().err
