"""Metrics: scalars over a batch of predictions.

`better` says where the best value is, `tasks` what kinds of problem a metric is for, and `mean` whether the metric of a
whole is the mean over its samples. A metric that is not defined for what it is given is NaN.
"""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from dnnkit.errors import ConfigError, PluginError, Problem
from dnnkit.registry import metrics

_CLASSES = ["classification"]
_VALUES = ["regression", "reconstruction"]


@metrics.register("acc", tasks=_CLASSES, better="higher", mean=True)
def acc(prediction: Tensor, target: Tensor) -> Tensor:
    """The share of samples, 0 to 1, whose largest logit is the target's; logits `(batch, classes)`, targets `(batch,)`.

    Of several equal largest logits one counts as the answer.
    """
    return (prediction.argmax(1) == target).float().mean()


@metrics.register("top_k", tasks=_CLASSES, better="higher", mean=True)
def top_k(prediction: Tensor, target: Tensor, k: Annotated[int, Ge(1)] = 5) -> Tensor:
    """The share of samples, 0 to 1, whose target is among the k largest logits; logits `(batch, classes)`, targets `(batch,)`.

    Ties are broken in favour of the later class, as in scikit-learn. ConfigError where there are not more than k classes,
    because then every answer is right.
    """
    classes = prediction.shape[1]
    if k >= classes:
        message = f"top_k counts a target among the {k} likeliest; with {classes} classes it always is"
        raise ConfigError([Problem("metrics", message, ("acc",))])
    own = prediction.gather(1, target[:, None])
    later = torch.arange(classes, device=target.device) > target[:, None]
    behind = (prediction < own) | ((prediction == own) & ~later)  # itself among them; none where its logit is NaN
    return (classes - behind.sum(1) < k).float().mean()


@metrics.register("f1", tasks=_CLASSES, better="higher", mean=False)
def f1(prediction: Tensor, target: Tensor) -> Tensor:
    """Macro F1, 0 to 1: the mean over classes of 2·TP / (2·TP + FP + FN); logits `(batch, classes)`, targets `(batch,)`.

    The answer is the largest logit. Every class weighs the same, however rare. A class that is neither a target nor an
    answer is left out of the mean; one that is, but never rightly, counts as 0: scikit-learn's f1_score(average="macro").
    Source: van Rijsbergen 1979, "Information Retrieval", chapter 7.
    """
    answer, classes = prediction.argmax(1), prediction.shape[1]
    right = torch.bincount(target[answer == target], minlength=classes)
    either = torch.bincount(answer, minlength=classes) + torch.bincount(target, minlength=classes)
    present = either > 0
    return (2 * right[present] / either[present]).mean()


@metrics.register("auroc", tasks=_CLASSES, better="higher", mean=False)
def auroc(prediction: Tensor, target: Tensor) -> Tensor:
    """The chance, 0 to 1, that a sample of the class scores higher than one of another class, ties counting half.

    Logits `(batch, classes)`, targets `(batch,)`. Two classes: of class 1 by the difference of the logits. More: the mean
    over classes, each against the rest by its softmax probability: scikit-learn's roc_auc_score(multi_class="ovr"). Computed
    from ranks in float64, exact with ties. NaN where the samples lack a class.
    Source: Hanley & McNeil 1982; one against the rest by Provost & Domingos 2000, here with equal weights.
    """
    logits, classes = _exact(prediction), prediction.shape[1]
    scores = (logits[:, 1:] - logits[:, :1]) if classes == 2 else _softmax(logits)
    own = torch.arange(classes - scores.shape[1], classes, device=logits.device)
    positive = (target.to(logits.device)[:, None] == own).T.to(logits)
    ranks = _ranks(scores.T.contiguous())
    positives, negatives = positive.sum(1), (1 - positive).sum(1)
    # Mann and Whitney's U, over the number of pairs; without pairs it is 0/0.
    wins = (ranks * positive).sum(1) - positives * (positives + 1) / 2
    return (wins / (positives * negatives)).mean()


@metrics.register("mse", tasks=_VALUES, better="lower", mean=True)
def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean of (prediction − target)² over samples and outputs, both `(batch, outputs)`, in the target's squared units.

    Source: Gauss 1809, "Theoria motus corporum coelestium", book 2, section 3.
    """
    return _error("mse", prediction, target).square().mean()


@metrics.register("mae", tasks=_VALUES, better="lower", mean=True)
def mae(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean of |prediction − target| over samples and outputs, both `(batch, outputs)`, in the target's units.

    Source: Boscovich 1757, as told by Stigler 1986, "The History of Statistics", chapter 1.
    """
    return _error("mae", prediction, target).abs().mean()


@metrics.register("r2", tasks=_VALUES, better="higher", mean=False)
def r2(prediction: Tensor, target: Tensor) -> Tensor:
    """The share of the target's variance that is explained: 1 − Σ(y − ŷ)² / Σ(y − ȳ)², at most 1; both `(batch, outputs)`.

    0 is what the mean of the target would get, a worse prediction is negative. With several outputs their plain mean, as
    scikit-learn's r2_score. NaN where an output's target is the same for all samples; scikit-learn says 0 or 1 there.
    Source: Wright 1921, "Correlation and Causation".
    """
    y = _exact(target)
    error = _error("r2", _exact(prediction), y)
    constant = (y == y[:1]).all(0)  # by comparison: rounding would leave it some variance
    spread = (y - y.mean(0)).square().sum(0).masked_fill(constant, torch.nan)
    return (1 - error.square().sum(0) / spread).mean()


def _error(name: str, prediction: Tensor, target: Tensor) -> Tensor:
    # (n, 1) against (n,) would be spread to n × n differences.
    if prediction.shape != target.shape:
        shapes = f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        raise PluginError(f"metric {name} needs prediction and target of one shape, got {shapes}", "a model has to return (batch, outputs)")
    return prediction - target


def _softmax(logits: Tensor) -> Tensor:
    """Probabilities of which two are equal where the logits are the same but for their order.

    torch's own differ in the last digit then, by the order of the sum, and a tie would count as won or lost.
    """
    weights = (logits - logits.amax(1, keepdim=True)).exp()
    return weights / weights.sort(1).values.sum(1, keepdim=True)


def _exact(values: Tensor) -> Tensor:
    """In float64, which Apple's GPU does not have: there, on the CPU."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def _ranks(scores: Tensor) -> Tensor:
    """Ranks from 1 along the last axis; equal scores share the mean of their ranks."""
    ordered = scores.sort(dim=-1).values
    below = torch.searchsorted(ordered, scores)
    upto = torch.searchsorted(ordered, scores, right=True)
    return (below + upto + 1).to(scores) / 2
