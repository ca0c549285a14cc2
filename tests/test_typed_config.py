"""What is read off a config: typed, documented, and not to be changed."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import dnnkit
from dnnkit.config import Config, loader, sections
from dnnkit.config.sections import SECTIONS, Top
from dnnkit.schema import KIND_SETTINGS, Settings, field_docs

PACKAGE = Path(dnnkit.__file__).parent
#: Rooms that write a config down, or read one that was.
KEEPERS = ("record", "checkpoint")


@pytest.fixture(scope="module")
def cfg() -> Config:
    return dnnkit.compose(["freeze=[00_*]", "lint.severity={selu_initializer: error}"])


def test_nothing_but_record_and_checkpoint_reads_single_values_out_of_the_plain_copy() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in KEEPERS]
    assert len(files) > 150
    found = [str(path) for path in files if re.search(r"cfg\.values\[", path.read_text(encoding="utf-8"))]
    assert found == []


def test_a_key_is_read_as_an_attribute_or_an_item(cfg: Config) -> None:
    assert cfg.trainer.max_epochs == cfg["trainer"]["max_epochs"] == cfg.values["trainer"]["max_epochs"] == 20
    assert cfg.optimizer.lr == cfg["optimizer"]["lr"] == 0.05
    assert cfg.model.hidden == cfg["model"]["hidden"] == [300, 100]
    assert dict(cfg.optimizer) == cfg.values["optimizer"]
    for wrong in (lambda: cfg.no_such, lambda: cfg.optimizer.no_such, lambda: cfg.trainer.no_such):
        with pytest.raises(AttributeError, match="no_such"):
            wrong()
    with pytest.raises(KeyError, match="no_such"):
        cfg["trainer"]["no_such"]


def test_nothing_in_a_config_can_be_changed_and_copies_are_plain(cfg: Config) -> None:
    before = cfg.values
    for change in (
        lambda: cfg.model.hidden.append(3),
        lambda: cfg.freeze.clear(),
        lambda: cfg.lint.severity.update(x="error"),
        lambda: cfg.optimizer.update(lr=1),
        lambda: cfg.optimizer.__setitem__("lr", 1),
        lambda: setattr(cfg.optimizer, "lr", 1),
    ):
        with pytest.raises(TypeError, match="read-only"):
            change()
    with pytest.raises(AttributeError):
        cfg.trainer.max_epochs = 3  # type: ignore[misc]
    assert cfg.values == before
    assert json.loads(json.dumps(cfg.values)) == cfg.values
    for plain in (copy.deepcopy(cfg.model.hidden), cfg.values["model"]["hidden"]):
        assert type(plain) is list
    assert copy.deepcopy(cfg) == cfg


def test_a_changed_config_is_another_one(cfg: Config) -> None:
    other = cfg.changed(task="classification")
    assert (other.task, cfg.task) == ("classification", "auto")
    assert other.overrides == cfg.overrides
    assert {**other.values, "task": "auto"} == cfg.values


@pytest.mark.parametrize("declared", [Top, *SECTIONS.values(), *KIND_SETTINGS.values()], ids=lambda declared: declared.__name__)
def test_every_setting_says_what_it_is(declared: type) -> None:
    assert list(field_docs(declared)) == Settings.of(declared).names()


def test_a_field_without_a_text_is_an_error() -> None:
    class Bare:
        """Of which one is not documented."""

        told: int = 1
        """This one is."""
        bare: int = 2

    with pytest.raises(ValueError, match=r"Bare\.bare"):
        field_docs(Bare)


def test_a_new_key_at_the_top_is_one_field(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Longer(Top):
        __module__ = sections.__name__  # where the types of the inherited fields are known
        notes: str = ""

    monkeypatch.setattr(sections, "Top", Longer)
    monkeypatch.setattr(loader, "Top", Longer)
    assert dnnkit.compose([]).values["notes"] == ""
    assert dnnkit.compose(["notes=hello"]).values["notes"] == "hello"
    with pytest.raises(dnnkit.errors.ConfigError, match="notes: must be text"):
        dnnkit.compose(["notes=3"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("cfg.trainer.max_epochs", 'Revealed type is "int"'),
        ("cfg.data.batch_size", 'Revealed type is "int"'),
        ("cfg.optimizer.lr", 'Revealed type is "float"'),
        ("cfg.optimizer.momentum", 'Revealed type is "Any"'),
        ("cfg.no_such", 'has no attribute "no_such"'),
        ("cfg.trainer.no_such", 'has no attribute "no_such"'),
    ],
)
def test_mypy_knows_the_types(line: str, told: str, tmp_path: Path) -> None:
    code = f"from dnnkit.config import Config\n\n\ndef look(cfg: Config) -> None:\n    reveal_type({line})\n"
    (tmp_path / "look.py").write_text(code)
    cache = PACKAGE.parent / ".mypy_cache"
    words = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(cache), "--config-file", str(PACKAGE.parent / "pyproject.toml")]
    done = subprocess.run([*words, str(tmp_path / "look.py")], capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert told in done.stdout, done.stdout + done.stderr
