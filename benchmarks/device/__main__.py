"""`python -m benchmarks.device [NAME …]`: the checks of a machine with a GPU; on one without, as much of them as a CPU can show.

Each is a process of its own with a bound on its time, so that one that fails or hangs costs the others nothing. A table goes to
the terminal, `device.json` into `$OUT` or `--out`. Exit code 1 if a check failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.device.bare import environment, missing

#: In less than that nothing can be shown.
_NO_TIME_S = 5


@dataclass(frozen=True)
class Finding:
    """A check's verdict and the seconds that it took."""

    name: str
    status: str
    reason: str
    seconds: float
    figures: Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if absent := missing():
        print(f"{sys.executable} has no {', '.join(absent)}: install what dnnkit needs there, or run `make device` without DNNKIT_PYTHON")
        return 1
    if options.child is not None:
        return _in_this_process(options.names[0], options.quick, options.child)
    return _all(options)


def _all(options: argparse.Namespace) -> int:
    from rich.console import Console

    from benchmarks.device.checks import CHECKS
    from benchmarks.device.setting import Setting

    setting, console = Setting.here(options.quick), Console(soft_wrap=True)
    machine = _machine(setting)
    console.print(f"{machine['device']}, torch {machine['torch']}; images: {machine['data']}", highlight=False, markup=False)
    began, found = time.monotonic(), list[Finding]()
    with tempfile.TemporaryDirectory(prefix="dnnkit-device-", ignore_cleanup_errors=True) as scratch:
        for name in options.names or CHECKS:
            left = 60 * options.minutes - (time.monotonic() - began)
            found.append(check(name, CHECKS[name].on(setting), left, lambda name, s: _child(name, s, setting, Path(scratch))))
            _say(console, found[-1])
            write(options.out, machine, found, time.monotonic() - began)
    _table(console, found)
    console.print(f"{options.out / 'device.json'}, {time.monotonic() - began:.0f} s", highlight=False, markup=False)
    return int(any(finding.status == "failed" for finding in found))


def check(name: str, seconds: float, left: float, start: Callable[[str, float], Mapping[str, Any]]) -> Finding:
    """One check, `start`ed as a process that ends within `seconds`; skipped where less is `left` and that does not do."""
    if left < _NO_TIME_S:
        return Finding(name, "skipped", "the time was up", 0.0, {})
    began = time.monotonic()
    try:
        verdict = start(name, min(seconds, left))
    except subprocess.TimeoutExpired:
        late = {"status": "failed", "reason": f"did not end within {seconds:.0f} s", "figures": {}}
        verdict = late if seconds <= left else {**late, "status": "skipped", "reason": "the time was up before it ended"}
    return Finding(name, seconds=round(time.monotonic() - began, 1), **verdict)


def write(out: Path, machine: Mapping[str, Any], found: Sequence[Finding], seconds: float) -> None:
    """`device.json`, after each check: what was found by then is not lost if the machine goes."""
    out.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "seconds": round(seconds, 1), "checks": [asdict(finding) for finding in found]}
    (out / "device.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _child(name: str, seconds: float, setting: Any, scratch: Path) -> dict[str, Any]:
    folder, report = scratch / name, scratch / f"{name}.json"
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks.device", name, "--child", str(report), *(["--quick"] if setting.quick else [])]
    # Beside other programs several threads wait for each other most of the time.
    threads = {} if setting.cuda else {"OMP_NUM_THREADS": "1"}
    environ = {**threads, **environment(scratch)}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, errors="replace", timeout=seconds)
    if report.exists():
        verdict: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        return verdict
    return {"status": "failed", "reason": f"ended with {done.returncode}: {done.stderr.strip()[-600:]}", "figures": {}}


def _in_this_process(name: str, quick: bool, report: Path) -> int:
    from benchmarks.device.checks import CHECKS
    from benchmarks.device.setting import Setting, Verdict

    try:
        verdict = CHECKS[name].run(Setting.here(quick))
    except Exception as error:
        where = traceback.format_exc().strip().splitlines()
        verdict = Verdict("failed", f"{type(error).__name__}: {error}"[:600], {"traceback": where[-12:]})
    report.write_text(json.dumps(asdict(verdict)), encoding="utf-8")
    return 0


def _machine(setting: Any) -> dict[str, Any]:
    """What the figures depend on, and nothing that identifies the machine."""
    import torch

    from benchmarks.document import describe_machine

    gpu = {"device": torch.cuda.get_device_name(0), "gpus": torch.cuda.device_count()} if setting.cuda else {"device": "CPU", "gpus": 0}
    versions = {"torch": str(torch.__version__), "cuda": torch.version.cuda, "hip": torch.version.hip}
    return {**gpu, **versions, "data": setting.data, "quick": setting.quick, **describe_machine()}


def _say(console: Any, finding: Finding) -> None:
    reason = f": {finding.reason}" if finding.reason else ""
    console.print(f"{finding.name} {finding.status} in {finding.seconds:.1f} s{reason}", highlight=False, markup=False)


def _table(console: Any, found: Sequence[Finding]) -> None:
    from rich.table import Table

    from benchmarks.device.checks import CHECKS

    table = Table("check", "", "s", "found", title="make device")
    for finding in found:
        figures = finding.reason or "; ".join(f"{key}: {value}" for key, value in finding.figures.items())
        table.add_row(CHECKS[finding.name].about, finding.status, f"{finding.seconds:.1f}", figures)
    console.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="checks to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that the script itself works")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it; checks that come later are skipped (default 8)")
    out = Path(os.environ.get("OUT") or "device")
    parser.add_argument("--out", type=Path, default=out, metavar="FOLDER", help="for device.json (default: $OUT, else device/)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
