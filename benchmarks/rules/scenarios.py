"""The runs in which rules are tried: a config that breaks a rule, and the same config with what the rule itself says mends it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import dnnkit
from dnnkit.lint import Finding
from dnnkit.registry import REGISTRIES
from dnnkit.training.check import check_run

#: Every run begins with these: the fewest rows and the smallest networks that tell good from bad.
COMMON = ("data=fashion_mnist", "data.train_size=10000", "data.val_size=1000", "data.batch_size=128", "trainer.max_epochs=3")
SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Scenario:
    """`bad` breaks `rule`, on top of COMMON; `about` is what it is, as the page says it. `seeds` are none where it is not measured.

    `instead` is what is tried where the rule offers nothing, because that was measured not to help.
    """

    rule: str
    about: str
    bad: str
    seeds: Sequence[int] = SEEDS
    instead: str = ""

    def overrides(self, *common: str) -> list[str]:
        return [*common, *shlex.split(self.bad)]


def finding(scenario: Scenario, *common: str) -> Finding:
    """What the rule says about the bad config, also where it has to be asked for. ValueError where that is nothing."""
    config = dnnkit.compose([*scenario.overrides(*common), *asked_for(scenario.rule)])
    found = [one for one in check_run(config).findings if one.rule == scenario.rule]
    if not found:
        raise ValueError(f"the rule {scenario.rule} has nothing to say of {scenario.bad}")
    return found[0]


def asked_for(rule: str) -> tuple[str, ...]:
    """The override with which a rule is asked that speaks on request alone."""
    request = REGISTRIES["lint"].get(rule).facts.get("on_request")
    return (f"lint.severity={{{rule}: hint}}",) if request else ()


def tried(scenario: Scenario, found: Finding) -> list[str]:
    """What is typed behind the bad config. ValueError where neither the rule nor the scenario has any, or both have."""
    fix, instead = list(found.fault.fix), shlex.split(scenario.instead)
    if bool(fix) == bool(instead):
        raise ValueError(
            f"the rule {scenario.rule} has {shlex.join(fix) or 'nothing'} to mend {scenario.bad}: {shlex.join(instead) or 'nothing'}"
        )
    return fix or instead


def _deep(layers: int) -> str:
    """A multilayer perceptron, at a rate that suits most: with the default one, 0.05, momentum makes deep networks diverge."""
    return f"model.hidden=[100] model.repeat={layers} optimizer.lr=0.01"


_THREE, _FIVE, _TWENTY = _deep(3), _deep(5), _deep(20)
_LATE = "scheduler=multi_step scheduler.milestones=[30000,60000]"
_ADAM = "model.hidden=[100] model.repeat=3 optimizer=adam optimizer.lr=0.05"

#: Several of one rule where the first shows no harm.
SCENARIOS = (
    Scenario("activation_ranking", "20 ReLU layers", f"activation=relu {_TWENTY}"),
    Scenario("activation_ranking", "2 ReLU layers, as by default", "activation=relu"),
    Scenario(
        "accumulation_over_epoch",
        "5 SELU layers, an epoch of 5 minibatches",
        f"trainer.limit_train_batches=5 trainer.accumulate_grad_batches=8 {_FIVE}",
        seeds=(),
    ),
    Scenario("adaptive_rate", "3 ReLU layers, Adam", f"activation=relu {_ADAM}", instead="optimizer.lr=0.001"),
    Scenario("adaptive_rate", "3 ReLU layers, Adam, a rate of 0.1", f"activation=relu {_ADAM.replace('0.05', '0.1')}"),
    Scenario("adaptive_rate", "3 ReLU layers, Adam, minibatches of 64", f"activation=relu {_ADAM} data.batch_size=64"),
    Scenario("adaptive_rate", "3 ReLU layers, Adam, minibatches of 32", f"activation=relu {_ADAM} data.batch_size=32"),
    Scenario("alpha_dropout_without_selu", "5 ReLU layers", f"activation=relu dropout=alpha_dropout {_FIVE}"),
    Scenario(
        "decay_of_offsets",
        "5 ReLU layers, scale and offset of their batch normalization decayed",
        f"activation=relu normalization=batch_norm 'optimizer.groups=[{{role: norm, weight_decay: 0.1}}]' {_FIVE}",
    ),
    Scenario("deep_sigmoid", "8 sigmoid layers", f"activation=sigmoid {_deep(8)}"),
    Scenario(
        "he_before_saturation", "10 tanh layers", f"activation=tanh initializer=he_normal {_deep(10)}", instead="initializer=glorot_uniform"
    ),
    Scenario(
        "he_before_saturation",
        "3 sigmoid layers",
        f"activation=sigmoid initializer=he_normal {_THREE}",
        instead="initializer=glorot_uniform",
    ),
    Scenario("idle_early_stopping", "3 epochs", f"trainer.early_stopping=10 trainer.max_epochs=3 {_FIVE}", seeds=()),
    Scenario("idle_plateau", "3 epochs", f"scheduler=performance trainer.max_epochs=3 {_FIVE}", seeds=()),
    Scenario("narrow_weights_before_relu", "20 ReLU layers", f"activation=relu initializer=glorot_uniform {_TWENTY}"),
    Scenario("plain_sgd_at_depth", "20 SELU layers", f"optimizer=sgd {_TWENTY}"),
    Scenario("plain_sgd_at_depth", "20 ReLU layers, 5 epochs", f"activation=relu optimizer=sgd {_TWENTY} trainer.max_epochs=5"),
    Scenario(
        "redundant_bias",
        "5 ReLU layers, batch normalization",
        f"activation=relu normalization=batch_norm model.use_bias=true {_FIVE}",
        instead="model.use_bias=auto",
    ),
    Scenario(
        "schedule_length",
        "a stage that is longer than the run",
        f"scheduler=step scheduler.steps=100000 {_FIVE}",
        instead="scheduler.steps=null",
    ),
    Scenario(
        "schedule_length",
        "a decay that is longer than the run",
        f"scheduler=polynomial scheduler.steps=100000 {_FIVE}",
        instead="scheduler.steps=null",
    ),
    Scenario("schedule_length", "milestones after the run's end", f"{_LATE} {_FIVE}", instead="scheduler.milestones=[0.45,0.9]"),
    Scenario(
        "schedule_length",
        "milestones after the run's end, a rate of 0.03",
        f"{_LATE} {_FIVE.replace('0.01', '0.03')}",
        instead="scheduler.milestones=[0.45,0.9]",
    ),
    Scenario(
        "schedule_length", "a decay of one epoch in a run of five", f"scheduler=polynomial scheduler.steps=79 {_FIVE} trainer.max_epochs=5"
    ),
    Scenario("selu_constraint", "20 SELU layers", f"constraint=max_norm_1 {_TWENTY}", instead="constraint=none"),
    Scenario("selu_dropout", "5 SELU layers", f"dropout=dropout {_FIVE}", instead="dropout=alpha_dropout dropout.p=0.2"),
    Scenario(
        "selu_dropout",
        "20 SELU layers, less dropout",
        f"dropout=dropout dropout.p=0.05 {_TWENTY}",
        instead="dropout=alpha_dropout dropout.p=0.05",
    ),
    Scenario("selu_initializer", "20 SELU layers", f"initializer=he_normal {_TWENTY}"),
    Scenario("selu_inputs", "8 SELU layers, pixels from 0 to 255", f"data.standardize=none {_deep(8)}"),
    Scenario("selu_normalization", "20 SELU layers", f"normalization=batch_norm {_TWENTY}", instead="normalization=none"),
    Scenario("selu_penalty", "20 SELU layers, l2", f"regularizer=l2 {_TWENTY}", instead="regularizer=none"),
    Scenario("selu_penalty", "20 SELU layers, l1", f"regularizer=l1 {_TWENTY}"),
    Scenario("selu_penalty", "20 SELU layers, l1 and l2", f"regularizer=l1_l2 {_TWENTY}"),
    Scenario("selu_skip_connection", "2 residual blocks", "model=resmlp optimizer.lr=0.01", instead="activation=elu initializer=auto"),
    Scenario("selu_weight_decay", "20 SELU layers", f"optimizer.weight_decay=0.01 {_TWENTY}", instead="optimizer.weight_decay=0.0"),
    Scenario(
        "small_batch_norm",
        "3 ReLU layers, 1 epoch",
        f"activation=relu normalization=batch_norm data.batch_size=4 {_THREE} trainer.max_epochs=1",
    ),
    Scenario(
        "unsynchronised_batch_norm",
        "5 ReLU layers, two processes",
        f"activation=relu normalization=batch_norm trainer=ddp_cpu trainer.devices=2 {_FIVE}",
        instead="trainer.sync_batch_norm=true",
    ),
    Scenario(
        "wide_weights_before_saturation",
        "3 sigmoid layers, weights from N(0, 1)",
        f"activation=sigmoid initializer=normal {_THREE}",
        instead="initializer=glorot_uniform",
    ),
    Scenario("wide_weights_before_saturation", "3 tanh layers, weights from N(0, 1)", f"activation=tanh initializer=normal {_THREE}"),
    Scenario(
        "wide_weights_before_saturation",
        "3 softsign layers, weights from N(0, 1)",
        f"activation=softsign initializer=normal {_THREE}",
    ),
)
