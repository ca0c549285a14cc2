"""One contender in a process of its own: `python -m benchmarks.worker JOB REPORT`, JOB as JSON, REPORT a file descriptor.

It writes one JSON line to REPORT at each boundary and then waits for a line on standard input, so that the contenders
take turns epoch by epoch; its last line holds the facts.
"""

from __future__ import annotations

import json
import os
import sys

import torch

from benchmarks.contenders import contender
from benchmarks.jobs import Job
from benchmarks.meter import Meter, Reading


def main() -> None:
    job, report = Job(**json.loads(sys.argv[1])), os.fdopen(int(sys.argv[2]), "w", buffering=1)

    def turn(epoch: Reading | None) -> None:
        print(json.dumps({"epoch": epoch and epoch._asdict()}), file=report)
        if not sys.stdin.readline():
            raise SystemExit("whoever started this benchmark is gone")

    torch.set_num_threads(1)
    facts = contender(job.contender)(job, Meter(turn).boundary)
    print(json.dumps({"facts": facts}), file=report)


if __name__ == "__main__":
    main()
