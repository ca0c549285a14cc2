"""Losses: scalars, the mean over the minibatch. `task` says what kind of problem each is for."""

from typing import Annotated

from annotated_types import Interval
from torch import Tensor
from torch.nn import functional

from dnnkit.registry import losses


@losses.register("cross_entropy", task="classification")
def cross_entropy(prediction: Tensor, target: Tensor, label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.0) -> Tensor:
    """Mean of −Σ_k q_k · log softmax(prediction)_k in nats, for logits `(batch, classes)` and class indices `(batch,)`.

    q is 1 for the target and 0 elsewhere; with smoothing ε, 1 − ε + ε/classes and ε/classes. The softmax is in here: the
    model ends in logits.
    Source: label smoothing by Szegedy et al. 2016, section 7.
    """
    return functional.cross_entropy(prediction, target, label_smoothing=label_smoothing)
