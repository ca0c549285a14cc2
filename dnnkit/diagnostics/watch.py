"""Following one pass through a network, layer by layer, without a trace of it afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from dnnkit.data.randomness import same_randomness


@dataclass
class Block:
    """A weight layer and what follows it, up to the next weight layer, as a forward pass finds them.

    `z` is what the weight layer itself gives, a part of the graph; `axis` counts its units. `followed`: whether a module after it
    kept the shape of z.
    """

    name: str
    axis: int
    weight: Tensor
    z: Tensor
    followed: bool = False


class Observer(Protocol):
    """Looks at what the modules of a block put out, in the order of the pass."""

    def __call__(self, block: Block, module: nn.Module | None, output: Tensor) -> None:
        """`module` is one that follows the weight layer; None: nothing does, and this is z."""
        ...


class Watch:
    """The hooks that follow a forward pass, and the blocks that they found, by name."""

    def __init__(self, observer: Observer) -> None:
        self.blocks: dict[str, Block] = {}
        self._observer = observer
        self._open: Block | None = None  # the block at hand; None before the first weight layer

    def weighted(self, name: str) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        """The hook of a weight layer: it opens a block."""

        def note(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
            self.close()
            if name in self.blocks:
                return None
            axis = 1 if isinstance(module, _ConvNd) else output.ndim - 1
            z = output if output.requires_grad else output.detach().requires_grad_()
            weight = module.weight
            assert isinstance(weight, Tensor)
            self._open = self.blocks[name] = Block(name, axis, weight, z)
            return z.clone()  # an activation that works in place would turn ∂L/∂z into ∂L/∂y

        return note

    def other(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        """The hook of every other module without children: part of the block, if it keeps the shape."""
        block = self._open
        if block is None or not isinstance(output, Tensor) or output.shape != block.z.shape:
            return
        block.followed = True
        self._observer(block, module, output)

    def close(self) -> None:
        """The block at hand has no more modules."""
        block, self._open = self._open, None
        if block is not None and not block.followed:
            self._observer(block, None, block.z)


@contextmanager
def watching(network: nn.Module, observer: Observer) -> Iterator[Watch]:
    """Everything that is called within goes by the observer; call `close` on the watch after a forward pass."""
    watch = Watch(observer)
    weighted = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear | _ConvNd)}
    inside = {part for layer in weighted.values() for part in layer.modules()}  # parametrizations act on weights, not on signals
    with ExitStack() as hooks:
        for name, layer in weighted.items():
            hooks.callback(layer.register_forward_hook(watch.weighted(name or type(layer).__name__.lower())).remove)
        for module in network.modules():
            if module not in inside and not any(True for _ in module.children()):
                hooks.callback(module.register_forward_hook(watch.other).remove)
        yield watch


@contextmanager
def undisturbed(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode but for batch normalization, one fixed seed; everything as before at the end."""
    modes = {module: module.training for module in network.modules()}
    buffers = {module: dict(module._buffers) for module in network.modules()}
    # The memory itself, not the tensors: that also puts expanded buffers back, and counts as no change to autograd.
    memory = [(storage, storage.clone()) for storage in _storages(buffers)]  # type: ignore[no-untyped-call]
    try:
        with same_randomness([device]) as generators:
            for generator in generators:
                generator.manual_seed(0)
            for module in modes:
                module.training = module.training and isinstance(module, _BatchNorm)
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
            module._buffers.clear()
            module._buffers.update(buffers[module])
        for storage, saved in memory:
            storage.copy_(saved)


def fit(tensor: Tensor, like: Tensor) -> Tensor:
    """On the device of `like`; in its precision too, unless it holds integers."""
    return tensor.to(like) if tensor.is_floating_point() else tensor.to(like.device)


def some_parameter(network: nn.Module) -> Tensor:
    """One that says on what device and in what precision the network is."""
    return next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))


def _storages(buffers: Mapping[nn.Module, Mapping[str, Tensor | None]]) -> list[torch.UntypedStorage]:
    return [buffer.untyped_storage() for named in buffers.values() for buffer in named.values() if buffer is not None]
