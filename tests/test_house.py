"""The shape of the house: who may import whom, and what may stand in a config or beside a component.

Every rule is a function of a root folder, so that it is also tried on a small house that breaks it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

from dnnkit import plugins
from dnnkit.registry import REGISTRIES

ROOT = Path(__file__).parent.parent

#: From the ground up: a room imports only rooms before it.
ROOMS = (
    "errors",
    "disk",
    "console",
    "registry",
    "schema",
    "plugins",
    "config",
    "network",
    "data",
    "diagnostics",
    "lint",
    "module",
    "loop",
    "checkpoint",
    "record",
    "sender",
    "training",
    "worker",
    "sweep",
    "cli",
    "__main__",
)
#: `dnnkit/__init__.py` is the door, not a room: it may import any room, and no room may import it.
DOOR = "__init__"
EFFECTS = ("os", "sys", "subprocess")


def imports(path: Path, package: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import in a file: in functions, under TYPE_CHECKING, relative, or by name.

    `package` is the dotted package that holds the file. `from a import b` yields `a.b`.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, node.args[0].value


def framework(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Every Python file of the framework, with its room and its package."""
    for path in sorted((root / "dnnkit").rglob("*.py")):
        parts = path.relative_to(root / "dnnkit").with_suffix("").parts
        yield path, parts[0], ".".join(("dnnkit", *parts[:-1]))


def upward_imports(root: Path) -> list[str]:
    """Imports that point to a later room, to the door, to the components, or from a folder that is no room."""
    wrong = []
    for path, room, package in framework(root):
        if room != DOOR and room not in ROOMS:
            wrong.append(f"{path.relative_to(root)}: {room} is no room")
            continue
        for line, name in imports(path, package):
            top, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if top == "dnnkit_plugins":
                wrong.append(f"{path.relative_to(root)}:{line}: the framework imports {name}; components arrive by their entry point")
            elif top == "dnnkit" and room != DOOR and (target not in ROOMS or ROOMS.index(target) > ROOMS.index(room)):
                wrong.append(f"{path.relative_to(root)}:{line}: {room} imports {name}")
    return wrong


def imports_of_mlflow(root: Path) -> list[str]:
    """Imports of MLflow anywhere but in the room that may."""
    return [
        f"{path.relative_to(root)}:{line}: {room} imports {name}"
        for path, room, package in framework(root)
        if room != "sender"
        for line, name in imports(path, package)
        if name.partition(".")[0] == "mlflow"
    ]


def configs(root: Path) -> list[Path]:
    """Every YAML file that Hydra may read: presets, sweeps, and the conf folders of packages."""
    folders = [root / "conf", root / "sweeps", *(path for path in (root / "plugins").rglob("conf") if path.is_dir())]
    return sorted(path for folder in folders for suffix in ("yaml", "yml") for path in folder.rglob(f"*.{suffix}"))


def import_paths(root: Path) -> list[str]:
    """Configs that name an import path instead of a component."""
    return [str(path.relative_to(root)) for path in configs(root) if "_target_" in path.read_text(encoding="utf-8")]


def shadowing_presets(root: Path, components: Mapping[str, Collection[str]]) -> list[str]:
    """Presets named like a component of their group: Hydra would silently take the file."""
    return [str(path.relative_to(root)) for path in configs(root) if path.stem in components.get(path.parent.name, ())]


def effects(root: Path) -> list[str]:
    """Component files that import a module with which they could reach outside their arguments."""
    return [
        f"{path.relative_to(root)}:{line}: {name}"
        for path in sorted((root / "plugins").rglob("*.py"))
        if "tests" not in path.parts
        for line, name in imports(path, path.parent.name)
        if name.partition(".")[0] in EFFECTS
    ]


#: What a checkpoint of before there were other tasks has learnt: a default, not a comparison.
NAMED = {"dnnkit/checkpoint/files.py"}


def compared_tasks(root: Path, tasks: Collection[str]) -> list[str]:
    """Places that ask which task it is: what differs by task is the task's own to say, so that a new one is a new component and no more.

    In the framework that is any text that is a task's name; among components a comparison, a case, a key or an index. Registrations
    say which tasks a loss or a metric is for, and a task's name is where the task is.
    """
    found = []
    for path in sorted([*(root / "dnnkit").rglob("*.py"), *(root / "plugins").rglob("*.py")]):
        name = path.relative_to(root)
        if "tests" in name.parts or name.as_posix() in NAMED:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        asking = _texts(tree) if name.parts[0] == "dnnkit" else _asking(tree, _holding(tree, tasks))
        found += [f"{name.as_posix()}:{line}: {text}" for line, text in asking if text in tasks or text in _holding(tree, tasks)]
    return found


def _texts(tree: ast.AST) -> list[tuple[int, object]]:
    """Every text in a piece of code, with its line."""
    return [(node.lineno, node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def _holding(tree: ast.Module, tasks: Collection[str]) -> set[str]:
    """The module's constants that hold a task's name."""
    assigned = [node for node in tree.body if isinstance(node, ast.Assign) and _names_one(node.value, tasks)]
    return {target.id for node in assigned for target in node.targets if isinstance(target, ast.Name)}


def _names_one(value: ast.expr, tasks: Collection[str]) -> bool:
    return any(text in tasks for _, text in _texts(value))


def _asking(tree: ast.AST, holding: Collection[str]) -> list[tuple[int, object]]:
    """The texts in comparisons, cases, keys and indices, and the names there that hold a task's name, each with its line."""
    found: list[tuple[int, object]] = []
    for node in ast.walk(tree):
        asked: list[ast.expr | None] = []
        if isinstance(node, ast.Compare):
            asked = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            asked = [node.value]
        elif isinstance(node, ast.Dict):
            asked = [*node.keys]
        elif isinstance(node, ast.Subscript):
            asked = [node.slice]
        for one in filter(None, asked):
            found += _texts(one)
            found += [(part.lineno, part.id) for part in ast.walk(one) if isinstance(part, ast.Name) and part.id in holding]
    return found


@pytest.fixture
def house(tmp_path):
    """Writes a small house: `house({"dnnkit/errors.py": "..."})`."""

    def build(files: Mapping[str, str]) -> Path:
        for folder in ("dnnkit", "conf", "sweeps", "plugins"):
            (tmp_path / folder).mkdir(exist_ok=True)
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path

    return build


def test_imports_point_only_to_earlier_rooms():
    assert upward_imports(ROOT) == []


def test_only_the_sender_imports_mlflow():
    assert imports_of_mlflow(ROOT) == []


def test_no_config_names_an_import_path():
    assert configs(ROOT)
    assert import_paths(ROOT) == []


def test_no_preset_is_named_like_a_component():
    plugins.load()
    assert shadowing_presets(ROOT, {group: registry.names() for group, registry in REGISTRIES.items()}) == []


def test_component_files_do_not_reach_outside():
    assert effects(ROOT) == []


def test_nobody_asks_which_task_it_is():
    plugins.load()
    assert set(REGISTRIES["task"].names()) >= {"classification", "regression", "reconstruction", "multi_label"}
    assert compared_tasks(ROOT, [*REGISTRIES["task"].names(), "ordinal"]) == []
    assert all((ROOT / name).is_file() for name in NAMED)


@pytest.mark.parametrize("room", ["training", "worker"])
def test_importing_what_trains_does_not_import_mlflow(room):
    code = f"import sys, dnnkit.{room}; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_the_registry_rests_on_the_standard_library_alone():
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import dnnkit.registry
print(*{{name.partition(".")[0] for name in sys.modules}} - set(sys.stdlib_module_names))
"""
    told = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert set(told.stdout.split()) == {"dnnkit", "__main__"} - set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    "line",
    [
        "import dnnkit.cli",
        "import dnnkit.cli as c",
        "from dnnkit.cli import main",
        "from dnnkit.cli.parts import main",
        "from dnnkit import cli",
        "from dnnkit import errors, cli",
        "from . import cli",
        "from .cli import main",
        "def f():\n    from dnnkit.cli import main",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dnnkit.cli import main",
        "import importlib\nimportlib.import_module('dnnkit.cli')",
        "import dnnkit",
        "from dnnkit import train",
        "import dnnkit_plugins.activations",
    ],
)
def test_an_import_of_a_later_room_is_found(house, line):
    assert len(upward_imports(house({"dnnkit/registry.py": f"import json\nfrom dnnkit.errors import nearest\n{line}\n"}))) == 1


@pytest.mark.parametrize("line", ["from ..cli import main", "from .. import cli", "from ...dnnkit.cli import main"])
def test_a_relative_import_out_of_a_folder_is_followed(house, line):
    root = house({"dnnkit/data/idx.py": f"{line}\nfrom .files import read\nfrom ..errors import DataError\n"})
    assert upward_imports(root)
    assert all("cli" in found for found in upward_imports(root))


def test_imports_of_earlier_rooms_and_within_a_room_are_fine(house):
    assert (
        upward_imports(
            house(
                {
                    "dnnkit/__init__.py": "from dnnkit.cli import main\n",
                    "dnnkit/data/__init__.py": "from dnnkit.data.idx import read\nfrom dnnkit.errors import DataError\n",
                    "dnnkit/data/idx.py": "from . import files\nfrom dnnkit.registry import data_sources\nimport torch\n",
                    "dnnkit/cli.py": "from dnnkit import training\nimport dnnkit.data.idx\n",
                }
            )
        )
        == []
    )


def test_a_file_that_belongs_to_no_room_is_found(house):
    assert upward_imports(house({"dnnkit/utils.py": "", "dnnkit/helpers/text.py": ""})) == [
        "dnnkit/helpers/text.py: helpers is no room",
        "dnnkit/utils.py: utils is no room",
    ]


@pytest.mark.parametrize("line", ["import mlflow", "from mlflow import MlflowClient", "def f():\n    import mlflow.pytorch"])
def test_an_import_of_mlflow_outside_the_sender_is_found(house, line):
    root = house({"dnnkit/training.py": f"{line}\n", "dnnkit/sender/__init__.py": "import mlflow\n"})
    assert [found.partition(":")[0] for found in imports_of_mlflow(root)] == ["dnnkit/training.py"]


@pytest.mark.parametrize("where", ["conf/model/a.yaml", "sweeps/a.yml", "plugins/theirs/theirs/conf/experiment/a.yaml"])
def test_an_import_path_in_a_config_is_found(house, where):
    assert import_paths(house({where: "layer:\n  _target_: torch.nn.Linear\n", "conf/b.yaml": "name: fine\n"})) == [where]


def test_a_preset_that_shadows_a_component_is_found(house):
    shadows = ["conf/activation/selu.yaml", "plugins/p/conf/optimizer/sgd.yaml"]
    root = house(dict.fromkeys([*shadows, "conf/experiment/selu.yaml"], ""))
    assert shadowing_presets(root, {"activation": {"selu"}, "optimizer": {"sgd"}}) == shadows


@pytest.mark.parametrize("line", ["import os", "import os.path", "from sys import exit", "def f():\n    import subprocess"])
def test_a_component_file_that_reaches_outside_is_found(house, line):
    assert len(effects(house({"plugins/dnnkit_plugins/losses.py": f"import math\n{line}\n"}))) == 1


@pytest.mark.parametrize(
    "line",
    [
        'x = 1 if task == "count" else 2',
        'x = task in ("other", "count")',
        'match task, y:\n    case "count", _:\n        x = 1',
        'x = {"count": 1}[task]',
        'x = held["count"]',
        'NAMES = ["count"]\nx = task in NAMES',
    ],
)
@pytest.mark.parametrize("where", ["dnnkit/data.py", "plugins/dnnkit_plugins/losses.py"])
def test_a_comparison_with_a_task_is_found(house, where, line):
    assert {found.rpartition(":")[0].rpartition(":")[0] for found in compared_tasks(house({where: f"{line}\n"}), ["count"])} == {where}


def test_a_registration_may_say_which_tasks_it_is_for(house):
    text = '_TASKS = ["count"]\n@losses.register("poisson", tasks=_TASKS)\ndef poisson(): ...\n@tasks.register("count")\nclass Count: ...\n'
    assert compared_tasks(house({"plugins/dnnkit_plugins/losses.py": text}), ["count"]) == []
    assert compared_tasks(house({"dnnkit/data.py": text}), ["count"])
