"""One run, from config to record: everything that can be wrong is found first, then the folder, the sender, the training."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from rich.console import Console
from torch import nn

from dnnkit import plugins
from dnnkit.config import Config, Tracking, Trainer
from dnnkit.console import open_console
from dnnkit.data import DataSet
from dnnkit.disk import in_passing
from dnnkit.errors import DivergedError, DnnkitError, Interrupted
from dnnkit.lint import Finding, lint, refuse
from dnnkit.network import build_network, chosen_initializers, remarks
from dnnkit.network.freezing import freezing
from dnnkit.network.groups import group_lines
from dnnkit.record import RunFolder, new_run
from dnnkit.record.identity import DnnkitStatus, Status, scrub, strip_credentials
from dnnkit.record.signal import write_findings, write_panels
from dnnkit.record.title import command, title
from dnnkit.sender import Sender, resolve_uri
from dnnkit.training.assemble import (
    assemble,
    check_augmentation,
    check_batches,
    check_dropout,
    check_groups,
    check_measures,
    check_monitor,
    grouping,
    load_data,
    panels,
)
from dnnkit.training.crowd import sharing
from dnnkit.training.devices import check_world, choose_device, choose_threads, computing_with, threads_to_prepare
from dnnkit.training.own import importing_lightning
from dnnkit.training.place import Place
from dnnkit.training.pretraining import once
from dnnkit.training.ranks import Ranks
from dnnkit.training.report import report
from dnnkit.training.result import Result
from dnnkit.training.scheduling import check_schedule, total_steps
from dnnkit.training.senders import Senders
from dnnkit.training.signals import give_signals, take_signals
from dnnkit.training.summary import absent_classes, data_lines, layers, table
from dnnkit.training.transfer import begin

if TYPE_CHECKING:
    from dnnkit.module import Module

log = logging.getLogger("dnnkit")


@dataclass(frozen=True)
class Prepared:
    """A run that has been found possible; nothing has been made for it yet.

    `uri` is where MLflow is, credentials included; `cfg` is what may be written down, without them. `said`: where the
    weights are from and which of them are frozen, in lines. `findings` are the linter's. `threads`: of the CPU, to train with,
    and a word on their number where the rule does not give it.
    """

    cfg: Config
    data: DataSet
    network: nn.Module
    device: torch.device
    trainer: Trainer
    tracking: Tracking
    uri: str | None
    said: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    threads: int = 1
    threads_because: str = ""


def build(cfg: Config) -> Module:
    """The LightningModule that a config describes, with its initial weights.

    `module(x)` maps standardised x of shape `(batch, *inputs)` to logits of shape `(batch, classes)`. The data are
    loaded, because they say how many inputs and classes there are. Raises DataError, ConfigError, PluginError.
    """
    run = prepare_run(cfg)
    return assemble(run.cfg, run.network.float(), run.data)


def prepare_run(
    cfg: Config, local_rank: int = 0, *, pretrain: Callable[[Prepared, str], Path] | None = None, resumed: bool = False
) -> Prepared:
    """Find out everything that can go wrong before a folder, a process or an MLflow run is made; then the weights to begin with.

    `pretrain` trains a run that this one begins with and that has not been trained yet, as `init_from` may ask for.
    A resumed run has its weights from its checkpoint: where they were from at first plays no part.
    """
    run = _possible(cfg, local_rank)
    if resumed or cfg.init_from is None:
        return run
    return begin(run, _possible, pretrain)


def _possible(cfg: Config, local_rank: int = 0) -> Prepared:
    trainer = cfg.trainer
    check_world(trainer)
    device = choose_device(trainer, local_rank)
    with computing_with(threads_to_prepare(trainer)):
        run = _prepared(cfg, trainer, device)
    minibatch = min(cfg.data.batch_size, len(run.data.train.y))
    threads, reason = choose_threads(trainer, run.network, run.data.inputs, minibatch, device)
    return replace(run, threads=threads, threads_because=reason)


def _prepared(cfg: Config, trainer: Trainer, device: torch.device) -> Prepared:
    tracking = cfg.tracking
    data = load_data(cfg, device)
    check_measures(cfg, data)
    check_augmentation(cfg, data)
    check_monitor(cfg, data)
    check_schedule(cfg, data)
    network = build_network(cfg.changed(task=data.task), data.inputs, data.outputs, cfg.seed)
    check_batches(cfg, data, network)
    check_dropout(cfg, network)
    frozen = freezing(network, cfg.freeze)
    frozen.apply(network, epoch=1)
    check_groups(cfg, network)
    findings = lint(cfg.values, network=network, data=data, steps=total_steps(cfg, len(data.train.y)))
    refuse(findings)
    uri = resolve_uri(tracking.uri, Path.cwd(), os.environ) if tracking.name == "mlflow" else None
    said = tuple(frozen.lines(trainer.max_epochs))
    return Prepared(_without_credentials(cfg), data, network, device, trainer, tracking, uri, said, tuple(findings))


def _without_credentials(cfg: Config) -> Config:
    uri = cfg.tracking.uri
    if uri is None:
        return cfg
    values = cfg.values
    values["tracking"]["uri"] = strip_credentials(uri)
    return Config(values, tuple(scrub(word, uri) for word in cfg.overrides), cfg.config_dir)


def train(
    cfg: Config,
    *,
    senders: Senders | None = None,
    sweep: str | None = None,
    swept: Collection[str] | None = None,
    console: Console | None = None,
) -> Result:
    """Train, validate, test on the best weights and record one run.

    `senders` serve several runs of one process, and whoever gives them settles with MLflow afterwards and says what came of
    it; without them the run starts its own, waits for MLflow, in bounded time, and prints the last lines that the command
    prints too. With `trainer.progress_bar=false` it prints nothing. `sweep` is the id of the sweep that the run belongs to, and
    `swept` the settings in which its jobs differ, which name the run in MLflow.
    Raises DnnkitError by kind; whatever is raised after the run folder was made is recorded in it first.
    """
    console = console or open_console(quiet=not cfg.trainer.progress_bar)
    if senders is not None:
        return _prepare_and_record(cfg, senders, sweep, swept, console)
    with Senders() as own:
        if cfg.tracking.name == "mlflow":
            own.warm()
        result = own.settle(_prepare_and_record(cfg, own, sweep, swept, console))
        report(result, console)
        return result


def _prepare_and_record(cfg: Config, senders: Senders, sweep: str | None, swept: Collection[str] | None, console: Console) -> Result:
    def pretrain(run: Prepared, told: str) -> Path:
        return once(run, told, lambda: _record(run, senders, None, None, console).run_dir, console)

    return _record(prepare_run(cfg, pretrain=pretrain), senders, sweep, swept, console)


def _record(run: Prepared, senders: Senders, sweep: str | None, swept: Collection[str] | None, console: Console) -> Result:
    sender = senders.start(run.uri)
    folder = new_run(
        Path(run.tracking.runs),
        run.cfg.name,
        experiment=run.tracking.experiment,
        tracking_uri=run.uri,
        log_model=run.tracking.log_model,
        signal=run.tracking.signal,
        title=title(run.cfg.name, run.cfg.overrides, swept),
        command=command(run.cfg.overrides, run.cfg.config_dir),
    )
    return carry_out(run, folder, lambda: _describe(folder, run, sweep), senders, sender, console)


def carry_out(run: Prepared, folder: RunFolder, describe: Callable[[], None], senders: Senders, sender: Sender, console: Console) -> Result:
    """Train in a run folder whose record says RUNNING, after `describe` has written what is known before; its end is recorded."""
    before: dict[int, Any] = {}
    try:
        with _ending(folder):
            before = _interruptible()
            with folder.log(), computing_with(run.threads):
                describe()
                senders.announce(sender, folder.path, run.tracking.wait_s)
                with sharing(run.threads):
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
        with in_passing():
            folder.finish(*_verdict(error))
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
    folder.write_tags(run.cfg.values, **equipment(run), sweep=sweep)
    card = run.data.card
    values = run.data.train.y.shape[1] if len(run.data.train.y.shape) > 1 else None
    folder.write_dataset(card["name"], run.data.fingerprint, origin=card["origin"], inputs=run.data.inputs, values=values, card=card)
    write_findings(folder.path, run.findings)
    write_panels(folder.path, panels(run.cfg, run.data.task))
    log.info("task: %s; data: %s, %s", card["task"], card["name"], card["loader"])
    for name in absent_classes(card):
        log.warning("no training example is of class %s: it cannot be learned", name)
    for decision in card.get("decisions", ()):
        log.info("data: %s", decision)
    log.info("initializers: %s", ", ".join(f"{name} for {layer}" for layer, name in chosen_initializers(run.network).items()))
    for line in _grouped(run):
        log.info("parameters: %s", line)
    for line in run.said:
        log.info("weights: %s", line)
    for line in _warnings(run):
        log.info("lint: %s", line)
    for layer, remark in remarks(run.network).items():
        log.info("%s: %s", layer, remark)
    for plugin in plugins.failed():
        log.warning("the plugin %r of %s failed to load: %s", plugin.name, plugin.package, plugin.error)


def _warnings(run: Prepared) -> list[str]:
    return [line for finding in run.findings if finding.severity == "warning" for line in finding.lines()]


def _grouped(run: Prepared) -> list[str]:
    return group_lines(grouping(run.cfg, run.network), run.network, clips=run.cfg.clipping.name != "none")


def equipment(run: Prepared) -> dict[str, Any]:
    """The tags that say with what a run computes: the device's name, and the version of each plugin package."""
    versions = {plugin.package: plugin.version for plugin in plugins.load() if not plugin.error}
    return {"device": torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else run.device.type, "plugins": versions}


def _execute(run: Prepared, folder: RunFolder, console: Console) -> tuple[dict[str, float], Module]:
    """Train, test on the best weights; the final metrics and the module."""
    try:
        with Ranks(run.trainer, folder) as ranks:
            # Lightning takes seconds to import: by now the sender has begun to import MLflow beside it, and other ranks PyTorch.
            with importing_lightning():
                from dnnkit.training.fit import fit_and_test

            for line in data_lines(run.data.card):
                console.print(line, highlight=False, markup=False, soft_wrap=True)
            console.print(table(layers(run.network, run.data.inputs)))
            for line in run.said:
                console.print(line, highlight=False, markup=False, soft_wrap=True)
            for line in _grouped(run):
                console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
            for line in _warnings(run):
                console.print(line, highlight=False, markup=False, soft_wrap=True)
            module = assemble(run.cfg, run.network, run.data)
            place = ranks.join(run.device, run.cfg.values, run.data.fingerprint, run.network)
            _say_how(run, place, console)
            metrics = fit_and_test(run.cfg, run.trainer, run.data, module, run.device, folder, console, place)
    except Exception:
        log.info("the run ended early", exc_info=True)  # the terminal gets one message, from whoever catches the error
        raise
    return metrics, module


def _say_how(run: Prepared, place: Place, console: Console) -> None:
    """With how many threads a CPU computes; on several devices, what is not as on one."""
    for text in _how(run, place):
        log.info("%s", text)
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    if place.world == 1:
        return
    normalizing = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in run.network.modules())
    if normalizing and not run.trainer.sync_batch_norm:
        how = "trainer.sync_batch_norm=true normalizes over the whole minibatch; checkpoints hold the first rank's moving statistics"
        log.warning("each of the %d devices normalizes its own share of a minibatch: %s", place.world, how)


def _how(run: Prepared, place: Place) -> Iterator[str]:
    count, on_cpu = torch.get_num_threads(), run.device.type == "cpu"
    counted = f"{count} CPU thread{'s' if count > 1 else ''}"
    because = f": {run.threads_because}" if run.threads_because else ""
    if place.world > 1:
        threads = f", {counted} each" if on_cpu else ""
        yield f"{place.world} ranks{threads}: each takes its share of every minibatch of {run.cfg.data.batch_size}"
        if because:
            yield f"{counted}{because}"
    elif on_cpu:
        yield counted + (f" (trainer.threads=auto{because})" if run.trainer.threads == "auto" else "")


def _interruptible() -> dict[int, Any]:
    """From now on a signal ends the run as an Interrupted, which is recorded; the handlers of before."""

    def handle(number: int, _frame: FrameType | None) -> NoReturn:
        raise Interrupted(number, f"stopped by {signal.Signals(number).name} before or after training")

    return take_signals(handle)
