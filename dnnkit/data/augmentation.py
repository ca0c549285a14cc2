"""Augmentation: training examples that are a little different in each epoch, and the same in each run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dnnkit.data.resident import example_seed


@dataclass(frozen=True)
class Augmentation:
    """Applies `change(example, generator)` to examples one by one, each with a generator of its own seed.

    What is random about an example is a function of (seed, epoch, its index in the data set): not of the minibatch it is
    in, of the device that holds it, or of what was drawn before. So the generator is always the CPU's.
    """

    change: Callable[[Tensor, torch.Generator], Tensor]
    seed: int

    def __call__(self, x: Tensor, epoch: int, indices: Tensor) -> Tensor:
        """The examples x `(n, *shape)`, whose indices are `(n,)`, as they are trained on in this epoch."""
        if len(x) == 0:
            return x
        generator = torch.Generator()
        changed = []
        for example, index in zip(x, indices.tolist(), strict=True):
            generator.manual_seed(example_seed(self.seed, epoch, index))
            changed.append(self.change(example, generator))
        return torch.stack(changed)
