"""The checks, by name: each trains in the working folder, which is its own, and says what it found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.device.breaking_off import broken_off_and_resumed
from benchmarks.device.epoch_time import epoch_times
from benchmarks.device.setting import Setting, Verdict, difference, last, train

#: Networks whose step is a graph in different ways; each is trained eager twice and captured once.
_WORKLOADS = {
    "mlp": (),
    "nadam, dropout, batch norm": ("optimizer=nadam", "optimizer.lr=0.002", "dropout=dropout", "normalization=batch_norm"),
    "groups, clipping, penalty": ("trainer.accumulate_grad_batches=2", "clipping=norm", "regularizer=l2", "constraint=max_norm"),
    "cnn": ("model=cnn", "data.batch_size=128"),
}


@dataclass(frozen=True)
class Check:
    """`seconds` is what it may take at most on a GPU; it ends earlier where the script's time does."""

    run: Callable[[Setting], Verdict]
    seconds: float
    about: str

    def on(self, setting: Setting) -> float:
        """A CPU that does other things too may take twice as long."""
        return self.seconds if setting.cuda else 2 * self.seconds


def default_run(s: Setting) -> Verdict:
    run = train("trainer=auto", *(["trainer.max_epochs=4"] if s.quick else []))
    device = json.loads((run / "tags.json").read_text("utf-8"))["dnnkit.device"]
    if s.cuda and device != torch.cuda.get_device_name(0):
        return Verdict("failed", f"trainer=auto took {device}, not the GPU")
    return _accurate(run, 0.93, {"device": device, "engine": _engine(run)})


def selu_mnist(s: Setting) -> Verdict:
    epochs = [f"trainer.max_epochs={s.many(3, 1)}", *(["trainer.limit_train_batches=40"] if s.quick else [])]
    run = train("+experiment=selu_mnist", s.trainer, *s.images(), *epochs)
    bound = 0.8 if s.quick else 0.9 if s.data != "mnist" else 0.96
    return _accurate(run, bound, {"data": s.data, "engine": _engine(run), **_seconds(run)})


def engines(s: Setting) -> Verdict:
    """Eager against captured, and eager against itself: what does not repeat cannot be equal to anything."""
    found: dict[str, Any] = {}
    for name, words in list(_WORKLOADS.items())[: s.many(len(_WORKLOADS), 2)]:
        eager, again, graph = (_short(s, *words, f"trainer.engine={engine}") for engine in ("eager", "eager", "captured"))
        found[name] = difference(eager, graph) or "equal"
        if repeated := difference(eager, again):
            found[name] += f" (eager beside itself: {repeated})"
    wrong = [f"{name}: {text}" for name, text in found.items() if text != "equal"]
    return Verdict("failed" if wrong else "passed", "; ".join(wrong), found)


def auto_engine(s: Setting) -> Verdict:
    """`auto` has chosen by its clock and ends in the bits of eager steps."""
    words = ("data.batch_size=16", "model.hidden=[64]", f"trainer.max_epochs={s.many(24, 14)}")
    eager, auto = (train(s.trainer, *words, f"trainer.engine={engine}") for engine in ("eager", "auto"))
    report = json.loads((auto / "environment" / "engine.json").read_text("utf-8"))
    if reason := difference(eager, auto):
        return Verdict("failed", reason, report)
    chosen = "ms_per_minibatch" in report
    return Verdict("passed" if chosen else "failed", "" if chosen else f"nothing was measured: {report['why']}", report)


def cuda_graph(s: Setting) -> Verdict:
    """That a run replays a CUDA graph; that it is equal is what `engines` shows."""
    from dnnkit.loop import captured

    replays = 0

    def counted(*arguments: Any) -> Any:
        step = captured_replayed(*arguments)

        def replay(x: torch.Tensor, y: torch.Tensor) -> Any:
            nonlocal replays
            replays += 1
            return step(x, y)

        return replay

    captured_replayed = captured.replayed
    with patch.object(captured, "replayed", counted):
        run = _short(s, "trainer.engine=captured")
    figures = {"replays": replays, "steps": int(max(_steps(run)))}
    if not s.cuda:
        return Verdict("skipped", "there is no GPU of NVIDIA or AMD: graphs are programs here", figures)
    # All minibatches but a ragged last one an epoch, and the ones that compared it.
    enough = replays > 0.9 * figures["steps"]
    return Verdict("passed" if enough else "failed", "" if enough else f"{replays} replays in {figures['steps']} steps", figures)


def bf16(s: Setting) -> Verdict:
    eager, graph = (_short(s, "trainer.precision=bf16", f"trainer.engine={engine}") for engine in ("eager", "captured"))
    if reason := difference(eager, graph):
        return Verdict("failed", f"eager and captured: {reason}")
    return _accurate(graph, 0.8 if s.quick else 0.9)


def no_waiting(s: Setting) -> Verdict:
    """Resident data: inside a chunk, its flush aside, no call waits for the GPU. torch refuses those that it knows of."""
    chunks = {}
    for engine in ("eager", "captured"):
        with _waiting_refused(s.cuda) as watched:
            _short(s, f"trainer.engine={engine}")
        chunks[engine] = len(watched)
    if not s.cuda:
        return Verdict("skipped", "there is no GPU to wait for", chunks)
    return Verdict("passed" if all(chunks.values()) else "failed", "" if all(chunks.values()) else "no chunk was watched", chunks)


def resume(s: Setting) -> Verdict:
    """A run stopped by SIGTERM and resumed is the run that was not stopped."""
    words = (s.trainer, "scheduler=constant", "optimizer.lr=0.01", "dropout=dropout", "data.batch_size=4")
    words = (*words, f"trainer.max_epochs={s.many(6, 4)}")
    whole = train(*words)
    parted, step = broken_off_and_resumed(words)
    # The measurement of the signal at a stop, and the test, come in each part: the curves are compared.
    reason = difference_of_parts(whole, parted)
    return Verdict("failed" if reason else "passed", reason, {"stopped at step": step, "steps": int(max(_steps(whole)))})


def ranks(s: Setting) -> Verdict:
    """`trainer=ddp` on one GPU is `trainer=gpu`; on two, where there are two, it learns what one learns."""
    name = "ddp" if s.cuda else "ddp_cpu"
    words = ("trainer.max_epochs=3",)
    alone, one = train(s.trainer, *words), train(f"trainer={name}", "trainer.devices=1", *words)
    if reason := difference(alone, one):
        return Verdict("failed", f"trainer={name} trainer.devices=1 beside {s.trainer}: {reason}")
    if s.cuda and torch.cuda.device_count() < 2:
        return Verdict("passed", figures={"devices": 1, "two devices": "there is one GPU"})
    two = train(f"trainer={name}", "trainer.devices=2", *words)
    apart = abs(last(two)["test/acc"] - last(one)["test/acc"])
    # Of 360 images two standard errors at .95 are .023.
    return Verdict("passed" if apart <= 0.03 else "failed", "" if apart <= 0.03 else f"test/acc is {apart:.3f} apart", {"devices": 2})


def difference_of_parts(whole: Path, parted: Path) -> str:
    """Where a resumed run differs from one without a break; empty where it does not."""
    from benchmarks.device.setting import same
    from dnnkit.checkpoint import load
    from dnnkit.record import read_journal

    rows = [[row for row in read_journal(run / "metrics.jsonl") if not row.key.startswith(("signal/", "test/"))] for run in (whole, parted)]
    if rows[0] != rows[1]:
        return "metrics.jsonl differs"
    states = [load(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (whole, parted)]
    return "" if same(*states) else "the weights differ"


@contextmanager
def _waiting_refused(cuda: bool) -> Iterator[list[int]]:
    """Gives the sizes of the chunks that were watched: all but the first, in which a graph is made and compared."""
    from dnnkit.loop import epoch
    from dnnkit.module import Module

    watched: list[int] = []
    run_chunk, flush = epoch.run_chunk, Module._flush

    def run(module: Any, schedule: Any, execute: Any, chunk: Any, minibatches: Any, number: int) -> Any:
        if number == 0:
            return run_chunk(module, schedule, execute, chunk, minibatches, number)
        watched.append(chunk.size)
        with _sync_mode(cuda, "error"):
            return run_chunk(module, schedule, execute, chunk, minibatches, number)

    def flush_unwatched(module: Any, step: int) -> None:
        with _sync_mode(cuda, "default"):
            flush(module, step)

    with patch.object(epoch, "run_chunk", run), patch.object(Module, "_flush", flush_unwatched):
        yield watched


@contextmanager
def _sync_mode(cuda: bool, mode: str) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode() if cuda else 0
    if cuda:
        torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        if cuda:
            torch.cuda.set_sync_debug_mode(before)


def _short(s: Setting, *words: str) -> Path:
    """Two epochs on images, some minibatches of each."""
    return train(s.trainer, *s.images(), "trainer.max_epochs=2", f"trainer.limit_train_batches={s.many(400, 60)}", *words)


def _accurate(run: Path, bound: float, figures: dict[str, Any] | None = None) -> Verdict:
    accuracy = last(run)["test/acc"]
    reason = "" if accuracy >= bound else f"test/acc is {accuracy:.3f}, less than {bound}"
    return Verdict("failed" if reason else "passed", reason, {"test/acc": round(accuracy, 4), **(figures or {})})


def _engine(run: Path) -> str:
    return str(json.loads((run / "environment" / "engine.json").read_text("utf-8"))["used"])


def _seconds(run: Path) -> dict[str, float]:
    from benchmarks.device.epoch_time import seconds_of_epochs

    return {"fastest epoch s": round(min(seconds_of_epochs(run)), 3)}


def _steps(run: Path) -> list[int]:
    from dnnkit.record import read_journal

    return [row.step for row in read_journal(run / "metrics.jsonl")]


#: In the order in which they run: what costs little and says much comes first.
CHECKS = {
    "default_run": Check(default_run, 60, "the default run"),
    "engines": Check(engines, 120, "eager and captured, to the bit"),
    "cuda_graph": Check(cuda_graph, 40, "a CUDA graph is used"),
    "no_waiting": Check(no_waiting, 40, "no waiting for the GPU in a chunk"),
    "auto_engine": Check(auto_engine, 60, "auto: chosen by time, equal"),
    "bf16": Check(bf16, 40, "bf16: eager and captured, learns"),
    "resume": Check(resume, 60, "stopped and resumed, to the bit"),
    "ranks": Check(ranks, 60, "ddp on one device"),
    "selu_mnist": Check(selu_mnist, 60, "+experiment=selu_mnist"),
    "epoch_times": Check(epoch_times, 120, "an epoch beside a hand-written loop"),
}
