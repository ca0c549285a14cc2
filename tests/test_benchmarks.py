"""The contenders of the benchmark do the same work, so that their times can be compared. Nothing here looks at a clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

import dnnkit
from benchmarks import beyond, choice, document, epochs, growth, startup, steps
from benchmarks.__main__ import PAGE
from benchmarks.contenders import CONTENDERS, DEFAULT, check
from benchmarks.driver import Finish, Play, Sample, environment, play_round
from benchmarks.jobs import DIGITS, ONE_CYCLE, PEAK_RATE, SYNTHETIC, Work, load, write_rows
from benchmarks.meter import Meter, Reading
from benchmarks.networks import network, optimizer, parameters
from benchmarks.results import Results
from benchmarks.updates import UPDATES, Rates
from dnnkit import plugins
from dnnkit.registry import REGISTRIES

EPOCHS, BATCH = 6, 32
#: Each costs the start of a process: these are in the quick tests, the others in the slow ones.
QUICK = ("floor", "ours", "template")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("digits")
    write_rows(DIGITS, 0, folder)
    return str(folder)


@pytest.fixture(scope="module")
def played(digits: str) -> Play:
    return play_round(QUICK, {0: Work(DIGITS, digits, BATCH, EPOCHS, tracking=False)}, 0)


def facts(play: Play, work: int = 0) -> dict[str, dict[str, float]]:
    return {finish.contender: finish.facts for finish in play.finishes if finish.work == work}


def assert_equal_work(found: dict[str, dict[str, float]], parameters: int, steps: int) -> None:
    assert {name: (one["parameters"], one["steps"]) for name, one in found.items()} == dict.fromkeys(found, (parameters, steps))


def test_contenders_train_equally_large_networks_for_equally_many_steps(played: Play) -> None:
    found = facts(played)
    assert set(found) == set(QUICK)
    # 64-300-100-10 with biases; 1138 rows are 35 minibatches of 32 and one of 18
    assert_equal_work(found, 65 * 300 + 301 * 100 + 101 * 10, EPOCHS * 36)


def test_contenders_learn_equally_well(played: Play) -> None:
    accuracy = {name: one["val_acc"] for name, one in facts(played).items()}
    # Of 300 images: two standard errors at .96 are .023.
    assert min(accuracy.values()) > 0.93, accuracy


def test_every_contender_is_measured_in_every_epoch_but_the_first(played: Play) -> None:
    samples = played.samples
    assert sorted((sample.contender, sample.epoch) for sample in samples) == sorted(
        (name, epoch) for name in QUICK for epoch in range(1, EPOCHS)
    )
    assert all(sample.cpu_s > 0 and sample.wall_s > 0 for sample in samples)


def test_the_memory_of_a_contender_is_its_own_and_not_that_of_who_started_it(played: Play) -> None:
    peak = {finish.contender: finish.peak_mb for finish in played.finishes}
    # torch alone takes more than 100 MB; torch with Lightning more than without.
    assert 100 < peak["floor"] < min(peak[name] for name in QUICK if name != "floor")


def need(names: Sequence[str]) -> None:
    """Skip where what these contenders need is not there; `make test-slow` installs it."""
    try:
        check(names)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_the_other_contenders_do_the_same_work_too(digits: str) -> None:
    names = [name for name in CONTENDERS if name not in (*QUICK, "switched")]  # which needs a run long enough for a choice
    need(names)
    found = facts(play_round(names, {0: Work(DIGITS, digits, BATCH, EPOCHS, tracking=False)}, 0))
    assert_equal_work(found, 65 * 300 + 301 * 100 + 101 * 10, EPOCHS * 36)
    assert min(one["val_acc"] for one in found.values()) > 0.93, found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "parameters"),
    [("deep", 785 * 100 + 19 * 101 * 100 + 101 * 10), ("cnn", 10 * 16 + (9 * 16 + 1) * 32 + (7 * 7 * 32 + 1) * 64 + 65 * 10)],
)
@pytest.mark.parametrize("optimizer", ["sgd", "nadam"])
def test_every_network_and_optimizer_is_the_same_work_for_all(network: str, parameters: int, optimizer: str, tmp_path: Path) -> None:
    need(DEFAULT)
    write_rows(SYNTHETIC, 2200, tmp_path)
    work = Work(SYNTHETIC, str(tmp_path), 128, 4, network, optimizer, rows=2200, tracking=False)
    found = facts(play_round(DEFAULT, {0: work}, 0))
    assert set(found) == set(DEFAULT)
    assert_equal_work(found, parameters, 4 * 18)
    # Ten patterns under noise; one in ten by chance.
    assert min(one["val_acc"] for one in found.values()) > 0.9, found


@pytest.mark.slow
def test_a_contender_does_one_work_after_the_other_with_as_many_metrics_as_are_asked_for(digits: str) -> None:
    works = {place: Work(DIGITS, digits, 128, 2, hidden=(16,), metrics=metrics, tracking=False) for place, metrics in ((3, 1), (4, 3))}
    play = play_round(["floor", "ours"], works, 0)
    assert {(sample.contender, sample.work) for sample in play.samples} == {(name, place) for name in ("floor", "ours") for place in works}
    for place in works:
        assert_equal_work(facts(play, place), 65 * 16 + 17 * 10, 2 * 9)


def test_all_contenders_read_the_rows_that_dnnkit_prepares(tmp_path: Path) -> None:
    write_rows(SYNTHETIC, 1100, tmp_path)
    rows = load(Work(SYNTHETIC, str(tmp_path), 32, 1, rows=1100))
    assert (rows.x.shape, rows.y.shape, rows.x_val.shape, rows.y_val.shape) == ((1100, 784), (1100,), (100, 784), (100,))
    assert load(Work(SYNTHETIC, str(tmp_path), 32, 1, "cnn", rows=1100)).x.shape == (1100, 1, 28, 28)
    assert abs(rows.x.mean()) < 1e-4
    assert rows.x.std() == pytest.approx(1, abs=1e-4)


def rates_of_torch(total: int, made: torch.optim.Optimizer) -> Iterator[tuple[float, float]]:
    peers = torch.optim.lr_scheduler.OneCycleLR(made, made.defaults["lr"], total, **ONE_CYCLE)
    for step in range(total):
        group = made.param_groups[0]
        yield group["lr"], group["betas"][0] if "betas" in group else group["momentum"]
        if step + 1 < total:
            made.step()
            peers.step()


@pytest.mark.parametrize("kind", ["sgd", "nadam"])
def test_torchs_one_cycle_as_the_peers_have_it_is_dnnkits_and_that_of_the_steps(kind: str) -> None:
    plugins.load()
    total, peak = 97, PEAK_RATE[kind]
    ours, written = REGISTRIES["scheduler"].get("one_cycle").function, Rates(peak, total)
    made = optimizer(Work(DIGITS, "", 1, 1, optimizer=kind), nn.Linear(1, 1))
    for step, (rate, momentum) in enumerate(rates_of_torch(total, made)):
        factor, its_momentum = ours(step, total)
        assert (peak * factor, its_momentum) == pytest.approx((rate, momentum), rel=1e-9)
        assert written.at(step) == pytest.approx((rate, momentum), rel=1e-9)


@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_keras_has_torchs_rates(backend: str) -> None:
    if backend == "jax":
        need(["keras_jax"])
    # Keras takes one backend for a whole process.
    code = "from benchmarks.contenders.with_keras import one_cycle; s = one_cycle(.05, 97); print([float(s(t)) for t in range(97)])"
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment(), "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    wanted = [rate for rate, _ in rates_of_torch(97, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.05, momentum=0.9))]
    assert json.loads(said.stdout) == pytest.approx(wanted, rel=1e-5, abs=1e-8)  # float32


@pytest.mark.parametrize("kind", ["sgd", "nadam"])
def test_update_rules_for_torch_compile_are_torchs(kind: str) -> None:
    torch.manual_seed(0)
    theirs, total = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))], 40
    rule = UPDATES[kind]([weight.detach().clone() for weight in theirs], Rates(PEAK_RATE[kind], total))
    made = optimizer(Work(DIGITS, "", 1, 1, optimizer=kind), nn.ParameterList(theirs))
    rates = torch.optim.lr_scheduler.OneCycleLR(made, PEAK_RATE[kind], total, **ONE_CYCLE)
    for step in range(total):
        gradients = [torch.randn_like(weight) for weight in theirs]
        for weight, gradient in zip(theirs, gradients, strict=True):
            weight.grad = gradient.clone()
        made.step()
        rates.step()
        rule.change(rule.weights, gradients, rule.state, rule.numbers(step))
    torch.testing.assert_close(rule.weights, [weight.detach() for weight in theirs], rtol=1e-5, atol=1e-6)


def after_steps(way: str, kind: str, folder: str) -> list[torch.Tensor]:
    from benchmarks.ways import Trial

    work = Work(DIGITS, folder, BATCH, 1, optimizer=kind)
    trial = Trial(work, load(work), 60, way)
    trial.block(20)
    return [weight.detach() for weight in trial.weights]


@pytest.mark.parametrize("kind", ["sgd", "nadam"])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore")])])
def test_all_ways_to_run_a_step_make_the_same_steps(compiled: bool, kind: str, digits: str) -> None:
    from benchmarks.ways import COMPILED, HAND_WRITTEN, WAYS

    wanted = after_steps(HAND_WRITTEN, kind, digits)
    for way in (way for way in WAYS if (way in COMPILED) == compiled):
        # NAdam divides by √v, which in the first steps may be the rounding error of a gradient.
        torch.testing.assert_close(after_steps(way, kind, digits), wanted, rtol=1e-3, atol=1e-4, msg=lambda text, way=way: f"{way}: {text}")


def test_torchscript_of_a_graph_gives_its_bits(digits: str) -> None:
    from torch.nn.functional import cross_entropy

    from benchmarks.scripted import scripted
    from dnnkit.loop.graph import Tensors, trace
    from dnnkit.module import Outcome

    work = Work(DIGITS, digits, BATCH, 1)
    rows = load(work)
    net, x, y = network(work, rows), torch.from_numpy(rows.x[:BATCH]), torch.from_numpy(rows.y[:BATCH])

    def objective(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Outcome:
        logits = net(x)
        return Outcome(cross_entropy(logits, y), cross_entropy(logits, y), logits, None)

    run = scripted(trace(net, objective, x, y, 1, nullcontext).module)
    _, _, _, *gradients = run(*Tensors.of(net).values(), x, y)
    cross_entropy(net(x), y).backward()
    assert parameters(net) == sum(gradient.numel() for gradient in gradients)
    assert all(
        torch.equal(gradient, weight.grad) for gradient, weight in zip(gradients, net.parameters(), strict=True) if weight.grad is not None
    )


def test_children_are_measured_while_their_contender_waits_and_the_contender_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    # An epoch ends; the turn comes back when the child has worked 1 s; the next epoch ends.
    clock = iter([Reading(0, 0, 0), Reading(5, 1, 9), Reading(7, 4, 12), Reading(7, 4, 12)])
    monkeypatch.setattr(Reading, "now", lambda: next(clock))
    told: list[Reading | None] = []
    meter = Meter(told.append)
    meter.boundary()
    meter.boundary()
    assert told == [None, Reading(cpu_s=2, children_s=4, wall_s=3)]


def test_a_contender_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"rows\.npz"):
        play_round(["floor"], {0: Work(DIGITS, str(tmp_path), 32, 1)}, 0)


def test_a_peer_that_is_not_installed_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.contenders.find_spec", lambda name: None if name == "jax" else object())
    with pytest.raises(ModuleNotFoundError, match=r"jax: not installed; pip install .*bench.*keras_jax"):
        check(list(CONTENDERS))


def test_the_first_update_is_seen_and_only_once(tmp_path: Path) -> None:
    script = tmp_path / "trains.py"
    script.write_text(
        "import torch\n"
        "made = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)\n"
        "assert not made._optimizer_step_post_hooks\n"
        "print('before', flush=True)\n"
        "for _ in range(3): made.step()\n"
    )
    read, write = os.pipe()
    environment_with = {**environment(), "PYTHONPATH": os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])}
    subprocess.run(
        [sys.executable, "-m", "benchmarks.watch", "trains", str(write)], env=environment_with, pass_fds=(write,), check=True, timeout=300
    )
    os.close(write)
    with os.fdopen(read) as said:
        lines = [json.loads(line) for line in said]
    assert len(lines) == 1
    assert lines[0]["cpu_s"] > 0


@pytest.fixture
def results() -> Results:
    """Two turns: dnnkit at 1.5 and 1.1 of the floor, on a floor of 1 and 2 seconds."""
    seconds = {("floor", 1): 1.0, ("floor", 2): 2.0, ("ours", 1): 1.5, ("ours", 2): 2.2}
    samples = [Sample(name, 0, 0, epoch, cpu, None, cpu) for (name, epoch), cpu in seconds.items()]
    finishes = [Finish(name, 0, 0, {"parameters": 1, "steps": 2, "val_acc": 0.5}, 300.0, None) for name in ("floor", "ours")]
    return Results({0: Work(DIGITS, "", 32, 3)}, ("floor", "ours"), Play(samples, finishes))


def test_ratios_compare_epochs_of_the_same_turn(results: Results) -> None:
    assert results.ratios("ours", 0) == pytest.approx([1.5, 1.1])
    assert results.fastest_ratio("ours", 0) == pytest.approx(1.5)
    found = {"machine": document.describe_machine(), **results.to_json()}
    assert "1.30 (1.10–1.50) · 1.50" in epochs.sections(found)["epochs"]


@pytest.mark.parametrize(("as_graph", "row"), [(1.0, "| graph | 1.10 | 1.20 |"), (0.0, "| eager | 1.00 | 1.00 |")])
def test_a_choice_costs_what_its_epochs_take_beside_those_of_the_other_way(as_graph: float, row: str) -> None:
    """Pairs of an epoch as a graph and one of eager: 1.2 ÷ 1, 1.1 ÷ 1 and 2.6 ÷ 2."""
    seconds = (1.2, 1.0, 1.1, 1.0, 2.6, 2.0)
    samples = [Sample("switched", 0, 0, 4 + place, cpu, None, cpu) for place, cpu in enumerate(seconds)]
    play = Play(samples[::-1], [Finish("switched", 0, 0, {"as_graph": as_graph}, 300.0, None)])
    found = {"machine": document.describe_machine(), **Results({0: Work(DIGITS, "", 32, 10)}, ("switched",), play).to_json()}
    assert row in choice.sections(found)["choice"]


def test_results_come_back_from_json_as_they_were(results: Results) -> None:
    # Who came first in the last turns says nothing about the order in which they are shown.
    results.play.samples.reverse()
    again = Results.from_json(json.loads(json.dumps(results.to_json())))
    assert again.play == results.play
    assert again.works == results.works
    assert list(again.contenders) == list(results.contenders)


def test_a_part_replaces_its_own_results_and_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    document.update_json(path, "epochs", {"samples": [["floor", 1.5, None]]})
    document.update_json(path, "steps", {"found": 1})
    document.update_json(path, "steps", {"found": 2})
    assert json.loads(path.read_text()) == {"epochs": {"samples": [["floor", 1.5, None]]}, "steps": {"found": 2}}
    assert '["floor", 1.5, null]' in path.read_text()


def test_a_table_replaces_what_stood_between_its_markers() -> None:
    begin, end = document.markers("steps")
    text = f"before\n{begin}\nold | \\1 table\n{end}\nafter\n"
    assert document.put_between_markers(text, "steps", "new \\1") == f"before\n{begin}\nnew \\1\n{end}\nafter\n"
    with pytest.raises(ValueError, match="once"):
        document.put_between_markers("no markers", "steps", "new")


@pytest.mark.parametrize("name", ["epochs", "costs", "growth", "startup", "steps", "record"])
def test_the_page_has_a_place_for_every_table(name: str) -> None:
    assert "new table" in document.put_between_markers(PAGE.read_text(encoding="utf-8"), name, "new table")


def test_every_part_gives_its_tables_and_pictures(results: Results, tmp_path: Path) -> None:
    machine = {"machine": document.describe_machine()}
    epochs.draw({**machine, **results.to_json()}, tmp_path)
    points = [[axis, value] for axis in growth.LABELS for value in (1, 10)]
    samples = [Sample(name, place, 0, 1, 1.0 + place, None, 1.0) for name in ("floor", "ours") for place in range(len(points))]
    works = {place: Work(DIGITS, "", 32, 2) for place in range(len(points))}
    grown = {**machine, "points": points, **Results(works, ("floor", "ours"), Play(samples, [])).to_json()}
    growth.draw(grown, tmp_path)
    assert growth.sections(grown)["growth"].count("\n| ") == len(points) + 1
    for picture in ("performance.png", "growth.png"):
        assert (tmp_path / picture).read_bytes()[:4] == b"\x89PNG"


def test_ratios_of_programs_are_of_medians_and_of_the_fastest() -> None:
    ours, stock = startup.RUNS
    walls = {ours: (2.0, 3.0, 6.0), stock: (4.0, 6.0, 10.0)}
    runs = {name: [dict.fromkeys(("first_wall_s", "first_cpu_s", "wall_s", "cpu_s"), wall) for wall in walls[name]] for name in walls}
    others = {name: [{"wall_s": 1.0, "cpu_s": 1.0}] for name in startup.COMMANDS}
    table = startup.sections({"machine": document.describe_machine(), "runs": {**runs, **others}})["startup"]
    assert "0.50 · 0.50" in table
    assert "3.00 (2.00–6.00)" in table


def test_ratios_of_steps_compare_blocks_of_the_same_turn() -> None:
    from benchmarks.ways import HAND_WRITTEN

    seconds = {HAND_WRITTEN: [1.0, 2.0, 4.0], "graph": [0.5, 1.2, 2.8]}
    ways = {way: {"setup_s": 1.0, "val_acc": 0.9, "seconds": values} for way, values in seconds.items()}
    found = [{"optimizer": "sgd", "batch_size": 32, "process": 0, "ways": ways}]
    table = steps.sections({"machine": document.describe_machine(), "data": DIGITS, "steps": 50, "found": found})["steps"]
    assert "20.00 ms" in table
    assert "0.60 (0.50–0.70) · 0.50" in table


def test_what_is_beyond_is_the_median_of_all_jobs_but_each_first():
    jobs = [{"steps_s": 1.0, "evaluation_s": 0.5, "beyond_s": value} for value in (9.0, 0.1, 0.3, 0.2)]
    rows = beyond.table({"here": {"none": [{"jobs": jobs, "others_s": 3.0, "tree_s": 20.0}]}}).splitlines()
    assert rows[-1] == "| here | none | 0.200 | 1.000 | 0.500 | 9.000 | 3.00 | 20.00 |"


def test_a_job_is_its_steps_its_evaluation_and_what_is_beyond(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with beyond._watched() as spent:
        dnnkit.train(dnnkit.compose(["tracking=none", "trainer=cpu", "trainer.max_epochs=1", "trainer.progress_bar=false"]))
    assert spent["steps"] > 0
    assert spent["evaluation"] > 0
