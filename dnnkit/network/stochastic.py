"""Monte-Carlo dropout: a trained network asked many times with its dropout on, and how far its answers are apart.

Each pass is a network drawn from an approximate posterior, so that the mean over passes is the predictive distribution.
Source: Gal & Ghahramani 2016, "Dropout as a Bayesian Approximation", section 4. The precision of the noise, τ, which they add
to the variance of a regression, is not known here and left out: the spread is that of the network alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from dnnkit.network.roles import part_of

#: Examples of one forward pass. What is drawn for an example depends on its place in a block, so this number is part of the result.
BLOCK = 100


def dropouts(network: nn.Module) -> dict[str, nn.Module]:
    """The dropout layers by name: torch's own by their type, and those of components by their group, whoever wrote them."""
    return {name: module for name, module in network.named_modules() if part_of(module) == "dropout" or isinstance(module, _DropoutNd)}


@contextmanager
def stochastic_dropout(network: nn.Module) -> Iterator[None]:
    """Inside, the dropout layers are as in training and everything else as in evaluation; afterwards all modes are as before.

    `network.train()` would not do: batch normalization would take the statistics of the batch, and move its own.
    """
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        for layer in dropouts(network).values():
            for module in layer.modules():
                module.training = not isinstance(module, _NormBase)
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@dataclass(frozen=True, eq=False)
class Spread:
    """What many passes say of n examples, float64 on the CPU; deviations are over the passes, with their number as divisor.

    Of classes: `mean` the probabilities `(n, classes)`, the mean p̄ of those of the passes; `log_mean` its logarithm, which is
    as good as logits; `std` the deviation of each probability; `entropy` −Σ p̄ ln p̄ in nats, `(n,)`; `mutual_information`
    between the class and the weights, `(n,)`: the entropy less the mean of the passes' own entropies. It is high where
    passes are sure of different classes, and 0 where they agree, however unsure they are.
    Of values: `mean` and `std` `(n, outputs)`, `log_mean`, `entropy` and `mutual_information` are None.
    A task whose outputs are neither has as `log_mean` the outputs `(n, outputs)` that say the mean probabilities.
    Source: Gal & Ghahramani 2016, eq. 6 (mean) and 7 (variance); Houlsby, Huszár, Ghahramani & Lengyel 2011, "Bayesian Active
    Learning for Classification and Preference Learning", eq. 2.
    """

    mean: Tensor
    std: Tensor
    log_mean: Tensor | None = None
    entropy: Tensor | None = None
    mutual_information: Tensor | None = None

    @property
    def output(self) -> Tensor:
        """The mean prediction as the network would say it, `(n, outputs)`: what losses and metrics take."""
        return self.mean if self.log_mean is None else self.log_mean

    @classmethod
    def of_logits(cls, passes: Tensor) -> Spread:
        """From the logits of every pass, `(passes, n, classes)`."""
        log = passes.double().log_softmax(2)
        log_mean = log.logsumexp(0) - math.log(len(log))
        mean, each = log_mean.exp(), log.exp()
        entropy = torch.special.entr(mean).sum(1)  # −p · ln p, 0 for p = 0, NaN for NaN
        own = torch.special.entr(each).sum(2).mean(0)
        return cls(mean, each.std(0, correction=0), log_mean, entropy, (entropy - own).clamp_min(0))

    @classmethod
    def of_values(cls, passes: Tensor) -> Spread:
        """From the values of every pass, `(passes, n, outputs)`."""
        values = passes.double()
        return cls(values.mean(0), values.std(0, correction=0))

    def rows(self, start: int, stop: int) -> Spread:
        """Those of some of the examples."""
        columns = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Spread(**{name: column[start:stop] for name, column in columns.items() if column is not None})

    @classmethod
    def joined(cls, parts: list[Spread]) -> Spread:
        """Those of several batches as one."""
        columns = {name: [getattr(part, name) for part in parts] for name in cls.__dataclass_fields__}
        return cls(**{name: torch.cat(column) for name, column in columns.items() if column[0] is not None})


def passes(
    network: nn.Module, x: Tensor, first: int, samples: int, reseed: Callable[[int, int], None], summary: Callable[[Tensor], Spread]
) -> Spread:
    """Ask `network` `samples` times about standardised examples x `(n, *inputs)`, the first of which is number `first` of its data.

    The examples are cut into the blocks of `BLOCK` that their numbers belong to, and an incomplete block is filled up; before
    each pass over a block `reseed(pass, block)` is called. So what is said of an example depends on its number and on
    nothing beside it: not on how many are asked about, nor in which batches. `summary` is one of Spread's.
    """
    parts: list[Spread] = []
    start = 0
    with stochastic_dropout(network), torch.no_grad():
        while start < len(x):
            block, offset = divmod(first + start, BLOCK)
            rows = x[start : start + BLOCK - offset]
            filled = x.new_zeros(BLOCK, *x.shape[1:])
            filled[offset : offset + len(rows)] = rows
            asked = []
            for number in range(samples):
                reseed(number, block)
                asked.append(network(filled).to("cpu", copy=True))
            # Of the whole block: in the last digit sums and exponentials depend on how many are computed together.
            parts.append(summary(torch.stack(asked)).rows(offset, offset + len(rows)))
            start += len(rows)
    return Spread.joined(parts)
