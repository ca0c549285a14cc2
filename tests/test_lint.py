"""The linter: every rule has a config that breaks it and one that its override mends; what the design rules out needs no rule."""

from __future__ import annotations

import json
import random
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import dnnkit
from dnnkit import plugins
from dnnkit.cli.main import main
from dnnkit.config.loader import shipped
from dnnkit.config.schedule import schedule_of
from dnnkit.errors import ConfigError, PluginError
from dnnkit.lint import Fault, Finding, lint, refuse
from dnnkit.registry import REGISTRIES, rules
from dnnkit.training.check import check_run

plugins.load()


def layers(width: int, count: int) -> str:
    return f"model.hidden=[{','.join([str(width)] * count)}]"


RANKED = "lint.severity={activation_ranking: hint}"
#: For each rule, configs that break it, by themselves or with others, and for which it offers an override.
BROKEN: dict[str, list[list[str]]] = {
    "selu_initializer": [["initializer=he_normal"], ["initializer=glorot_uniform", "model.hidden=[16,64]"]],
    "selu_inputs": [["data.standardize=none"], ["data=wine", "data.standardize=none"]],
    "selu_penalty": [["regularizer=l1"], ["regularizer=l1_l2"]],
    "alpha_dropout_without_selu": [["activation=relu", "dropout=alpha_dropout", "dropout.p=0.3"]],
    "narrow_weights_before_relu": [
        ["activation=relu", "initializer=glorot_uniform", layers(30, 10)],
        ["activation=leaky_relu", "initializer=lecun_normal", layers(30, 11)],
    ],
    "wide_weights_before_saturation": [["activation=tanh", "initializer=normal"], ["activation=softsign", "initializer=normal"]],
    "deep_sigmoid": [["activation=sigmoid", layers(30, 6)]],
    "decay_of_offsets": [
        ["activation=relu", "optimizer.groups=[{role: bias, weight_decay: 0.01}]"],
        ["activation=relu", "normalization=batch_norm", "optimizer.groups=[{match: norm, weight_decay: 0.01}]"],
    ],
    "adaptive_rate": [["optimizer=adam", "optimizer.lr=0.05"], ["optimizer=nadam", "optimizer.lr=1", "data.batch_size=128"]],
    "plain_sgd_at_depth": [["optimizer=sgd", layers(20, 20)]],
    "schedule_length": [
        ["scheduler=polynomial", "scheduler.steps=10"],
        ["scheduler=polynomial", "scheduler.steps=500", "scheduler.warmup_steps=100"],
    ],
    "idle_plateau": [
        ["scheduler=performance", "trainer.max_epochs=10"],
        ["scheduler=performance", "scheduler.patience=3", "scheduler.every=5"],
        ["scheduler=performance", "scheduler.monitor=train/loss", "trainer.max_epochs=6"],
    ],
    "idle_early_stopping": [["trainer.early_stopping=30"], ["trainer.early_stopping=1", "trainer.max_epochs=2"]],
    "accumulation_over_epoch": [["trainer.accumulate_grad_batches=42"], ["data=iris", "trainer.accumulate_grad_batches=20"]],
    "small_batch_norm": [["activation=relu", "normalization=batch_norm", "data.batch_size=4"]],
    "activation_ranking": [["activation=relu", RANKED], ["activation=sigmoid", "normalization=batch_norm", RANKED]],
}
#: What a rule remarks without an override, since what was tried did not help.
REMARKED: dict[str, list[list[str]]] = {
    "selu_dropout": [["dropout=dropout"], ["dropout=dropout", "dropout.p=0.5"]],
    "selu_normalization": [["normalization=batch_norm"], ["normalization=layer_norm", "normalization.position=post"]],
    "selu_penalty": [["regularizer=l2"]],
    "selu_weight_decay": [["optimizer.weight_decay=0.001"], ["optimizer=adamw", "optimizer.weight_decay=0.01"]],
    "selu_constraint": [["constraint=max_norm"]],
    "selu_skip_connection": [["model=resmlp"]],
    "he_before_saturation": [["activation=tanh", "initializer=he_normal"], ["activation=sigmoid", "initializer=he_uniform"]],
    "wide_weights_before_saturation": [["activation=sigmoid", "initializer=normal"]],
    "redundant_bias": [["activation=relu", "normalization=batch_norm", "model.use_bias=true"]],
    "unsynchronised_batch_norm": [["activation=relu", "normalization=batch_norm", "trainer=ddp_cpu", "trainer.devices=2"]],
    "adaptive_rate": [["optimizer=adam", "optimizer.lr=0.099", "data.batch_size=65"]],
    "schedule_length": [
        ["scheduler=step", "scheduler.steps=100000"],
        ["scheduler=cosine_restarts", "scheduler.steps=100000"],
        ["scheduler=polynomial", "scheduler.steps=100000"],
        ["scheduler=multi_step", "scheduler.milestones=[50,500000]"],
        ["scheduler=piecewise", "scheduler.boundaries=[50,2000]", "scheduler.factors=[1,0.5,0.1]", "trainer.max_epochs=2"],
    ],
}
#: Close to a rule, on its right side.
RIGHT = {
    "selu_initializer": ["initializer=variance_scaling", "initializer.scale=1"],
    "selu_dropout": ["dropout=alpha_dropout"],
    "selu_normalization": ["activation=elu", "normalization=batch_norm"],
    "selu_penalty": ["activation=elu", "regularizer=l2"],
    "selu_skip_connection": ["model=resmlp", "activation=elu"],
    "narrow_weights_before_relu": ["activation=relu", "initializer=glorot_uniform", layers(30, 9)],
    "wide_weights_before_saturation": ["activation=sigmoid", "initializer=normal", "initializer.std=0.05"],
    "deep_sigmoid": ["activation=sigmoid", layers(30, 5)],
    "decay_of_offsets": ["activation=relu", "optimizer.groups=[{role: weight, weight_decay: 0.01}]"],
    "adaptive_rate": ["optimizer=adam", "optimizer.lr=0.049"],
    "plain_sgd_at_depth": ["optimizer=sgd", layers(20, 19)],
    "schedule_length": ["scheduler=polynomial", "scheduler.steps=720", "scheduler.warmup_steps=100"],  # of 820
    "idle_plateau": ["scheduler=performance", "trainer.max_epochs=13"],
    "idle_early_stopping": ["trainer.early_stopping=18"],
    "accumulation_over_epoch": ["trainer.accumulate_grad_batches=41"],
    "small_batch_norm": ["activation=relu", "normalization=batch_norm", "data.batch_size=8"],
    "unsynchronised_batch_norm": ["activation=relu", "normalization=layer_norm", "trainer=ddp_cpu", "trainer.devices=2"],
    "activation_ranking": ["activation=elu", "normalization=batch_norm", RANKED],
}
#: Experiments that show what goes wrong: the rules that say so before they are run.
DEMONSTRATIONS: dict[str, set[str]] = {
    "broken_deep_sigmoid": {"deep_sigmoid"},
    "broken_selu": {"selu_inputs", "selu_initializer"},
    "fashion/relu_100": {"plain_sgd_at_depth"},  # a hundred layers by plain SGD, as the classic has them
    "fashion/selu_100": {"plain_sgd_at_depth"},
    "fashion/selu_100_raw": {"plain_sgd_at_depth", "selu_inputs"},
    "note_000/vanishing": {"deep_sigmoid"},
    "note_002/rank_sigmoid": {"deep_sigmoid"},  # the last of the ranking
    "note_002/selu_with_l1": {"selu_penalty"},
}


def findings(*overrides: str) -> list[Finding]:
    return list(check_run(dnnkit.compose(overrides)).findings)


def broken(*overrides: str) -> set[str]:
    return {finding.rule for finding in findings(*overrides)}


def warnings(*overrides: str) -> list[Finding]:
    """The findings that say that something should be changed."""
    return [finding for finding in findings(*overrides) if finding.severity in ("error", "warning")]


def test_every_rule_has_a_config_that_breaks_it() -> None:
    # What the doctor alone can judge is broken and mended in test_doctor.
    asked_here = {record.name for record in REGISTRIES["lint"] if "clipped_gradients" not in record.offered}
    assert set(REGISTRIES["lint"].names()) - asked_here == {"clipping_bound"}
    assert {*BROKEN, *REMARKED} == asked_here
    assert set(RIGHT) <= asked_here


@pytest.mark.parametrize(("rule", "overrides"), [(rule, overrides) for rule, configs in BROKEN.items() for overrides in configs])
def test_a_rule_is_broken_and_what_it_offers_mends_it(rule: str, overrides: list[str]) -> None:
    [finding] = [finding for finding in findings(*overrides) if finding.rule == rule]
    assert finding.fault.fix
    mended = findings(*overrides, *finding.fault.fix)
    assert rule not in {other.rule for other in mended}
    # Nor is one fault mended by another.
    assert {other.rule for other in mended} <= {other.rule for other in findings(*overrides)}


@pytest.mark.parametrize(("rule", "overrides"), [(rule, overrides) for rule, configs in REMARKED.items() for overrides in configs])
def test_a_remark_offers_nothing_says_what_was_measured_and_ends_no_strict_run(rule: str, overrides: list[str]) -> None:
    [finding] = [finding for finding in findings(*overrides, "lint.strict=true") if finding.rule == rule]
    assert (finding.severity, finding.fix, finding.to_dict()["fix"]) == ("remark", "", ())
    first, _, said = finding.lines()
    assert first == f"remark: {finding.fault.found} [{rule}]"
    assert said.startswith("  measured: test accuracy on Fashion-MNIST, medians of five seeds: ")
    assert said == f"  measured: {finding.to_dict()['measured']}"


def test_parts_that_a_model_names_itself_are_blamed_on_it_and_no_override_is_offered_that_would_not_mend_them() -> None:
    given = "flatten,{dense: 20, activation: selu, initializer: he_normal},{normalization: batch_norm},{dropout: 0.2},{dense: auto}"
    words = ("model=sequential", f"model.layers=[{given}]")
    found = {finding.rule: finding.fault for finding in findings(*words)}
    assert set(found) == {"selu_initializer", "selu_normalization", "selu_dropout"}
    for fault in found.values():
        assert (fault.settings, fault.fix) == (("model.layers",), ())
        assert " of model.layers " in fault.found
    # A layer that names no initializer has that of the config, which an override does mend.
    words = ("model=sequential", "model.layers=[flatten,{dense: 20, activation: selu},{dense: auto}]", "initializer=he_normal")
    [finding] = findings(*words)
    assert finding.fix == "initializer=lecun_normal"
    assert broken(*words, finding.fix) == set()
    words = ("model=sequential", "model.layers=[flatten,{dense: 20, use_bias: true},{normalization: batch_norm},{dense: auto}]")
    [finding] = findings(*words)
    assert (finding.rule, finding.fault.settings, finding.fix) == ("redundant_bias", ("model.layers",), "")


@pytest.mark.parametrize(
    "words",
    [
        ("regularizer=l1", "regularizer.factor=0.02"),
        ("scheduler=performance", "scheduler.warmup_steps=10", "scheduler.patience=20"),
        ("activation=relu", "dropout=alpha_dropout", "dropout.mc_samples=3"),
        ("activation=tanh", "initializer=normal", "initializer.std=2"),
    ],
    ids=lambda words: words[-1],
)
def test_a_fix_mends_a_part_whose_settings_were_set(words: tuple[str, ...]) -> None:
    [finding] = findings(*words)
    assert finding.fault.fix
    assert findings(*words, *finding.fault.fix) == []


@pytest.mark.parametrize(
    ("layers", "severity", "blamed"),
    [
        ("{dense: 20, activation: tanh, initializer: lecun_normal},{dense: 20, activation: sigmoid, initializer: normal}", "remark", "01"),
        ("{dense: 20, activation: tanh, initializer: normal},{dense: 20, activation: sigmoid, initializer: lecun_normal}", "warning", "00"),
        ("{dense: 30, activation: sigmoid, initializer: normal},{dense: 20, activation: tanh, initializer: normal}", "warning", "01"),
    ],
)
def test_of_a_mixed_network_the_layers_with_wide_weights_decide_whether_they_are_remarked(layers: str, severity: str, blamed: str) -> None:
    """N(0, 1) is √fan_in times 1/√fan_in: 8 times of the 64 pixels, 5 times of 30 units."""
    found = findings("model=sequential", f"model.layers=[flatten,{layers},{{dense: auto}}]")
    [finding] = [finding for finding in found if finding.rule == "wide_weights_before_saturation"]
    assert finding.severity == severity
    assert f"the weights of {blamed}_dense, before a saturating unit" in finding.fault.found


def test_decay_of_a_group_of_a_selu_networks_weights_is_found() -> None:
    [finding] = findings("optimizer=adamw", "optimizer.weight_decay=0", "optimizer.groups=[{match: output, weight_decay: 0.01}]")
    assert (finding.rule, finding.fault.settings) == ("selu_weight_decay", ("optimizer.groups[0].weight_decay",))


@pytest.mark.parametrize("rule", RIGHT)
def test_a_rule_is_silent_on_its_right_side(rule: str) -> None:
    assert rule not in broken(*RIGHT[rule])


@pytest.mark.parametrize("rule", BROKEN)
def test_a_finding_says_what_is_there_why_whose_reason_it_is_and_what_to_type(rule: str) -> None:
    [finding] = [finding for finding in findings(*BROKEN[rule][0]) if finding.rule == rule]
    first, why, *rest, cure = finding.lines()
    assert rest == [f"  measured: {finding.fault.measured}"] * bool(finding.fault.measured)
    assert first == f"{finding.severity}: {finding.fault.found} [{rule}]"
    assert why.startswith(f"  {finding.reason.rstrip('.')} (")
    assert any(character.isdigit() for character in finding.source), "a source has a year"
    assert cure == f"  mend it: {finding.fix}"
    values: Any = dnnkit.compose(BROKEN[rule][0]).values
    for path in finding.fault.settings:
        node = values
        for key in path.replace("[0]", ".0").split("."):
            node = node[int(key)] if key.isdigit() else node[key]
    assert set(finding.to_dict()) == {"rule", "severity", "settings", "found", "fix", "measured", "reason", "source"}
    json.dumps(finding.to_dict())


def test_the_default_and_the_promised_experiments_are_clean() -> None:
    for overrides in ([], ["+experiment=selu_digits"], ["+experiment=diabetes_mlp"], ["data=iris"], ["data=breast_cancer"], ["model=cnn"]):
        assert findings(*overrides) == [], overrides


EXPERIMENTS = sorted(
    str(path.relative_to(shipped("conf") / "experiment").with_suffix("")) for path in (shipped("conf") / "experiment").rglob("*.yaml")
)


def test_the_demonstrations_are_experiments() -> None:
    assert set(DEMONSTRATIONS) <= set(EXPERIMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_rule_fires_on_an_experiment_that_is_no_demonstration_of_harm(name: str) -> None:
    cfg = dnnkit.compose([f"+experiment={name}"])
    own = cfg.values["data"]["name"]
    try:
        checked = check_run(cfg)
    except dnnkit.errors.DataError:
        pytest.skip(f"the data of {own} are not here")
    found = {finding.rule for finding in checked.findings if finding.severity == "warning"}
    wanted = DEMONSTRATIONS.get(name, set())
    if checked.unknown is None:
        assert found == wanted
    else:
        assert found <= wanted


# What is done with findings.


def test_a_warning_is_said_and_recorded_and_the_run_goes_on(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["initializer=he_normal", "dropout=dropout", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "tracking=none"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "warning: initializer=he_normal gives the weights of 0" in said
    assert "mend it: initializer=lecun_normal" in said
    assert "selu_dropout" not in said  # a remark, kept in the record
    [run] = (workdir / "runs").iterdir()
    held = json.loads((run / "diagnostics" / "lint.json").read_text())["findings"]
    assert [(row["rule"], row["severity"], row["fix"]) for row in held] == [
        ("selu_initializer", "warning", ["initializer=lecun_normal"]),
        ("selu_dropout", "remark", []),
    ]
    assert "lint: warning: initializer=he_normal" in (run / "run.log").read_text()


def test_strict_makes_of_every_warning_an_error_before_anything_is_made(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["initializer=he_normal", "regularizer=l1", "dropout=dropout", "lint.strict=true"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("2 problems in the config:")
    assert "initializer.name: initializer=he_normal gives" in said
    assert "Did you mean 'regularizer=none'?" in said
    assert not (workdir / "runs").exists()


def test_rules_are_ignored_and_their_severity_is_set_by_the_config() -> None:
    words = ("initializer=he_normal", "dropout=dropout")
    assert broken(*words, "lint.ignore=[selu_initializer]") == {"selu_dropout"}
    severity = {finding.rule: finding.severity for finding in findings(*words, "lint.severity={selu_dropout: hint}")}
    assert severity == {"selu_dropout": "hint", "selu_initializer": "warning"}
    with pytest.raises(ConfigError, match="selu_initializer"):
        findings(*words, "lint.severity={selu_initializer: error}")
    # The config's word counts before a fault's own; strict is about warnings alone.
    with pytest.raises(ConfigError, match="selu_dropout"):
        findings("dropout=dropout", "lint.severity={selu_dropout: warning}", "lint.strict=true")
    [finding] = findings("initializer=he_normal", "lint.severity={selu_initializer: remark}")
    assert (finding.severity, finding.fix) == ("remark", "")


def test_the_ranking_of_activations_is_given_on_request_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert findings("activation=sigmoid", "lint.strict=true") == []
    [finding] = findings("activation=sigmoid", RANKED, "lint.strict=true")
    assert (finding.rule, finding.severity, finding.fix) == ("activation_ranking", "hint", "activation=selu initializer=auto")
    assert "2 ReLU layers, as by default" in finding.fault.measured
    assert main(["list", "lint"]) == 0
    listed = " ".join(capsys.readouterr().out.split())
    assert listed.count("On request: ") == 1
    assert RANKED in listed


@pytest.mark.parametrize("words", [["lint.ignore=[selu_initialiser]"], ["lint.severity={selu_initialiser: error}"]])
def test_a_rule_that_there_is_not_is_an_error_with_the_nearest(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'selu_initializer'"):
        dnnkit.compose(words)


def test_check_says_the_findings_hints_and_remarks_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["check", "activation=relu", "optimizer=adam", "optimizer.lr=0.1", "normalization=batch_norm", "model.use_bias=true", RANKED])
        == 0
    )
    said = capsys.readouterr().out
    places = [
        said.index(text) for text in ("warning: optimizer.lr=0.1 with", "hint: activation=relu: elu", "remark: model.use_bias=true: ")
    ]
    assert places == sorted(places)
    assert "mend it: optimizer.lr=0.001" in said
    assert said.endswith("the config is valid\n")


# Rules of others.


def test_a_rule_of_somebody_else_is_asked_with_what_it_asks_for(registries: None) -> None:
    seen: list[tuple[str, int]] = []

    @rules.register("even_seed", severity="hint")
    def even_seed(config: Mapping[str, Any], network: nn.Module, steps: int) -> Fault | None:
        """A seed is best even. Source: nobody 1900."""
        seen.append((type(network).__name__, steps))
        return Fault(("seed",), f"seed={config['seed']} is odd", ("seed=2",)) if config["seed"] % 2 else None

    [finding] = findings("seed=1", "trainer.max_epochs=1")
    assert (finding.rule, finding.severity, finding.fix) == ("even_seed", "hint", "seed=2")
    assert seen == [("Sequential", 41)]  # 1293 rows by 32
    assert findings("seed=2") == []
    assert lint(dnnkit.compose(["seed=1"]).values) == []  # without a network it is not asked


def test_a_rule_that_fails_or_gives_something_else_is_a_plugin_error_that_names_it(registries: None) -> None:
    @rules.register("broken")
    def failing(config: Mapping[str, Any]) -> Any:
        """It fails."""
        raise KeyError("no")

    with pytest.raises(PluginError, match=r"lint=broken .* failed: KeyError") as caught:
        lint(dnnkit.compose().values)
    assert "lint.ignore=[broken]" in str(caught.value)
    assert lint(dnnkit.compose(["lint.ignore=[broken]"]).values) == []
    rules.remove("broken")

    @rules.register("odd")
    def odd(config: Mapping[str, Any]) -> Any:
        """It gives text."""
        return ["text"]

    with pytest.raises(PluginError, match=r"lint=odd .* has to give dnnkit.lint.Fault"):
        lint(dnnkit.compose().values)
    rules.remove("odd")

    @rules.register("severe", severity="grave")
    def severe(config: Mapping[str, Any]) -> Any:
        """Its severity is none."""

    with pytest.raises(PluginError, match="must be one of error, warning, hint, remark, got 'grave'"):
        lint(dnnkit.compose().values)


def test_errors_come_first_and_all_of_them_are_told() -> None:
    fault = Fault(("a.b",), "found", ("a.b=1", "c=x y"))
    error, warning = (Finding("rule", severity, fault, "Reason.", "Somebody 1990.") for severity in ("error", "warning"))
    refuse([warning])
    with pytest.raises(ConfigError) as caught:
        refuse([warning, error, error])
    assert [str(problem) for problem in caught.value.problems] == [
        "a.b: found [rule]: Reason (Somebody 1990). Did you mean \"a.b=1 'c=x y'\"?"
    ] * 2


# What comes too late in a run, or never.


def lrs(result: dnnkit.Result) -> list[float]:
    return [row["value"] for row in map(json.loads, (result.run_dir / "metrics.jsonl").read_text().splitlines()) if row["key"] == "lr"]


SHORT = ("data=iris", "model.hidden=[5]", "tracking=none", "trainer.progress_bar=false", "trainer.threads=1")


@pytest.mark.parametrize("words", [("scheduler=performance", "scheduler.warmup_steps=3"), ("trainer.early_stopping=30",)])
def test_without_what_never_acts_the_run_has_the_same_numbers(words: tuple[str, ...], workdir: Path) -> None:
    [finding] = findings(*SHORT, *words, "trainer.max_epochs=4")
    journals = []
    for more in ((), finding.fault.fix):
        result = dnnkit.train(dnnkit.compose([*SHORT, *words, "trainer.max_epochs=4", *more]))
        journals.append((result.run_dir / "metrics.jsonl").read_bytes())
    assert journals[0] == journals[1]


@pytest.mark.parametrize(
    "more",
    [
        ("scheduler.monitor=val/loss",),
        ("scheduler.monitor=val/loss", "trainer.val_check_interval=0.5", "scheduler.every=2"),
        ("scheduler.monitor=train/loss", "trainer.log_every_n_steps=2"),
    ],
)
def test_a_plateau_is_idle_where_not_even_a_metric_that_never_improves_cuts_the_rate(more: tuple[str, ...], workdir: Path) -> None:
    """By runs in which no measurement is better than the first: with the least patience that is called idle the rate stays."""
    never = ("scheduler.threshold=1e9", "scheduler.threshold_mode=abs")
    words = (*SHORT, "scheduler=performance", *never, "trainer.max_epochs=5", *more)
    idle = bisect_left(range(64), True, key=lambda patience: "idle_plateau" in broken(*words, f"scheduler.patience={patience}"))
    assert 0 < idle < 64
    for patience, cut in ((idle - 1, True), (idle, False)):
        rates = lrs(dnnkit.train(dnnkit.compose([*words, f"scheduler.patience={patience}"])))
        assert (len(set(rates)) > 1) is cut


def test_early_stopping_is_idle_where_not_even_a_metric_that_never_improves_ends_the_run(workdir: Path) -> None:
    words = (*SHORT, "optimizer.lr=1e-30", "scheduler=constant", "trainer.max_epochs=5")
    assert broken(*words, "trainer.early_stopping=4") == {"idle_early_stopping"}
    assert broken(*words, "trainer.early_stopping=3") == set()
    epochs = [
        dnnkit.train(dnnkit.compose([*words, f"trainer.early_stopping={patience}"])).module.trainer.current_epoch for patience in (4, 3)
    ]
    assert epochs == [5, 4]


SCHEDULES = sorted(
    record.name for record in REGISTRIES["scheduler"] if {"length", "stage", "boundaries"} & set(record.facts) and not record.watches
)


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_schedule_that_is_offered_cuts_the_rate_before_it_would_over_the_whole_run(name: str) -> None:
    """Random settings and lengths: what is offered is the schedule's own shape, with half of the rate or more in the first quarter."""
    draw, values = random.Random(name), dnnkit.compose([f"scheduler={name}"]).values
    said = 0
    for _ in range(200):
        steps, node = draw.choice([1, 2, 5, 41, 820, 2000]), {**values["scheduler"], **settings(name, draw)}
        for finding in lint({**values, "scheduler": node}, steps=steps):
            said += 1
            if finding.fault.fix:
                mended = {**node, **{word.partition("=")[0].removeprefix("scheduler."): None for word in finding.fault.fix}}
                assert all(word.endswith("=null") for word in finding.fault.fix)
                curve = [schedule_of(mended)(step, steps) for step in range(steps)]
                assert curve[0] == 1.0
                assert min(curve[: max(1, steps // 4)]) >= 0.5
    assert said > 50


def settings(name: str, draw: random.Random) -> dict[str, Any]:
    """Random lengths of one schedule, few of which are that of a run."""
    counts = sorted(draw.sample([1, 2, 3, 40, 41, 50, 819, 820, 5000, 500000], 2))
    facts = REGISTRIES["scheduler"].get(name).facts
    return {str(facts[fact]): counts if fact == "boundaries" else counts[0] for fact in ("length", "stage", "boundaries") if fact in facts}


# What the design rules out.


def test_a_performance_schedule_always_has_a_validation_to_watch() -> None:
    for words in (["data.val_size=0"], ["trainer.limit_val_batches=0"]):
        with pytest.raises(ConfigError):
            dnnkit.compose(["scheduler=performance", *words])
    with pytest.raises(ConfigError, match=r"scheduler\.monitor"):
        dnnkit.compose(["scheduler=performance", "scheduler.monitor=val/f1"])


def test_nesterov_always_has_a_momentum() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.momentum: must be a finite number greater than 0"):
        dnnkit.compose(["optimizer=nesterov", "optimizer.momentum=0"])


def test_a_softmax_is_never_applied_twice() -> None:
    net = dnnkit.build(
        dnnkit.compose(["model=sequential", "model.layers=[flatten,{dense: 20, activation: relu},{dense: auto, activation: softmax}]"])
    )
    assert not any(isinstance(module, nn.Softmax) for module in net.modules())
    with pytest.raises(ConfigError):
        dnnkit.compose(["activation=softmax"])


def test_mixed_precision_has_no_scaler_that_a_fused_update_or_a_clipping_would_have_to_know(workdir: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.precision"):
        dnnkit.compose(["trainer.precision=16"])
    words = ["trainer.precision=bf16", "optimizer=adam", "clipping=norm", "trainer.max_epochs=1", "trainer.limit_train_batches=3"]
    result = dnnkit.train(dnnkit.compose([*words, "tracking=none", "trainer.progress_bar=false"]))
    assert result.module.trainer.precision_plugin.__class__.__name__ == "MixedPrecision"
    assert result.module.trainer.precision_plugin.scaler is None


def test_a_minibatch_of_one_is_refused_where_there_is_a_batch_normalization() -> None:
    with pytest.raises(ConfigError, match=r"leaves a minibatch of 1 out of"):
        findings("normalization=batch_norm", "data.batch_size=4", "data.train_size=13")


def test_the_jobs_of_a_sweep_have_the_same_seeds_for_every_value_of_another_axis() -> None:
    from dnnkit.config import Composer
    from dnnkit.sweep import _jobs

    jobs = [dnnkit.compose(job).values for job in _jobs(["activation=relu,elu", "seed=1,2,3"], Composer())]
    seeds = {name: sorted(job["seed"] for job in jobs if job["activation"]["name"] == name) for name in ("relu", "elu")}
    assert seeds == {"relu": [1, 2, 3], "elu": [1, 2, 3]}


# A sweep.


def test_checking_a_sweep_judges_every_job_by_its_data_and_runs_none(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "-m", "activation=selu,elu", "initializer=lecun_normal,he_normal"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("warning: initializer=he_normal gives the weights of 00_dense")
    assert said[0].endswith("[selu_initializer] (1 of 4 jobs)")
    assert said[-1] == "all 4 jobs are valid"
    assert list(workdir.iterdir()) == []


def test_a_sweep_with_wrong_jobs_is_refused_with_the_problems_of_all(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "check",
        "-m",
        "normalization=batch_norm",
        "activation=relu,elu",
        "data.batch_size=4,8,5000",
        "data.train_size=13",
        "freeze=null,[01_dense]",
    ]
    assert main(words) == 2
    [problem] = capsys.readouterr().err.splitlines()[1:]
    assert "data.batch_size: leaves a minibatch of 1 out of 13 examples" in problem


def test_every_job_of_a_large_grid_is_checked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("dnnkit.sweep.CHECKED_ONE_BY_ONE", 2)
    # No axis alone is wrong, and no job in which one of them is at its first value.
    assert main(["check", "-m", "normalization=none,batch_norm", "data.train_size=14,13", "data.batch_size=5,4"]) == 2
    assert "leaves a minibatch of 1 out of 13 examples" in capsys.readouterr().err
