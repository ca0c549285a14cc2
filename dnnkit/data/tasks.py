"""The registered tasks: one by its name, and the one that `task=auto` means."""

from __future__ import annotations

import torch
from torch import Tensor

from dnnkit import plugins
from dnnkit.data.base_task import BaseTask
from dnnkit.data.source import Form, Source, form_of
from dnnkit.errors import ConfigError, Problem
from dnnkit.registry import REGISTRIES, Registry

#: What a task is asked about before there are targets to ask about.
_ROWS = {
    "classes": torch.zeros(1, dtype=torch.int64),
    "labels": torch.zeros(1, 2, dtype=torch.int64),
    "values": torch.zeros(1, 1, dtype=torch.float64),
}


def _registered() -> Registry:
    """The registry with at least what comes with dnnkit: data may be prepared before anything was composed."""
    if not len(REGISTRIES["task"]):
        plugins.load()
    return REGISTRIES["task"]


def task_named(name: str) -> BaseTask:
    """The task of this name; PluginError with the nearest names where there is none."""
    task = _registered().get(name).function()
    assert isinstance(task, BaseTask)
    return task


def form_asked(task: str) -> Form | None:
    """What a task asks targets to be; None for `auto`, which asks nothing."""
    return None if task == "auto" else task_named(task).form


def claimants(y: Tensor) -> list[str]:
    """The names of the tasks that take targets of this kind for theirs."""
    return [record.name for record in _registered() if task_named(record.name).claims(y)]


def usual(form: Form) -> str:
    """The task that `auto` takes for targets of a form, by name; where there are several, all of them."""
    return " or ".join(claimants(_ROWS[form]))


def settled(name: str, source: Source, task: str) -> tuple[Source, str]:
    """The source with targets that fit the task, and the task's name, which may be asked for as `auto`.

    Raises ConfigError where the targets are of another kind, and where not exactly one task takes them for its own.
    """
    if task == "auto":
        task = _claimant(name, source.train.y)
    fitting = task_named(task).accept(source)
    if fitting is not None:
        return fitting, task
    has = form_of(source.train.y)
    others = claimants(source.train.y)
    message = f"data={name} has {has} for targets, which is {' or '.join(others)}, got {task}"
    raise ConfigError([Problem("task", message, tuple(f"task={other}" for other in others))])


def _claimant(name: str, y: Tensor) -> str:
    found = claimants(y)
    if len(found) == 1:
        return found[0]
    known = found or REGISTRIES["task"].names()
    who = f"{' and '.join(found)} each take for theirs" if found else "no task takes for its own"
    message = f"data={name} has {form_of(y)} for targets, which {who}: name the one that is meant"
    raise ConfigError([Problem("task", message, tuple(f"task={one}" for one in known))])
