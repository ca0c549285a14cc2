"""Which rows go to validation and to test."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from dnnkit.errors import Problem


def rows_asked(where: str, size: int | float, rows: int, problems: list[Problem]) -> int:
    """The number of rows that `size` asks for: a count (an integer ≥ 1), or a fraction in (0, 1) of `rows`, rounded.

    A size that is neither, or that leaves the split or the rest empty, is added to `problems`, and the answer is 0.
    """
    possible = size >= 1 if isinstance(size, int) else 0 < size < 1
    if isinstance(size, bool) or not possible:
        problems.append(Problem(where, f"must be a count (an integer at least 1) or a fraction in (0, 1), got {size!r}"))
        return 0
    count = size if isinstance(size, int) else round(size * rows)
    if 0 < count < rows:
        return count
    split = "the split would be empty" if count == 0 else "nothing would be left to train on"
    problems.append(Problem(where, f"{size!r} takes {count} of {rows} rows: {split}"))
    return 0


def divide(y: Tensor, count: int, how: str, purpose: str, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers `(rest, taken)` with `count` of them taken, each in the order of the rows.

    `tail` takes the last rows, `random` any rows, `stratified` from each class of y in proportion to its size (see `quotas`).
    The choice is a pure function of the arguments: neither the global random state nor training has a part in it.
    """
    if how not in ("stratified", "random", "tail"):
        raise ValueError(f"split must be stratified, random or tail, got {how!r}")
    taken = torch.zeros(len(y), dtype=torch.bool)
    if how == "tail":
        taken[len(y) - count :] = True
        return (~taken).nonzero()[:, 0], taken.nonzero()[:, 0]
    order = torch.randperm(len(y), generator=_generator(purpose, seed))
    if how == "random":
        taken[order[:count]] = True
    else:
        for label, quota in enumerate(quotas(y.bincount(), count).tolist()):
            taken[order[y[order] == label][:quota]] = True
    return (~taken).nonzero()[:, 0], taken.nonzero()[:, 0]


def strata(y: Tensor) -> Tensor:
    """What a stratified split keeps in proportion, shape `(n,)`, int64: the classes, or the decile of the first of the values.

    Of labels `(n, labels)` the rarest that a row has, 0 where it has none: a rare one would be missed by chance, and of all their
    combinations most have few rows. The order in which labels are rare is that of these rows; of equally rare ones the first counts.
    """
    if y.ndim == 2 and not y.is_floating_point():
        rarest = y.sum(0).argsort(stable=True)
        have = y[:, rarest] > 0
        return torch.where(have.any(1), rarest[have.int().argmax(1)] + 1, 0)
    if not y.is_floating_point():
        return y
    ranks = y[:, 0].argsort(stable=True).argsort()
    return ranks * 10 // len(y)


def quotas(sizes: Tensor, count: int) -> Tensor:
    """How many of `count` rows each class gives, by largest remainder: they add up to `count` exactly.

    Each class first gives ⌊size · count / total⌋; what is missing comes, one row each, from the classes whose fraction was
    cut most, the lower class where two are equal. No class is off its share by one row or more.
    """
    shares = sizes * count
    total = int(sizes.sum())
    quota = shares // total
    cut_most = (shares % total).argsort(descending=True, stable=True)
    quota[cut_most[: count - int(quota.sum())]] += 1
    return quota


def _generator(purpose: str, seed: int) -> torch.Generator:
    """A generator of its own for each purpose, so that taking a test split does not change how validation is taken."""
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
