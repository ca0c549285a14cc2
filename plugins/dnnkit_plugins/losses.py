"""Losses: scalars, the mean over the minibatch. `tasks` says what kinds of problem each is for."""

from typing import Annotated

from annotated_types import Gt, Interval
from torch import Tensor
from torch.nn import functional

from dnnkit.errors import PluginError
from dnnkit.registry import losses

_CLASSES = ["classification"]
_VALUES = ["regression", "reconstruction"]


@losses.register("cross_entropy", tasks=_CLASSES)
def cross_entropy(prediction: Tensor, target: Tensor, label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.0) -> Tensor:
    """Mean of −Σ_k q_k · log softmax(prediction)_k in nats, for logits `(batch, classes)` and class indices `(batch,)`.

    q is 1 for the target and 0 elsewhere; with smoothing ε, 1 − ε + ε/classes and ε/classes. The softmax is in here: the
    model ends in logits.
    Source: label smoothing by Szegedy et al. 2016, section 7.
    """
    return functional.cross_entropy(prediction, target, label_smoothing=label_smoothing)


@losses.register("mse", tasks=_VALUES)
def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error: the mean of (prediction − target)² over samples and outputs, both `(batch, outputs)`.

    PluginError where the shapes differ. The most likely prediction under Gaussian errors; one outlier weighs as its square.
    Source: Gauss 1809, "Theoria motus corporum coelestium", book 2, section 3.
    """
    return functional.mse_loss(*_alike("mse", prediction, target))


@losses.register("mae", tasks=_VALUES)
def mae(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error: the mean of |prediction − target| over samples and outputs, both `(batch, outputs)`.

    PluginError where the shapes differ. Its minimum is the median; its slope is 1 however small the error, 0 at no error.
    Source: Boscovich 1757, as told by Stigler 1986, "The History of Statistics", chapter 1.
    """
    return functional.l1_loss(*_alike("mae", prediction, target))


@losses.register("huber", tasks=_VALUES)
def huber(prediction: Tensor, target: Tensor, delta: Annotated[float, Gt(0)] = 1.0) -> Tensor:
    """Mean of e²/2 where |e| ≤ delta and delta · (|e| − delta/2) elsewhere, e = prediction − target, both `(batch, outputs)`.

    Half of `mse` for small errors and a straight line for large ones, with slope ±delta. delta is in the units in which the
    loss sees the target: standardised ones, unless data.standardize_target=false. PluginError where the shapes differ.
    Source: Huber 1964, whose k is delta. Keras's and torch's definition.
    """
    return functional.huber_loss(*_alike("huber", prediction, target), delta=delta)


def _alike(name: str, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    # (n, 1) against (n,) would be spread to n × n differences, with a loss that looks right.
    if prediction.shape != target.shape:
        shapes = f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        raise PluginError(f"loss={name} needs prediction and target of one shape, got {shapes}", "a model has to return (batch, outputs)")
    return prediction, target
