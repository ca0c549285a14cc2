"""Entry points: each plugin is loaded once, in isolation, and a config fails only if it needs what failed."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dnnkit import plugins
from dnnkit.cli import main
from dnnkit.config import compose
from dnnkit.errors import ConfigError, PluginError
from dnnkit.plugins import GROUP, Plugin
from dnnkit.registry import REGISTRIES

plugins.load()

Install = Callable[..., None]

HEAD = "from torch import nn\nfrom dnnkit.registry import activations, optimizers\n"
GOOD = f"""{HEAD}
@activations.register("triple", pairs_with="he_normal")
def triple() -> nn.Module:
    '''3z.'''
    return nn.Identity()
"""
FAILURES = {
    "raise RuntimeError('no luck')": "RuntimeError: no luck",
    "import sys; sys.exit(3)": "SystemExit: 3",
    "raise SystemExit": "SystemExit",
    "import no_such_module_anywhere": "ModuleNotFoundError",
    "def broken(:": "SyntaxError",
    "class Odd(BaseException): ...\nraise Odd('odd')": "Odd: odd",
    "raise GeneratorExit": "GeneratorExit",
}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registries: None) -> Iterator[Install]:
    """Installs packages for one test: `install(theirs=source)` makes the package `theirs`, whose module `parts` has that source."""
    site, before = tmp_path / "site", set(sys.modules)
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(plugins, "_loaded", dict(plugins._loaded))

    def write(files: dict[str, str] | None = None, **packages: str) -> None:
        for package, source in packages.items():
            (site / package).mkdir()
            (site / package / "__init__.py").write_text("", encoding="utf-8")
            (site / package / "parts.py").write_text(source, encoding="utf-8")
            info = site / f"{package}-1.5.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n", encoding="utf-8")
            (info / "entry_points.txt").write_text(f"[{GROUP}]\n{package} = {package}.parts\n", encoding="utf-8")
        for name, text in (files or {}).items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(text, encoding="utf-8")

    yield write
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in {path.stem for path in site.iterdir()}:
            del sys.modules[name]


def loaded(package: str) -> Plugin:
    return next(plugin for plugin in plugins.load() if plugin.package == package)


def names() -> set[tuple[str, str]]:
    return {(group, name) for group, registry in REGISTRIES.items() for name in registry.names()}


def test_a_plugin_is_loaded_and_what_it_registers_is_its_own(install: Install) -> None:
    install(theirs=GOOD)
    assert loaded("theirs") == Plugin("theirs", "theirs", "1.5", "theirs.parts", (("activation", "triple"),))
    assert str(REGISTRIES["activation"].get("triple").origin) == "theirs 1.5 (theirs.parts)"
    assert compose(["activation=triple"]).activation.name == "triple"
    assert plugins.failed() == ()


def test_a_plugin_is_imported_once_however_often_it_is_asked_for(install: Install) -> None:
    install(theirs=GOOD + "\nimport builtins\nbuiltins.imported = getattr(builtins, 'imported', 0) + 1\n")
    first = plugins.load()
    del sys.modules["theirs.parts"]
    assert plugins.load() == first
    import builtins

    assert builtins.__dict__.pop("imported") == 1


@pytest.mark.parametrize("failure", FAILURES, ids=FAILURES.values())
def test_a_plugin_that_fails_is_reported_and_leaves_nothing_behind(install: Install, failure: str) -> None:
    before = names()
    install(broken=f"{GOOD}\n{failure}\n" if "def broken" not in failure else failure, theirs=GOOD)
    record = loaded("broken")
    assert record.error.startswith(FAILURES[failure])
    assert names() - before == {("activation", "triple")}
    assert REGISTRIES["activation"].get("triple").origin.package == "theirs"
    assert plugins.failed() == (record,)


def test_an_interrupt_by_the_user_is_no_failure_of_a_plugin(install: Install) -> None:
    install(slow="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        plugins.load()


def test_a_taken_name_is_refused_with_both_owners_and_the_first_stays(install: Install) -> None:
    before = names()
    install(theirs=GOOD.replace("triple", "before") + GOOD.replace(HEAD, "").replace('"triple"', '"relu"'))
    error = loaded("theirs").error
    assert "activation=relu is registered twice" in error
    assert "dnnkit " in error
    assert "theirs 1.5" in error
    assert names() == before
    assert REGISTRIES["activation"].get("relu").origin.package == "dnnkit"


#: A component that no config could use, and what is said of it.
UNUSABLE = {
    "optimizers: params: list, lr: Annotated[float, Gt(0)] = -1.0": "its default breaks its own rule",
    "optimizers: params: list, lr: nn.Module = 0.1": "give every setting a type",
    "optimizers: params: list": "every optimizer needs the setting 'lr'",
    "data_sources: root: object, split: str = 'x'": "'split' belongs to every data_source",
}


@pytest.mark.parametrize("source", UNUSABLE, ids=UNUSABLE.values())
def test_a_component_that_no_config_could_use_fails_its_own_package_alone(install: Install, source: str) -> None:
    before = names()
    head = f"{HEAD}from dnnkit.registry import data_sources\nfrom typing import Annotated\nfrom annotated_types import Gt\n"
    family, _, signature = source.partition(": ")
    install(theirs=f'{head}\n@{family}.register("wild")\ndef wild({signature}) -> object: ...\n')
    assert UNUSABLE[source] in loaded("theirs").error
    assert names() == before
    assert compose([]).seed == 0


def test_a_required_setting_needs_no_default(install: Install) -> None:
    install(theirs=HEAD + '@optimizers.register("strict")\ndef strict(params: list, lr: float) -> object: ...\n')
    assert loaded("theirs").error == ""
    with pytest.raises(ConfigError, match=r"optimizer\.lr: has to be given: a finite number"):
        compose(["optimizer=strict"])
    assert compose(["optimizer=strict", "optimizer.lr=0.1"]).optimizer.lr == 0.1


@pytest.mark.parametrize("where", ["module", "package", "earlier"])
def test_a_config_that_needs_a_failed_plugin_ends_with_3_and_its_reason(
    install: Install, where: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = "raise RuntimeError('no luck')\n"
    sources = {"module": failure + GOOD, "package": failure, "earlier": GOOD + failure}
    install({"theirs/more/activations.py": GOOD} if where == "package" else None, theirs=sources[where])
    left = set(workdir.iterdir())
    for words in (["activation=triple"], ["check", "activation=triple"], ["activation=triple", "optimizer.lr=-1"]):
        assert main(words) == 3
        told = capsys.readouterr().err
        assert all(part in told for part in ("'theirs'", "theirs.parts", "RuntimeError: no luck", "activation=triple"))
        assert "Traceback" not in told
    assert main(["check", "activation=relu"]) == 0
    assert main(["check", "activation=trippel"]) == 2
    assert set(workdir.iterdir()) == left


def test_finding_out_what_a_failed_plugin_would_bring_does_not_import_it_again(install: Install) -> None:
    install({"theirs/__init__.py": "import sys\nsys.exit(5)\n"}, theirs=GOOD)
    (workpiece,) = plugins.failed()
    assert workpiece.might_register("triple")
    assert not workpiece.might_register("double")
    assert not Plugin("x", "x", "", "no_such_package.parts", error="x").might_register("triple")


def test_a_conf_folder_beside_a_plugin_is_on_the_search_path(install: Install) -> None:
    experiment = "defaults:\n  - override /activation: triple\nname: theirs\n"
    preset = "defaults: [elu, _self_]\nalpha: 2.0\n"
    install({"theirs/conf/experiment/of_theirs.yaml": experiment, "theirs/conf/activation/elu_2.yaml": preset}, theirs=GOOD)
    assert loaded("theirs").conf is not None
    cfg = compose(["+experiment=of_theirs"])
    assert (cfg.name, cfg.activation.name) == ("theirs", "triple")
    assert compose(["activation=elu_2"]).activation.alpha == 2


def test_a_conf_folder_of_a_plugin_that_failed_is_not_used(install: Install) -> None:
    install({"theirs/conf/experiment/of_theirs.yaml": "name: theirs\n"}, theirs="raise RuntimeError")
    with pytest.raises(ConfigError, match="no experiment called 'of_theirs'"):
        compose(["+experiment=of_theirs"])


def test_without_its_own_components_dnnkit_says_how_to_install_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: ())
    with pytest.raises(PluginError, match="not installed"):
        plugins.load()
    assert main(["list"]) == 3
    assert "install" in capsys.readouterr().err


def test_own_components_that_cannot_be_imported_are_no_ones_typing_error(monkeypatch: pytest.MonkeyPatch) -> None:
    own = next(entry for entry in importlib.metadata.entry_points(group=GROUP) if entry.value == "dnnkit_plugins")
    broken = Plugin("dnnkit", "dnnkit", "1", own.value, error="ImportError: no torch")
    monkeypatch.setattr(plugins, "_loaded", {own.value: broken})
    with pytest.raises(PluginError, match="cannot be imported: ImportError: no torch"):
        plugins.load()


def test_the_command_plugins_shows_what_loaded_and_what_failed(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(theirs=GOOD, broken="raise RuntimeError('no luck')")
    assert main(["plugins"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("theirs ") and "1 components" in line for line in lines)
    assert any(line.startswith("broken ") and "failed: RuntimeError: no luck" in line for line in lines)
    assert main(["plugins", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["theirs"]["components"] == ["activation=triple"]
    assert rows["broken"]["error"] == "RuntimeError: no luck"


def test_the_built_in_components_arrive_first_and_by_an_entry_point(install: Install) -> None:
    install(aaa=GOOD)
    assert plugins.load()[0].package == "dnnkit"
    own = [entry for entry in importlib.metadata.entry_points(group=GROUP) if entry.value == "dnnkit_plugins"]
    assert len(own) == 1
    assert own[0].dist is not None
