"""Standardisation: from raw values to those that are trained on, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scaling:
    """`apply` gives (raw − mean) / std in float32, computed in float64; `undo` gives raw values back.

    `mean`, `std` and `fill` are float64 on the CPU and broadcast against one example. `fill` takes the place of NaN, which
    is a missing value; it is None where there is none.
    """

    mean: Tensor
    std: Tensor
    fill: Tensor | None = None

    @classmethod
    def none(cls) -> Scaling:
        """Leaves every value as it is."""
        return cls(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))

    def apply(self, raw: Tensor) -> Tensor:
        """Standardised float32 of raw values `(n, *shape)`, any numeric dtype, which stay as they are."""
        values = raw.to(torch.float64, copy=True)
        if self.fill is not None:
            values = torch.where(values.isnan(), self.fill, values)
        return values.sub_(self.mean).div_(self.std).float()

    def undo(self, standardised: Tensor) -> Tensor:
        """Raw units, float64 on the CPU, of standardised values `(n, *shape)`."""
        return standardised.detach().cpu().double() * self.std + self.mean

    def flat(self, inputs: tuple[int, ...]) -> Scaling:
        """The same for examples of shape `inputs` that were flattened."""
        fill = None if self.fill is None else self.fill.expand(inputs).reshape(-1)
        return Scaling(self.mean.expand(inputs).reshape(-1), self.std.expand(inputs).reshape(-1), fill)
