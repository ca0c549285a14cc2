"""The other processes of a run on several devices: started, met, watched and ended by the first.

A rank is `python -m dnnkit.worker RUN_DIR`. It reads the resolved config from the run folder and never sees the command
line. What it prints goes to `rank1.log` in the run folder, and why it failed to `.rank1.json` there.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.rendezvous import rendezvous

from dnnkit.config import Trainer
from dnnkit.disk import disk, read_json, write_json
from dnnkit.errors import DnnkitError, RankError
from dnnkit.record import RunFolder, config_digest
from dnnkit.training.place import (
    MEETING_S,
    Identity,
    Place,
    abort,
    connect,
    disconnect,
    gather_identities,
    give_verdict,
    has_done,
)

log = logging.getLogger("dnnkit")

_HERE = "127.0.0.1"
#: Seconds after the death of a rank: until the others are ended too, which breaks any collective that waits for them; then
#: until the process group is aborted; then until this process is ended from outside the thread that hangs.
_PATIENCE = (2.0, 8.0, 10.0)
#: How long after a broken collective the end of a process is waited for, in seconds: a C++ stack trace may come first.
_NEWS_S = 5.0
#: The variable that tells a rank which process it must not outlive.
STARTED_BY = "DNNKIT_STARTED_BY"
#: The exit code of a rank that ended because another one did.
LOST = 75
#: How long a rank may take to end after its last word, in seconds.
_FAREWELL_S = 30.0


class Ranks:
    """The ranks of a run, seen from the first: a context that starts the others and leaves none behind.

    With one device it does nothing. Whatever ends the body ends the other ranks; where that was the death of one of them,
    RankError says which, of what, and where its log is.
    """

    def __init__(self, trainer: Trainer, folder: RunFolder) -> None:
        launched = Place.of_torchrun()
        self.place = launched or Place(world=trainer.devices)
        self.external = launched is not None
        self._folder = folder
        self._store: Store | None = None
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._excused: set[int] = set()  # ranks that died after all of their work
        self._watch: Watch | None = None

    def __enter__(self) -> Self:
        if self.external:
            self._store = torchrun_store()
            self._store.set("run_dir", str(self._folder.path))
        elif self.place.world > 1:
            store = TCPStore(_HERE, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=MEETING_S))
            self._store = store
            try:
                for rank in range(1, self.place.world):
                    self._processes[rank] = _start(self._folder.path, rank, self.place.world, store.port)
            except BaseException:
                self._end()
                raise
            self._watch = Watch(self._processes, self._give_up)
            self._watch.start()
        return self

    def join(self, device: torch.device, config: Mapping[str, object], fingerprint: str, network: nn.Module) -> Place:
        """Wait until all ranks are ready, see that they are about to train the same, and open the process group.

        `environment/ranks.json` says what they compared. Raises RankError where a rank dies, stays away or differs.
        """
        if self._store is None:
            return self.place
        own = Identity.here(0, config_digest(config), fingerprint, network)
        identities = gather_identities(self._store, own, self.place.world, self._check, MEETING_S)
        write_json(self._folder.path / "environment" / "ranks.json", [asdict(identity) for identity in identities])
        give_verdict(self._store, identities)
        log.info("%d ranks with equal digests: config %s, data %s, initial weights %s", len(identities), own.config, own.data, own.weights)
        connect(self._store, self.place, device)
        return self.place

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._store is None:
            return
        try:
            # A collective breaks because a rank has died, of which the operating system tells a little later.
            blamed = self._blame(_NEWS_S) if broke_collective(error) else None
            if error is None:
                self._bid_farewell(self._store)
        finally:
            self._stop_watching()
            self._end()
            disconnect(broken=error is not None)
            self._store = None
        if blamed is not None:
            raise blamed from error

    def _check(self) -> None:
        blamed = self._blame(0.0)
        if blamed is not None:
            raise blamed

    def _blame(self, wait_s: float) -> RankError | None:
        """The error of a rank that has failed, waited for up to `wait_s` seconds; of torchrun's ranks, only of one that left word."""
        deadline = time.monotonic() + wait_s
        while True:
            rank = failed({rank: process for rank, process in self._processes.items() if rank not in self._excused})
            late = time.monotonic() > deadline
            if rank is not None and (late or self._processes[rank].returncode != LOST):
                return told(self._folder.path, rank, self._processes[rank].returncode)
            words = [other for other in range(1, self.place.world) if word_path(self._folder.path, other).exists()]
            if self.external and words:
                return told(self._folder.path, words[0], 1)
            if late:
                return None
            time.sleep(0.05)

    def _bid_farewell(self, store: Store) -> None:
        """Every rank has to end its work well; how its process then goes changes no number. Raises RankError."""
        self._stop_watching()
        deadline = time.monotonic() + _FAREWELL_S
        while any(process.poll() is None for process in self._processes.values()) and time.monotonic() < deadline:
            time.sleep(0.02)
        for rank, process in self._processes.items():
            if process.poll() is None:
                log.warning("rank %d (process %d) did not end within %g s: it is ended now", rank, process.pid, _FAREWELL_S)
            elif process.returncode and has_done(store, rank):
                self._excused.add(rank)
                late = told(self._folder.path, rank, process.returncode)
                log.warning("%s, but after all of its work: the run is whole%s", late.cause, f"; {late.cure}" if late.cure else "")
        self._check()

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.over.set()

    def _end(self) -> None:
        """No process is left, and no empty log."""
        for process in self._processes.values():
            process.kill()  # ranks but the first write nothing that could be torn
            process.wait()
        for rank in self._processes:
            path = log_path(self._folder.path, rank)
            if path.exists() and path.stat().st_size == 0:
                path.unlink()

    def _give_up(self, rank: int) -> None:
        """The last resort, in the watching thread: this process hangs in a call that nothing else can end."""
        blamed = told(self._folder.path, rank, self._processes[rank].returncode)
        log.error("%s", blamed)
        self._folder.finish("FAILED", "failed", blamed.exit_code)
        print(f"{blamed}\n  this process hung and was ended", file=sys.stderr, flush=True)
        os._exit(blamed.exit_code)


class Watch(threading.Thread):
    """Sees that a rank has died, and frees the first rank from a collective that would wait for it."""

    def __init__(
        self,
        processes: Mapping[int, subprocess.Popen[bytes]],
        give_up: Callable[[int], None],
        patience: Sequence[float] = _PATIENCE,
    ) -> None:
        super().__init__(name="dnnkit-ranks", daemon=True)
        self.over = threading.Event()
        self._processes, self._give_up, self._patience = processes, give_up, patience

    def run(self) -> None:
        """Look four times a second until `over` is set."""
        while not self.over.wait(0.25):
            rank = failed(self._processes)
            if rank is not None:
                self._free(rank)
                return

    def _free(self, rank: int) -> None:
        to_end, to_abort, to_give_up = self._patience
        if self.over.wait(to_end):
            return
        for process in self._processes.values():
            process.kill()
        if self.over.wait(to_abort):
            return
        abort()
        if not self.over.wait(to_give_up):
            self._give_up(rank)


def failed(processes: Mapping[int, subprocess.Popen[bytes]]) -> int | None:
    """The rank to blame: before one that only missed another, one that ended by itself, and before that one that a signal ended."""
    codes = {rank: process.poll() for rank, process in processes.items()}
    dead = {rank: code for rank, code in codes.items() if code}
    return min(dead, key=lambda rank: (dead[rank] == LOST, dead[rank] > 0, rank)) if dead else None


def broke_collective(error: BaseException | None) -> bool:
    """Whether this is how PyTorch says that another rank is gone, or that `abort` has broken off the waiting for it."""
    known = ("gloo", "process group has not been initialized")
    return isinstance(error, dist.DistError) or (
        isinstance(error, (RuntimeError, ValueError)) and any(word in str(error) for word in known)
    )


def told(run_dir: Path, rank: int, code: int) -> RankError:
    """What became of a rank that has failed, in its own words where it left any."""
    logged, path = log_path(run_dir, rank), word_path(run_dir, rank)
    lines = logged.read_text("utf-8", "replace").strip().splitlines() if logged.exists() else []
    cure = f"its log is {logged}" if lines else ""
    if code < 0:
        return RankError(f"rank {rank} was ended by {signal.Signals(-code).name}", cure)
    if path.exists():
        word = read_json(path)
        return RankError(f"rank {rank} failed: {word['cause']}", word["cure"] or cure, word["exit_code"])
    return RankError(f"rank {rank} ended with exit code {code}{f': {lines[-1]}' if lines else ''}", cure)


def leave_word(run_dir: Path, rank: int, error: BaseException) -> int:
    """Another rank: note why it ends, for the first one to tell; the exit code."""
    if broke_collective(error):
        return LOST
    known = error if isinstance(error, DnnkitError) else RankError(f"{type(error).__name__}: {error}")
    write_json(word_path(run_dir, rank), {"cause": known.cause, "cure": known.cure, "exit_code": known.exit_code})
    return known.exit_code


def log_path(run_dir: Path, rank: int) -> Path:
    """Where a rank's standard output and error go."""
    return run_dir / f"rank{rank}.log"


def word_path(run_dir: Path, rank: int) -> Path:
    """Where a rank says why it failed."""
    return run_dir / f".rank{rank}.json"


def _start(run_dir: Path, rank: int, world: int, port: int) -> subprocess.Popen[bytes]:
    """A rank on this machine. Its place is in its own environment, not in ours."""
    threads = torch.get_num_threads()
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": _HERE, "MASTER_PORT": port}
    own = {**place, "OMP_NUM_THREADS": threads, STARTED_BY: os.getpid()}
    environ = {**os.environ, **{key: str(value) for key, value in own.items()}}
    # It finds dnnkit where this process did: from the working folder only if this process looks there too.
    safe_path = [] if {"", str(Path.cwd())} & set(sys.path) else ["-P"]
    path = log_path(run_dir, rank)
    word_path(run_dir, rank).unlink(missing_ok=True)  # of an earlier part of a resumed run
    with disk(path), open(path, "ab") as file:
        return subprocess.Popen(
            [sys.executable, *safe_path, "-m", "dnnkit.worker", str(run_dir)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environ,
        )


def torchrun_store() -> Store:
    """The store that torchrun's processes share."""
    store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=MEETING_S)))
    return PrefixStore("dnnkit", store)
