"""Completion: what is offered where, and the three shells on a terminal of their own, asking the dnnkit that is typed."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnnkit.cli import catalogue, completion, main
from dnnkit.cli.candidates import Candidate, Usage, help_of
from dnnkit.cli.main import SUBCOMMANDS
from dnnkit.config.sections import GROUPS
from dnnkit.registry import REGISTRIES
from tests.helpers import eventually


@pytest.fixture(scope="module")
def held() -> dict[str, object]:
    return catalogue.with_completion()


@pytest.fixture
def offered(held: dict[str, object], workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """The words that zsh is told for a line, with what is said of them."""
    monkeypatch.setattr(completion, "last", lambda: (held, True))

    def ask(line: str, shell: str = "zsh", *breaks: str) -> dict[str, str]:
        assert main([completion.ASK, shell, *breaks, "dnnkit", f"dnnkit {line}"]) == 0
        rows = capsys.readouterr().out.splitlines()
        return dict(row.partition("\t")[::2] for row in rows)

    return ask


def test_the_first_word_may_be_a_subcommand_or_an_override(offered) -> None:  # type: ignore[no-untyped-def]
    first = offered("")
    assert set(SUBCOMMANDS) | {f"{group}=" for group in GROUPS} | {"trainer.", "trainer=", "seed=", "+experiment=", "+sweeps="} <= set(
        first
    )
    assert not set(SUBCOMMANDS) & set(offered("seed=1 "))


def test_every_name_of_a_group_is_offered_with_its_summary(offered) -> None:  # type: ignore[no-untyped-def]
    for group in GROUPS:
        shown = offered(f"{group}=")
        assert {f"{group}={record.name}": record.summary for record in REGISTRIES[group]}.items() <= shown.items()
    assert {"normalization=none", "initializer=auto", "activation=leaky_relu_02"} <= {
        *offered("normalization="),
        *offered("initializer="),
        *offered("activation="),
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("activation=leaky_relu activation.", {"activation.negative_slope="}),
        ("activation=leaky_relu_02 activation.", {"activation.negative_slope="}),
        ("+experiment=fashion/l2 activation.", {"activation.alpha="}),
        ("check activation=elu activation.", {"activation.alpha="}),
        ("activation=relu activation.", set()),
        ("trainer.max_", {"trainer.max_epochs="}),
        ("trainer.engine=", {f"trainer.engine={engine}" for engine in ("auto", "eager", "captured", "compiled")}),
        ("trainer.sync_batch_norm=", {"trainer.sync_batch_norm=true", "trainer.sync_batch_norm=false"}),
        ("trainer.early_stopping=", {"trainer.early_stopping=null"}),
        ("model.use_bias=", {"model.use_bias=auto", "model.use_bias=true", "model.use_bias=false"}),
        ("trainer=dd", {"trainer=ddp", "trainer=ddp_cpu"}),
        ("tracking=", {"tracking=mlflow", "tracking=none"}),
        ("task=re", {"task=regression", "task=reconstruction"}),
        ("metrics=[acc,ma", {"metrics=[acc,mae", "metrics=[acc,macro_f1"}),
        ("task=mul", {"task=multi_label"}),
        ("describe task re", {"regression", "reconstruction"}),
        ("-m activation=relu,sel", {"activation=relu,selu"}),
        ("+experiment=fash", {"+experiment=fashion/"}),
        ("+experiment=fashion/transfer_", {"+experiment=fashion/transfer_unfreeze"}),
        ("-m +sweeps=opt", {"+sweeps=optimizers"}),
        ("list acti", {"activation"}),
        ("describe activation sel", {"selu"}),
        ("describe experiment selu_m", {"selu_mnist"}),
        ("evaluate --split ", {"test", "validation", "train"}),
        ("evaluate --split=v", {"--split=validation"}),
        ("completion ", {"bash", "zsh", "fish"}),
        ("schema --pre", {"--preset"}),
        ("--conf", {"--config-dir"}),
        ("doctor --outp", {"--output"}),
        ("'activation=sel", {"activation=selu"}),
        ("list activation", {"activation"}),
        ("activation=leaky_relu", {"activation=leaky_relu", "activation=leaky_relu_002", "activation=leaky_relu_02"}),
        ("nothing_like_it", set()),
        ("ui ", {"tracking.uri=", "tracking.experiment="}),
        ("ui ab12cd34 --port 5 trac", {"tracking.uri=", "tracking.experiment="}),
        ("ui tracking.uri=x ", {"tracking.experiment="}),
        ("ui op", set()),
        ("ui ab12cd34 see", set()),
        ("resume ab12cd34 trainer.max_e", {"trainer.max_epochs="}),
        ("--config-dir=D doct", {"doctor"}),
        ("--config-dir=D check --mu", set()),
        ("--config-dir=D evaluate --spl", {"--split"}),
        ("seed=1 doct", set()),
    ],
)  # fmt: skip
def test_what_may_come_next_is_offered(line: str, words: set[str], offered) -> None:  # type: ignore[no-untyped-def]
    assert set(offered(line)) == words


def test_runs_are_offered_by_their_letters_and_files_by_their_paths(workdir: Path, offered) -> None:  # type: ignore[no-untyped-def]
    for folder in ("runs/2026-01-02_030405_digits_selu_ab12cd34", "other/2026-01-02_030405_x_ef56ab78"):
        Path(folder).mkdir(parents=True)
        Path(folder, "run.json").write_text("{}")
    Path("rows of mine.csv").touch()
    for command in ("evaluate", "predict", "resume", "fuse", "ui", "ui tracking.uri=x"):
        assert offered(f"{command} a") == {"ab12cd34": "2026-01-02 030405 digits selu"}
    assert set(offered("evaluate --runs other e")) == {"ef56ab78"}
    assert set(offered("predict ab12cd34 --input ro")) == {"rows of mine.csv"}
    assert set(offered("data=csv data.path=r")) == {"data.path=rows of mine.csv", "data.path=runs/"}
    assert set(offered("evaluate --runs r")) == {"runs/"}
    assert set(offered("evaluate ab12cd34 data.ro")) == {"data.root="}


def test_presets_of_ones_own_and_of_the_working_folder_are_offered(workdir: Path, presets, offered) -> None:  # type: ignore[no-untyped-def]
    mine = presets(
        {"activation/my_leak.yaml": "defaults: [leaky_relu, _self_]\nnegative_slope: 0.3\n", "experiment/mine/first.yaml": "seed: 3\n"}
    )
    Path("sweeps").mkdir()
    Path("sweeps", "my_study.yaml").write_text("hydra: {}\n")
    assert set(offered(f"--config-dir {mine} activation=my")) == {"activation=my_leak"}
    assert set(offered(f"--config-dir={mine} activation=my_leak activation.")) == {"activation.negative_slope="}
    assert set(offered(f"--config-dir {mine} +experiment=mine/")) == {"+experiment=mine/first"}
    assert set(offered("-m +sweeps=my")) == {"+sweeps=my_study"}


BREAKS = " \t\n\"'><=;|&(:"


def test_bash_is_told_what_stands_behind_its_last_break_and_what_is_special_to_it(workdir: Path, offered) -> None:  # type: ignore[no-untyped-def]
    Path("my rows.csv").touch()
    assert list(offered("optimizer=nad", "bash", BREAKS)) == ["nadam "]
    assert list(offered("optimizer=nad", "bash", " \t\n")) == ["optimizer=nadam "]
    assert list(offered("'optimizer=nad", "bash", BREAKS)) == ["optimizer=nadam"]
    assert list(offered("trainer.max_", "bash", BREAKS)) == ["trainer.max_epochs="]
    assert list(offered("data.path=my", "bash", BREAKS)) == ["my\\ rows.csv "]
    assert list(offered("data.path=my\\ r", "bash", BREAKS)) == ["my\\ rows.csv "]


def test_usage_lines_say_what_a_subcommand_takes() -> None:
    found = Usage.of(help_of(SUBCOMMANDS["evaluate"]))
    assert found.options["--split"] == "test|validation|train"
    assert (found.options["--json"], found.options["--runs"]) == ("", "DIR")
    assert [found.at(place) for place in range(3)] == [{"RUN"}, {"OVERRIDES"}, {"OVERRIDES"}]
    for name, command in SUBCOMMANDS.items():
        text = help_of(command)
        for option in Usage.of(text).options:
            assert option in text, name


def test_what_is_final_ends_with_no_sign_that_asks_for_more() -> None:
    assert Candidate("selu").final
    assert not any(Candidate(word).final for word in ("trainer.", "seed=", "runs/", "metrics=[", "activation=relu,"))


def test_a_catalogue_that_is_not_kept_yet_costs_no_import_and_is_made_beside(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: what it prints, and which of the heavy packages it imported."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(workdir / "cache"))
    call = "import sys\nfrom dnnkit.cli import main, completion\ncompletion.subprocess.Popen = lambda *words, **_: print(words[0][1:])\n"
    call += "main(['__complete', 'fish', 'dnnkit', 'dnnkit acti'])\nmain(['__complete', 'fish', 'dnnkit', 'dnnkit che'])\n"
    call += "print({'torch', 'hydra', 'pydantic', 'mlflow', 'omegaconf'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=True, timeout=60)
    warming, activation, check, imported = done.stdout.splitlines()
    assert (warming, imported) == ("['-m', 'dnnkit', 'list']", "set()")
    assert (activation.split("\t")[0], check.split("\t")[0]) == ("activation=", "check")


def test_it_is_made_in_a_folder_whose_files_have_the_names_of_pythons_own_modules_too(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(workdir / "cache"))
    (workdir / "random.py").write_text("raise SystemExit('this is not the random of Python')")
    program = Path(sys.executable).with_name("dnnkit")
    command = [sys.executable, str(program), completion.ASK, "zsh", "dnnkit", "dnnkit activation=sel"]

    def asked() -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    assert asked() == ""
    assert eventually(asked).startswith("activation=selu\t")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_printed_and_another_shell_is_refused(shell: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(completion, "last", lambda: ({}, True))
    assert main(["completion", shell]) == 0
    assert f"{completion.ASK} {shell} " in capsys.readouterr().out
    assert main(["completion", f"{shell}x"]) == 2
    assert f"'{shell}'" in capsys.readouterr().err


# ---- on a terminal

#: What is typed, TAB where a shell completes; what the program is called with then.
TYPED = [
    ("dnnkit optimizer=nad\t", ["optimizer=nadam"]),
    ("dnnkit activation=leaky_relu activation.neg\t0.2", ["activation=leaky_relu", "activation.negative_slope=0.2"]),
    ("dnnkit trainer.eng\tcap\tseed=1", ["trainer.engine=captured", "seed=1"]),
    ("dnnkit doct\t+experiment=note_000/vani\t", ["doctor", "+experiment=note_000/vanishing"]),
    ("dnnkit -m +sweeps=optim\tseed=1", ["-m", "+sweeps=optimizers", "seed=1"]),
    ("dnnkit evaluate ab\t--spl\tval\t", ["evaluate", "ab12cd34", "--split", "validation"]),
    ("dnnkit predict ab12cd34 --input my\t", ["predict", "ab12cd34", "--input", "my rows.csv"]),
    ("dnnkit data=csv data.path=my\tseed=1", ["data=csv", "data.path=my rows.csv", "seed=1"]),
    ("dnnkit 'optimizer=nad\t", ["optimizer=nadam"]),
    ("bin/dnnkit optimizer=nad\t", ["optimizer=nadam"]),
    ("python -m dnnkit optimizer=nad\t", ["optimizer=nadam"]),
]
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source <(dnnkit completion bash)"),
    "zsh": (["zsh", "-f", "-i"], "autoload -Uz compinit && compinit -u && source <(dnnkit completion zsh)"),
    "fish": (["fish", "--no-config", "-i"], "dnnkit completion fish | source"),
}
#: In the place of dnnkit, and of python where it would run dnnkit: asks the true one, and else says how it was called.
STANDIN = """#!{python}
import json, os, sys
words = sys.argv[1:]
words = words[2:] if words[:2] == ["-m", "dnnkit"] else words
if words and words[0] in ("__complete", "completion"):
    os.execv(sys.executable, [sys.executable, "-m", "dnnkit", *words])
print("CALLED" + json.dumps(words) + "END")
"""


class Terminal:
    """A shell on a pseudo-terminal."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.child, self.end = pty.fork()
        if self.child == 0:
            os.chdir(folder)
            os.environ.update(PATH=f"{folder / 'bin'}:{os.environ['PATH']}", TERM="xterm", HOME=str(folder), ZDOTDIR=str(folder))
            os.execvp(command[0], command)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())

    def until(self, pattern: str) -> re.Match[str]:
        """What matches in all that was printed since the last match; fails where nothing comes for half a minute."""
        while (found := re.search(pattern, self.seen)) is None:
            ready, _, _ = select.select([self.end], [], [], 30)
            assert ready, f"nothing more came than {self.seen!r}"
            self.seen += os.read(self.end, 65536).decode(errors="replace")
        self.seen = self.seen[found.end() :]
        return found

    def close(self) -> None:
        os.close(self.end)
        os.kill(self.child, 9)
        os.waitpid(self.child, 0)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a file and the stand-in, and a catalogue that is kept."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "bin").mkdir()
    for name in ("dnnkit", "python"):
        (folder / "bin" / name).write_text(STANDIN.format(python=sys.executable))
        (folder / "bin" / name).chmod(0o755)
    (folder / "runs" / "2026-01-02_030405_digits_ab12cd34").mkdir(parents=True)
    (folder / "runs" / "2026-01-02_030405_digits_ab12cd34" / "run.json").write_text("{}")
    (folder / "my rows.csv").touch()
    subprocess.run([sys.executable, "-m", "dnnkit", "list"], cwd=folder, check=True, capture_output=True, timeout=120)
    return folder


@pytest.fixture
def terminal(request: pytest.FixtureRequest, desk: Path) -> Iterator[Terminal]:
    command, setup = SHELLS[request.param]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    opened = Terminal(command, desk)
    opened.type(f"{setup}\recho READY''NOW\r")
    opened.until("READYNOW")
    yield opened
    opened.close()


@pytest.mark.parametrize("terminal", SHELLS, indirect=True)
def test_a_shell_completes_what_is_typed(terminal: Terminal) -> None:
    for typed, called in TYPED:
        terminal.type(typed)
        time.sleep(0.05)
        terminal.type("\r")
        assert json.loads(terminal.until(r"CALLED(\[.*?\])END")[1]) == called, typed
    terminal.type("dnnkit activation=leaky_\t\t\t")
    terminal.until("eaky_relu_002")  # fish shortens what it shows
