"""From a config and its data to a module ready to train; whatever does not fit together is found here."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dnnkit.config import Config, Trainer
from dnnkit.data import DataSet, Source, prepare
from dnnkit.errors import ConfigError, PluginError, Problem
from dnnkit.network import component
from dnnkit.registry import REGISTRIES

if TYPE_CHECKING:
    from dnnkit.module import Module

_DEFAULT_LOSS = {"classification": "cross_entropy"}
_DEFAULT_METRICS = {"classification": ("acc",)}


def load_data(cfg: Config) -> DataSet:
    """The config's data, split and standardised. Raises DataError, and ConfigError where a split would be empty."""
    values = cfg.values["data"]
    make = component("data", values)
    assert make is not None
    source = make(Path(values["root"]).expanduser() if values["root"] is not None else None)
    if not isinstance(source, Source):
        origin = REGISTRIES["data"].get(values["name"]).origin
        raise PluginError(f"data={values['name']} ({origin}) has to return a dnnkit.data.Source, it returned {type(source).__name__}")
    sizes = {key: values[key] for key in ("val_size", "test_size", "split", "standardize")}
    return prepare(values["name"], source, **sizes, seed=cfg.values["seed"])


def choose_device(trainer: Trainer) -> torch.device:
    """The device that `trainer=auto|cpu|gpu` means here; ConfigError for a GPU where there is none."""
    gpu = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
    if trainer.name == "gpu" and gpu is None:
        raise ConfigError([Problem("trainer", "there is no GPU that PyTorch can use here", ("trainer=cpu", "trainer=auto"))])
    if trainer.name == "cpu" or gpu is None:
        return torch.device("cpu")
    if str(trainer.precision) == "64" and gpu == "mps":
        raise ConfigError([Problem("trainer.precision", "must be 32 or bf16 on Apple's GPU, got 64", ("trainer=cpu",))])
    return torch.device(gpu, 0)


def check_batches(cfg: Config, data: DataSet, network: nn.Module) -> None:
    """ConfigError for minibatches that the network cannot be trained on."""
    size, rows = cfg.values["data"]["batch_size"], len(data.train.y)
    batch_norm = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())
    if batch_norm and (rows % size == 1 or size == 1):
        better = next(other for other in range(size + 1, size + rows) if rows % other != 1)
        message = f"leaves a minibatch of one example out of {rows}, which has no variance for batch normalization"
        raise ConfigError([Problem("data.batch_size", f"{message}, got {size}", (f"data.batch_size={better}",))])


def metric_names(cfg: Config) -> tuple[str, ...]:
    """The metrics that the config asks for, or the task's own."""
    wanted = cfg.values["metrics"]
    return _DEFAULT_METRICS["classification"] if wanted == "auto" else tuple(wanted)


def monitor(cfg: Config) -> tuple[str, str]:
    """The validation metric that says which weights are best, and its direction, `min` or `max`."""
    chosen, mode = cfg.values["checkpoint"]["monitor"], cfg.values["checkpoint"]["mode"]
    key = f"val/{next(iter(metric_names(cfg)), 'loss')}" if chosen == "auto" else chosen
    if mode != "auto":
        return key, mode
    name = key.removeprefix("val/")
    rises = name in REGISTRIES["metrics"] and REGISTRIES["metrics"].get(name).facts.get("better", "higher") == "higher"
    return key, "max" if rises else "min"


def assemble(cfg: Config, network: nn.Module) -> Module:
    """The LightningModule that trains `network` as the config says."""
    from dnnkit.module import Module, Recipe, Task

    values = cfg.values
    loss = values["loss"] if values["loss"]["name"] != "auto" else {"name": _DEFAULT_LOSS["classification"]}
    metrics = {name: REGISTRIES["metrics"].get(name).function for name in metric_names(cfg)}
    parts: dict[str, Any] = {
        group: component(group, values[group]) for group in ("optimizer", "scheduler", "clipping", "regularizer", "constraint")
    }
    task = Task(_of("loss", loss), metrics)
    recipe = Recipe(parts["optimizer"], parts["scheduler"], parts["clipping"], parts["regularizer"], parts["constraint"], values["seed"])
    return Module(network, task, recipe, log_every=values["trainer"]["log_every_n_steps"])


def _of(group: str, values: dict[str, Any]) -> partial[Tensor]:
    made = component(group, values)
    assert isinstance(made, partial)
    return made
