"""What a process imports and when, and that what is kept of the plugins between commands is never stale. No time is asserted."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dnnkit.data.bundled import bundled_file
from dnnkit.data.files import Known, find_files

HEAVY = ("torch", "pytorch_lightning", "mlflow", "sklearn", "pandas", "matplotlib", "scipy", "pyarrow")

#: Prints the modules of HEAVY that are loaded when `call` has returned.
LOADED = f"import sys\n{{call}}\nprint([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"


def run(code: str, folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run([sys.executable, "-c", code, *words], cwd=folder, env=environ, capture_output=True, text=True, check=False)


def loaded_after(call: str, folder: Path, *words: str, **variables: str) -> list[str]:
    done = run(LOADED.format(call=call), folder, *words, **variables)
    assert done.stderr, done
    return eval_list(done.stderr.strip().splitlines()[-1])


def eval_list(text: str) -> list[str]:
    found = json.loads(text.replace("'", '"'))
    assert isinstance(found, list), text
    return found


CALL = "from dnnkit.cli import main; main(sys.argv[1:])"


@pytest.mark.parametrize("call", ["import dnnkit", "import dnnkit.sender", "from dnnkit.training import Senders"])
def test_importing_what_starts_first_loads_nothing_heavy(call, tmp_path):
    assert loaded_after(call, tmp_path) == []


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["list", "--help"]])
def test_a_command_that_trains_nothing_loads_nothing_heavy(words, tmp_path):
    assert loaded_after(CALL, tmp_path, *words) == []


def test_a_config_error_is_found_before_lightning_is_imported_and_leaves_nothing_behind(tmp_path):
    assert loaded_after(CALL, tmp_path, "optimizer.lr=-1") == ["torch"]
    time.sleep(0.5)
    assert list(tmp_path.iterdir()) == []


def test_missing_data_leave_nothing_behind_although_the_sender_was_started(tmp_path):
    done = run(f"import sys\n{CALL}", tmp_path, "data=csv", "data.path=absent.csv", "data.target=y")
    assert "absent.csv" in done.stderr
    time.sleep(0.5)
    assert list(tmp_path.iterdir()) == []


#: What the first step finds loaded: told by the first optimizer step of the run.
AT_FIRST_STEP = """
import sys
from dnnkit.cli import main
from torch.optim.optimizer import register_optimizer_step_post_hook
told = []
def tell(*_):
    if not told:
        told.append([name for name in %r if name in sys.modules])
register_optimizer_step_post_hook(tell)
sys.argv[0] = "dnnkit"
code = main()
print(told[0], [name for name in ("mlflow", "sklearn", "pandas", "matplotlib") if name in sys.modules], code, file=sys.stderr)
"""


def test_a_run_reaches_its_first_step_without_what_training_does_not_use_and_never_loads_mlflow_sklearn_pandas_or_matplotlib(tmp_path):
    done = run(AT_FIRST_STEP % (HEAVY,), tmp_path, "trainer=cpu", "trainer.max_epochs=1", "tracking=none", "trainer.progress_bar=false")
    assert done.stderr.strip().splitlines()[-1] == "['torch', 'pytorch_lightning'] [] 0", done.stderr


def test_torchmetrics_finds_scipy_after_a_lean_import_and_says_that_matplotlib_is_missing(tmp_path):
    code = """
from dnnkit.training import own
own.begin()
with own.importing_lightning():
    import pytorch_lightning
import gc, sys
assert gc.isenabled()
assert "scipy" not in sys.modules and "matplotlib" not in sys.modules
import torch, torchmetrics
from torchmetrics.functional.audio import permutation_invariant_training as pit, scale_invariant_signal_noise_ratio as ratio
x = torch.randn(2, 4, 50)
print(pit(x, x.flip(1), ratio)[1].tolist(), "scipy.optimize" in sys.modules)
metric = torchmetrics.MeanMetric()
metric.update(1.0)
try:
    metric.plot()
except ModuleNotFoundError as error:
    print(error)
import matplotlib.figure, scipy.signal
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "[[3, 2, 1, 0], [3, 2, 1, 0]] True"
    assert "matplotlib" in done.stdout


def test_a_process_that_is_not_dnnkits_own_gets_all_of_torchmetrics(tmp_path):
    code = "import gc, sys\nfrom dnnkit.training import own\nwith own.importing_lightning():\n    import pytorch_lightning\n"
    done = run(code + "print(gc.isenabled(), gc.get_freeze_count(), 'matplotlib' in sys.modules)", tmp_path)
    assert done.stdout.split() == ["True", "0", "True"], done.stderr


def test_digits_are_those_of_scikit_learn_whether_its_file_is_known_or_not(monkeypatch):
    from sklearn.datasets import load_digits

    from dnnkit_plugins import data_sources

    bunch = load_digits()
    for known in (data_sources.SKLEARN_DIGITS, Known("0" * 64, 1)):
        monkeypatch.setattr(data_sources, "SKLEARN_DIGITS", known)
        source = data_sources.digits(None)
        np.testing.assert_array_equal(source.train.x[:, 0], bunch.images)
        np.testing.assert_array_equal(source.train.y, bunch.target)


def test_a_file_of_a_package_that_is_not_the_known_one_is_not_used(tmp_path, monkeypatch, caplog):
    (tmp_path / "with_data").mkdir()
    (tmp_path / "with_data" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "with_data" / "rows.gz").write_bytes(gzip.compress(b"1,2"))
    monkeypatch.syspath_prepend(tmp_path)
    right = Known("d1d7e7b5c3d6ecbd5dd1c7c7cb1b9a2d2c2b3d1b9b2f1f0d4d6e3f4c8a2b1e0f", 3)
    with caplog.at_level("INFO"):
        assert bundled_file("with_data", "rows.gz", right) is None
    assert "with_data is imported instead" in caplog.text
    assert bundled_file("no_such_package_here", "rows.gz", right) is None


# ---- the catalogue

COMPONENTS = '''"""Components of a test."""

from dnnkit.registry import activations


@activations.register("{name}")
def {name}() -> object:
    """{summary}"""
'''


@pytest.fixture
def plugin(tmp_path):
    """An installed distribution with one module, `components.py`, whose component is `wavy`; its package imports no torch."""
    site = tmp_path / "site"
    (site / "wavy_plugin").mkdir(parents=True)
    (site / "wavy_plugin" / "__init__.py").write_text("from wavy_plugin import components\n")
    (site / "wavy_plugin" / "components.py").write_text(COMPONENTS.format(name="wavy", summary="sin(z). Source: a test."))
    info = site / "wavy_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wavy-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dnnkit.plugins]\nwavy = wavy_plugin\n")
    return site


class Lister:
    """Runs `dnnkit …` with the plugin installed and a cache of its own; `live` is whether PyTorch had to be imported."""

    def __init__(self, site: Path, folder: Path) -> None:
        self.site, self.folder, self.cache = site, folder, folder / "cache"
        self.folder.mkdir()
        self.cache.mkdir()

    def __call__(self, *words: str) -> tuple[str, bool]:
        done = run(
            LOADED.format(call=CALL),
            self.folder,
            *words,
            PYTHONPATH=str(self.site),
            XDG_CACHE_HOME=str(self.cache),
            PYTHONDONTWRITEBYTECODE="1",
        )
        assert done.stderr, done
        return done.stdout, "torch" in eval_list(done.stderr.strip().splitlines()[-1])

    def settle(self) -> None:
        """Every file of the plugin has been there for a while; only the change time cannot be set, so it is waited for."""
        time.sleep(2.1)


@pytest.fixture
def listed(plugin, tmp_path):
    found = Lister(plugin, tmp_path / "work")
    found.settle()
    return found


def test_what_is_kept_is_what_is_listed_live_word_for_word(listed):
    for words in (["list"], ["list", "activation", "--json"], ["describe", "optimizer", "nadam"], ["plugins"]):
        for kept in listed.cache.rglob("*.json"):
            kept.unlink()
        live, imported = listed(*words)
        kept, again = listed(*words)
        assert (imported, again) == (True, False), words
        assert kept == live


def test_a_plugin_that_is_edited_added_to_or_removed_is_seen_at_once(listed, plugin):
    assert "wavy" in listed("list", "activation")[0]
    assert not listed("list")[1]
    path = plugin / "wavy_plugin" / "components.py"
    times = path.stat()
    path.write_text(path.read_text().replace("sin(z)", "cos(z)"))  # as long as before
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    text, live = listed("list", "activation")
    assert live
    assert "cos(z)" in text
    listed.settle()
    listed("list")
    assert not listed("list")[1]
    (plugin / "wavy_plugin" / "more.txt").write_text("anything")
    assert listed("list")[1]
    (plugin / "wavy_plugin-1.0.dist-info" / "entry_points.txt").unlink()
    assert "wavy" not in listed("list", "activation")[0]


def test_a_file_that_was_just_written_is_not_trusted(listed, plugin):
    (plugin / "wavy_plugin" / "components.py").touch()
    assert listed("list")[1]
    assert list(listed.cache.rglob("*.json")) == []


def test_a_plugin_that_fails_is_tried_each_time(listed, plugin):
    (plugin / "wavy_plugin" / "__init__.py").write_text("raise RuntimeError('not today')\n")
    listed.settle()
    for _ in range(2):
        text, live = listed("plugins")
        assert live
        assert "not today" in text


def test_a_damaged_catalogue_is_made_anew_and_a_cache_that_cannot_be_written_is_no_error(listed):
    text, _ = listed("list")
    (kept,) = listed.cache.rglob("*.json")
    for damaged in ("", "[]", kept.read_text()[:-20], kept.read_text().replace("wavy", "navy")):
        kept.write_text(damaged)
        assert listed("list") == (text, True)
        assert not listed("list")[1]
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("in the way")
    assert listed("list") == (text, True)


def test_a_preset_in_a_plugin_that_hides_a_component_is_refused_by_a_kept_catalogue_too(listed, plugin):
    (plugin / "wavy_plugin" / "conf" / "activation").mkdir(parents=True)
    (plugin / "wavy_plugin" / "conf" / "activation" / "wavy.yaml").write_text("name: wavy\n")
    listed.settle()
    for _ in range(2):
        done = run(f"import sys\n{CALL}", listed.folder, "list", PYTHONPATH=str(plugin), XDG_CACHE_HOME=str(listed.cache))
        assert "hides the registered activation=wavy" in done.stderr


def test_a_large_gzipped_file_is_uncompressed_once_and_what_is_kept_is_verified(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DNNKIT_DATA", raising=False)
    content = bytes(range(256)) * 2**13
    known = Known(hashlib.sha256(content).hexdigest(), len(content))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "rows.gz").write_bytes(gzip.compress(content, 1))
    assert find_files(tmp_path, "set", {"rows": known}).contents["rows"] == content
    (kept,) = (tmp_path / "cache" / "dnnkit" / "decoded").iterdir()
    assert kept.read_bytes() == content
    kept.write_bytes(content[:-1] + b"x")
    assert find_files(tmp_path, "set", {"rows": known}).contents["rows"] == content
    assert "is damaged: it is made anew" in caplog.text
    assert kept.read_bytes() == content
