"""What a captured step takes for granted about a network, and what forbids to capture one."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_DEPTH = 4
_PLAIN = (bool, int, str, bytes, complex, type(None), torch.dtype, torch.device)
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
)
_GLOBAL_HOOKS = ("_global_forward_pre_hooks", "_global_forward_hooks", "_global_backward_pre_hooks", "_global_backward_hooks")
_APART = {"_parameters", "_buffers", "_modules"}


def fingerprint(net: nn.Module) -> Hashable:
    """What a graph of `net` was made for: modes, settings and attributes of its modules, the identity and place of its tensors.

    Equal as long as no module, parameter, buffer or plain attribute was exchanged, frozen or moved. Values of tensors may differ.
    """
    parts: list[Hashable] = []
    for module in net.modules():
        parts.append(id(module))
        parts += [(key, _plain(value, _DEPTH)) for key, value in vars(module).items() if key not in _APART]
    parts += [(name, id(tensor), tensor.requires_grad) for name, tensor in _tensors(net)]
    return (*parts, places(net))


def places(net: nn.Module) -> tuple[int, ...]:
    """Where in memory the parameters and buffers are."""
    return tuple(tensor.data_ptr() for _, tensor in _tensors(net))


def hooked(net: nn.Module) -> str | None:
    """Who has a hook, which a graph would call once and never again; None where nobody has."""
    for name, module in net.named_modules():
        if any(vars(module).get(kind) for kind in _HOOKS):
            return f"{_named(name, module)} has a hook"
        if isinstance(module, torch.jit.ScriptModule):
            return f"{_named(name, module)} is TorchScript"
    for name, parameter in net.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            return f"the parameter {name} has a hook"
    if any(getattr(nn.modules.module, kind, None) for kind in _GLOBAL_HOOKS):
        return "there is a hook on all modules"
    return None


def outside_randomness() -> Hashable:
    """The state of the random generators that are not torch's."""
    name, keys, *place = np.random.get_state(legacy=True)
    return random.getstate(), str(name), np.asarray(keys).tobytes(), *place


def _tensors(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from net.named_parameters()
    yield from net.named_buffers()


def _named(name: str, module: nn.Module) -> str:
    return f"{name} ({type(module).__name__})" if name else f"the network ({type(module).__name__})"


def _plain(value: Any, depth: int) -> Hashable:
    """Something that differs where `value` does, as far as can be seen without running code of its own."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, _PLAIN):
        return value
    if depth == 0 or isinstance(value, Tensor | nn.Module | type) or callable(value):
        return id(value)
    if isinstance(value, dict):
        return (id(value), *((_plain(key, depth - 1), _plain(part, depth - 1)) for key, part in value.items()))
    if isinstance(value, list | tuple | set | frozenset):
        return (id(value), *(_plain(part, depth - 1) for part in value))
    inside = getattr(value, "__dict__", None)
    return id(value) if not isinstance(inside, dict) else (id(value), _plain(inside, max(0, depth - 2)))
