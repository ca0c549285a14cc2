"""Random numbers for many passes over the same examples: functions of where, not of what came before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from dnnkit.data.randomness import same_randomness
from dnnkit.data.resident import splitmix64

_PASS = 4  # a stream of seeds of its own, beside those in `resident`


def pass_seed(seed: int, number: int, block: int) -> int:
    """The seed of pass `number` over a block of examples: a pure function of the three, in [0, 2^64)."""
    return splitmix64(splitmix64(splitmix64(splitmix64(_PASS) + seed) + number) + block)


@contextmanager
def reseeding(seed: int, device: torch.device) -> Iterator[Callable[[int, int], None]]:
    """Gives a function of (pass, block) that seeds what is drawn on `device` and on the CPU; afterwards both are as before."""
    with same_randomness([device]) as generators:

        def reseed(number: int, block: int) -> None:
            for generator in generators:
                generator.manual_seed(pass_seed(seed, number, block))

        yield reseed
