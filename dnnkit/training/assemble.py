"""From a config and its data to a module ready to train; whatever does not fit together is found here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dnnkit.config import Config
from dnnkit.config.groups import entries, has_decay
from dnnkit.config.lengths import limited
from dnnkit.config.schedule import direction, watched
from dnnkit.config.sections import Trainer, metric_nodes, task_problems
from dnnkit.data import DataSet, Source, prepare
from dnnkit.data.augmentation import Augmentation
from dnnkit.data.loaders import EVALUATION_BATCH
from dnnkit.data.memory import footprint, streams
from dnnkit.data.resident import Augment
from dnnkit.data.scaling import Scaling
from dnnkit.data.tasks import task_named
from dnnkit.errors import ConfigError, PluginError, Problem
from dnnkit.network import component
from dnnkit.network.freezing import freezing
from dnnkit.network.groups import Grouping
from dnnkit.network.stochastic import dropouts
from dnnkit.registry import REGISTRIES
from dnnkit.training.place import Place
from dnnkit.training.scheduling import make_schedule

if TYPE_CHECKING:
    from dnnkit.module import Module

Measure = Callable[[Tensor, Tensor], Tensor]


def load_data(cfg: Config, device: torch.device | None = None) -> DataSet:
    """The config's data, split and standardised, for training on `device` (default: the CPU).

    Raises DataError, and ConfigError where a split would be empty or where data, task, loss and metrics do not fit.
    """
    source = _source(cfg)
    task = cfg.task
    if task == "auto":
        task = REGISTRIES["model"].get(cfg.model.name).facts.get("task", "auto")
    stream = _streams(cfg, source, task, device or torch.device("cpu"))
    settings = {key: cfg.data[key] for key in ("val_size", "test_size", "train_size", "split", "standardize", "standardize_target")}
    data = prepare(cfg.data.name, source, **settings, seed=cfg.seed, task=task, stream=stream)
    task_named(data.task).check(cfg.data.name, data)
    problems = task_problems(cfg, data.task)
    if problems:
        raise ConfigError(problems)
    return data


def _streams(cfg: Config, source: Source, task: str, device: torch.device) -> bool:
    data, trainer = cfg.data, cfg.trainer
    in_memory, on_device = footprint(sum(given.x.numel() for _, given in source.splits()), str(trainer.precision), task, device)
    # The ranks of one machine prepare their copies in the same memory; each has a GPU of its own.
    return streams(data.loader, in_memory * trainer.devices, on_device, data.memory_share, device)


def _source(cfg: Config) -> Source:
    node = cfg.data
    make, record = component("data", node), REGISTRIES["data"].get(node.name)
    assert make is not None
    offered = {"task": cfg.task} if "task" in record.offered else {}
    source = make(Path(node.root).expanduser() if node.root is not None else None, **offered)
    if not isinstance(source, Source):
        message = f"data={node.name} ({record.origin}) has to return a dnnkit.data.Source, it returned {type(source).__name__}"
        raise PluginError(message)
    return source


def augment(cfg: Config) -> Augment | None:
    """The chosen augmentation of training examples, or None."""
    change = component("augmentation", cfg.augmentation)
    return None if change is None else Augmentation(change, cfg.seed)


def check_batches(cfg: Config, data: DataSet, network: nn.Module) -> None:
    """ConfigError for minibatches that the network cannot be trained on, or that have too little for every device."""
    trainer, size, rows = cfg.trainer, cfg.data.batch_size, len(data.train.y)
    _check_limits(trainer, math.ceil(rows / size), math.ceil(len(data.validation.y) / EVALUATION_BATCH))
    place = Place.of_torchrun()
    devices = trainer.devices if place is None else place.world
    batch_norm = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())
    apart = batch_norm and not trainer.sync_batch_norm
    least = max(devices * (2 if apart else 1), 2 if batch_norm else 1)
    if (rows % size or size) >= least:
        return
    larger = (f"data.batch_size={other}" for other in range(size + 1, rows + 1) if (rows % other or other) >= least)
    each = "one example on each device" if devices > 1 else "one example"
    why = "two examples on each device, whose variance batch normalization takes" if apart and devices > 1 else each
    why = "two examples, whose variance batch normalization takes" if batch_norm and least == 2 else why
    message = f"leaves a minibatch of {rows % size or size} out of {rows} examples, and every minibatch needs {why}, got {size}"
    raise ConfigError([Problem("data.batch_size", message, tuple(islice(larger, 1)))])


def _check_limits(trainer: Trainer, training: int, validation: int) -> None:
    """ConfigError for a share of an epoch that is less than a minibatch, or a distance between validations that is longer than it."""
    problems = []
    for key, there in (("limit_train_batches", training), ("limit_val_batches", validation), ("val_check_interval", training)):
        wanted = trainer[key]
        if isinstance(wanted, float) and int(wanted * there) < 1:
            message = f"takes less than one of {there} {'validation' if there is validation else 'training'} minibatches, got {wanted}"
            problems.append(Problem(f"trainer.{key}", message, (f"trainer.{key}=1",)))
    interval, limit = trainer.val_check_interval, trainer.limit_train_batches
    last = limited(limit, training)
    if isinstance(interval, int) and interval > last:
        message = f"must be at most {last}, the minibatches of an epoch, got {interval}"
        problems.append(Problem("trainer.val_check_interval", message, ("trainer.val_check_interval=1.0",)))
    if problems:
        raise ConfigError(problems)


def metric_names(cfg: Config, task: str) -> tuple[str, ...]:
    """The metrics that the config asks for, or the task's own."""
    return tuple(node["name"] for node in metric_nodes(cfg, task))


def panels(cfg: Config, task: str) -> dict[str, tuple[str, bool]]:
    """Of each metric what its axis is called, by the fact `label` or else by its name, and whether more of it is better."""
    labels = {name: REGISTRIES["metrics"].get(name).facts.get("label") for name in metric_names(cfg, task)}
    return {name: (label or name.replace("_", " ").capitalize(), direction(f"val/{name}") == "max") for name, label in labels.items()}


def monitor(cfg: Config, task: str) -> tuple[str, str]:
    """The validation metric that says which weights are best, and its direction, `min` or `max`."""
    chosen, mode = cfg.checkpoint.monitor, cfg.checkpoint.mode
    key = f"val/{next(iter(metric_names(cfg, task)), 'loss')}" if chosen == "auto" else chosen
    if mode != "auto":
        return key, mode
    return key, direction(key)


def check_monitor(cfg: Config, data: DataSet) -> None:
    """ConfigError where a metric that chooses the best weights, or cuts the rate, is not defined on this validation split.

    That is where it is NaN even of right answers.
    """
    _, metrics = measures(cfg, data.task, data.target_scaling)
    target, problems = data.validation.y[:], []
    right = task_named(data.task).right(target, data.outputs)
    for setting, key in (("checkpoint.monitor", monitor(cfg, data.task)[0]), ("scheduler.monitor", watched(cfg.scheduler))):
        metric = metrics.get(key.removeprefix("val/")) if key is not None else None
        if metric is not None and torch.isnan(metric(right, target)):
            message = f"{key} is not defined on these {len(target)} validation rows (a class is absent, or a value never changes)"
            problems.append(Problem(setting, message, (f"{setting}=val/loss", "data.split=stratified")))
    if problems:
        raise ConfigError(problems)


def check_dropout(cfg: Config, network: nn.Module) -> None:
    """ConfigError where Monte-Carlo dropout is asked for and there is no dropout in the network."""
    samples = cfg.dropout.mc_samples
    if samples and not dropouts(network):
        message = f"{samples} passes would all be the same: this network has no dropout"
        raise ConfigError([Problem("dropout.mc_samples", message, ("dropout=dropout", "dropout.mc_samples=0"))])


def check_measures(cfg: Config, data: DataSet) -> None:
    """Whatever the loss or a metric raises for outputs of this shape, such as ConfigError for `top_k` of few classes."""
    target = data.train.y[:2]
    loss, metrics = measures(cfg, data.task, data.target_scaling)
    for measure in (loss, *metrics.values()):
        measure(torch.zeros(len(target), data.outputs), target)


def check_augmentation(cfg: Config, data: DataSet) -> None:
    """Whatever the augmentation raises for examples of this shape, such as ConfigError for `flip` of a table, before training."""
    change = component("augmentation", cfg.augmentation)
    if change is None:
        return
    example = torch.zeros(data.inputs, dtype=torch.float32)
    changed = change(example, torch.Generator().manual_seed(0))
    if not isinstance(changed, Tensor) or changed.shape != example.shape:
        got = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
        record = REGISTRIES["augmentation"].get(cfg.augmentation.name)
        message = f"augmentation={record.name} ({record.origin}) has to keep the shape of an example, {data.inputs}, it returned {got}"
        raise PluginError(message)


def assemble(cfg: Config, network: nn.Module, data: DataSet) -> Module:
    """The LightningModule that trains `network` as the config says."""
    from dnnkit.module import Module, Recipe, Task
    from dnnkit.module.groups import Groups

    parts: dict[str, Any] = {group: component(group, cfg[group]) for group in ("optimizer", "clipping", "regularizer", "constraint")}
    scaling = data.target_scaling
    unit = None if scaling is None else scaling.std
    task = Task(*measures(cfg, data.task, scaling), cfg.dropout.mc_samples, unit, task_named(data.task))
    recipe = Recipe(
        parts["optimizer"],
        make_schedule(cfg, len(data.train.y)),
        parts["clipping"],
        parts["regularizer"],
        parts["constraint"],
        cfg.seed,
        Groups(grouping(cfg, network), cfg.optimizer.lr),
    )
    return Module(network, task, recipe, cfg.trainer.log_every_n_steps, freezing(network, cfg.freeze))


def grouping(cfg: Config, network: nn.Module) -> Grouping:
    """How the config divides the parameters of its network; those that are frozen for a while are by themselves."""
    optimizer = cfg.optimizer
    decay = (optimizer.weight_decay or 0.0) if has_decay(optimizer.name) else None
    return Grouping(entries(optimizer), decay, freezing(network, cfg.freeze).later())


def check_groups(cfg: Config, network: nn.Module) -> None:
    """ConfigError for entries of `optimizer.groups` that fit no parameter of this network, or that would change nothing."""
    problems = grouping(cfg, network).problems(network)
    if problems:
        raise ConfigError(problems)


def measures(cfg: Config, task: str, target_scaling: Scaling | None) -> tuple[Measure, dict[str, Measure]]:
    """The loss and the metrics by name, all of (prediction, target) as the network gives and takes them: standardised values, or logits."""
    loss: Mapping[str, Any] = cfg.loss if cfg.loss.name != "auto" else {"name": REGISTRIES["task"].get(task).facts["loss"]}
    metrics: dict[str, Measure] = {node["name"]: _of("metrics", node) for node in metric_nodes(cfg, task)}
    if target_scaling is not None:
        metrics = {name: _InUnits(metric, target_scaling) for name, metric in metrics.items()}
    return _of("loss", loss), metrics


class _InUnits:
    """A metric of standardised predictions and targets, measured in the target's own units.

    In float64 where the device has it: of years around 2000, float32 keeps three decimals.
    """

    def __init__(self, metric: Callable[[Tensor, Tensor], Tensor], scaling: Scaling) -> None:
        self._metric, self._scaling = metric, scaling

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        dtype = torch.float32 if target.device.type == "mps" else torch.float64
        std, mean = (part.to(target.device, dtype) for part in (self._scaling.std, self._scaling.mean))
        return self._metric(prediction.to(dtype) * std + mean, target.to(dtype) * std + mean)


def _of(group: str, values: Mapping[str, Any]) -> partial[Tensor]:
    made = component(group, values)
    assert isinstance(made, partial)
    return made
