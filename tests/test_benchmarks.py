"""The contenders of the benchmark do the same work, so that their times can be compared. Nothing here looks at a clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.driver import Finish, Sample, play_round
from benchmarks.figure import draw
from benchmarks.jobs import ONE_CYCLE, PEAK_RATE, Job
from benchmarks.meter import Meter, Reading
from benchmarks.results import BEGIN, END, Results, describe_machine, markdown, put_between_markers
from dnnkit import plugins
from dnnkit.registry import REGISTRIES

EPOCHS, BATCH = 6, 32
CONTENDERS = ("floor", "ours", "streamed", "ranks", "template")


@pytest.fixture(scope="module")
def played() -> tuple[list[Sample], list[Finish]]:
    return play_round([Job(name, "digits", BATCH, EPOCHS, tracking=False) for name in CONTENDERS], 0)


def by_name(finishes: list[Finish]) -> dict[str, dict[str, float]]:
    return {finish.contender: finish.facts for finish in finishes}


@pytest.mark.slow
def test_contenders_train_equally_large_networks_for_equally_many_steps(played: tuple[list[Sample], list[Finish]]) -> None:
    facts = by_name(played[1])
    assert set(facts) == set(CONTENDERS)
    # 64-300-100-10 with biases
    assert {one["parameters"] for one in facts.values()} == {65 * 300 + 301 * 100 + 101 * 10}
    assert len({one["steps"] for one in facts.values()}) == 1


def test_contenders_learn_equally_well(played: tuple[list[Sample], list[Finish]]) -> None:
    accuracy = {name: one["val_acc"] for name, one in by_name(played[1]).items()}
    # Of 300 images: two standard errors at .96 are .023.
    assert min(accuracy.values()) > 0.93, accuracy


def test_every_contender_is_measured_in_every_epoch_but_the_first(played: tuple[list[Sample], list[Finish]]) -> None:
    samples = played[0]
    assert sorted((sample.contender, sample.epoch) for sample in samples) == sorted(
        (name, epoch) for name in CONTENDERS for epoch in range(1, EPOCHS)
    )
    assert all(sample.cpu_s > 0 and sample.wall_s > 0 for sample in samples)


def test_torchs_one_cycle_as_the_peers_have_it_is_dnnkits() -> None:
    plugins.load()
    total = 97
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK_RATE, momentum=0.9)
    peers = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total, **ONE_CYCLE)
    ours = REGISTRIES["scheduler"].get("one_cycle").function
    for step in range(total):
        factor, momentum = ours(step, total)
        group = optimizer.param_groups[0]
        assert group["lr"] == pytest.approx(PEAK_RATE * factor, rel=1e-9)
        assert group["momentum"] == pytest.approx(momentum, rel=1e-9)
        if step + 1 < total:
            optimizer.step()
            peers.step()


def test_children_are_measured_while_their_contender_waits_and_the_contender_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    # An epoch ends; the turn comes back when the child has worked 1 s; the next epoch ends.
    clock = iter([Reading(0, 0, 0), Reading(5, 1, 9), Reading(7, 4, 12), Reading(7, 4, 12)])
    monkeypatch.setattr(Reading, "now", lambda: next(clock))
    told: list[Reading | None] = []
    meter = Meter(told.append)
    meter.boundary()
    meter.boundary()
    assert told == [None, Reading(cpu_s=2, children_s=4, wall_s=3)]


def test_a_contender_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"data\.batch_size"):
        play_round([Job("floor", "digits", 0, 1)], 0)


@pytest.fixture
def results() -> Results:
    """Two turns: dnnkit at 1.5 and 1.1 of the floor, on a floor of 1 and 2 seconds."""
    seconds = {("floor", 1): 1.0, ("floor", 2): 2.0, ("ours", 1): 1.5, ("ours", 2): 2.2}
    samples = [Sample(name, 32, 0, epoch, cpu, None, cpu) for (name, epoch), cpu in seconds.items()]
    finishes = [Finish(name, 32, 0, {"parameters": 1, "steps": 2, "val_acc": 0.5}) for name in ("floor", "ours")]
    return Results(describe_machine(), "digits", 1, 2, samples, finishes)


def test_ratios_compare_epochs_of_the_same_turn(results: Results) -> None:
    assert results.ratios("ours", 32) == pytest.approx([1.5, 1.1])
    assert results.fastest_ratio("ours", 32) == pytest.approx(1.5)
    assert "1.30 (1.10–1.50)" in markdown(results)


def test_the_table_replaces_what_stood_between_its_markers() -> None:
    document = f"before\n{BEGIN}\nold | \\1 table\n{END}\nafter\n"
    assert put_between_markers(document, "new \\1") == f"before\n{BEGIN}\nnew \\1\n{END}\nafter\n"
    with pytest.raises(ValueError, match="once"):
        put_between_markers("no markers", "new")


def test_the_document_has_a_place_for_the_table() -> None:
    document = (Path(__file__).parent.parent / "docs" / "performance.md").read_text(encoding="utf-8")
    assert "new table" in put_between_markers(document, "new table")


def test_results_are_kept_as_json_and_drawn(results: Results, tmp_path: Path) -> None:
    results.write(tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text())["samples"][0]["cpu_s"] == 1.0
    draw(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
