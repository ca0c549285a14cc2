"""One contender in a process of its own: `python -m benchmarks.worker NAME WORKS REPORT`, WORKS as JSON, REPORT a file descriptor.

It does one work after the other. It writes one JSON line to REPORT at each boundary and then waits for a line on standard
input, so that the contenders take turns epoch by epoch; so it does with the facts at the end of each work.
"""

from __future__ import annotations

import json
import os
import sys

from benchmarks.contenders import CONTENDERS
from benchmarks.jobs import Work
from benchmarks.meter import Meter, Reading


def main() -> None:
    name, works, report = sys.argv[1], json.loads(sys.argv[2]), os.fdopen(int(sys.argv[3]), "w", buffering=1)

    def say(**what: object) -> None:
        print(json.dumps(what), file=report)
        if not sys.stdin.readline():
            raise SystemExit("whoever started this benchmark is gone")

    def turn(epoch: Reading | None) -> None:
        say(epoch=epoch and epoch._asdict())

    contender = CONTENDERS[name]
    for settings in works:
        meter = Meter(turn)
        facts = contender.train(Work(**{**settings, "hidden": tuple(settings["hidden"])}), meter.boundary)
        say(facts=facts, peak=meter.peak._asdict())


if __name__ == "__main__":
    main()
