"""Batch normalization over the whole minibatch, of which every device holds a share; on CPUs too, where torch has none."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.plugins import LayerSync
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(LayerSync):
    """Gives a module synchronised batch normalization for the time of a fit, with the same parameters and buffers."""

    def __init__(self) -> None:
        self._before: dict[nn.Module, _BatchNorm] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Put a synchronised layer in the place of each batch normalization, in `model` itself."""
        for parent, name, layer in _places(model, _BatchNorm):
            synced = SyncedBatchNorm(layer)
            self._before[synced] = layer
            parent.register_module(name, synced)
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the layers of before back, with what the synchronised ones have learnt."""
        for parent, name, layer in _places(model, SyncedBatchNorm):
            before = self._before.pop(layer)
            before._parameters, before._buffers = layer._parameters, layer._buffers
            before.train(layer.training)
            parent.register_module(name, before)
        return model


class SyncedBatchNorm(_BatchNorm):
    """y = (x − mean) / √(var + eps) · weight + bias, for x `(batch, features, …)`, by feature.

    In training mode mean and (biased) variance are those of all ranks' examples together, each example and place counting
    once, and the moving statistics follow them, the variance unbiased, as in torch's own layer, unless that layer says that
    its is not (`unbiased = False`). In evaluation mode it is torch's own.
    """

    def __init__(self, like: _BatchNorm) -> None:
        super().__init__(like.num_features, like.eps, like.momentum, like.affine, like.track_running_stats)
        self._parameters, self._buffers = like._parameters, like._buffers
        self.unbiased = bool(getattr(like, "unbiased", True))
        self.train(like.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch normalization needs an input of shape (batch, features, …), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; all ranks have to call it together in training mode."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        if input.is_cuda:
            return self._on_gpu(input)
        others = [dim for dim in range(input.dim()) if dim != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        x = input.float() if input.element_size() < 4 else input
        own = torch.tensor(float(x.numel() // x.shape[1]), dtype=x.dtype, device=x.device)
        count = _summed(own.reshape(1))
        mean = _summed(x.sum(others)) / count
        centred = x - mean.view(shape)
        var = _summed(centred.square().sum(others)) / count
        spread = var.detach()
        self._follow(mean.detach(), spread * count / (count - 1) if self.unbiased else spread)
        y = centred * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    def _on_gpu(self, input: Tensor) -> Tensor:
        momentum = self._factor()
        mean, var = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        group: Any = dist.group.WORLD
        before = None if self.unbiased or var is None else var.clone()
        y: Tensor = torch.nn.modules._functions.SyncBatchNorm.apply(  # type: ignore[no-untyped-call]
            input.contiguous(), self.weight, self.bias, mean, var, self.eps, momentum, group, dist.get_world_size()
        )
        if before is not None and var is not None:
            count = torch.tensor(float(input.numel() // input.shape[1]), dtype=var.dtype, device=var.device)
            dist.all_reduce(count)
            var.lerp_(before.mul_(1 - momentum), 1 / count)  # what was added is n / (n − 1) times as much
        return y

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the moving statistics."""
        factor = self._factor()
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
            self.running_var.lerp_(variance.to(self.running_var.dtype), factor)

    def _factor(self) -> float:
        """How far the moving statistics move this time; without a momentum they are the mean of all minibatches."""
        if self.num_batches_tracked is None:
            return 0.0 if self.momentum is None else self.momentum
        self.num_batches_tracked.add_(1)
        return 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum


class _Sum(torch.autograd.Function):
    """The sum over ranks; the gradient of what all ranks make of it is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        whole = part.clone()
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        whole = gradient.contiguous().clone()
        dist.all_reduce(whole)
        return whole


def _summed(part: Tensor) -> Tensor:
    whole: Tensor = _Sum.apply(part)  # type: ignore[no-untyped-call]
    return whole


def _places(model: nn.Module, kind: type[nn.Module]) -> list[tuple[nn.Module, str, Any]]:
    """Every child of that kind, with its parent and its name there."""
    return [(parent, name, child) for parent in model.modules() for name, child in parent.named_children() if isinstance(child, kind)]
