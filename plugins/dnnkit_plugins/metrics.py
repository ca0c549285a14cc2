"""Metrics: scalars over a batch, whose mean over samples is the metric of the whole. `better` says where the best value is."""

from torch import Tensor

from dnnkit.registry import metrics


@metrics.register("acc", task="classification", better="higher")
def acc(prediction: Tensor, target: Tensor) -> Tensor:
    """The share of samples, 0 to 1, whose largest logit is the target's; logits `(batch, classes)`, targets `(batch,)`.

    Of several equal largest logits one counts as the answer.
    """
    return (prediction.argmax(1) == target).float().mean()
