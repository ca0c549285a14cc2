"""`make device` on a machine without a GPU: the script runs, compares what it says it compares, and keeps to its time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.device import __main__ as device
from benchmarks.device import bare, checks, setting
from benchmarks.device.checks import CHECKS
from benchmarks.device.setting import Setting, Verdict, difference, same, train

SMALL = ("trainer=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=10")


@pytest.fixture
def here() -> Setting:
    """A CPU and synthetic images, whatever the machine has."""
    return Setting(cuda=False, quick=True, root=None)


@pytest.mark.parametrize("name", ["engines", "no_waiting", "resume"])
def test_a_check_shows_on_a_cpu_what_can_be_shown_there(
    name: str, here: Setting, workdir: Path, unrecorded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_WORKLOADS", dict(list(checks._WORKLOADS.items())[:1]))
    verdict = CHECKS[name].run(here)
    wanted = "skipped" if name == "no_waiting" else "passed"
    assert (verdict.status, bool(verdict.reason)) == (wanted, wanted == "skipped"), verdict
    if name == "no_waiting":  # all chunks but the first of each run were watched
        assert all(count >= 2 for count in verdict.figures.values())
    if name == "resume":
        assert 0 < verdict.figures["stopped at step"] < verdict.figures["steps"]


def test_runs_that_differ_in_a_bit_are_told_apart(workdir: Path, unrecorded: None) -> None:
    one, again, other = train(*SMALL), train(*SMALL), train(*SMALL, "seed=1")
    assert difference(one, again) == ""
    assert difference(one, other) == "metrics.jsonl differs"
    (other / "metrics.jsonl").write_bytes((one / "metrics.jsonl").read_bytes())
    assert difference(one, other) == "state_dict of last.ckpt differs"
    assert not same({"a": [torch.zeros(2)]}, {"a": [-torch.zeros(2)]})


def test_what_waits_for_a_gpu_inside_a_chunk_is_refused(workdir: Path, unrecorded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls of torch.cuda, in their order: on before each chunk but the first, off while the window is flushed."""
    modes = [0]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: modes.append({"default": 0, "error": 2}.get(mode, mode)))
    with checks._waiting_refused(cuda=True) as watched:
        train(*SMALL, "trainer.chunk_size=5", "trainer.log_every_n_steps=5", "trainer.engine=eager")
    assert watched == [5]
    # Two flushes, the first in a chunk that is not watched: off and back to off. Then on, off for the flush in it, on, and off.
    assert modes[:7] == [0, 0, 0, 2, 0, 2, 0]
    assert not any(modes[7:])


def finding(status: str) -> Mapping[str, Any]:
    return {"status": status, "reason": "" if status == "passed" else "so it is", "figures": {}}


@pytest.mark.parametrize(("failed", "code"), [(None, 0), ("bf16", 1)])
def test_a_failed_check_is_the_exit_code_and_all_are_in_the_file(
    failed: str | None, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "_child", lambda name, *rest: finding("failed" if name == failed else "passed"))
    assert device.main(["--quick", "--out", str(tmp_path)]) == code
    written = json.loads((tmp_path / "device.json").read_text())
    assert {one["name"]: one["status"] for one in written["checks"]} == {name: "failed" if name == failed else "passed" for name in CHECKS}
    assert written["machine"]["torch"] == torch.__version__
    printed = capsys.readouterr().out
    assert all(check.about in printed for check in CHECKS.values())


def test_the_time_of_all_is_bounded_and_what_does_not_fit_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    now = [0.0]
    monkeypatch.setattr(device.time, "monotonic", lambda: now[0])

    def slow(name: str, seconds: float, here: Setting, scratch: Path) -> Mapping[str, Any]:
        given.append(seconds)
        now[0] += seconds
        raise subprocess.TimeoutExpired(name, seconds)

    monkeypatch.setattr(device, "_child", slow)
    assert device.main(["--quick", "--minutes", "5", "--out", str(tmp_path)]) == 1
    assert sum(given) == 300
    statuses = [one["status"] for one in json.loads((tmp_path / "device.json").read_text())["checks"]]
    # The last one to start was not given its own time.
    assert statuses == ["failed"] * (len(given) - 1) + ["skipped"] * (len(CHECKS) - len(given) + 1)
    assert given[-1] < CHECKS[list(CHECKS)[len(given) - 1]].on(Setting.here(True))


def test_the_checks_fit_into_eight_minutes_but_for_their_reserves() -> None:
    """Each may take what it says; that all take so long is not expected, and bounded by the script."""
    assert all(0 < check.seconds <= 120 for check in CHECKS.values())


def test_an_exception_is_a_failed_check_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(s: Setting) -> Verdict:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setitem(CHECKS, "bf16", checks.Check(broken, 1, ""))
    assert device.main(["bf16", "--quick", "--child", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["status"], report["reason"]) == ("failed", "RuntimeError: no kernel image is available")
    assert any("broken" in line for line in report["figures"]["traceback"])


def test_a_checkout_that_was_never_installed_finds_its_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bare, "entry_points", lambda group: [])
    found = bare.environment(tmp_path)
    # -S: without the folders of installed packages there is no entry point but the one that was made.
    asked = "from importlib.metadata import entry_points; print([(e.dist.name, e.value) for e in entry_points(group='dnnkit.plugins')])"
    done = subprocess.run([sys.executable, "-S", "-c", asked], env=found, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[('dnnkit', 'dnnkit_plugins')]"


def test_mnist_is_looked_for_where_the_variable_says_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("named", "checkout/shared/data", "shared/data"):
        (tmp_path / place / "mnist").mkdir(parents=True)
    monkeypatch.setattr(setting, "ROOT", tmp_path / "checkout")
    monkeypatch.setenv("DNNKIT_DATA", str(tmp_path / "named"))
    assert setting.find_root() == tmp_path / "named"
    monkeypatch.delenv("DNNKIT_DATA")
    assert setting.find_root() == tmp_path / "checkout/shared/data"
    (tmp_path / "checkout/shared/data/mnist").rmdir()
    assert setting.find_root() == tmp_path / "shared/data"


@pytest.mark.slow
def test_the_whole_script_passes_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.device", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=bare.ROOT, capture_output=True, text=True, timeout=900)
    found = {one["name"]: one for one in json.loads((tmp_path / "device.json").read_text())["checks"]}
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert set(found) == set(CHECKS)
    assert {name for name, one in found.items() if one["status"] == "skipped"} <= {"cuda_graph", "no_waiting"}
