"""The LightningModule: a network, what it is trained for (Task) and how (Recipe)."""

from dnnkit.config.schedule import Factor
from dnnkit.module.accumulation import Portion, portion
from dnnkit.module.lightning import Module
from dnnkit.module.schedule import ScheduleLR
from dnnkit.module.task import Evaluation, Outcome, Recipe, Task, minimised, scaled
from dnnkit.module.window import Window

__all__ = [
    "Evaluation",
    "Factor",
    "Module",
    "Outcome",
    "Portion",
    "Recipe",
    "ScheduleLR",
    "Task",
    "Window",
    "minimised",
    "portion",
    "scaled",
]
