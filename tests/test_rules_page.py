"""docs/rules.md says what the rules and the figures say, and every rule has a config that breaks it and one that is mended."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from statistics import median
from typing import Any

import pytest

import dnnkit
from benchmarks.rules import __main__ as command
from benchmarks.rules import measure, page
from benchmarks.rules.scenarios import COMMON, SCENARIOS, SEEDS, Scenario, asked_for, finding, tried
from dnnkit.errors import DivergedError
from dnnkit.lint import Finding
from dnnkit.training.check import check_run
from dnnkit_plugins.rule_parts import TRIALS, measured
from docs.generate.records import builtin

STALE = "the rules or their figures have changed since the page was written: python -m benchmarks.rules --page"
UNMEASURED = "a scenario has changed since it was measured: python -m benchmarks.rules RULE --write"
BUILTIN = [record.name for record in builtin("lint")]
#: Those that a config can be judged by; what the doctor alone measures depends on the data, and is tested with the doctor.
TRIED = [record.name for record in builtin("lint") if "clipped_gradients" not in record.offered]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return command.read(command.RESULTS)


@pytest.fixture(scope="module")
def text() -> str:
    return command.PAGE.read_text(encoding="utf-8")


def judged(*overrides: str) -> dict[str, Finding]:
    return {one.rule: one for one in check_run(dnnkit.compose(overrides)).findings}


def row(bad: list[float | None], mended: list[float | None]) -> dict[str, Any]:
    return {"bad": bad, "mended": mended}


def test_the_page_is_what_the_rules_and_the_figures_say(text: str, found: dict[str, Any]) -> None:
    assert text == page.text(found), STALE


def test_every_rule_has_a_section_with_its_reason_its_source_and_all_that_was_tried(text: str, found: dict[str, Any]) -> None:
    sections = {part.partition("`")[0]: part for part in text.split("\n### `")[1:]}
    assert list(sections) == BUILTIN
    for record in builtin("lint"):
        words = " ".join(sections[record.name].replace("\\", "").split())
        assert record.summary in words
        assert f"Source: {record.source}" in words
        assert f"A {record.facts.get('severity', 'warning')}{', on request: ' if record.facts.get('on_request') else '.'}" in words
    for scenario, held in every(found):
        assert f"`{scenario.bad}`" in sections[scenario.rule]
        assert f"`{shlex.join(held['tried'])}`" in sections[scenario.rule]
        if held["seeds"]:
            assert f"| [{scenario.rule}](#{scenario.rule}) | {scenario.about} |" in text


def test_every_rule_has_a_scenario_and_its_figures_are_of_it(found: dict[str, Any]) -> None:
    assert {scenario.rule for scenario in SCENARIOS} == set(TRIED)
    assert list(found["rules"]) == TRIED
    for name in TRIED:
        wanted = [(one.about, one.bad, list(one.seeds)) for one in SCENARIOS if one.rule == name]
        assert [(one["about"], one["config"], one["seeds"]) for one in found["rules"][name]] == wanted, UNMEASURED


#: What the rule is about is not done within the run, which is the same run without it: there is no harm that an accuracy could show.
SAME_RUN = {"accumulation_over_epoch", "idle_early_stopping", "idle_plateau"}


def test_every_rule_is_measured_but_those_that_are_about_what_a_run_never_does(found: dict[str, Any]) -> None:
    assert {scenario.rule for scenario in SCENARIOS if not scenario.seeds} == SAME_RUN
    assert {name for name in TRIED for row in found["rules"][name] if not row["bad"] or not row["mended"]} == SAME_RUN


def test_what_was_measured_is_of_every_seed_and_a_share(found: dict[str, Any]) -> None:
    assert len(SEEDS) == 5
    for scenario, held in every(found):
        assert scenario.seeds in ((), SEEDS)
        for side in measure.SIDES:
            assert len(held[side]) == len(scenario.seeds)
            assert all(value is None or 0 <= value <= 1 for value in held[side])


def test_at_least_ten_rules_show_harm(found: dict[str, Any]) -> None:
    assert len({scenario.rule for scenario, held in every(found) if held["seeds"] and page.verdict(held) == page.HARM}) >= 10


def every(found: dict[str, Any]) -> list[tuple[Scenario, dict[str, Any]]]:
    rows = [held for name in dict.fromkeys(scenario.rule for scenario in SCENARIOS) for held in found["rules"][name]]
    return list(zip(SCENARIOS, rows, strict=True))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: f"{scenario.rule}, {scenario.about}")
def test_a_bad_config_is_found_and_what_was_measured_as_mended_is_not(scenario: Scenario, found: dict[str, Any]) -> None:
    """On digits, which are always there; epochs of other data are another number of steps, and change no override."""
    common = "data=digits", "data.batch_size=80"
    bad = scenario.overrides(*common)
    [held] = [held for other, held in every(found) if other == scenario]
    said, words = finding(scenario, *common), [*bad, *asked_for(scenario.rule)]
    assert (said.severity, tried(scenario, said)) == (held["severity"], held["tried"]), UNMEASURED
    if said.severity == "remark":
        assert f"{scenario.about} " in said.fault.measured
        assert f", with {shlex.join(held['tried'])} " in said.fault.measured
    before, after = judged(*words), judged(*words, *held["tried"])
    assert scenario.rule not in after
    # Nor is one fault mended by another.
    assert {one.rule for one in after.values() if one.severity == "warning"} <= set(before)


def test_what_was_measured_not_to_help_is_not_offered_and_what_is_offered_was_measured_to_help(found: dict[str, Any]) -> None:
    """Held to the figures as they are: a mend of which a scenario shows the reverse, or none harm, belongs into a remark."""
    rows = [held for _, held in every(found) if held["seeds"]]
    offered, remarked = ([held for held in rows if (held["severity"] == "remark") is which] for which in (False, True))
    assert {page.verdict(held) for held in remarked} == {page.NOTHING, page.REVERSE}
    asked = [scenario.about for scenario, _ in every(found) if asked_for(scenario.rule)]
    assert {page.verdict(held) for held in offered if held["about"] not in asked} == {page.HARM}


def test_the_rules_say_the_figures_of_the_page(found: dict[str, Any]) -> None:
    assert json.loads(TRIALS.read_text(encoding="utf-8")) == page.trials(found), STALE
    rows = {(scenario.rule, scenario.about): held for scenario, held in every(found)}
    said = measured("selu_dropout")
    for about in ("5 SELU layers", "20 SELU layers, less dropout"):
        held = rows["selu_dropout", about]
        given, changed = (f"{median(held[side]):.3f}" for side in measure.SIDES)
        assert f"{about} {given}, with {shlex.join(held['tried'])} {changed}, worse with every seed" in said


def test_every_config_stays_within_ten_thousand_images_and_five_epochs() -> None:
    for scenario in SCENARIOS:
        values = dnnkit.compose(scenario.overrides(*COMMON)).values
        assert values["data"]["train_size"] == 10_000
        assert values["trainer"]["max_epochs"] <= 5


def test_only_ranges_that_do_not_meet_are_called_harm_and_a_diverged_run_is_a_guess() -> None:
    assert page.verdict(row([0.1, 0.2], [0.3, 0.4])) == page.HARM
    assert page.verdict(row([0.1, 0.3], [0.3, 0.4])) == page.NOTHING
    assert page.verdict(row([0.3, 0.4], [0.1, 0.2])) == page.REVERSE
    assert page.verdict(row([None, None], [0.3, 0.4])) == page.HARM
    assert page.verdict(row([0.1, None], [None, 0.1])) == page.NOTHING
    assert page.accuracies(row([None], [0.5]), "bad") == [0.1]


def test_a_run_is_its_test_accuracy_and_nothing_when_it_diverges(monkeypatch: pytest.MonkeyPatch, workdir: Path) -> None:
    words = ["data=digits", "trainer.max_epochs=1", "trainer.limit_train_batches=5"]
    value = measure.accuracy(words)
    assert value is not None
    assert 0 <= value <= 1
    assert list(workdir.iterdir()) == [], "a run leaves nothing behind"

    def diverge(*_: Any) -> None:
        raise DivergedError("the loss is NaN")

    monkeypatch.setattr(dnnkit, "train", diverge)
    assert measure.accuracy(words) is None


def test_a_rule_without_anything_that_mends_it_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="deep_sigmoid has nothing to say of activation=relu"):
        finding(Scenario("deep_sigmoid", "no sigmoid", "activation=relu"))
    remark = Scenario("selu_dropout", "nothing is tried", "dropout=dropout")
    with pytest.raises(ValueError, match="selu_dropout has nothing to mend dropout=dropout: nothing"):
        tried(remark, finding(remark))


def test_figures_of_one_rule_are_kept_beside_those_of_the_others(tmp_path: Path, found: dict[str, Any]) -> None:
    path = tmp_path / "rules.json"
    first, second = TRIED[:2]
    command.keep(path, {"machine": found["machine"], "rules": {second: found["rules"][second]}})
    command.keep(path, {"machine": found["machine"], "rules": {first: found["rules"][first]}})
    assert json.loads(path.read_text(encoding="utf-8"))["rules"] == {name: found["rules"][name] for name in (first, second)}


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["deep_sigmoid", "alpha_dropout_without_selu"])
def test_measured_again_the_harm_is_in_the_same_direction(rule: str, data_root: Path, found: dict[str, Any]) -> None:
    [scenario] = [one for one in SCENARIOS if one.rule == rule]
    [(_, [held])] = measure.measure([Scenario(rule, scenario.about, scenario.bad, seeds=(0, 1))], 1)
    [before] = found["rules"][rule]
    assert (held["found"], held["tried"]) == (before["found"], before["tried"])
    assert page.verdict(held) == page.verdict(before) == page.HARM
