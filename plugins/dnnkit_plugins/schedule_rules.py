"""Rules of the linter about the length of a run: what is longer than it, and so never comes.

Of what never comes the override makes the config say what the run does anyway: no number depends on it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from dnnkit.config.lengths import flushes, minibatches, validations
from dnnkit.config.schedule import WarmUp, watched
from dnnkit.data import DataSet
from dnnkit.lint import Fault
from dnnkit.registry import REGISTRIES, rules
from dnnkit_plugins.rule_parts import Config, remark


@rules.register("schedule_length")
def schedule_length(config: Config, steps: int) -> Iterator[Fault]:
    """A schedule whose own length is not that of the run does not do what it says: the rate never falls, or stops falling early.

    Steps are counted after the warm-up. One that is over before the run is trains on at its lowest rate, which was measured to do
    harm. Of a length, a stage or a boundary beyond the run's end this is a remark: the rate is the same as without it.
    Source: Smith & Topin 2019, whose cycle is the length of the run.
    """
    node = config["scheduler"]
    left = steps - WarmUp(node["warmup_steps"], node["warmup_start_factor"]).length(steps)
    run = f"the run has {left} optimizer steps" + (" after the warm-up" if left < steps else "")
    facts = REGISTRIES["scheduler"].get(node["name"]).facts
    length, stage, places = (f"{facts.get(fact, '')}" for fact in ("length", "stage", "boundaries"))
    if node.get(length) and node[length] != left:
        text = f"scheduler.{length}={node[length]} is the length of the schedule, and {run}"
        fault = Fault((f"scheduler.{length}",), text, (f"scheduler.{length}=null",))
        yield fault if node[length] < left else remark(fault, "schedule_length", "decay that is longer")
    if node.get(stage) and node[stage] >= left:
        text = f"scheduler.{stage}={node[stage]} is the length of one stage, and the run ends within the first: {run}"
        yield remark(Fault((f"scheduler.{stage}",), text), "schedule_length", "stage")
    late = [boundary for boundary in node.get(places) or () if isinstance(boundary, int) and boundary >= left]
    if late:
        text = f"scheduler.{places} has {late[0]}, which is never reached: {run}"
        yield remark(Fault((f"scheduler.{places}",), text), "schedule_length", "milestones")


@rules.register("idle_plateau")
def idle_plateau(config: Config, data: DataSet, steps: int) -> Iterator[Fault]:
    """A schedule that waits longer for an improvement than the run has measurements never cuts the rate: it is constant.

    The first measurement is the best so far, `patience` more may be no better, the next one cuts, and an update has to follow it.
    `constant` is what the run does. For the rate to be cut, the run takes more epochs or validations, or the patience is less.
    Source: Senior, Heigold, Ranzato & Yang 2013, who cut the rate of long runs so.
    """
    node = config["scheduler"]
    facts = REGISTRIES["scheduler"].get(node["name"]).facts
    patience, every = (str(facts.get(fact, "")) for fact in ("patience", "every"))
    key = watched(node)
    if key is None or patience not in node:
        return
    measured, first = _measurements(config, key, len(data.train.y), steps), (node[patience] + 2) * node.get(every, 1)
    if first > measured:
        text = f"scheduler.{patience}={node[patience]} can cut the rate after measurement {first} of {key} at the earliest"
        yield Fault((f"scheduler.{patience}",), f"{text}, and {_before_the_end(measured)}", ("scheduler=constant",))


def _measurements(config: Mapping[str, Any], key: str, rows: int, steps: int) -> int:
    """How often a metric is measured before the last update of a run."""
    return validations(config, rows) if key.startswith("val/") else flushes(config, steps)


def _before_the_end(count: int) -> str:
    return f"{f'only {count}' if count else 'none'} {'come' if count > 1 else 'comes'} before the last update"


@rules.register("idle_early_stopping")
def idle_early_stopping(config: Config, data: DataSet) -> Iterator[Fault]:
    """Early stopping that waits for more validations than the run has never stops it.

    The first validation is the best so far, and so many as the patience have to follow that are no better. Without early stopping
    the run is the same. For it to act, the run takes more epochs or validations, or the patience is less.
    Source: Prechelt 1998, who compares how long to wait.
    """
    patience, there = config["trainer"]["early_stopping"], validations(config, len(data.train.y))
    if patience is not None and patience + 1 > there:
        text = f"trainer.early_stopping={patience} can stop the run after validation {patience + 1} at the earliest"
        yield Fault(("trainer.early_stopping",), f"{text}, and {_before_the_end(there)}", ("trainer.early_stopping=null",))


@rules.register("accumulation_over_epoch")
def accumulation_over_epoch(config: Config, data: DataSet) -> Iterator[Fault]:
    """Gradients are not accumulated beyond the end of an epoch: of more minibatches than it has, an epoch makes one update.

    As many as it has make the same updates. Fewer make more of them.
    Source: Ott, Edunov, Grangier & Auli 2018, who accumulate to imitate more devices.
    """
    together, there = config["trainer"]["accumulate_grad_batches"], minibatches(config, len(data.train.y))
    if together > there:
        text = f"trainer.accumulate_grad_batches={together}, and an epoch has {there} minibatch{'es' if there > 1 else ''}"
        yield Fault(("trainer.accumulate_grad_batches",), text, (f"trainer.accumulate_grad_batches={there}",))
