"""What a run ran on: interpreter, machine, threads, packages. Reads what is loaded and imports nothing heavy."""

from __future__ import annotations

import os
import platform
import re
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any


def environment(device: str) -> dict[str, Any]:
    """JSON-able facts; torch's own appear where the process has torch loaded already."""
    torch = sys.modules.get("torch")
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "device": device,
        "torch": str(torch.__version__) if torch else None,
    }


@cache
def packages() -> str:
    """Every installed distribution as a sorted line `name==version`, ready for `pip install -r`; as at the first call."""
    found = {named for dist in metadata.distributions() if (named := _named(dist))[0]}
    return "".join(f"{name}=={version}\n" for name, version in sorted(found, key=lambda pair: (pair[0].lower(), pair[1])))


def _named(dist: metadata.Distribution) -> tuple[str, str]:
    """Name and version, both empty where it has none.

    Read off the top of the file where they stand there plainly: parsing the whole as an e-mail, as `metadata` does, takes
    25 times as long, a quarter of a second for some hundred packages.
    """
    top, _, _ = (dist.read_text("METADATA") or "").partition("\n\n")
    fields = [re.findall(rf"^{field}: *(\S+)$", top, re.MULTILINE) for field in ("Name", "Version")]
    if all(len(found) == 1 for found in fields):
        return fields[0][0], fields[1][0]
    return dist.metadata["Name"] or "", dist.version or ""


def _cpu_name() -> str:
    """The processor's own name on Linux, elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
