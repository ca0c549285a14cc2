"""dnnkit with `data.loader=stream`: every minibatch standardised from bytes and collated by torch's DataLoader as it is needed."""

from __future__ import annotations

from benchmarks.contenders import ours
from benchmarks.jobs import Boundary, Facts, Job


def train(job: Job, boundary: Boundary) -> Facts:
    return ours.train(job, boundary, "data.loader=stream")
