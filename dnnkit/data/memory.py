"""Whether a data set may live on the device whole."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


def available(device: torch.device) -> int:
    """Bytes of memory that are free on the device; on the CPU within what its container allows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_machine(), _container())


def _machine() -> int:
    """Free memory and what the system could free at once; where it does not say, all that is installed."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container() -> int:
    try:
        limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        rows = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return limit - used + int(rows["inactive_file"])  # which the kernel drops before it runs out
    except (OSError, KeyError, ValueError):  # no container, or one without a limit ("max")
        return 2**63


def streams(loader: str, needed: int, share: float, device: torch.device) -> bool:
    """Whether examples that take `needed` bytes in training are to be streamed, as `data.loader` and `data.memory_share` say."""
    return loader == "stream" or (loader == "auto" and needed > share * available(device))
