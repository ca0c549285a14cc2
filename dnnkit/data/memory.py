"""Whether a data set may live on the device whole."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from dnnkit.data.tasks import form_asked

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


def footprint(values: int, precision: str, task: str, device: torch.device) -> tuple[int, int]:
    """Bytes that so many values of examples take when they are resident: in CPU memory, and on a device that has its own.

    They are prepared as float32 in CPU memory; 64 bits are a second copy. A target that is the example itself shares
    its memory until either is copied.
    """
    wide, own = precision == "64", device.type != "cpu"
    copies = 2 if form_asked(task) == "itself" else 1
    return 4 * values + (8 * values * copies if wide else 0), (8 if wide else 4) * values * copies if own else 0


def streams(loader: str, in_memory: int, on_device: int, share: float, device: torch.device) -> bool:
    """Whether examples with this footprint are to be streamed, as `data.loader` and `data.memory_share` say."""
    if loader != "auto":
        return loader == "stream"
    return in_memory > share * available(torch.device("cpu")) or on_device > share * available(device)
