"""A rank of a run on several devices, other than the first: `python -m dnnkit.worker RUN_DIR`.

It is started by the first rank, or by torchrun through the command line. It reads the resolved config from the run folder,
builds the same network from the same data, and trains along; it writes nothing but its own log.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch
import yaml
from torch._C._distributed_c10d import Store, TCPStore

from dnnkit import plugins
from dnnkit.config import Config
from dnnkit.config.sections import validate
from dnnkit.errors import ConfigError, Problem, RankError
from dnnkit.record import RunFolder, config_digest
from dnnkit.training.crowd import sharing
from dnnkit.training.finished import recorded_threads
from dnnkit.training.place import MEETING_S, Identity, Place, connect, disconnect, hear_verdict, say_done
from dnnkit.training.ranks import STARTED_BY, leave_word, log_path, torchrun_store
from dnnkit.training.run import prepare_run

#: How long torchrun's other ranks wait for the first to compose and to load, perhaps to download, the data.
_PREPARING = timedelta(minutes=60)


def main(argv: Sequence[str] | None = None) -> int:
    """Train along with the first rank, whose process has started this one; the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if len(words) != 1 or STARTED_BY not in os.environ:
        print("python -m dnnkit.worker RUN_DIR is started by dnnkit itself, for trainer=ddp and trainer=ddp_cpu", file=sys.stderr)
        return ConfigError.exit_code
    run_dir = Path(words[0])
    _end_with(int(os.environ[STARTED_BY]))
    place = Place.of_variables(os.environ)
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=timedelta(seconds=MEETING_S))
    return _train_along(run_dir, place, store)


def joined_torchrun() -> int | None:
    """What torchrun's ranks other than the first do with a command line: not read it, but train along; the exit code.

    None on the first rank, which composes and says where the run folder is, and where torchrun has started one process alone.
    """
    place = Place.of_torchrun()
    if place is None or place.rank == 0:
        return None
    store = torchrun_store()
    store.wait(["run_dir"], _PREPARING)
    run_dir = Path(store.get("run_dir").decode())
    with open(log_path(run_dir, place.rank), "ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    return _train_along(run_dir, place, store)


def _train_along(run_dir: Path, place: Place, store: Store) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal: the first rank takes it
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    try:
        _work(run_dir, place, store)
    except Exception as error:
        traceback.print_exc()
        return leave_word(run_dir, place.rank, error)
    finally:
        disconnect(broken=sys.exc_info()[0] is not None)
    return 0


def _work(run_dir: Path, place: Place, store: Store) -> None:
    plugins.load()
    cfg = read_config(run_dir)
    run = prepare_run(cfg, place.local_rank, resumed=RunFolder(run_dir).resume_point is not None)
    # What the first rank has written down: of a resumed run those that it had before, else what this rank would choose too.
    threads = recorded_threads(run_dir) or run.threads
    torch.set_num_threads(threads)
    hear_verdict(store, Identity.here(place.rank, config_digest(run.cfg.values), run.data.fingerprint, run.network))
    connect(store, place, run.device)
    # From here on all ranks stop together, when the first one is told to.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    from dnnkit.training.assemble import assemble
    from dnnkit.training.fit import train_along

    module = assemble(run.cfg, run.network, run.data)
    with sharing(threads):
        train_along(run.cfg, run.trainer, run.data, module, run.device, RunFolder(run_dir), place)
    if Place.of_torchrun() is None:  # torchrun judges by itself how its processes end, and the first rank may be gone by now
        say_done(store, place.rank)


def read_config(run_dir: Path) -> Config:
    """The resolved config in a run folder, validated again. Raises ConfigError, RankError where it cannot be read."""
    path = run_dir / "config" / "config.yaml"
    try:
        held = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise RankError(f"cannot read {path}: {error}", "the run folder has to be on a disk that all ranks share") from error
    values, problems = validate(held) if isinstance(held, dict) else ({}, [Problem(str(path), "is no config")])
    if problems:
        raise ConfigError(problems)
    return Config(values)


def _end_with(parent: int) -> None:
    """End this process, wherever it hangs, once the one that started it is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="dnnkit-parent", daemon=True).start()


def leave(code: int) -> NoReturn:
    """End this process with `code`, without taking the interpreter apart while threads may still compute.

    Before Python 3.14 a thread that asks for the interpreter's lock meanwhile is ended by unwinding its stack, which C++
    answers with SIGABRT (pytorch/pytorch#38228, #190489): a thread of gloo's that has not yet put down the last
    exchange's tensors, or one that a component has started, would let a run fail that has ended well.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a full disk or a closed stream: nobody is left to tell
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())
