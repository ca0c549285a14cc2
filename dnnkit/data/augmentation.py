"""Augmentation: training examples that are a little different in each epoch, and the same in each run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dnnkit.data.resident import Augment, example_seed


def augmenting(change: Callable[[Tensor, torch.Generator], Tensor], seed: int) -> Augment:
    """Applies `change(example, generator)` to examples one by one, each with a generator of its own seed.

    What is random about an example is a function of (seed, epoch, its index in the data set): not of the minibatch it is
    in, of the device that draws it, or of what was drawn before.
    """
    generators: dict[torch.device, torch.Generator] = {}

    def augment(x: Tensor, epoch: int, indices: Tensor) -> Tensor:
        if len(x) == 0:
            return x
        generator = generators.setdefault(x.device, torch.Generator(x.device))
        changed = []
        for example, index in zip(x, indices.tolist(), strict=True):
            generator.manual_seed(example_seed(seed, epoch, index))
            changed.append(change(example, generator))
        return torch.stack(changed)

    return augment
