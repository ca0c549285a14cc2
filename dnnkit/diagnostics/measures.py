"""Single measures of what a layer puts out, of tensors alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Activations whose value at 0 is not 0.
NOT_ZERO_AT_ZERO = (nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid)
_SIGMOIDS, _TANHS = (nn.Sigmoid, nn.Hardsigmoid), (nn.Tanh, nn.Hardtanh, nn.Softsign)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
#: torch sorts for quantiles: of more values an even choice is as good.
_MOST_VALUES = 1_000_000


def by_unit(values: Tensor, axis: int) -> Tensor:
    """Shape `(samples, units)`, no part of the graph; `axis` counts the units."""
    return values.detach().movedim(axis, -1).reshape(-1, values.shape[axis])


def wide(values: Tensor) -> Tensor:
    """In float64, where the squares of 1e-25 are no zeros; on the CPU where the device has no float64."""
    values = values.detach()
    return (values.cpu() if values.device.type == "mps" else values).double()


def flat(activation: nn.Module, output: Tensor) -> Tensor | None:
    """Where an activation's output lies on one of its two flat ends, a mask of its shape; None for one that has no two such ends."""
    if isinstance(activation, _SIGMOIDS):
        return (output < 0.05) | (output > 0.95)
    return output.abs() > 0.97 if isinstance(activation, _TANHS) else None


def saturated(activation: nn.Module, output: Tensor) -> float | None:
    """The fraction of an activation's output where it is flat; None for one that has no two flat ends."""
    where = flat(activation, output)
    return None if where is None else float(where.sum()) / where.numel()


def cosine(output: Tensor) -> float | None:
    """The mean cosine between two samples, `(samples, …)`, those left out that are zero; None where fewer than two are left."""
    rows = output.detach().flatten(1)
    # Divided by the largest first: the squares of 1e-25 are zeros.
    largest = rows.abs().amax(1, keepdim=True)
    rows = rows[largest[:, 0] > 0] / largest[largest > 0][:, None]
    count = len(rows)
    if count < 2 or not torch.isfinite(largest).all():
        return None
    whole = wide(nn.functional.normalize(rows).sum(0, dtype=rows.dtype))
    return (float(whole.square().sum()) - count) / (count * (count - 1))


def effective_rank(units: Tensor) -> float | None:
    """exp(−Σ p ln p) of the singular values over their sum, of `(samples, units)`; None where all are zero or one is not finite.

    Source: Roy & Vetterli 2007.
    """
    values = wide(units)
    largest = values.abs().amax() if values.numel() else values.new_zeros(())
    if not torch.isfinite(largest) or largest == 0:
        return None
    values = values / largest
    gram = values.T @ values if values.shape[0] >= values.shape[1] else values @ values.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = singular / singular.sum()
    return float(torch.exp(-(share * torch.log(share.clamp(min=1e-300))).sum()))


def quantiles(units: Tensor) -> tuple[float, ...]:
    """At .05, .25, .5, .75 and .95, of all values together."""
    values = wide(units).flatten()
    values = values[:: -(-values.numel() // _MOST_VALUES)]
    return tuple(torch.quantile(values, values.new_tensor(_QUANTILES)).tolist())
