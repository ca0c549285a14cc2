"""The sections of a config that are not components: how to train, what to keep, where to record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Len

from dnnkit.errors import Problem, nearest
from dnnkit.registry import REGISTRIES
from dnnkit.schema import Count, Settings, Share, validate_node

Name = Annotated[str, Len(min_length=1, max_length=200)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]


@dataclass(frozen=True)
class Trainer:
    """How long, on what and how exactly to train.

    Counts are in minibatches or epochs as named; `limit_*_batches` and `val_check_interval` are a count of minibatches
    or a share of an epoch. `chunk_size` is the number of minibatches that are run between two looks at the clock; it
    changes no number. `early_stopping` is the patience in validations, null to train to the end. `sync_batch_norm`: on
    several devices, batch normalization over the whole minibatch instead of each device's share.
    """

    name: Literal["auto", "cpu", "gpu", "ddp_cpu", "ddp"] = "auto"
    max_epochs: Count = 20
    devices: Count = 1
    precision: Literal[32, 64, "32", "64", "bf16"] = "32"
    accumulate_grad_batches: Count = 1
    threads: Count | None = None
    limit_train_batches: Count | Share = 1.0
    limit_val_batches: Count | Share = 1.0
    val_check_interval: Count | Share = 1.0
    log_every_n_steps: Count = 50
    early_stopping: Count | None = None
    chunk_size: Count = 50
    sync_batch_norm: bool = False
    progress_bar: bool = True


@dataclass(frozen=True)
class Tracking:
    """Where the record goes besides the run folder. `wait_s` bounds how long the end of a run waits for MLflow, in seconds."""

    name: Literal["mlflow", "none"] = "mlflow"
    uri: str | None = None
    experiment: Name = "dnnkit"
    runs: Name = "runs"
    log_model: bool = False
    wait_s: Annotated[float, Ge(0)] = 120.0


@dataclass(frozen=True)
class Checkpoint:
    """What makes a checkpoint the best one: a validation metric and its direction; `auto` takes the task's."""

    monitor: str = "auto"
    mode: Literal["auto", "min", "max"] = "auto"


@dataclass(frozen=True)
class Top:
    """The keys of a config that hold one value."""

    name: Name = "run"
    seed: Seed = 0
    task: Literal["auto", "classification", "regression", "reconstruction"] = "auto"
    metrics: Literal["auto"] | list[str] = "auto"


SECTIONS: Mapping[str, type] = {"trainer": Trainer, "tracking": Tracking, "checkpoint": Checkpoint}

#: Component groups that a config chooses from; the others have no place in a config yet.
GROUPS = (
    "data",
    "augmentation",
    "model",
    "activation",
    "initializer",
    "normalization",
    "dropout",
    "regularizer",
    "constraint",
    "clipping",
    "loss",
    "optimizer",
    "scheduler",
)


def top_level() -> list[str]:
    """Every key a config may have at its top."""
    return [*Settings.of(Top).names(), *GROUPS, *SECTIONS]


def validate(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The whole config with defaults filled in, and everything wrong with it."""
    known = top_level()
    message = f"unknown key; there are: {', '.join(known)}"
    problems = [Problem(str(key), message, nearest(str(key), known)) for key in config if key not in known]
    own = Settings.of(Top)
    valid, found = own.validate({key: value for key, value in config.items() if key in own}, "")
    problems += found
    for section, declared in SECTIONS.items():
        valid[section], found = _section(section, declared, config.get(section))
        problems += found
    for group in GROUPS:
        valid[group], found = validate_node(group, config.get(group))
        problems += found
    return valid, problems + (_across(valid) if not problems else [])


def _section(name: str, declared: type, values: Any) -> tuple[dict[str, Any], list[Problem]]:
    if not isinstance(values, Mapping):
        return {}, [Problem(name, f"must hold its settings, as {name}.KEY=VALUE, got {values!r}")]
    valid, problems = Settings.of(declared).validate(values, name)
    if "precision" in valid:
        valid["precision"] = str(valid["precision"])
    return valid, problems


def _across(config: Mapping[str, Any]) -> list[Problem]:
    """What is wrong between settings that are right by themselves."""
    problems = []
    trainer, devices = config["trainer"]["name"], config["trainer"]["devices"]
    if devices > 1 and trainer not in ("ddp_cpu", "ddp"):
        choices = ("trainer=ddp_cpu", "trainer=ddp")
        problems.append(Problem("trainer.devices", f"must be 1 for trainer={trainer}, got {devices}", choices))
    if config["data"]["batch_size"] < devices:
        message = f"must be at least trainer.devices ({devices}), which share each minibatch, got {config['data']['batch_size']}"
        problems.append(Problem("data.batch_size", message))
    problems += task_problems(config, config["task"])
    wanted = config["metrics"] if isinstance(config["metrics"], list) else []
    known = REGISTRIES["metrics"].names()
    message = "no metric is called {!r}; there are: {}"
    unknown = [name for name in wanted if name not in known]
    problems += [Problem("metrics", message.format(name, ", ".join(known)), nearest(name, known)) for name in unknown]
    monitors = ["auto", "val/loss", *(f"val/{name}" for name in (wanted or known))]
    if config["checkpoint"]["monitor"] not in monitors:
        message = f"must be one of {', '.join(monitors)}, got {config['checkpoint']['monitor']!r}"
        problems.append(Problem("checkpoint.monitor", message, nearest(config["checkpoint"]["monitor"], monitors)))
    return problems


def task_problems(config: Mapping[str, Any], task: str) -> list[Problem]:
    """What of the config does not fit the task; nothing while the task is still `auto`."""
    chosen = [("loss", config["loss"]["name"])]
    chosen += [("metrics", name) for name in config["metrics"]] if isinstance(config["metrics"], list) else []
    problems = []
    for group, name in chosen:
        if task == "auto" or name == "auto" or name not in REGISTRIES[group]:
            continue
        tasks = REGISTRIES[group].get(name).facts.get("tasks")
        if tasks is not None and task not in tasks:
            fitting = tuple(f"{other.name}" for other in REGISTRIES[group] if task in other.facts.get("tasks", [task]))
            problems.append(Problem(group, f"{name} is for {' and '.join(tasks)}, the task is {task}", fitting))
    return problems
