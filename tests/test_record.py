"""The run folder: identity, journals, static files, log."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dnnkit.errors import DiskError
from dnnkit.record import (
    Journal,
    Row,
    RunFolder,
    RunLog,
    RunRecord,
    config_digest,
    flatten,
    git_state,
    new_run,
    read_journal,
    strip_credentials,
)
from dnnkit.record.environment import packages
from dnnkit.record.identity import process_lives, scrub
from dnnkit.record.journal import read_from

HEAVY = "{'torch', 'pytorch_lightning', 'lightning_fabric', 'matplotlib', 'mlflow', 'pandas', 'numpy'}"


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """A disk that is full after `size` bytes per file, by the operating system's own limit (Python ignores its signal)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return new_run(tmp_path / "runs", "digits")


def test_the_rooms_that_training_imports_load_neither_torch_nor_matplotlib_nor_mlflow() -> None:
    code = f"import sys, dnnkit.record, dnnkit.record.figures, dnnkit.sender; sys.exit(str(sorted({HEAVY} & set(sys.modules)) or ''))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.stderr.strip() == ""


def test_a_run_folder_is_named_by_date_time_name_and_the_start_of_its_uuid(run: RunFolder) -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d{6}_digits_[0-9a-f]{8}", run.path.name)
    assert run.path.name.endswith(run.record.uuid[:8])
    assert run.path.is_absolute()
    assert [path.name for path in run.path.parent.iterdir()] == [run.path.name]


@pytest.mark.parametrize(
    ("name", "part"), [("a/b\\c d", "a-b-c-d"), ("../../etc", "etc"), ("größe", "groe"), ("…", "run"), ("x" * 300, "x" * 64)]
)
def test_any_run_name_becomes_a_safe_folder_name_and_stays_whole_in_run_json(tmp_path: Path, name: str, part: str) -> None:
    made = new_run(tmp_path, name)
    assert made.path.parent == tmp_path
    assert made.path.name.split("_", 2)[2].rpartition("_")[0] == part
    assert made.record.name == name


def test_a_new_run_says_who_runs_it_and_that_it_runs(run: RunFolder) -> None:
    held = json.loads((run.path / "run.json").read_text())
    assert (held["status"], held["dnnkit_status"], held["pid"], held["exit_code"]) == ("RUNNING", "running", os.getpid(), None)
    assert not run.record.process_is_gone()


def test_finish_writes_the_end_into_run_json_and_closes_the_journal(run: RunFolder) -> None:
    run.journal.log(1, {"train/loss": 1.0})
    run.finish("FAILED", "diverged", 5)
    assert (run.record.status, run.record.dnnkit_status, run.record.exit_code) == ("FAILED", "diverged", 5)
    assert run.record.ended is not None
    assert run.record.ended >= run.record.created
    with pytest.raises(ValueError, match="closed"):
        run.journal.log(2, {"train/loss": 1.0})


def test_a_folder_that_cannot_be_made_is_a_disk_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file is in the way")
    with pytest.raises(DiskError, match=r"cannot write .*runs/.*digits") as caught:
        new_run(tmp_path / "runs", "digits")
    assert caught.value.exit_code == 8


def test_a_full_disk_leaves_no_half_made_run_folder(tmp_path: Path) -> None:
    with files_no_larger_than(10), pytest.raises(DiskError, match="cannot write"):
        new_run(tmp_path, "digits")
    assert list(tmp_path.iterdir()) == []


def test_run_json_is_never_seen_half_written(run: RunFolder) -> None:
    before = (run.path / "run.json").read_bytes()
    with files_no_larger_than(10), pytest.raises(DiskError):
        run.record.ended_as("FINISHED", "finished", 0).write(run.path)
    assert (run.path / "run.json").read_bytes() == before
    assert not list(run.path.glob(".run.json*"))
    with open(run.path / "run.json", "rb") as reader:  # one who has it open keeps the old bytes to the end
        run.record.ended_as("FINISHED", "finished", 0).write(run.path)
        assert reader.read() == before


def test_a_folder_without_run_json_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="is not a run folder"):
        RunRecord.read(tmp_path)


def test_run_json_of_a_later_version_is_read_without_its_new_keys(run: RunFolder) -> None:
    held = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**held, "colour": "blue"}))
    assert run.record.uuid == held["uuid"]


def test_a_process_that_has_ended_is_gone_even_while_its_parent_has_not_noticed() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_lives(child.pid)
    child.kill()
    deadline = time.monotonic() + 10
    while process_lives(child.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    if sys.platform == "linux":
        assert not process_lives(child.pid)  # a zombie
    child.communicate()
    assert not process_lives(child.pid)


def test_a_process_on_another_host_is_never_known_to_be_gone(run: RunFolder) -> None:
    held = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**held, "host": "elsewhere", "pid": 2**22 + 1}))
    assert not run.record.process_is_gone()


def test_params_are_the_config_flattened_and_whole() -> None:
    numbers = {"seed": 0, "lr": 1e-05}
    config = {"model": {"name": "mlp", "hidden": [300, 100]}, "clipping": None, **numbers, "on": True, "empty": {}, "long": "x" * 9000}
    assert flatten(config) == {
        "model.name": "mlp",
        "model.hidden": "[300, 100]",
        "clipping": "null",
        "seed": "0",
        "lr": "1e-05",
        "on": "true",
        "empty": "{}",
        "long": "x" * 9000,
    }


def test_the_config_digest_is_the_sha256_of_canonical_json_whatever_the_order_of_keys() -> None:
    expected = hashlib.sha256(b'{"a":{"b":1,"c":[1,2.5,null]},"d":"\xc3\xbc"}').hexdigest()
    assert config_digest({"d": "ü", "a": {"c": [1, 2.5, None], "b": 1}}) == expected
    assert config_digest({"d": "ü", "a": {"c": [1, 2.5, None], "b": 2}}) != expected


@pytest.mark.parametrize(
    ("uri", "bare"),
    [
        ("https://me:p%40ss@host:5000/path", "https://host:5000/path"),
        ("https://me:p@ss/w@host/path", "https://host/path"),
        ("https://host/path?token=abc#frag", "https://host/path"),
        ("postgresql+psycopg2://u:p@db/mlflow", "postgresql+psycopg2://db/mlflow"),
        ("databricks", "databricks"),
        ("databricks://profile", "databricks://profile"),
        ("sqlite:////home/a@b/mlflow.db?timeout=5", "sqlite:////home/a@b/mlflow.db?timeout=5"),
        ("/plain/path", "/plain/path"),
    ],
)
def test_credentials_are_stripped_from_any_address(uri: str, bare: str) -> None:
    assert strip_credentials(uri) == bare


def test_a_message_that_quotes_an_address_is_scrubbed() -> None:
    uri = "https://me:hush@host/x?token=abcdef"
    for text in (f"cannot reach {uri}", "GET https://me:hush@host/x/api failed", "auth hush refused", "param token=abcdef", "abcdef"):
        assert not re.search("hush|abcdef", scrub(text, uri))


def test_no_credentials_reach_run_json(tmp_path: Path) -> None:
    made = new_run(tmp_path, "digits", tracking_uri="https://me:hush@host/x?token=abcdef")
    assert made.record.tracking_uri == "https://host/x"


def test_static_files_hold_the_config_the_overrides_the_environment_and_the_tags(run: RunFolder) -> None:
    config = {"seed": 0, "model": {"hidden": [3, 2]}, "note": "${not.a.reference}"}
    run.write_config(config, ["seed=0", "model.hidden=[3,2]"])
    run.write_environment("cpu")
    run.write_tags(config, device="cpu", plugins={"zeta": "2", "dnnkit": "1"}, sweep="lr")
    assert yaml.safe_load((run.path / "config/config.yaml").read_text()) == config
    assert yaml.safe_load((run.path / "config/overrides.yaml").read_text()) == ["seed=0", "model.hidden=[3,2]"]
    assert json.loads((run.path / "params.json").read_text())["model.hidden"] == "[3, 2]"
    assert json.loads((run.path / "environment/environment.json").read_text())["python"] == ".".join(map(str, sys.version_info[:3]))
    tags = json.loads((run.path / "tags.json").read_text())
    assert set(tags) == {f"dnnkit.{name}" for name in ("version", "run_uuid", "config_digest", "git", "plugins", "device", "sweep")}
    assert tags["dnnkit.plugins"] == '{"dnnkit": "1", "zeta": "2"}'
    assert (tags["dnnkit.run_uuid"], tags["dnnkit.config_digest"]) == (run.record.uuid, config_digest(config))


def test_a_run_outside_a_sweep_has_no_sweep_tag(run: RunFolder) -> None:
    run.write_tags({}, device="cpu", plugins={})
    assert "dnnkit.sweep" not in json.loads((run.path / "tags.json").read_text())


def test_packages_are_sorted_pins() -> None:
    lines = packages().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==\S+", line) for line in lines)
    assert f"pytest=={pytest.__version__}" in lines
    assert [line.partition("==")[0].lower() for line in lines] == sorted(line.partition("==")[0].lower() for line in lines)


def test_the_data_set_file_keeps_the_whole_fingerprint_though_mlflow_holds_36_characters(run: RunFolder) -> None:
    run.write_dataset("digits", "f" * 64, origin="https://me:hush@host/digits", inputs=(64,), card={"train": 10})
    held = json.loads((run.path / "dataset.json").read_text())
    assert held["digest"] == "f" * 36
    assert json.loads(held["source"]) == {"uri": "https://host/digits", "fingerprint": "f" * 64}
    assert json.loads(held["profile"]) == {"train": 10}


def test_git_state_is_the_commit_and_says_whether_tracked_files_differ(tmp_path: Path) -> None:
    assert git_state(tmp_path) == "none"
    identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
    (tmp_path / "a").write_text("1")
    for command in (["init", "-q"], ["add", "a"], [*identity, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()
    (tmp_path / "mlflow.db").write_text("an untracked file is no change")
    assert git_state(tmp_path) == commit
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == f"{commit}-dirty"


def test_journal_lines_are_compact_and_in_order_and_equal_byte_for_byte(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        with Journal(folder) as journal:
            journal.log(50, {"train/loss": 0.1 + 0.2, "lr": 1})
            journal.time(50, {"time/epoch_s": 2.5})
            journal.log(100, {"train/loss": math.nan, "grad_norm": math.inf, "val/loss": -math.inf})
    expected = (
        b'{"step":50,"key":"train/loss","value":0.30000000000000004}\n{"step":50,"key":"lr","value":1.0}\n'
        b'{"step":100,"key":"train/loss","value":NaN}\n{"step":100,"key":"grad_norm","value":Infinity}\n'
        b'{"step":100,"key":"val/loss","value":-Infinity}\n'
    )
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == expected == (tmp_path / "b/metrics.jsonl").read_bytes()
    assert (tmp_path / "a/timing.jsonl").read_bytes() == b'{"step":50,"key":"time/epoch_s","value":2.5}\n'


def test_wall_clock_and_reproducible_metrics_cannot_be_mixed(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        with pytest.raises(ValueError, match="wall-clock"):
            journal.log(1, {"time/epoch_s": 1.0})
        with pytest.raises(ValueError, match="wall-clock"):
            journal.time(1, {"train/loss": 1.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == (tmp_path / "timing.jsonl").read_bytes() == b""


def test_a_killed_process_loses_no_number_whose_call_returned(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from dnnkit.record import Journal\n"
        "journal = Journal(Path(sys.argv[1])); [journal.log(step, {'train/loss': step / 7}) for step in range(1, 2001)]\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -signal.SIGKILL
    assert read_journal(tmp_path / "metrics.jsonl") == [Row(step, "train/loss", step / 7) for step in range(1, 2001)]


def test_a_full_disk_is_a_disk_error_and_the_torn_line_is_neither_read_nor_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.log(1, {"train/loss": 1.0})
    with files_no_larger_than(60), pytest.raises(DiskError, match=r"metrics\.jsonl"):
        journal.log(2, {"train/loss": 2.0})
    journal.close()
    path = tmp_path / "metrics.jsonl"
    assert path.stat().st_size == 60
    assert read_journal(path) == [Row(1, "train/loss", 1.0)]
    with Journal(tmp_path) as again:
        again.log(2, {"train/loss": 2.0})
    assert read_journal(path) == [Row(1, "train/loss", 1.0), Row(2, "train/loss", 2.0)]


def test_a_growing_journal_is_read_piece_by_piece_without_loss(tmp_path: Path) -> None:
    path, whole = tmp_path / "metrics.jsonl", b'{"step":1,"key":"a","value":1.0}\n{"step":2,"key":"a","value":NaN}\n'
    rows: list[Row] = []
    offset = 0
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        new, offset = read_from(path, offset)
        rows += new
    assert [(row.step, row.key) for row in rows] == [(1, "a"), (2, "a")]
    assert math.isnan(rows[1].value)


def test_a_damaged_line_in_the_middle_is_an_error_and_not_skipped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step":1,"key":"a"}\n{"step":2,"key":"a","value":1.0}\n')
    with pytest.raises(ValueError, match="no journal row"):
        read_journal(tmp_path / "metrics.jsonl")


def test_run_log_holds_messages_and_warnings(tmp_path: Path) -> None:
    lightning = logging.getLogger("pytorch_lightning")
    with RunLog(tmp_path / "run.log"), warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.getLogger("dnnkit.anything").info("from dnnkit")
        lightning.warning("from lightning")
        warnings.warn("from a warning", stacklevel=1)
    text = (tmp_path / "run.log").read_text()
    for said in ("from dnnkit", "from lightning", "from a warning"):
        assert said in text


def test_a_logger_that_does_not_propagate_is_in_run_log_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lightning = logging.getLogger("pytorch_lightning")
    for propagate in (True, False):
        monkeypatch.setattr(lightning, "propagate", propagate)
        with RunLog(tmp_path / f"{propagate}.log"):
            lightning.error("said once")
        assert (tmp_path / f"{propagate}.log").read_text().count("said once") == 1


def test_run_log_leaves_logging_and_warnings_as_they_were(tmp_path: Path) -> None:
    loggers = [logging.getLogger(name) for name in (None, "dnnkit", "pytorch_lightning", "lightning_fabric", "py.warnings")]
    state = [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers], warnings.showwarning
    for number in range(3):
        with contextlib.suppress(KeyError), RunLog(tmp_path / f"{number}.log"):
            logging.getLogger("dnnkit").info("run %d", number)
            raise KeyError
    assert ([(list(logger.handlers), logger.level, logger.propagate) for logger in loggers], warnings.showwarning) == state
    assert [(tmp_path / f"{number}.log").read_text().count("run") for number in range(3)] == [1, 1, 1]


def test_warnings_still_reach_the_terminal_while_the_log_is_open(tmp_path: Path) -> None:
    code = "import sys, warnings\nfrom dnnkit.record import RunLog\nfrom pathlib import Path\n"
    code += "with RunLog(Path(sys.argv[1])): warnings.warn('look here')"
    answer = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run.log")], capture_output=True, text=True, check=True)
    assert "look here" in answer.stderr
    assert "look here" in (tmp_path / "run.log").read_text()
