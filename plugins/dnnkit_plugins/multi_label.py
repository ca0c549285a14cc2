"""Several labels for each example: the task, its loss and its metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from dnnkit.data import BaseTask, DataSet, Examples, Source, Told
from dnnkit.data.base_task import of_probabilities
from dnnkit.data.scaling import Scaling
from dnnkit.data.source import Form, form_of, label_names
from dnnkit.data.stored import StoredRows
from dnnkit.errors import DataError, PluginError
from dnnkit.network.stochastic import Spread
from dnnkit.registry import losses, metrics, tasks

_TASKS = ["multi_label"]


@losses.register("binary_cross_entropy", tasks=_TASKS)
def binary_cross_entropy(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over samples and labels of −[y · log σ(z) + (1 − y) · log(1 − σ(z))] in nats; logits z and y `(batch, labels)`.

    σ(z) = 1/(1 + e^(−z)) is in here: the model ends in logits. PluginError where the shapes differ.
    Source: Good 1952, "Rational Decisions".
    """
    if prediction.shape != target.shape:
        shapes = f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        raise PluginError(f"loss=binary_cross_entropy needs logits and targets of one shape, got {shapes}", "give each label an output")
    return functional.binary_cross_entropy_with_logits(prediction, target.to(prediction.dtype))


@metrics.register("macro_f1", tasks=_TASKS, better="higher", mean=False, label="Macro F1")
def macro_f1(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean over labels of 2·TP / (2·TP + FP + FN), 0 to 1; logits and targets of 0 and 1 `(batch, labels)`.

    A label is given where its logit is at least 0, which is a probability of at least 1/2. Every label weighs the same, however
    rare. One that is neither there nor given is left out of the mean; NaN where that is so of all of them.
    Source: van Rijsbergen 1979, "Information Retrieval", chapter 7.
    """
    given, there = prediction >= 0, target > 0
    right, either = (given & there).sum(0), given.sum(0) + there.sum(0)
    present = either > 0
    return (2 * right[present] / either[present]).mean()


@metrics.register("mean_average_precision", tasks=_TASKS, better="higher", mean=False)
def mean_average_precision(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean over labels of the average precision, 0 to 1; logits and targets of 0 and 1 `(batch, labels)`.

    That of a label is the mean, over the samples that have it, of the share that have it among those that score at least as high:
    scikit-learn's average_precision_score, ties included. A label that no sample has is left out; NaN where none has any.
    Source: Salton & McGill 1983, "Introduction to Modern Information Retrieval", chapter 5.
    """
    scores, there = prediction.T.contiguous(), target.T > 0
    if scores.device.type == "mps":  # which has no float64
        scores, there = scores.cpu(), there.cpu()
    above, owners_above = _above(scores, scores), _above(torch.where(there, scores, -torch.inf), scores)
    precision = owners_above.double() / above
    having = there.sum(1)
    each = (precision * there).sum(1) / having
    return each[having > 0].mean()


@tasks.register("multi_label", loss="binary_cross_entropy", metrics=["macro_f1", "mean_average_precision"], logits=True)
class MultiLabel(BaseTask):
    """To say of each label whether an example has it: an output for each, whose logistic function is its probability.

    Targets: rows of 0 and 1, whole numbers, which `task=auto` takes for it unless each row has a single 1; also floating ones
    of shape `(n, labels)`. A table has a column for each label: `data.target=[a,b,c]`. `predict` tells the probability of each
    label, and as the prediction those that are at least 1/2. A stratified split keeps in proportion the rarest label of each row.
    """

    form: ClassVar[Form] = "labels"

    def claims(self, y: Tensor) -> bool:
        """Rows of whole numbers, which are known to be 0 and 1."""
        return form_of(y) == "labels"

    def accept(self, source: Source) -> Source | None:
        """Floating numbers too, where all are 0 or 1."""
        if form_of(source.train.y) != "values" or not all(_binary(given.y) for _, given in source.splits()):
            return super().accept(source)
        as_labels = {part: Examples(given.x, given.y.long()) for part, given in source.splits()}
        return replace(source, **as_labels)  # type: ignore[arg-type]

    def check(self, name: str, data: DataSet) -> None:
        """DataError where no training example has any label."""
        if len(self.absent(data.card)) == data.outputs:
            cause = f"data={name}: none of {len(data.train.y)} training rows has any of {data.outputs} labels: nothing to tell apart"
            raise DataError(cause)

    def target_scaling(self, values: Callable[[], Scaling], examples: Scaling, inputs: tuple[int, ...]) -> Scaling | None:
        """None: 0 and 1 stay as they are."""
        return None

    def targets(self, x: Tensor | StoredRows, y: Tensor, scaling: Scaling | None) -> Tensor:
        """As float32, which the loss takes."""
        return y.float()

    def absent(self, card: Mapping[str, Any]) -> list[str]:
        """The labels that no training example has."""
        return [name for name, count in card["label_balance"]["train"].items() if count == 0]

    def right(self, target: Tensor, outputs: int) -> Tensor:
        """A positive logit where the label is there, a negative one elsewhere."""
        return 2 * target - 1

    def predicted(self, output: Tensor, scaling: Scaling | None, inputs: tuple[int, ...]) -> Tensor:
        """Probabilities `(n, labels)`."""
        return output.double().sigmoid()

    def spread(self, passes: Tensor) -> Spread:
        """Of each label by itself; entropy and mutual information are sums over the labels, in nats."""
        there, gone = (functional.logsigmoid(sign * passes.double()) for sign in (1, -1))
        log_mean, log_rest = (part.logsumexp(0) - math.log(len(part)) for part in (there, gone))
        mean, entropy = log_mean.exp(), _entropy(log_mean.exp())
        own = _entropy(there.exp()).mean(0)
        return Spread(mean, there.exp().std(0, correction=0), log_mean - log_rest, entropy, (entropy - own).clamp_min(0))

    def columns(self, told: Told) -> Mapping[str, Sequence[Any]]:
        """`prediction`, the labels that are given, with semicolons between them, and `p_<label>`; the spread's as a classification's."""
        names = label_names(told.targets, told.outputs)
        given = [[name for name, one in zip(names, row, strict=True) if one] for row in (told.predicted >= 0.5).tolist()]
        return {"prediction": [";".join(row) for row in given], **of_probabilities(names, told)}

    def arrays(self, told: Told) -> Mapping[str, Tensor | Sequence[str]]:
        """`prediction` (0 and 1) and `probabilities` `(n, labels)`, and the names `labels`."""
        given = (told.predicted >= 0.5).to(torch.uint8)
        return {"prediction": given, "probabilities": told.predicted, "labels": label_names(told.targets, told.outputs)}

    def groups(self, data: DataSet, rows: Tensor) -> list[tuple[str, Tensor]]:
        """A group for each label, of the examples that have it."""
        y = data.train.y[rows].cpu()
        return [(name, y[:, index].nonzero()[:, 0]) for index, name in enumerate(label_names(data.targets, data.outputs))]

    def target_names(self, data: DataSet) -> Sequence[str]:
        """None: the groups show the labels."""
        return ()


def _above(held: Tensor, scores: Tensor) -> Tensor:
    """How many of `held` are at least each score, along the last axis."""
    return held.shape[1] - torch.searchsorted(held.sort(dim=1).values.contiguous(), scores)


def _binary(y: Tensor) -> bool:
    return bool(((y == 0) | (y == 1)).all())


def _entropy(p: Tensor) -> Tensor:
    """Of labels that are there with these probabilities `(…, labels)`, independently, in nats: `(…,)`."""
    return (torch.special.entr(p) + torch.special.entr(1 - p)).sum(-1)
