"""The ranks of a run and how they meet: each says what it is about to train, and only equals begin."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import PrefixStore, Store

from dnnkit.errors import RankError
from dnnkit.record.identity import version

log = logging.getLogger("dnnkit")

#: How long the first rank waits for the others to be ready, in seconds: they import PyTorch and load the data. Of a death it hears at once.
MEETING_S = 600.0
#: How long a collective may wait for a rank that lives: rank 0 alone probes and draws meanwhile.
COLLECTIVE = timedelta(minutes=30)


@dataclass(frozen=True)
class Place:
    """Which rank of how many this process is, and which of its machine; a single process by default."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    node: int = 0
    nodes: int = 1

    @classmethod
    def of_torchrun(cls, environ: Mapping[str, str] = os.environ) -> Self | None:
        """The place that torchrun has given this process; None where it was not started by it, or alone."""
        if "TORCHELASTIC_RUN_ID" not in environ or environ.get("WORLD_SIZE", "1") == "1":
            return None
        return cls.of_variables(environ)

    @classmethod
    def of_variables(cls, environ: Mapping[str, str]) -> Self:
        """The place in the variables RANK, WORLD_SIZE, LOCAL_RANK, GROUP_RANK and GROUP_WORLD_SIZE."""
        return cls(
            rank=int(environ["RANK"]),
            world=int(environ["WORLD_SIZE"]),
            local_rank=int(environ["LOCAL_RANK"]),
            node=int(environ.get("GROUP_RANK", 0)),
            nodes=int(environ.get("GROUP_WORLD_SIZE", 1)),
        )


@dataclass(frozen=True)
class Identity:
    """What a rank is about to train: digests, which have to be equal on all ranks, and where it is."""

    rank: int
    config: str
    data: str
    weights: str
    dnnkit: str
    torch: str
    threads: int
    pid: int
    host: str

    @classmethod
    def here(cls, rank: int, config: str, data: str, network: nn.Module) -> Self:
        """This process's, with the SHA-256 of the network's weights and buffers."""
        return cls(
            rank, config, data, weights_digest(network), version(), str(torch.__version__), torch.get_num_threads(), os.getpid(),
            socket.gethostname(),
        )  # fmt: skip


_EQUAL = {
    "config": "config",
    "data": "data",
    "weights": "initial weights",
    "dnnkit": "version of dnnkit",
    "torch": "version of PyTorch",
}


def weights_digest(network: nn.Module, buffers: bool = True) -> str:
    """SHA-256, in hex, of names, types, shapes and bytes of all weights, and all buffers that are saved."""
    found = hashlib.sha256()
    for name, tensor in sorted((network.state_dict() if buffers else dict(network.named_parameters())).items()):
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def differences(identities: Sequence[Identity]) -> list[str]:
    """What differs between the first rank and the others, a line each; empty where all are equal."""
    first = identities[0]
    return [
        f"the {what} of rank {other.rank} ({getattr(other, field)}) differs from rank {first.rank}'s ({getattr(first, field)})"
        for other in identities[1:]
        for field, what in _EQUAL.items()
        if getattr(other, field) != getattr(first, field)
    ]


def gather_identities(store: Store, own: Identity, world: int, watch: Callable[[], None], wait_s: float) -> list[Identity]:
    """Rank 0: everybody's identity, in rank order. `watch` is called while waiting and raises where a rank has died.

    Raises RankError where a rank does not come within `wait_s` seconds.
    """
    found = [own]
    deadline = time.monotonic() + wait_s
    for rank in range(1, world):
        while not store.check([f"identity/{rank}"]):
            watch()
            if time.monotonic() > deadline:
                raise RankError(f"rank {rank} was not ready after {wait_s:g} s", "its log in the run folder says how far it came")
            time.sleep(0.05)
        found.append(Identity(**json.loads(store.get(f"identity/{rank}"))))
    return found


def give_verdict(store: Store, identities: Sequence[Identity]) -> None:
    """Rank 0: tell the others whether they may begin. Raises RankError where something differs."""
    problem = "; ".join(differences(identities))
    store.set("verdict", problem or "begin")
    if problem:
        raise RankError(
            f"the ranks would not train the same: {problem}", "start again; if files have just changed, wait until they are whole"
        )


def hear_verdict(store: Store, own: Identity) -> None:
    """The other ranks: say who we are and wait for rank 0's word. Raises RankError where something differs."""
    store.set(f"identity/{own.rank}", json.dumps(asdict(own)))
    store.wait(["verdict"], timedelta(seconds=MEETING_S))
    verdict = store.get("verdict").decode()
    if verdict != "begin":
        raise RankError(f"the ranks would not train the same: {verdict}")


def say_done(store: Store, rank: int) -> None:
    """The other ranks: all that the run needs of this one is done."""
    store.set(f"done/{rank}", "")


def has_done(store: Store, rank: int) -> bool:
    """Rank 0: whether that rank has said so."""
    return bool(store.check([f"done/{rank}"]))


def warn_of_unequal_weights(network: nn.Module) -> None:
    """After training, on every rank: a warning unless all have made the same updates."""
    digests: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(digests, weights_digest(network, buffers=False))
    other = [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]
    if other:
        log.warning(
            "the weights of rank %s are not those of rank 0, which are kept: an update was not the same on all ranks", ", ".join(other)
        )


def connect(store: Store, place: Place, device: torch.device) -> None:
    """Open the process group: nccl between GPUs, gloo between CPUs."""
    settings: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}
    backend = "nccl" if device.type == "cuda" else "gloo"
    group = PrefixStore("group", store)
    dist.init_process_group(backend, store=group, rank=place.rank, world_size=place.world, timeout=COLLECTIVE, **settings)


def abort() -> None:
    """Break what this process waits for in a group of GPUs; between CPUs it breaks by itself when the others' connections close."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        dist.distributed_c10d._abort_process_group()


def disconnect(broken: bool = False) -> None:
    """Close the process group; where a rank is gone without waiting for it."""
    if broken:
        abort()
    if dist.is_initialized():
        dist.destroy_process_group()
