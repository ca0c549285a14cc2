"""dnnkit with `trainer=ddp_cpu trainer.devices=2`: two processes of one thread each, which share every minibatch."""

from __future__ import annotations

from benchmarks.contenders import ours
from benchmarks.jobs import Boundary, Facts, Job


def train(job: Job, boundary: Boundary) -> Facts:
    return ours.train(job, boundary, "trainer=ddp_cpu", "trainer.devices=2")
