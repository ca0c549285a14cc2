"""Which device a run or one of its ranks computes on, and with how many threads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dnnkit.config import Trainer
from dnnkit.errors import ConfigError, Problem
from dnnkit.training.place import Place
from dnnkit.training.work import multiplications, typical


def choose_device(trainer: Trainer, local_rank: int = 0) -> torch.device:
    """The device that `trainer=auto|cpu|gpu|ddp_cpu|ddp` means for this rank; ConfigError where there are not so many GPUs."""
    if trainer.name in ("cpu", "ddp_cpu"):
        return torch.device("cpu")
    if trainer.name == "ddp":
        return _one_of_several(trainer.devices, local_rank)
    gpu = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
    if trainer.name == "gpu" and gpu is None:
        raise ConfigError([Problem("trainer", "there is no GPU that PyTorch can use here", ("trainer=cpu", "trainer=auto"))])
    if gpu is None:
        return torch.device("cpu")
    if str(trainer.precision) == "64" and gpu == "mps":
        raise ConfigError([Problem("trainer.precision", "must be 32 or bf16 on Apple's GPU, got 64", ("trainer=cpu",))])
    return torch.device(gpu, 0)


def inference_device(trainer: Trainer) -> torch.device:
    """One device of the kind that a run used, to use its network on; the CPU where there is none of that kind."""
    name: Any = {"ddp_cpu": "cpu", "ddp": "auto", "gpu": "auto"}.get(trainer.name, trainer.name)
    device = choose_device(replace(trainer, name=name, devices=1, precision="32"))
    return torch.device("cpu") if device.type == "mps" and str(trainer.precision) == "64" else device


def _one_of_several(devices: int, local_rank: int) -> torch.device:
    there = torch.cuda.device_count()
    if there == 0:
        choices = ("trainer=ddp_cpu", "trainer=auto")
        raise ConfigError([Problem("trainer", "ddp needs GPUs of NVIDIA or AMD, and PyTorch can use none here", choices)])
    if devices > there:
        message = f"must be at most {there}, the number of GPUs here, got {devices}"
        raise ConfigError([Problem("trainer.devices", message, (f"trainer.devices={there}",))])
    return torch.device("cuda", local_rank)


def check_world(trainer: Trainer, environ: Mapping[str, str] = os.environ) -> None:
    """ConfigError where torchrun has started another number of processes than the config has devices."""
    place = Place.of_torchrun(environ)
    if place is None or trainer.devices * place.nodes == place.world:
        return
    right = place.world // place.nodes
    message = f"must be {right}: torchrun has started {place.world} processes on {place.nodes} machine{'s' if place.nodes > 1 else ''}"
    names = (f"trainer.devices={right}",) if trainer.name.startswith("ddp") else (f"trainer=ddp_cpu trainer.devices={right}",)
    raise ConfigError([Problem("trainer.devices", f"{message}, got {trainer.devices}", names)])


def check_no_torchrun(environ: Mapping[str, str] = os.environ) -> None:
    """ConfigError for a sweep under torchrun, whose runs would have to share one group of processes."""
    if Place.of_torchrun(environ) is not None:
        cure = "a sweep starts the processes of each run by itself: leave torchrun out and set trainer=ddp_cpu or trainer=ddp"
        raise ConfigError([Problem("-m", f"cannot be run under torchrun; {cure}")])


#: So many multiply-adds of one operation are worth a thread. Measured: docs/performance.md, "Threads".
_WORTH_A_THREAD = 4_000_000


def choose_threads(trainer: Trainer, network: nn.Module, inputs: Iterable[int], batch_size: int, device: torch.device) -> tuple[int, str]:
    """The CPU threads that a process of a run computes with: `trainer.threads`, where that is `auto` a function of the work.

    `inputs`: the shape of an example. At most as many as `most_threads`, and one for each `_WORTH_A_THREAD` multiply-adds
    of a typical matrix product or convolution on a minibatch, or on a rank's share of it. One where a GPU computes. All
    that there may be, and the reason, where the network does not tell without data.
    """
    if isinstance(trainer.threads, int):
        return trainer.threads, ""
    most = most_threads(trainer)
    if trainer.threads is None or most == 1:
        return most, ""
    if device.type != "cpu":
        return 1, ""
    try:
        work = typical(multiplications(network, inputs, max(1, batch_size // trainer.devices)))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        return most, f"how much work a minibatch is cannot be told without data ({reason})"
    return max(1, min(most, work // _WORTH_A_THREAD)), ""


def most_threads(trainer: Trainer) -> int:
    """As many as PyTorch takes, which is one for each core or what `OMP_NUM_THREADS` says; of `ddp_cpu` each rank's part of the cores."""
    there = torch.get_num_threads()
    if trainer.devices == 1 or trainer.name != "ddp_cpu":
        return there
    return max(1, min(there, _cores() // trainer.devices))


@contextmanager
def computing_with(threads: int | None) -> Iterator[None]:
    """The body computes with so many CPU threads, None: with as many as there are; afterwards there are as many as before."""
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)


def threads_to_prepare(trainer: Trainer) -> int | None:
    """Those that data are standardised and weights drawn with, before there is a network: one, where its threads are chosen for it.

    The last digits of both may depend on the number of threads. None: as many as there are.
    """
    if trainer.threads == "auto":
        return 1
    return trainer.threads if trainer.threads is not None else most_threads(trainer)


def _cores() -> int:
    """Those that this process may use; macOS does not say, and has them all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
