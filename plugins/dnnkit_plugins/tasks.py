"""What can be learnt: to tell classes apart, to predict values, to give the example back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from dnnkit.data import BaseTask, ClassTask, DataSet, Examples, Source, Told
from dnnkit.data.scaling import Scaling
from dnnkit.data.source import Form
from dnnkit.data.stored import StoredRows
from dnnkit.registry import tasks


@tasks.register("classification", loss="cross_entropy", metrics=["acc"], logits=True, softmax=True)
class Classification(ClassTask):
    """To tell classes apart: one for each example, by an output for each class, whose softmax are the probabilities.

    Targets: class indices, which `task=auto` takes for it. `predict` tells the likeliest class and the probability of each; a run
    draws what was taken for what.
    """

    def claims(self, y: Tensor) -> bool:
        """Class indices."""
        return not y.is_floating_point() and y.ndim == 1


@tasks.register("regression", loss="huber", metrics=["mse", "mae", "r2"])
class Regression(BaseTask):
    """To predict values: an output for each, standardised for training and measured in the target's own units.

    Targets: floating numbers, which `task=auto` takes for it, and whole numbers that are not named as classes. The loss is Huber's
    unless another is chosen: its gradient is bounded, and with squares the default rate leads a regression with a few outliers
    to infinity. `predict` tells the values by the names of the targets.
    """

    def claims(self, y: Tensor) -> bool:
        """Floating numbers."""
        return y.is_floating_point()

    def accept(self, source: Source) -> Source | None:
        """Whole numbers without names are values too."""
        y = source.train.y
        if y.is_floating_point() or source.classes is not None or y.ndim != 1:
            return super().accept(source)
        as_values = {part: Examples(given.x, given.y.double().unsqueeze(1)) for part, given in source.splits()}
        return replace(source, **as_values)  # type: ignore[arg-type]


@tasks.register("reconstruction", loss="mse", metrics=["mse"])
class Reconstruction(BaseTask):
    """To give the example back: an output for each of its values, in the shape of the example once it is told.

    Targets: none; those that there are play no part. `task=auto` means it with a model that is for it alone, such as
    `model=autoencoder`. `predict` writes .npz files.
    """

    form: ClassVar[Form] = "itself"
    arrays_only: ClassVar[str] = "this run reconstructs whole examples"

    def accept(self, source: Source) -> Source:
        """Any source."""
        return source

    def target_scaling(self, values: Callable[[], Scaling], examples: Scaling, inputs: tuple[int, ...]) -> Scaling:
        """The example's own."""
        return examples.flat(inputs)

    def targets(self, x: Tensor | StoredRows, y: Tensor, scaling: Scaling | None) -> Tensor | StoredRows:
        """The examples, flat, in the same memory."""
        return replace(x, flat=True) if isinstance(x, StoredRows) else x.flatten(1)

    def outputs(self, source: Source) -> int:
        """One for each value of an example."""
        return math.prod(source.train.x.shape[1:])

    def shaped(self, values: Tensor, inputs: tuple[int, ...]) -> Tensor:
        """`(n, *inputs)`."""
        return values.reshape(-1, *inputs)

    def arrays(self, told: Told) -> Mapping[str, Tensor | Sequence[str]]:
        """`values` `(n, *inputs)`."""
        return {"values": told.predicted}

    def target_names(self, data: DataSet) -> Sequence[str]:
        """None: the features are the targets."""
        return ()
