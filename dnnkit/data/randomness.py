"""What is drawn for a while, and then counts as never drawn."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from dnnkit.data.resident import default_generator


@contextmanager
def same_randomness(devices: Iterable[torch.device] = ()) -> Iterator[list[torch.Generator]]:
    """Gives torch's generators of the CPU and of these devices; afterwards their states, NumPy's and Python's are as before."""
    generators = list({default_generator(device): None for device in (torch.device("cpu"), *devices)})
    states, python, numpy = [generator.get_state() for generator in generators], random.getstate(), np.random.get_state()
    try:
        yield generators
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
