"""One run, from config to record: everything that can be wrong is found first, then the folder, the sender, the training."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from rich.console import Console
from torch import nn

from dnnkit import plugins
from dnnkit.config import Config, Tracking, Trainer
from dnnkit.data import DataSet
from dnnkit.errors import DivergedError, DnnkitError, Interrupted
from dnnkit.network import build_network, chosen_initializers
from dnnkit.record import RunFolder, new_run
from dnnkit.record.identity import DnnkitStatus, Status, scrub, strip_credentials
from dnnkit.sender import resolve_uri
from dnnkit.training.assemble import assemble, check_batches, choose_device, load_data
from dnnkit.training.senders import Result, Senders
from dnnkit.training.signals import give_signals, take_signals
from dnnkit.training.summary import layers, table

if TYPE_CHECKING:
    from dnnkit.module import Module

log = logging.getLogger("dnnkit")


@dataclass(frozen=True)
class Prepared:
    """A run that has been found possible; nothing has been made for it yet.

    `uri` is where MLflow is, credentials included; `cfg` is what may be written down, without them.
    """

    cfg: Config
    data: DataSet
    network: nn.Module
    device: torch.device
    trainer: Trainer
    tracking: Tracking
    uri: str | None


def build(cfg: Config) -> Module:
    """The LightningModule that a config describes, with its initial weights.

    `module(x)` maps standardised x of shape `(batch, *inputs)` to logits of shape `(batch, classes)`. The data are
    loaded, because they say how many inputs and classes there are. Raises DataError, ConfigError, PluginError.
    """
    return assemble(cfg, prepare_run(cfg).network)


def prepare_run(cfg: Config) -> Prepared:
    """Find out everything that can go wrong before a folder, a process or an MLflow run is made."""
    trainer, tracking = Trainer(**cfg.values["trainer"]), Tracking(**cfg.values["tracking"])
    device = choose_device(trainer)
    data = load_data(cfg)
    network = build_network(cfg.values, data.inputs, data.outputs, cfg.values["seed"])
    check_batches(cfg, data, network)
    uri = resolve_uri(tracking.uri, Path.cwd(), os.environ) if tracking.name == "mlflow" else None
    return Prepared(_without_credentials(cfg), data, network, device, trainer, tracking, uri)


def _without_credentials(cfg: Config) -> Config:
    uri = cfg.values["tracking"]["uri"]
    if uri is None:
        return cfg
    values = {**cfg.values, "tracking": {**cfg.values["tracking"], "uri": strip_credentials(uri)}}
    return Config(values, tuple(scrub(word, uri) for word in cfg.overrides))


def train(cfg: Config, *, senders: Senders | None = None, sweep: str | None = None, console: Console | None = None) -> Result:
    """Train, validate, test on the best weights and record one run.

    `senders` serve several runs of one process, and whoever gives them settles with MLflow afterwards; without them the
    run starts its own and waits for MLflow, in bounded time. `sweep` is the id of the sweep that the run belongs to.
    Raises DnnkitError by kind; whatever is raised after the run folder was made is recorded in it first.
    """
    console = console or Console(quiet=not cfg.values["trainer"]["progress_bar"])
    threads = torch.get_num_threads()
    try:
        if cfg.values["trainer"]["threads"] is not None:
            torch.set_num_threads(cfg.values["trainer"]["threads"])
        run = prepare_run(cfg)
        if senders is not None:
            return _record(run, senders, sweep, console)
        with Senders() as own:
            result = _record(run, own, sweep, console)
            return own.settle(result)
    finally:
        torch.set_num_threads(threads)


def _record(run: Prepared, senders: Senders, sweep: str | None, console: Console) -> Result:
    sender = None if run.uri is None else senders.start(run.uri)
    before: dict[int, Any] = {}
    try:
        folder = new_run(
            Path(run.tracking.runs),
            run.cfg.values["name"],
            experiment=run.tracking.experiment,
            tracking_uri=run.uri,
            log_model=run.tracking.log_model,
        )
        with _ending(folder):
            before = _interruptible()
            with folder.log():
                _describe(folder, run, sweep)
                if sender is not None:
                    senders.announce(sender, folder.path, run.tracking.wait_s)
                metrics, module = _execute(run, folder, console)
            folder.finish("FINISHED", "finished", 0)
        return Result(metrics, None, folder.path, module, folder.record.uuid, folder.record.tracking_uri)
    finally:
        give_signals(before)


@contextmanager
def _ending(folder: RunFolder) -> Iterator[None]:
    """Whatever ends the run is written into its folder before it goes on."""
    try:
        yield
    except BaseException as error:
        status, dnnkit_status, code = _verdict(error)
        folder.finish(status, dnnkit_status, code)
        raise


def _verdict(error: BaseException) -> tuple[Status, DnnkitStatus, int]:
    if isinstance(error, Interrupted):
        return "KILLED", "interrupted", error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "KILLED", "interrupted", 130
    if isinstance(error, DivergedError):
        return "FAILED", "diverged", error.exit_code
    return "FAILED", "failed", error.exit_code if isinstance(error, DnnkitError) else 1


def _describe(folder: RunFolder, run: Prepared, sweep: str | None) -> None:
    """Everything about the run that is known before it starts."""
    folder.write_config(run.cfg.values, run.cfg.overrides)
    folder.write_environment(str(run.device))
    versions = {plugin.package: plugin.version for plugin in plugins.load() if not plugin.error}
    device = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else run.device.type
    folder.write_tags(run.cfg.values, device=device, plugins=versions, sweep=sweep)
    card = run.data.card
    folder.write_dataset(card["name"], run.data.fingerprint, origin=card["origin"], inputs=run.data.inputs, card=card)
    log.info("initializers: %s", ", ".join(f"{name} for {layer}" for layer, name in chosen_initializers(run.network).items()))
    for plugin in plugins.failed():
        log.warning("the plugin %r of %s failed to load: %s", plugin.name, plugin.package, plugin.error)


def _execute(run: Prepared, folder: RunFolder, console: Console) -> tuple[dict[str, float], Module]:
    """Train, test on the best weights, draw; the final metrics and the module."""
    # Lightning takes seconds to import: by now the sender is importing MLflow beside it.
    from dnnkit.training.fit import fit_and_test

    console.print(table(layers(run.network, run.data.inputs)))
    module = assemble(run.cfg, run.network)
    try:
        metrics = fit_and_test(run.cfg, run.trainer, run.data, module, run.device, folder, console)
    except Exception:
        log.info("the run ended early", exc_info=True)  # the terminal gets one message, from whoever catches the error
        raise
    return metrics, module


def _interruptible() -> dict[int, Any]:
    """From now on a signal ends the run as an Interrupted, which is recorded; the handlers of before."""

    def handle(number: int, _frame: FrameType | None) -> NoReturn:
        raise Interrupted(number, f"stopped by {signal.Signals(number).name} before or after training")

    return take_signals(handle)
