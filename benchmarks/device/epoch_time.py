"""Wall time of an epoch: dnnkit's engines beside a loop that is written by hand, on the same device."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.device.setting import Setting, Verdict, train
from benchmarks.jobs import SYNTHETIC, Work, load, write_rows
from benchmarks.networks import network, optimizer, schedule, tensors

_EPOCHS = 4


def epoch_times(s: Setting) -> Verdict:
    """The fastest of the epochs after the first. It cannot fail by a figure: a bound on time is for the machine that keeps one."""
    rows = s.many(20_000, 1100)
    folder = Path("rows").absolute()
    folder.mkdir()
    write_rows(SYNTHETIC, rows, folder)
    found: dict[str, Any] = {}
    for name, batch in (("mlp", 32), ("mlp", 512), ("cnn", 128))[: s.many(3, 1)]:
        work = Work(SYNTHETIC, str(folder), batch, _EPOCHS, name, rows=rows, tracking=False)
        floor = _by_hand(work, s.device)
        ours = {engine: _ours(work, s, engine) for engine in ("captured", "eager", "auto")}
        ratios = {f"{engine} ÷": round(seconds / floor, 2) for engine, seconds in ours.items()}
        found[f"{name}, batch {batch}"] = {"by hand s": round(floor, 4), **ratios}
    return Verdict("passed", figures=found)


def seconds_of_epochs(run: Path) -> list[float]:
    """`time/epoch_s` of each epoch."""
    from dnnkit.record import read_journal

    return [row.value for row in read_journal(run / "timing.jsonl") if row.key == "time/epoch_s"]


def _ours(work: Work, s: Setting, engine: str) -> float:
    words = [word for word in work.overrides() if not word.startswith(("trainer=", "trainer.threads="))]
    return min(seconds_of_epochs(train(s.trainer, *words, f"trainer.engine={engine}"))[1:])


def _by_hand(work: Work, device: torch.device) -> float:
    """Resident tensors, a permutation, torch's fused SGD and `OneCycleLR`, accuracy once an epoch."""
    torch.manual_seed(0)
    rows = load(work)
    (x, y), (x_val, y_val) = (tuple(part.to(device) for part in pair) for pair in tensors(rows))
    net = network(work, rows).to(device)
    update = optimizer(work, net, fused=True)
    rates = schedule(work, update, work.epochs * -(-len(x) // work.batch_size))
    seconds = []
    for _ in range(work.epochs):
        began = time.perf_counter()
        for chosen in torch.randperm(len(x), device=device).split(work.batch_size):
            update.zero_grad()
            cross_entropy(net(x[chosen]), y[chosen]).backward()
            update.step()
            rates.step()
        with torch.no_grad():
            float((net(x_val).argmax(1) == y_val).float().mean())  # which waits for the device
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
