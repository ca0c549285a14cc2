"""README and docs/ as they are typed: every command block runs, in a fresh folder, with what the text before it says is there."""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dnnkit.cli import main

ROOT = Path(__file__).parent.parent
#: That of the example package speaks of what tests/test_packaging.py installs and runs.
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("python", "dnnkit", "torchrun", "make", "pip", "mlflow", "source")
#: What a fence may say that a block is: one of commands, or what another test reads or nothing runs.
SHELL, OTHERS = ("", "bash", "sh"), ("yaml", "python")
#: Commands that are tried elsewhere, or that change what is installed: by their beginning.
ELSEWHERE = {
    "make": "tests/test_packaging.py installs; `make test` is what runs this",
    "pip install": "tests/test_packaging.py installs the wheels",
    "python -m benchmarks": "takes minutes to an hour; tests/test_benchmarks.py and its like",
    "source .venv/bin/activate": "what a shell with the programs on its path has done",
    "dnnkit ui": "does not end by itself; tests/test_ui.py",
}


@dataclass(frozen=True)
class Block:
    """Commands that stand together; `file` is what the block itself says should be written, and where."""

    document: str
    line: int
    commands: tuple[str, ...]
    exit_code: int = 0
    file: tuple[str, str] | None = None

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(path: Path) -> Iterator[Block]:
    """The command blocks of a document."""
    name = str(path.relative_to(ROOT))
    for number, language, lines in fenced(path.read_text(encoding="utf-8")):
        body = [line.strip() for line in lines]
        if language == "yaml" and (found := re.match(r"# (\S+\.yaml) +(\S.*)", body[0])):
            yield Block(name, number, (found[2],), file=(found[1], "\n".join(lines)))
        elif language in SHELL:
            commands = tuple(typed(body))
            if commands:
                refused = any(re.match(r"\d+ problems? in the config", line) for line in body)
                yield Block(name, number, commands, 2 if refused else 0)


def fenced(text: str) -> Iterator[tuple[int, str, list[str]]]:
    """Line, language and lines of every fenced block."""
    lines = text.splitlines()
    fences = [number for number, line in enumerate(lines) if line.strip().startswith("```")]
    for begin, end in zip(fences[::2], fences[1::2], strict=True):
        yield begin + 1, lines[begin].strip()[3:], lines[begin + 1 : end]


def unread(text: str) -> Iterator[str]:
    """What a document has in blocks that the tests below would pass over: other languages, and other lines beside commands.

    What a command prints stands in a block of its own, or in one in which commands follow `$ `.
    """
    for number, language, lines in fenced(text):
        body = [line.strip() for line in lines]
        if language not in (*SHELL, *OTHERS):
            yield f"line {number}: a block of {language}"
        if language not in SHELL or any(line.startswith("$ ") for line in body) or not any(map(begins_with_a_program, body)):
            continue
        for before, line in zip(["", *body], body, strict=False):
            if line and not begins_with_a_program(line) and not before.endswith("\\"):
                yield f"line {number}: {line}"


def begins_with_a_program(line: str) -> bool:
    return line.partition(" ")[0] in PROGRAMS


def typed(body: list[str]) -> Iterator[str]:
    """The commands among a block's lines: those after `$ ` where some begin so, else those that begin with a program."""
    prompted = any(line.startswith("$ ") for line in body)
    rest = iter(body)
    for line in rest:
        if prompted and not line.startswith("$ "):
            continue
        command = line.removeprefix("$ ")
        while command.endswith("\\"):
            command = f"{command[:-1]} {next(rest)}"
        if prompted or begins_with_a_program(command):
            yield command


ALL = [block for path in FILES for block in blocks(path)]


def elsewhere(command: str) -> bool:
    return command.startswith(tuple(ELSEWHERE))


@pytest.fixture(scope="module")
def belongings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the documents speak of, of the reader's own: a table, arrays, pictures."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("belongings")
    random = np.random.default_rng(0)
    kinds = ("cat", "dog", "newt")
    rows = [(f"{random.normal(kind, 0.3):.3f}", f"{random.normal(-kind, 0.3):.3f}", kinds[kind]) for kind in [0, 1, 2] * 40]
    tables = {"animals.csv": [("weight", "length", "species"), *rows], "new.csv": [("weight", "length"), *(row[:2] for row in rows)]}
    for name, lines in tables.items():
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(lines)
    y = np.arange(200) % 4
    np.savez(folder / "arrays.npz", x=random.normal(size=(200, 6)).astype(np.float32) + y[:, None], y=y)
    for number in range(60):
        path = folder / "pictures" / kinds[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(80, size=(12, 12), dtype=np.uint8) + np.uint8(60 * (number % 3))).save(path)
    return folder


@pytest.fixture
def folder(belongings: Path, tmp_path: Path) -> Path:
    """A fresh folder with those files."""
    return Path(shutil.copytree(belongings, tmp_path / "work"))


def test_the_documents_have_commands_and_none_is_left_out_unseen():
    counts = {str(path.relative_to(ROOT)): sum(len(block.commands) for block in ALL if ROOT / block.document == path) for path in FILES}
    assert counts["README.md"] > 25
    assert counts["docs/transfer.md"] > 5
    assert {str(path.relative_to(ROOT)): [*unread(path.read_text(encoding="utf-8"))] for path in FILES} == {
        str(path.relative_to(ROOT)): [] for path in FILES
    }


def test_what_would_be_left_out_unseen_is_found():
    text = (
        "```\ndnnkit list\ncd x\ndnnkit -m \\\n  seed=1,2\n\ntest/acc 0.9\n```\n```\n$ dnnkit\ntest/acc 0.9\n```\n```\ntest/acc 0.9\n```\n"
    )
    assert list(unread(text)) == ["line 1: cd x", "line 1: test/acc 0.9"]
    assert list(unread("```bahs\ndnnkit list\n```")) == ["line 1: a block of bahs"]


CHECKED = [(block, command) for block in ALL for command in block.commands if re.match(r"(python -m )?dnnkit( |$)", command)]


@pytest.mark.parametrize(("block", "command"), CHECKED, ids=lambda value: str(value) if isinstance(value, Block) else "")
def test_what_a_document_tells_to_train_is_valid(block, command, folder, monkeypatch, capsys):
    words = shlex.split(command, comments=True)[1 if command.startswith("dnnkit") else 3 :]
    if words and re.fullmatch("[a-z]+", words[0]):
        pytest.skip("a subcommand, which runs among the slow tests")
    if ("init_from=" in command and "RUN" in command) or "$(" in command:
        pytest.skip("begins with another run, which the slow tests make")
    monkeypatch.chdir(folder)
    if block.file is not None:
        write(folder, *block.file)
    assert main(["check", *words]) == block.exit_code, capsys.readouterr().err


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


def shell(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script as a shell does in which `.venv` is active."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(["bash", "-ec", script], cwd=cwd, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=900)


#: What RUN stands for in a document.
RUN_OF = {
    "README.md": "data=csv data.path=animals.csv data.target=species activation=relu normalization=batch_norm dropout=dropout",
    "docs/transfer.md": "data=fashion_mnist trainer.max_epochs=1 activation=selu",
}


@pytest.fixture(scope="module")
def runs(belongings: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder `runs` with one completed run, by document; made where it is asked for first."""
    made: dict[str, Path] = {}

    class Made(dict[str, Path]):
        def __missing__(self, document: str) -> Path:
            cwd = Path(shutil.copytree(belongings, tmp_path_factory.mktemp("run") / "work"))
            done = shell(f"python -m dnnkit {RUN_OF[document]} tracking=none", cwd)
            assert done.returncode == 0, done.stdout + done.stderr
            (made[document],) = (cwd / "runs").iterdir()
            self[document] = made[document]
            return made[document]

    return Made()


@pytest.mark.slow(minutes=0.2)
@pytest.mark.parametrize("block", ALL, ids=str)
def test_a_command_block_runs_as_typed(block, folder, runs):
    commands = [command for command in block.commands if not elsewhere(command)]
    if not commands:
        pytest.skip("; ".join(ELSEWHERE.values()))
    if re.search("mnist|fashion", " ".join([*commands, *(block.file or ())])) and "DNNKIT_DATA" not in os.environ:
        pytest.skip("needs images that are not on this machine")
    script = "\n".join(commands)
    if re.search(r"\bRUN\b", script):
        run = runs[block.document]
        shutil.copytree(run, folder / "runs" / run.name)
        script = re.sub(r"\bRUN\b", run.name[-8:], script)
    if block.file is not None:
        write(folder, *block.file)
    done = shell(script, folder)
    assert done.returncode == block.exit_code, f"{script}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow(minutes=1)
@pytest.mark.skipif("DNNKIT_DATA" not in os.environ, reason="needs images that are not on this machine")
def test_the_python_of_the_readme_runs_as_typed(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    codes = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "import dnnkit" in code]
    assert codes
    for code in codes:
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
