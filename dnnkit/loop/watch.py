"""What a captured step takes for granted about a network, and what forbids to capture one."""

from __future__ import annotations

import random
import types
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_DEPTH = 6
_PLAIN = (bool, int, str, bytes, complex, type(None), torch.dtype, torch.device)
#: Arrays up to so many bytes are compared at every chunk, larger ones only while a step is captured.
_LOOKED_THROUGH = 1 << 16
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
)
_GLOBAL_HOOKS = ("_global_forward_pre_hooks", "_global_forward_hooks", "_global_backward_pre_hooks", "_global_backward_hooks")
_APART = {"_parameters", "_buffers", "_modules"}


def fingerprint(net: nn.Module, *beside: Any, values: bool = False, look: _Look | None = None) -> Hashable:
    """What a graph of `net` was made for: modes, settings and attributes of its modules, the identity and place of its tensors.

    Equal as long as no module, parameter, buffer or plain attribute was exchanged, frozen, moved or turned. Values of tensors
    may differ. `beside`: other things that it was made for, such as a loss. With `values`, also whatever a forward pass may
    have changed without exchanging it: plain tensors, arrays, generators, iterators, attributes of classes.
    """
    look = look or _Look(values)
    tensors = list(_tensors(net))
    look.trained = {tensor.untyped_storage().data_ptr() for _, tensor in tensors}
    parts: list[Hashable] = []
    for module in net.modules():
        parts.append(_Same(module))
        parts += [(key, look.at(value)) for key, value in vars(module).items() if key not in _APART]
        if look.values:
            parts += [(key, look.at(value)) for _, key, value in _class_attributes(module)]
    parts += [
        (name, _Same(tensor), tensor.requires_grad, tensor.stride(), tensor.data_ptr(), _has_hooks(tensor)) for name, tensor in tensors
    ]
    parts.append(_global_hooks())
    return (*parts, *map(look.at, beside))


def put_back(net: nn.Module, *beside: Any) -> Callable[[], None]:
    """What gives classes and closures, which no copy of a network or a loss has to itself, the values again that they have now."""
    look = _Look(values=True)
    fingerprint(net, *beside, look=look)
    cells = [(cell, cell.cell_contents) for cell in look.cells]
    classes = [(cls, key, value) for module in net.modules() for cls, key, value in _class_attributes(module)]

    def put() -> None:
        for cell, value in cells:
            cell.cell_contents = value
        for cls, key, value in classes:
            if vars(cls).get(key) is not value:
                setattr(cls, key, value)

    return put


def hooked(net: nn.Module) -> str | None:
    """Who has a hook, which a graph would call once and never again, or cannot be traced at all; None where nobody has."""
    for name, module in net.named_modules():
        if any(vars(module).get(kind) for kind in _HOOKS):
            return f"{_named(name, module)} has a hook"
        if isinstance(module, torch.jit.ScriptModule):
            return f"{_named(name, module)} is TorchScript"
        if isinstance(module, nn.RNNBase):
            # It keeps a list of its own of its weights, which tracing would leave full of stand-ins.
            return f"{_named(name, module)} is recurrent"
    for name, parameter in net.named_parameters():
        if _has_hooks(parameter):
            return f"the parameter {name} has a hook"
    return "there is a hook on all modules" if _global_hooks() else None


def _has_hooks(tensor: Tensor) -> bool:
    return bool(tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None))


def _global_hooks() -> bool:
    return any(getattr(nn.modules.module, kind, None) for kind in _GLOBAL_HOOKS)


def outside_randomness() -> Hashable:
    """The state of the random generators that are not torch's."""
    name, keys, *place = np.random.get_state(legacy=True)
    return random.getstate(), str(name), np.asarray(keys).tobytes(), *place


def _tensors(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from net.named_parameters()
    yield from net.named_buffers()


def _named(name: str, module: nn.Module) -> str:
    return f"{name} ({type(module).__name__})" if name else f"the network ({type(module).__name__})"


def _class_attributes(module: nn.Module) -> Iterator[tuple[type, str, Any]]:
    """What the classes of a module, torch's own left out, have besides functions."""
    for cls in type(module).__mro__:
        if cls.__module__.partition(".")[0] not in ("torch", "builtins"):
            yield from ((cls, key, value) for key, value in vars(cls).items() if not key.startswith("__") and not callable(value))


class _Same:
    """A thing by its identity. It is held, so that nothing else can come to lie where it was."""

    __slots__ = ("thing",)

    def __init__(self, thing: object) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)


class _Look:
    """Turns things into something that differs where they do, as far as can be seen without running code of their own."""

    def __init__(self, values: bool) -> None:
        self.values = values
        self.cells: list[types.CellType] = []
        self.trained: set[int] = set()  # where the weights and buffers are
        self._seen: set[int] = set()

    def at(self, value: Any, depth: int = _DEPTH) -> Hashable:
        """What is to be compared of `value`, looking `depth` containers deep; a thing that is met again is looked into once."""
        if isinstance(value, dict) and not value:
            return ()  # as most of a module's are
        if isinstance(value, float):
            return value.hex()
        if isinstance(value, _PLAIN):
            return value
        if depth == 0 or isinstance(value, type) or id(value) in self._seen:
            return _Same(value)
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            return (_Same(value), value.requires_grad, *self._changed(value))
        return (_Same(value), *self._drawn(value), *(self.at(part, depth - 1) for part in self._inside(value)))

    def _changed(self, value: Tensor) -> tuple[Hashable, ...]:
        """What changes where a tensor is written to; every update writes to one that is a weight by another name."""
        if (
            value.is_inference()
            or value.layout is not torch.strided
            or (not self.values and value.untyped_storage().data_ptr() in self.trained)
        ):
            return ()
        return (value.data_ptr(), value._version)

    def _inside(self, value: Any) -> Iterator[Any]:
        if isinstance(value, types.FunctionType):
            filled = [cell for cell in value.__closure__ or () if _filled(cell)]
            self.cells += filled
            yield from (cell.cell_contents for cell in filled)
        yield from _inside(value)

    def _drawn(self, value: Any) -> tuple[Hashable, ...]:
        """What changes where a number is drawn or the next thing taken."""
        if isinstance(value, np.ndarray) and (self.values or value.nbytes <= _LOOKED_THROUGH):
            return (value.tobytes(),)
        if not self.values:
            return ()
        if isinstance(value, torch.Generator):
            return (value.get_state().numpy().tobytes(),)
        if isinstance(value, random.Random):
            return (value.getstate(),)
        if isinstance(value, np.random.Generator):
            return (str(value.bit_generator.state),)
        if isinstance(value, np.random.RandomState):
            return (str(value.get_state()),)
        return (repr(value),) if type(value).__module__ == "itertools" else ()


def _inside(value: Any) -> Iterator[Any]:
    """The parts of a container, a function or an object."""
    if isinstance(value, Mapping):
        yield from value.keys()
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from value
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, types.FunctionType):
        yield from (value.__defaults__, value.__kwdefaults__)
    elif isinstance(value, partial):
        yield from (value.func, value.args, value.keywords)
    elif not isinstance(value, types.ModuleType):
        yield getattr(value, "__dict__", None)
        slots = [name for cls in type(value).__mro__ for name in _slots(cls)]
        yield from (getattr(value, name) for name in slots if hasattr(value, name))


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _slots(cls: type) -> list[str]:
    if cls.__module__.partition(".")[0] in ("torch", "numpy", "builtins"):
        return []
    slots = vars(cls).get("__slots__", ())
    return [slots] if isinstance(slots, str) else list(slots)
