"""The task of telling classes apart, from which tasks whose targets are classes derive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from dnnkit.data.base_task import BaseTask, Told, of_probabilities
from dnnkit.data.scaling import Scaling
from dnnkit.data.source import DataSet, Form, Source, class_count
from dnnkit.errors import DataError
from dnnkit.network.stochastic import Spread


class ClassTask(BaseTask):
    """Targets are class indices `(n,)`, outputs logits `(n, classes)` whose softmax is told, and the largest is the answer.

    Where the outputs mean something else, `class_names`, `outputs`, `right`, `predicted`, `decoded` and `spread` say so together.
    """

    form: ClassVar[Form] = "classes"

    def check(self, name: str, data: DataSet) -> None:
        """DataError where there is a single class."""
        if len(self.class_names(data.outputs, data.classes)) < 2:
            cause = f"data={name}: there is one class only, in all {len(data.train.y)} training rows: nothing to tell apart"
            raise DataError(cause)

    def target_scaling(self, values: Callable[[], Scaling], examples: Scaling, inputs: tuple[int, ...]) -> Scaling | None:
        """None: an index has no scale."""
        return None

    def absent(self, card: Mapping[str, Any]) -> list[str]:
        """The classes of which no training example is."""
        counts = card["class_balance"]["train"]
        names = card["classes"] or [str(index) for index in range(len(counts))]
        return [name for name, count in zip(names, counts, strict=True) if count == 0]

    def outputs(self, source: Source) -> int:
        """One for each class."""
        return class_count(source)

    def fits(self, outputs: int, network: int) -> bool:
        """A class may be absent from other data."""
        return outputs <= network

    def right(self, target: Tensor, outputs: int) -> Tensor:
        """1 for the target, 0 elsewhere."""
        return one_hot(target, outputs).float()

    def predicted(self, output: Tensor, scaling: Scaling | None, inputs: tuple[int, ...]) -> Tensor:
        """Probabilities `(n, classes)`."""
        return output.double().softmax(1)

    def decoded(self, output: Tensor) -> Tensor:
        """The class indices `(n,)` that outputs answer with."""
        return output.argmax(1)

    def answers(self, probabilities: Tensor) -> Tensor:
        """The class indices `(n,)` of what `predicted` gave."""
        return probabilities.argmax(1)

    def spread(self, passes: Tensor) -> Spread:
        """Of probabilities."""
        return Spread.of_logits(passes)

    def deviation(self, found: Spread) -> Tensor:
        """That of the probability of the class that the mean answers with, `(n,)`."""
        return found.std.gather(1, self.answers(found.mean)[:, None]).squeeze(1)

    def deviations(self, output: Tensor, deviation: Tensor, target: Tensor, unit: Tensor | None) -> dict[str, float]:
        """`mc_std_right` and `mc_std_wrong`: over the examples that the mean prediction gets right, or wrong."""
        right = self.decoded(output) == target
        return {"mc_std_right": float(deviation[right].mean()), "mc_std_wrong": float(deviation[~right].mean())}

    def columns(self, told: Told) -> Mapping[str, Sequence[Any]]:
        """`prediction`, the class by its name, and `p_<class>`; the spread's are `std_<class>`, `entropy` and `mutual_information`."""
        names = self.class_names(told.outputs, told.classes)
        return {"prediction": [names[index] for index in self.answers(told.predicted).tolist()], **of_probabilities(names, told)}

    def arrays(self, told: Told) -> Mapping[str, Tensor | Sequence[str]]:
        """`prediction` (class indices), `probabilities` and the names `classes`."""
        names = self.class_names(told.outputs, told.classes)
        return {"prediction": self.answers(told.predicted), "probabilities": told.predicted, "classes": names}

    def groups(self, data: DataSet, rows: Tensor) -> list[tuple[str, Tensor]]:
        """A group for each class."""
        y = data.train.y[rows].cpu()
        names = self.class_names(data.outputs, data.classes)
        return [(name, (y == index).nonzero()[:, 0]) for index, name in enumerate(names)]

    def target_names(self, data: DataSet) -> Sequence[str]:
        """None: the groups show the classes."""
        return ()

    def confusions(self, prediction: Tensor, target: Tensor) -> Tensor | None:
        """What was taken for what."""
        answer = self.decoded(prediction).cpu()
        size = len(self.class_names(prediction.shape[1], None))
        return torch.bincount(target.cpu() * size + answer, minlength=size**2).reshape(size, size)
