"""What is frozen while a network trains: no gradient reaches it, and nothing else moves it."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from dnnkit.network.freezing import Freezing

log = logging.getLogger("dnnkit")


class Frozen:
    """Keeps the frozen part of `net` as it is, epoch after epoch, and lets go of it when its time is over.

    A frozen parameter has no gradient, for which optimizers pass it over: it neither moves nor decays, and its state stays
    that of the beginning until it is trained. Several devices are the exception: what is frozen for a while requires a gradient from the
    start, because DistributedDataParallel asks only once, and the gradient is dropped before each update.
    """

    def __init__(self, net: nn.Module, freezing: Freezing) -> None:
        self._net, self._freezing = net, freezing
        self._epoch = 1
        self._parameters: list[Parameter] = []
        self._values: list[Tensor] = []

    def __bool__(self) -> bool:
        return bool(self._parameters)

    def begin(self, epoch: int, several: bool, constrained: bool) -> None:
        """Freeze what is frozen in `epoch`, counted from 1. `constrained`: something changes weights in place after an update."""
        self._freezing.apply(self._net, epoch)
        if several:
            self.require_gradients()
        named = dict(self._net.named_parameters())
        self._parameters = [named[name] for name in self._freezing.frozen(epoch)]
        self._values = [parameter.detach().clone() for parameter in self._parameters] if constrained else []
        freed = [
            name for name in self._freezing.later() if name in set(self._freezing.frozen(self._epoch)) - set(self._freezing.frozen(epoch))
        ]
        if freed:
            log.info("epoch %d: trained from here on: %s", epoch, ", ".join(freed))
        self._epoch = epoch

    def require_gradients(self) -> None:
        """On several devices: what is frozen for a while takes part from the start."""
        named = dict(self._net.named_parameters())
        for name in self._freezing.later():
            named[name].requires_grad_()

    def stay_still(self) -> None:
        """Frozen normalizations are in evaluation mode whatever mode the network was just put into."""
        for name in self._freezing.still(self._epoch):
            self._net.get_submodule(name).eval()

    def drop_gradients(self) -> None:
        """Before an update."""
        for parameter in self._parameters:
            parameter.grad = None

    def put_back(self) -> None:
        """After a constraint: it acts on whole networks, and frozen weights are none of its business."""
        with torch.no_grad():
            for parameter, value in zip(self._parameters, self._values, strict=False):
                parameter.copy_(value)
