"""Monte-Carlo dropout in a test pass: what many passes with dropout on say together, and how far they are apart."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor, nn

from dnnkit.data.passes import reseeding
from dnnkit.data.resident import Minibatch, share
from dnnkit.module.gather import gather_batches, several
from dnnkit.module.task import Task
from dnnkit.network.stochastic import Spread, passes

log = logging.getLogger("dnnkit")


class MonteCarlo:
    """Keeps, for every example of a test pass, the mean over `task.mc_samples` passes with dropout on, and its deviation.

    Beside the examples' numbers it depends on `seed` alone: on any number of devices the values are those of one.
    """

    def __init__(self, task: Task, seed: int) -> None:
        self._task, self._seed = task, seed
        self.clear()

    def clear(self) -> None:
        """Forget a pass that was broken off."""
        self._size = 0  # of a whole minibatch: all but the last are as long as the first
        self._means: list[Tensor] = []
        self._spreads: list[Tensor] = []

    def keep(self, net: nn.Module, batch: Minibatch, index: int, outputs: int, rank: int, world: int) -> None:
        """Ask about minibatch `index` of the evaluation, or about this rank's share of it, which may be empty."""
        x, y = batch[0], batch[1]
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        if len(x) == 0:
            empty = x.new_zeros(0, outputs, dtype=wide)
            self._means.append(empty)
            self._spreads.append(self._task.means.deviation(Spread(empty, empty)))
            return
        whole = len(y) if len(batch) == 2 else round(len(y) * world / batch[2])
        self._size = self._size or whole
        first = index * self._size + share(whole, rank, world).start
        with reseeding(self._seed, x.device) as reseed:
            found = passes(net, x, first, self._task.mc_samples, reseed, self._task.means.spread)
        self._means.append(found.output.to(x.device, wide))
        self._spreads.append(self._task.means.deviation(found).to(x.device, wide))

    def values(self, target: Tensor) -> dict[str, float]:
        """What is measured of the mean prediction, `mc_loss` and `mc_<metric>`, and the mean deviations; what is not defined is left out.

        The deviations are the task's own: of classes `mc_std_right` and `mc_std_wrong`, the mean over the examples that the mean
        prediction gets right, or wrong, of the deviation of the predicted class's probability; of values `mc_std`, over
        examples and values, in the target's units.
        """
        means, spreads = (gather_batches(part) if several() else part for part in (self._means, self._spreads))
        mean, spread = torch.cat(means), torch.cat(spreads)
        self.clear()
        given = mean.to(target.dtype) if target.is_floating_point() else mean
        measured = {"loss": self._task.loss, **self._task.metrics}
        found = {f"mc_{name}": float(measure(given, target)) for name, measure in measured.items()}
        found |= self._task.means.deviations(mean, spread, target, self._task.target_std)
        undefined = [name for name, value in found.items() if math.isnan(value)]
        if undefined:
            log.warning("not defined here, and left out of the record: %s", ", ".join(undefined))
        return {name: value for name, value in found.items() if name not in undefined}
