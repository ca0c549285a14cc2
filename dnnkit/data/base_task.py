"""What a task is: what it asks of targets, what an output of the network means, and what is told and drawn of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from dnnkit.data.scaling import Scaling
from dnnkit.data.source import DataSet, Form, Source, form_of
from dnnkit.data.stored import StoredRows
from dnnkit.network.stochastic import Spread


@dataclass(frozen=True, eq=False)
class Told:
    """What is told of n examples: `predicted`, as `BaseTask.predicted` gives it, and the `spread` of Monte-Carlo dropout, if any.

    `outputs` is the number of the network's; `classes` and `targets` are the names of the classes, or of the values or labels.
    """

    predicted: Tensor
    outputs: int
    classes: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    spread: Spread | None = None


class BaseTask:
    """A task by itself: to predict values, standardised for training and told in their own units.

    A task of one's own derives from it, or from `ClassTask`, overrides what differs, and is registered with the names of what
    `loss=auto` and `metrics=auto` stand for: `@tasks.register("counts", loss="poisson", metrics=["mae"])`. It has no settings.
    Losses and metrics say in `tasks` which tasks they are for. Two more facts are about layer lists: `logits=True` where the
    loss takes outputs as logits, `softmax=True` where it contains the softmax, so that one at the end of a list is left out.
    """

    form: ClassVar[Form] = "values"
    """What the readers of files make of targets for it: class indices, values, labels of 0 and 1, or nothing but the examples."""

    arrays_only: ClassVar[str] = ""
    """Why predictions fit into no table, as the end of a sentence; empty where they do."""

    # Targets

    def claims(self, y: Tensor) -> bool:
        """Whether these are targets that `task=auto` takes for this task: int64 `(n,)`, int64 `(n, labels)` or float64 `(n, values)`.

        Exactly one task has to claim what it is asked about. Before the data are read it may be asked about rows of zeros.
        """
        return False

    def accept(self, source: Source) -> Source | None:
        """The source with targets as the task wants them; None where they are of another kind."""
        return source if form_of(source.train.y) == self.form else None

    def check(self, name: str, data: DataSet) -> None:
        """DataError where there is nothing to learn from these data, which the config calls `name`."""

    def target_scaling(self, values: Callable[[], Scaling], examples: Scaling, inputs: tuple[int, ...]) -> Scaling | None:
        """How targets are standardised, or None for not at all.

        `values` computes it from the training targets as data.standardize_target says, `examples` is that of the examples.
        """
        return values()

    def targets(self, x: Tensor | StoredRows, y: Tensor, scaling: Scaling | None) -> Tensor | StoredRows:
        """What is learnt, rows first, of targets y as `accept` gave them, or of standardised x `(n, *inputs)` where `form` is `itself`."""
        return y if scaling is None else scaling.apply(y)

    def absent(self, card: Mapping[str, Any]) -> list[str]:
        """The classes, or their like, of which no training example is, by the data's card."""
        return []

    # Outputs

    def outputs(self, source: Source) -> int:
        """How many numbers the network has to give for an example."""
        return source.train.y.shape[1]

    def class_names(self, outputs: int, classes: tuple[str, ...] | None) -> tuple[str, ...]:
        """The classes by name, or by number where they have none, of a network with so many outputs, where targets are classes."""
        return classes or tuple(map(str, range(outputs)))

    def fits(self, outputs: int, network: int) -> bool:
        """Whether data with so many outputs can be measured with a network that has `network`."""
        return outputs == network

    def right(self, target: Tensor, outputs: int) -> Tensor:
        """What a network would give, `(n, outputs)`, whose every answer is right."""
        return target

    def predicted(self, output: Tensor, scaling: Scaling | None, inputs: tuple[int, ...]) -> Tensor:
        """What is told of outputs `(n, outputs)`, float64 on the CPU, rows first: here values in their own units."""
        return self.shaped(output.double() if scaling is None else scaling.undo(output), inputs)

    def shaped(self, values: Tensor, inputs: tuple[int, ...]) -> Tensor:
        """Values `(n, outputs)` in the shape in which they are told."""
        return values

    # Monte-Carlo dropout

    def spread(self, passes: Tensor) -> Spread:
        """What the outputs of many passes, `(passes, n, outputs)`, say together."""
        return Spread.of_values(passes)

    def told_spread(self, found: Spread, scaling: Scaling | None, inputs: tuple[int, ...]) -> Spread:
        """The same in the units of `predicted`."""
        if scaling is None:
            return found
        return Spread(self.shaped(scaling.undo(found.mean), inputs), self.shaped(found.std * scaling.std, inputs))

    def deviation(self, found: Spread) -> Tensor:
        """What is kept of how far passes are apart, rows first."""
        return found.std

    def deviations(self, output: Tensor, deviation: Tensor, target: Tensor, unit: Tensor | None) -> dict[str, float]:
        """Means of that over examples, as metrics are called: `mc_std…`. `output` is the mean prediction, as the network would say it.

        `unit` is one standardised unit in the target's own.
        """
        return {"mc_std": float((deviation if unit is None else deviation * unit.to(deviation.device, deviation.dtype)).mean())}

    # What `predict` writes

    def columns(self, told: Told) -> Mapping[str, Sequence[Any]]:
        """The columns of a table, by name, without the number of the row."""
        names = self.value_names(told)
        columns = dict(zip(names, told.predicted.T.tolist(), strict=True))
        return columns if told.spread is None else columns | dict(zip(_deviation_names(names), told.spread.std.T.tolist(), strict=True))

    def arrays(self, told: Told) -> Mapping[str, Tensor | Sequence[str]]:
        """The arrays of an .npz by key, without `row` and without the spread."""
        return {"values": told.predicted, "targets": self.value_names(told)}

    def value_names(self, told: Told) -> tuple[str, ...]:
        """The names of the values, one for each output."""
        return told.targets or (("value",) if told.outputs == 1 else tuple(f"value_{index}" for index in range(told.outputs)))

    # Figures

    def groups(self, data: DataSet, rows: Tensor) -> list[tuple[str, Tensor]]:
        """The groups in which these rows of the training split are shown: the name of each and its places in `rows`, maybe none."""
        return []

    def target_names(self, data: DataSet) -> Sequence[str]:
        """The values to predict whose distributions are shown beside those of the features."""
        return data.targets or list(data.card["target"])

    def confusions(self, prediction: Tensor, target: Tensor) -> Tensor | None:
        """Counts of (true class, predicted class), `(classes, classes)`, for the figure of that name; None draws none."""
        return None


def of_probabilities(names: Sequence[str], told: Told) -> dict[str, Sequence[Any]]:
    """The columns of probabilities, `p_<name>`; of their spread `std_<name>`, `entropy` and `mutual_information`."""
    columns: dict[str, Sequence[Any]] = {f"p_{name}": share for name, share in zip(names, told.predicted.T.tolist(), strict=True)}
    spread = told.spread
    if spread is not None and spread.entropy is not None and spread.mutual_information is not None:
        columns |= {f"std_{name}": std for name, std in zip(names, spread.std.T.tolist(), strict=True)}
        columns |= {"entropy": spread.entropy.tolist(), "mutual_information": spread.mutual_information.tolist()}
    return columns


def _deviation_names(names: Sequence[str]) -> list[str]:
    """`std_<value>`, and an underscore more where another column has that name."""
    taken, found = set(names), []
    for name in names:
        free = f"std_{name}"
        while free in taken:
            free += "_"
        taken.add(free)
        found.append(free)
    return found
