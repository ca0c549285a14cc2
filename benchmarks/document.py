"""Where figures go: into one JSON file by part, and between markers of a document."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "pytorch-lightning", "torchmetrics", "keras", "jax", "mlflow")


def markers(name: str) -> tuple[str, str]:
    return f"<!-- bench {name}: begin, written by python -m benchmarks --write -->", f"<!-- bench {name}: end -->"


def put_between_markers(document: str, name: str, content: str) -> str:
    """The document with `content` in the place of what stood between the markers of that name. ValueError without exactly one pair."""
    begin, end = markers(name)
    pattern = re.compile(f"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
    if len(pattern.findall(document)) != 1:
        raise ValueError(f"the document must hold {begin!r} and {end!r} once, in this order")
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", document)


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column to the left, all others to the right."""
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows))


def update_json(path: Path, part: str, found: Mapping[str, Any]) -> None:
    """Put what a part found into the file; what other parts found stays."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, {**kept, part: found})


def write_json(path: Path, found: Mapping[str, Any]) -> None:
    """A file in which a list of plain values takes one line."""
    text = json.dumps(found, indent=1, ensure_ascii=False)
    short = re.sub(r"\[([^\[\]{}]*)\]", lambda row: "[" + " ".join(row[1].split()) + "]", text)
    path.write_text(short + "\n", encoding="utf-8")


def describe_machine() -> dict[str, Any]:
    """What the figures depend on, and nothing that identifies the machine."""
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: number for name in _PACKAGES if (number := _version(name))},
    }


def machine_line(machine: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    return f"{machine['cores']} cores, {machine['cpu']}, {machine['system']}, Python {machine['python']}, {packages}"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range, such as `1.05 (0.98–1.21)`."""
    from statistics import median

    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a peer that takes no part here
        return ""


def _cpu_model() -> str:
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
