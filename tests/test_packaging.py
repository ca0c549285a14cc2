"""Both wheels are built, installed in a clean virtual environment and used from a folder with no checkout near."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "plugins" / "example"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

#: Prints the runs that MLflow knows in the working folder; run by the environment's own Python.
RUNS = """
import json
from pathlib import Path
from mlflow import MlflowClient
client = MlflowClient("sqlite:///" + str(Path("mlflow.db").resolve()))
found = client.search_runs([client.get_experiment_by_name("dnnkit").experiment_id])
print(json.dumps([dict(id=run.info.run_id, status=run.info.status, **run.data.to_dictionary()) for run in found]))
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of dnnkit and of the example, built with the installed build backend, so without the network."""
    built = {}
    for name, project in (("dnnkit", ROOT), ("example", EXAMPLE)):
        folder = tmp_path_factory.mktemp(name)
        run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, project], folder)
        (built[name],) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def borrowing(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that holds the wheels alone and borrows their dependencies from ours.

    A line in a .pth file adds our packages after its own, and our own .pth files, the checkout's among them, are not
    read there: the only dnnkit that it can import is the wheel's.
    """
    folder = tmp_path_factory.mktemp("borrowing")
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder)
    python = folder / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", python, "install", "-qq", "--no-deps", "--no-index", *wheels.values()], folder)
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
    (site / "borrowed.pth").write_text("".join(f"{path}\n" for path in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    return folder / "bin"


@pytest.fixture(scope="module")
def installed(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment into which pip installed the wheels and all that they depend on."""
    folder = tmp_path_factory.mktemp("installed")
    run([sys.executable, "-m", "venv", folder], folder)
    run([folder / "bin" / "python", "-m", "pip", "install", "-qq", "-c", ROOT / "constraints.txt", *wheels.values()], folder)
    return folder / "bin"


@pytest.fixture(params=["borrowing", pytest.param("installed", marks=pytest.mark.slow)])
def programs(request: pytest.FixtureRequest) -> Path:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Path)
    return found


def run(command: list[str | Path], cwd: Path, exit_code: int = 0) -> str:
    """What the command prints, both streams, run with none of the variables that could lead back to the checkout."""
    steering = ("PYTHON", "DNNKIT", "MLFLOW", "HYDRA", "VIRTUAL_ENV", "COVERAGE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    environment |= {"COLUMNS": "200", "PYTHONNOUSERSITE": "1"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1200
    )
    assert done.returncode == exit_code, f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def recorded(programs: Path, cwd: Path) -> list[dict[str, dict[str, str]]]:
    """The runs in the MLflow database of the folder, as the environment's own MLflow sees them."""
    return json.loads(run([programs / "python", "-W", "ignore", "-c", RUNS], cwd).splitlines()[-1])


def content(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def text(wheel: Path, end: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(end)]
        return archive.read(name).decode()


def tree(folder: Path, into: str) -> set[str]:
    """The files of a folder of the checkout, named as in the wheel."""
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {f"{into}/{file.as_posix()}" for file in files}


def test_the_wheel_holds_framework_components_presets_and_sweeps_and_nothing_else(wheels):
    expected = tree(ROOT / "dnnkit", "dnnkit") | tree(ROOT / "plugins" / "dnnkit_plugins", "dnnkit_plugins")
    expected |= tree(ROOT / "conf", "dnnkit/conf") | tree(ROOT / "sweeps", "dnnkit/sweeps")
    assert {name for name in content(wheels["dnnkit"]) if ".dist-info/" not in name} == expected
    assert {"dnnkit/py.typed", "dnnkit/conf/config.yaml", "dnnkit_plugins/__init__.py"} <= expected


def test_the_wheel_declares_its_command_its_components_and_its_licence(wheels):
    points = configparser.ConfigParser()
    points.read_string(text(wheels["dnnkit"], "entry_points.txt"))
    assert dict(points["console_scripts"]) == {"dnnkit": "dnnkit.cli:main"}
    assert dict(points["dnnkit.plugins"]) == {"dnnkit": "dnnkit_plugins"}
    assert "Apache License" in text(wheels["dnnkit"], "LICENSE")


def test_the_wheel_leaves_users_a_range_for_every_dependency(wheels):
    required = [line for line in text(wheels["dnnkit"], "METADATA").splitlines() if line.startswith("Requires-Dist:")]
    assert required
    assert not [line for line in required if "==" in line.partition(";")[0] or "@" in line]


def test_every_dependency_is_pinned_once_and_exactly():
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    names = [line.partition("==")[0] for line in lines]
    assert all("==" in line and not set(line) & set("@/+;<>~ ") for line in lines)
    assert len(names) == len(set(names))
    assert "torch==2.13.0" in lines
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["dev"], *project["build-system"]["requires"]]
    assert {ask.partition(">")[0].strip() for ask in asked} <= set(names)


def test_the_example_wheel_holds_its_components_and_its_preset(wheels):
    assert {name for name in content(wheels["example"]) if ".dist-info/" not in name} == tree(EXAMPLE / "dnnkit_example", "dnnkit_example")
    assert "dnnkit_example/conf/experiment/example_digits.yaml" in content(wheels["example"])
    assert "dnnkit_example = dnnkit_example.components" in text(wheels["example"], "entry_points.txt")


def test_what_is_imported_is_what_was_installed(programs, tmp_path):
    code = "import dnnkit, dnnkit_plugins, dnnkit_example; print(*(m.__file__ for m in (dnnkit, dnnkit_plugins, dnnkit_example)))"
    files = [Path(line) for line in run([programs / "python", "-c", code], tmp_path).split()]
    assert [file.is_relative_to(programs.parent) for file in files] == [True] * 3


def test_the_version_is_that_of_the_wheel(programs, tmp_path):
    assert VERSION in run([programs / "python", "-m", "dnnkit", "--version"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_third_party_activation_is_listed_with_its_origin(programs, tmp_path):
    listing = run([programs / "dnnkit", "list", "activation"], tmp_path).splitlines()
    (row,) = [line for line in listing if "squareplus" in line]
    assert "dnnkit-example" in row
    assert [line for line in listing if "selu" in line and "dnnkit-example" not in line]


def test_a_third_party_activation_trains_and_its_run_is_in_mlflow(programs, tmp_path):
    printed = run([programs / "python", "-m", "dnnkit", "activation=squareplus", "activation.b=2", "trainer.max_epochs=1"], tmp_path)
    (found,) = recorded(programs, tmp_path)
    assert found["status"] == "FINISHED"
    assert (found["params"]["activation.name"], float(found["params"]["activation.b"])) == ("squareplus", 2.0)
    # Chance is 0.1.
    assert 0.5 < found["metrics"]["test/acc"] <= 1
    assert found["tags"]["dnnkit.version"] == VERSION
    assert "dnnkit-example" in found["tags"]["dnnkit.plugins"]
    assert found["id"] in printed


def test_a_third_party_preset_and_optimizer_train(programs, tmp_path):
    run([programs / "dnnkit", "+experiment=example_digits", "trainer.max_epochs=2"], tmp_path)
    (found,) = recorded(programs, tmp_path)
    chosen = {key: found["params"][key] for key in ("name", "activation.name", "optimizer.name")}
    assert chosen == {"name": "example_digits", "activation.name": "squareplus", "optimizer.name": "lion"}
    assert float(found["params"]["optimizer.lr"]) == 0.001
    assert 0.5 < found["metrics"]["test/acc"] <= 1


def test_a_setting_outside_its_bounds_is_refused_and_leaves_nothing(programs, tmp_path):
    printed = run([programs / "dnnkit", "activation=squareplus", "activation.b=-1"], tmp_path, exit_code=2)
    assert "activation.b" in printed
    assert "Traceback" not in printed
    assert list(tmp_path.iterdir()) == []


def test_the_example_passes_its_own_tests(borrowing, tmp_path):
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    assert " passed" in run([borrowing / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"], tmp_path)
