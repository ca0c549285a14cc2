"""Some of the classes of a data set instead of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from dnnkit.data.source import Examples, Source
from dnnkit.errors import ConfigError, Problem, nearest


def only_classes(source: Source, wanted: Sequence[int | str] | None, where: str = "data.classes") -> Source:
    """The source with the examples of the wanted classes alone, relabelled 0 … n − 1 in the order of `wanted`; all for None.

    A class is named by its index or by its name. Rows keep their order, in every split. Raises ConfigError for a class that
    there is not, one that is named twice, and for fewer than two; ValueError for a source without class names.
    """
    if wanted is None:
        return source
    if source.classes is None:
        raise ValueError("only a source that names its classes has some to choose from")
    known, problems = list(source.classes), []
    indices = [_index(name, known) for name in wanted]
    for name, index in zip(wanted, indices, strict=True):
        if index is None:
            listed = ", ".join(f"{number} {label}" if label != str(number) else label for number, label in enumerate(known))
            problems.append(Problem(where, f"there is no class {name!r}; there are: {listed}", nearest(str(name), known)))
    twice = [known[index] for index in dict.fromkeys(indices) if index is not None and indices.count(index) > 1]
    problems += [Problem(where, f"names the class {name} more than once") for name in twice]
    if not problems and len(indices) < 2:
        problems.append(Problem(where, f"must name at least two classes, or be null for all, got {list(wanted)}"))
    if problems:
        raise ConfigError(problems)
    order = [index for index in indices if index is not None]
    parts = {split: _only(given, order, len(known)) for split, given in source.splits()}
    return replace(source, **parts, classes=tuple(known[index] for index in order))  # type: ignore[arg-type]


def _index(name: int | str, known: Sequence[str]) -> int | None:
    if isinstance(name, int):
        return name if 0 <= name < len(known) else None
    return known.index(name) if name in known else None


def _only(given: Examples, order: Sequence[int], count: int) -> Examples:
    new = torch.full((count,), -1)
    new[torch.tensor(order)] = torch.arange(len(order))
    labels = new[given.y.long()]
    kept = labels >= 0
    return Examples(given.x[kept], labels[kept])
