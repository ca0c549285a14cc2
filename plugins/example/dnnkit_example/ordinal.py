"""A task of one's own: ordered classes, with its loss and its metric."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from dnnkit.data import ClassTask, Source
from dnnkit.data.scaling import Scaling
from dnnkit.network.stochastic import Spread
from dnnkit.registry import losses, metrics, tasks


def beyond(classes: Tensor, outputs: int) -> Tensor:
    """Whether each class `(n,)` lies beyond the thresholds 0 … outputs − 1, `(n, outputs)`, as 0 and 1."""
    return (classes[:, None] > torch.arange(outputs, device=classes.device)).to(torch.float32)


def falling(logits: Tensor) -> Tensor:
    """The logits `(…, K − 1)` so that none is greater than one before it: to lie beyond a later threshold cannot be likelier."""
    return logits.cummin(-1).values


def probabilities(logits: Tensor) -> Tensor:
    """P(y = k) = P(y > k − 1) − P(y > k), `(…, K)`, of the logits of P(y > k), `(…, K − 1)`; they are at least 0 and add up to 1."""
    exceeding = falling(logits).sigmoid()
    ends = torch.ones_like(exceeding[..., :1]), torch.zeros_like(exceeding[..., :1])
    return torch.cat([ends[0], exceeding], -1) - torch.cat([exceeding, ends[1]], -1)


@losses.register("cumulative_cross_entropy", tasks=["ordinal"])
def cumulative_cross_entropy(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over samples of −Σ_k [y > k] · log σ(z_k) + [y ≤ k] · log(1 − σ(z_k)) in nats; z `(batch, K − 1)`, y `(batch,)` from 0 to K − 1.

    Each output answers whether the class lies beyond a threshold, so a prediction two classes off costs more than one that is
    one off. The model ends in logits.
    Source: Frank & Hall 2001, "A Simple Approach to Ordinal Classification"; for networks Cheng, Wang & Pollastri 2008,
    "A neural network approach to ordinal regression", here with cross-entropy in place of squares.
    """
    goal = beyond(target, prediction.shape[1]).to(prediction.dtype)
    return functional.binary_cross_entropy_with_logits(prediction, goal, reduction="none").sum(1).mean()


@metrics.register("class_distance", tasks=["ordinal"], better="lower", mean=True)
def class_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean of |ŷ − y| in classes, at least 0; logits `(batch, K − 1)`, targets `(batch,)`.

    ŷ is the median, which `task=ordinal` tells.
    """
    return (Ordinal().decoded(prediction) - target).abs().float().mean()


@tasks.register("ordinal", loss="cumulative_cross_entropy", metrics=["class_distance"], logits=True)
class Ordinal(ClassTask):
    """To tell ordered classes apart: K − 1 outputs for K classes, the logits of P(y > k).

    Targets: class indices in their order, as of whole numbers; `task=auto` takes those for a classification. The answer is the
    median, the first class k with P(y > k) ≤ 1/2; `predict` tells it, and the probability of each class.
    Source: Frank & Hall 2001, "A Simple Approach to Ordinal Classification".
    """

    def class_names(self, outputs: int, classes: tuple[str, ...] | None) -> tuple[str, ...]:
        """One more than there are outputs."""
        return classes or tuple(map(str, range(outputs + 1)))

    def outputs(self, source: Source) -> int:
        """A threshold between each class and the next."""
        return super().outputs(source) - 1

    def right(self, target: Tensor, outputs: int) -> Tensor:
        """A positive logit for each threshold below the class, a negative one for the others."""
        return 2 * beyond(target, outputs) - 1

    def predicted(self, output: Tensor, scaling: Scaling | None, inputs: tuple[int, ...]) -> Tensor:
        """Probabilities `(n, classes)`."""
        return probabilities(output.double())

    def decoded(self, output: Tensor) -> Tensor:
        """The median: how many thresholds it lies beyond."""
        return (falling(output) > 0).sum(1)

    def answers(self, probabilities: Tensor) -> Tensor:
        """The median of the probabilities."""
        return (1 - probabilities.cumsum(1)[:, :-1] > 0.5).sum(1)

    def spread(self, passes: Tensor) -> Spread:
        """Of probabilities; what the network would say of their mean are the log-odds of the mean P(y > k)."""
        logits = falling(passes.double())
        over, under = ((functional.logsigmoid(sign * logits)).logsumexp(0) - math.log(len(logits)) for sign in (1, -1))
        each = probabilities(logits)
        mean, entropy = each.mean(0), _entropy(each.mean(0))
        return Spread(mean, each.std(0, correction=0), over - under, entropy, (entropy - _entropy(each).mean(0)).clamp_min(0))


def _entropy(shares: Tensor) -> Tensor:
    """−Σ p · ln p over the classes, in nats."""
    return torch.special.entr(shares).sum(-1)
