"""The sections of a config that are not components: how to train, what to keep, where to record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Len

from dnnkit.config import transfer
from dnnkit.config.groups import group_problems
from dnnkit.config.schedule import to_measure, watch_problems
from dnnkit.errors import Problem, nearest
from dnnkit.registry import KINDS, REGISTRIES
from dnnkit.schema import Check, Count, Keyed, Settings, Severity, Share, component_settings, validate_node

Name = Annotated[str, Len(min_length=1, max_length=200)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]


class Section:
    """Settings that belong together and are no component's; each is an attribute or an item, read-only."""

    def __getitem__(self, key: str) -> Any:
        if key not in Settings.of(type(self)):
            raise KeyError(key)
        return getattr(self, key)


@dataclass(frozen=True)
class Trainer(Section):
    """How long, on what and how exactly to train."""

    name: Literal["auto", "cpu", "gpu", "ddp_cpu", "ddp"] = "auto"
    """The device: `auto` is a GPU where there is one, else the CPU; `ddp` is several GPUs, `ddp_cpu` several processes on the CPU."""

    max_epochs: Count = 20
    """Epochs to train, unless something ends the run earlier."""

    devices: Count = 1
    """How many devices share every minibatch; more than one with `ddp` and `ddp_cpu` only."""

    precision: Literal[32, 64, "32", "64", "bf16"] = "32"
    """Of the arithmetic, in bits; `bf16` computes in bfloat16 and keeps the weights in 32 bits."""

    accumulate_grad_batches: Count = 1
    """Minibatches whose gradients are averaged for one update."""

    threads: Literal["auto"] | Count | None = "auto"
    """CPU threads: `auto` as many as the network's work at this batch size is worth, null as many as PyTorch takes.

    The last digits of sums depend on their number, and the record says it.
    """

    limit_train_batches: Count | Share = 1.0
    """Minibatches in an epoch: a count, or a share of all of them."""

    limit_val_batches: Count | Share = 1.0
    """Minibatches in a validation: a count, or a share of all of them."""

    val_check_interval: Count | Share = 1.0
    """Minibatches between two validations: a count, or a share of an epoch."""

    log_every_n_steps: Count = 50
    """Optimizer steps between two points of the training curves, which are means over as many steps."""

    early_stopping: Count | None = None
    """Validations without a better value of `checkpoint.monitor` after which training ends; null trains to the end."""

    chunk_size: Count = 50
    """Minibatches that are run between two looks at the clock; it changes no number."""

    engine: Literal["auto", "eager", "captured", "compiled"] = "auto"
    """How a step is run: `eager` operation by operation; `captured` as a graph, with the same numbers, or not at all.

    `auto` takes the faster of these two, by the times of the first chunks; `compiled` is torch.compile, equal to rounding only.
    """

    sync_batch_norm: bool = False
    """On several devices, batch normalization over the whole minibatch instead of each device's share."""

    progress_bar: bool = True
    """Whether a bar is drawn, and a run's lines are printed."""


@dataclass(frozen=True)
class Tracking(Section):
    """Where the record goes besides the run folder."""

    name: Literal["mlflow", "none"] = "mlflow"
    """`none`: nowhere."""

    uri: str | None = None
    """MLflow's store or server; null takes the variable MLFLOW_TRACKING_URI, else mlflow.db in the working folder."""

    experiment: Name = "dnnkit"
    """MLflow's experiment, under which its page lists the run."""

    runs: Name = "runs"
    """The folder that run folders are made in."""

    log_model: bool = False
    """Whether MLflow also gets a model that it can load, which takes some seconds."""

    signal: Literal["summary", "layers", "none"] = "summary"
    """What MLflow gets of the signal, which the run folder has whole.

    `summary` is a few numbers over the layers, so that loss and accuracy come first on its page; `layers` every measure of
    every layer; `none` nothing.
    """

    wait_s: Annotated[float, Ge(0)] = 120.0
    """Seconds that the end of a run waits at most for MLflow and the figures."""


@dataclass(frozen=True)
class Checkpoint(Section):
    """What makes a checkpoint the best one."""

    monitor: str = "auto"
    """A validation metric, such as val/f1, or val/loss; `auto` takes the task's."""

    mode: Literal["auto", "min", "max"] = "auto"
    """Whether its smallest or its largest value is the best; `auto` asks the metric."""


def _rule_problems(names: Iterable[str] | None, where: str) -> list[Problem]:
    known = REGISTRIES["lint"].names()
    message = f"names no rule; there are: {', '.join(known)}; got {{!r}}"
    return [Problem(where, message.format(name), nearest(name, known)) for name in names or () if name not in known]


def _rule_names() -> dict[str, Any]:
    return {"items": {"enum": REGISTRIES["lint"].names()}, "propertyNames": {"enum": REGISTRIES["lint"].names()}}


@dataclass(frozen=True)
class Lint(Section):
    """What the linter does with what its rules find."""

    ignore: Annotated[Sequence[str], Check(_rule_problems, _rule_names)] = ()
    """Rules that are not asked."""

    strict: bool = False
    """Whether warnings are errors, which end the run before it begins."""

    severity: Annotated[dict[str, Severity] | None, Check(_rule_problems, _rule_names)] = None
    """That of single rules in place of their own, such as `{selu_initializer: error}`.

    A rule that speaks on request is asked where it is named here.
    """


@dataclass(frozen=True)
class Diagnostics(Section):
    """How often the network's signal is measured while it trains. Nothing that is trained depends on it."""

    every: Count | None = 200
    """Optimizer steps between two measurements; null measures before and after training only."""


def _task_problems(name: str, where: str) -> list[Problem]:
    known = [*KINDS["task"].switches, *REGISTRIES["task"].names()]
    return [] if name in known else [Problem(where, f"must be one of {', '.join(known)}, got {name!r}", nearest(name, known))]


def _task_names() -> dict[str, Any]:
    return {"enum": [*KINDS["task"].switches, *REGISTRIES["task"].names()]}


@dataclass(frozen=True)
class Top(Section):
    """The keys of a config that hold one value. A new one is a field here."""

    name: Name = "run"
    """Of the run, in MLflow and in its folder."""

    seed: Seed = 0
    """What the split, the initial weights, the order and every other random number follow from."""

    task: Annotated[str, Check(_task_problems, _task_names)] = "auto"
    """What is learnt: a registered task; `auto` takes what the targets and the model are for."""

    metrics: Any = "auto"
    """A list, such as [acc, f1] or [acc, {name: top_k, k: 3}]; `auto` takes those of the task."""

    init_from: Any = None
    """A run or a checkpoint, whose weights this run begins with."""

    freeze: Any = None
    """A list of layers that are not trained, by name or pattern, such as [00_*]."""


SECTIONS: Mapping[str, type] = {
    "trainer": Trainer,
    "tracking": Tracking,
    "checkpoint": Checkpoint,
    "diagnostics": Diagnostics,
    "lint": Lint,
}

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
    for key, judge in (("metrics", _metrics), ("init_from", _init_from), ("freeze", transfer.freeze)):
        valid[key], found = judge(valid[key])
        problems += found
    for section, declared in SECTIONS.items():
        valid[section], found = _section(section, declared, config.get(section))
        problems += found
    for group in GROUPS:
        valid[group], found = validate_node(group, config.get(group))
        problems += found
    if valid["optimizer"]:
        valid["optimizer"]["groups"], found = group_problems(valid["optimizer"])
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
    task = config["task"]
    if task == "auto":
        task = REGISTRIES["model"].get(config["model"]["name"]).facts.get("task", "auto")
    return problems + task_problems(config, task)


def _init_from(value: Any) -> tuple[Any, list[Problem]]:
    """The node of `init_from`, and what is wrong with it and with the config of a pretraining inside it."""
    node, problems = transfer.init_from(value)
    if problems or node is None or node["config"] is None:
        return node, problems
    config, problems = validate(node["config"])
    return {**node, "config": config}, [replace(problem, where=f"init_from.config.{problem.where}") for problem in problems]


def _metrics(wanted: Any) -> tuple[Any, list[Problem]]:
    """`auto`, or the list of metrics with the defaults of those nodes that have settings filled in; and what is wrong with it."""
    if wanted == "auto":
        return wanted, []
    if not isinstance(wanted, list):
        known = REGISTRIES["metrics"].names()
        fits = wanted in known if isinstance(wanted, str) else False
        message = f"must be auto or a list of metrics, such as [acc,{{name: top_k, k: 3}}], got {wanted!r}"
        return wanted, [Problem("metrics", message, (f"metrics=[{wanted}]",) if fits else nearest(str(wanted), ["auto"]))]
    valid, problems = [], []
    for index, entry in enumerate(wanted):
        node, found = _metric(entry, f"metrics[{index}]")
        problems += found
        valid.append(node if isinstance(entry, Mapping) else entry)
    names = [entry["name"] if isinstance(entry, Mapping) else entry for entry in valid] if not problems else []
    twice = dict.fromkeys(name for name in names if names.count(name) > 1)
    return valid, problems + [Problem("metrics", f"holds {name} more than once") for name in twice]


def _metric(entry: Any, where: str) -> tuple[dict[str, Any], list[Problem]]:
    """One metric of the list as a node; `where` is its config path."""
    node = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(node, Mapping) or not isinstance(node.get("name"), str):
        return {}, [Problem("metrics", f"must hold names, or settings as {{name: top_k, k: 3}}, got {entry!r}")]
    known, name = REGISTRIES["metrics"].names(), node["name"]
    if name not in known:
        return {}, [Problem("metrics", f"no metric is called {name!r}; there are: {', '.join(known)}", nearest(name, known))]
    settings = component_settings(REGISTRIES["metrics"].get(name))
    valid, problems = settings.validate({key: value for key, value in node.items() if key != "name"}, where)
    return {"name": name, **valid}, problems


def metric_nodes(config: Keyed, task: str) -> list[dict[str, Any]]:
    """The metrics that a config asks for, or the task's own, as nodes `{"name": …, settings}`."""
    wanted = REGISTRIES["task"].get(task).facts["metrics"] if config["metrics"] == "auto" else config["metrics"]
    return [{"name": entry} if isinstance(entry, str) else dict(entry) for entry in wanted]


def _metric_names(config: Keyed, task: str) -> list[str]:
    """What is measured beside the loss; while the task is `auto`, of whatever task."""
    tasks = [task] if task != "auto" else REGISTRIES["task"].names()
    return list(dict.fromkeys(node["name"] for known in tasks for node in metric_nodes(config, known)))


def _monitor_problems(config: Keyed, task: str) -> list[Problem]:
    """What is wrong with a monitor that is not measured; while the task is `auto`, not measured whatever the task is."""
    names, chosen = _metric_names(config, task), config["checkpoint"]["monitor"]
    monitors = ["auto", "val/loss", *(f"val/{name}" for name in names)]
    if chosen in monitors:
        return []
    metric = chosen.removeprefix("val/")
    there = metric in REGISTRIES["metrics"] and chosen.startswith("val/")
    if there and config["metrics"] == "auto":
        sure = "are" if task != "auto" else "may be"
        message = f"with metrics=auto {', '.join(monitors[1:])} {sure} measured, not {chosen}; {to_measure(metric, config, names, task)}"
        return [Problem("checkpoint.monitor", message)]
    return [Problem("checkpoint.monitor", f"must be one of {', '.join(monitors)}, got {chosen!r}", nearest(chosen, monitors))]


def task_problems(config: Keyed, task: str) -> list[Problem]:
    """What of the config does not fit the task; while that is still `auto`, what fits none."""
    chosen = [("loss", config["loss"]["name"])]
    chosen += [("metrics", node["name"]) for node in metric_nodes(config, task)] if isinstance(config["metrics"], list) else []
    problems = _monitor_problems(config, task) + watch_problems(config, _metric_names(config, task), task)
    for group, name in chosen:
        if task == "auto" or name == "auto" or name not in REGISTRIES[group]:
            continue
        tasks = REGISTRIES[group].get(name).facts.get("tasks")
        if tasks is not None and task not in tasks:
            fitting = tuple(f"{other.name}" for other in REGISTRIES[group] if task in other.facts.get("tasks", [task]))
            problems.append(Problem(group, f"{name} is for {' and '.join(tasks)}, the task is {task}", fitting))
    return problems
