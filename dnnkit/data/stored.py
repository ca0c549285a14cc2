"""Examples that stay as they were found, and are standardised when they are read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dnnkit.data.scaling import Scaling


@dataclass(frozen=True, eq=False)
class StoredRows:
    """The rows `rows` of `raw`, shape `(n, *shape)`: standardised values when indexed, the same bits as if kept so.

    Bytes of an image take a quarter of the memory that float32 takes, and a memory-mapped tensor takes none. `flat`: each
    example comes as one row of values, which makes x the target of a reconstruction.
    """

    raw: Tensor
    rows: Tensor
    scaling: Scaling
    dtype: torch.dtype = torch.float32
    flat: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """As of the tensor that this stands for."""
        inputs = self.raw.shape[1:]
        return torch.Size((len(self), inputs.numel()) if self.flat else (len(self), *inputs))

    @property
    def device(self) -> torch.device:
        """Where the values come from; they are moved as they are used."""
        return self.raw.device

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        values = self.scaling.apply(self.raw[self.rows[index]]).to(self.dtype)
        return values.flatten(1) if self.flat else values

    def double(self) -> StoredRows:
        """The same values as float64."""
        return replace(self, dtype=torch.float64)
