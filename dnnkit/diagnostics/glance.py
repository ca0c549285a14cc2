"""The signal on one minibatch, as cheap as it can be had: what is looked at while a network trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dnnkit.diagnostics.measures import by_unit, flat, wide
from dnnkit.diagnostics.probe import activates
from dnnkit.diagnostics.watch import Block, fit, some_parameter, undisturbed, watching

_MEASURES = ("mean", "variance", "second_moment", "saturated", "delta_ratio", "gradient_ratio")
#: A norm so small that squares were lost on the way in 32 bits.
_TINY = 1e-15


@dataclass(frozen=True)
class Glance:
    """One weight layer on one minibatch, its measures those of a LayerSignal.

    `silent`: which units are ≤ 0 on all of the minibatch's samples, `(units,)`; None where the layer cannot have dead ones.
    `delta_ratio` is ‖∂L/∂z‖ over that of the last layer, which unlike the norm itself does not depend on how many samples there
    are; NaN where nothing comes back to the last layer.
    """

    layer: str
    samples: int
    mean: float
    variance: float
    second_moment: float
    saturated: float | None
    silent: Tensor | None
    delta_norm: float
    delta_ratio: float
    gradient_ratio: float | None


def glance(network: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> list[Glance]:
    """The signal of every layer on the minibatch x `(n, *shape)`, y `(n, …)`, in modes and order like those of `probe`.

    All numbers come from the device at once. Weights, gradients, buffers, modes, hooks and random states are left as they were.
    """
    like, seen = some_parameter(network), _Seen()
    with undisturbed(network, like.device), watching(network, seen) as watch, parametrize.cached(), torch.enable_grad():
        value = loss(network(fit(x, like)), fit(y, like))
        watch.close()
        blocks = list(watch.blocks.values())
        return _glances(blocks, seen, *_norms(blocks, value), len(x)) if blocks else []


class _Seen:
    """What the layers put out, on the device still: by name the moments, and what is flat and silent where an activation follows."""

    def __init__(self) -> None:
        self.moments: dict[str, Tensor] = {}
        self.flat: dict[str, Tensor | None] = {}
        self.silent: dict[str, tuple[Tensor, Tensor]] = {}  # whether there is no negative value, and what is never positive

    def __call__(self, block: Block, module: nn.Module | None, output: Tensor) -> None:
        units = by_unit(output, block.axis)
        variance, mean = torch.var_mean(wide(units), 0, correction=0)
        self.moments[block.name] = torch.stack([mean.mean(), variance.mean(), (variance + mean.square()).mean()])
        if activates(module):
            low, high = torch.aminmax(units, dim=0)
            self.silent[block.name] = low.amin() >= 0, high <= 0
            share = flat(module, output)
            self.flat[block.name] = None if share is None else share.mean(dtype=torch.float32)


def _norms(blocks: Sequence[Block], value: Tensor) -> tuple[list[float], list[float | None]]:
    """‖∂L/∂z‖ of each block, and ‖∂L/∂W‖ / ‖W‖ where W is trained and not zero."""
    trained = [block.weight for block in blocks if block.weight.requires_grad]
    gradients = torch.autograd.grad(value, [*(block.z for block in blocks), *trained], materialize_grads=True)
    norms = _all_norms([*gradients, *(weight.detach() for weight in trained)])
    count = len(blocks)
    ratios = iter(zip(norms[count : count + len(trained)], norms[count + len(trained) :], strict=True))
    found = [next(ratios) if block.weight.requires_grad else (0.0, 0.0) for block in blocks]
    return norms[:count], [change / size if size > 0 else None for change, size in found]


def _all_norms(tensors: Sequence[Tensor]) -> list[float]:
    norms: list[float] = torch.stack([norm.double() for norm in torch._foreach_norm(list(tensors))]).tolist()
    return [_whole_norm(tensor) if not _TINY < norm < math.inf else norm for norm, tensor in zip(norms, tensors, strict=True)]


def _whole_norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(wide(tensor)))


def as_live_metrics(glances: Sequence[Glance], dead: Mapping[str, float]) -> dict[str, float]:
    """By journal key, as `as_metrics` names them; `dead` is the share of dead units by layer. What is None or not finite is left out."""
    found = {f"signal/{one.layer}/{name}": getattr(one, name) for one in glances for name in _MEASURES}
    found |= {f"signal/{layer}/dead": share for layer, share in dead.items()}
    return {key: value for key, value in found.items() if value is not None and math.isfinite(value)}


def _glances(blocks: Sequence[Block], seen: _Seen, deltas: Sequence[float], ratios: Sequence[float | None], samples: int) -> list[Glance]:
    moments = torch.stack([seen.moments[block.name] for block in blocks]).tolist()
    flats = [share for block in blocks if (share := seen.flat.get(block.name)) is not None]
    shares = iter(torch.stack(flats).tolist() if flats else [])
    nonnegative = dict(zip(seen.silent, torch.stack([low for low, _ in seen.silent.values()]).tolist(), strict=True)) if seen.silent else {}
    last = deltas[-1]
    return [
        Glance(
            block.name,
            samples,
            mean=moments[place][0],
            variance=moments[place][1],
            second_moment=moments[place][2],
            saturated=None if seen.flat.get(block.name) is None else next(shares),
            silent=seen.silent[block.name][1] if nonnegative.get(block.name) else None,
            delta_norm=deltas[place],
            delta_ratio=deltas[place] / last if last > 0 else math.nan,
            gradient_ratio=ratios[place],
        )
        for place, block in enumerate(blocks)
    ]
