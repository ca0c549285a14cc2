"""Figures before training: the rate and the momentum of a run, and what a component does; lines are compared with closed forms."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from scipy import stats
from torch import nn

from dnnkit import plugins
from dnnkit.cli import main
from dnnkit.config import compose
from dnnkit.module.schedule import ScheduleLR
from dnnkit.network import component
from dnnkit.record import component_figures
from dnnkit.record.component_figures import FIGURES, SHAPE, component_figure, law_like
from dnnkit.registry import REGISTRIES, activations
from dnnkit.schema import node
from dnnkit.training.planning import plan
from dnnkit.training.scheduling import make_schedule

plugins.load()
#: 1,294 training rows in minibatches of 32.
EPOCH = 41


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(list(words)) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out if code == 0 else err


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every figure that is saved, kept for inspection; its file is empty."""
    from matplotlib.figure import Figure

    kept: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (kept.append(self), Path(path).touch()))
    return kept


def data(axes: Any, label: str | None = None) -> tuple[numpy.ndarray, numpy.ndarray]:
    line = next(one for one in axes.lines if label is None or one.get_label() == label)
    return numpy.asarray(line.get_xdata(), dtype=float), numpy.asarray(line.get_ydata(), dtype=float)


def warmed_cosine(total: int, length: int, peak: float) -> numpy.ndarray:
    t = numpy.arange(total, dtype=numpy.float64)
    after = (1 + numpy.cos(numpy.pi * (t - length) / (total - length))) / 2
    return peak * numpy.where(t < length, t / length, after)


def test_a_warmed_up_cosine_is_drawn_as_its_closed_form_with_epochs_above(
    workdir: Path, saved: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = told(capsys, "plot", "scheduler=cosine", "scheduler.warmup_steps=0.1", "trainer.max_epochs=6", "optimizer.lr=0.2")
    total, length = 6 * EPOCH, 24
    (figure,) = saved
    rate, momentum = figure.axes
    steps, values = data(rate)
    assert steps.tolist() == list(range(total))
    numpy.testing.assert_allclose(values, warmed_cosine(total, length, 0.2), rtol=1e-12, atol=1e-15)
    assert data(momentum)[1].tolist() == [0.9] * total
    assert (rate.get_ylabel(), momentum.get_ylabel(), momentum.get_xlabel()) == ("Learning rate", "Momentum", "Optimizer steps")
    (above,) = rate.child_axes
    assert above.get_xlabel() == "Epochs"
    assert above._functions[0](numpy.array([EPOCH, total])).tolist() == [1, 6]
    (shade,) = [patch for patch in rate.patches if patch.get_label() == "warm-up, 24 steps"]
    assert (shade.get_x(), shade.get_width()) == (0, length)
    assert out.splitlines() == [
        "scheduler=cosine: 246 optimizer steps in 6 epochs",
        f"  learning rate  0 at step 0; 0.2 at step 24, the highest; {warmed_cosine(total, length, 0.2)[-1]:.4g} at step 245",
        "  momentum       0.9 at every step",
        "  warm-up        the first 24 steps",
        "figure: cosine_schedule.png",
    ]
    assert [path.name for path in workdir.iterdir()] == ["cosine_schedule.png"]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("scheduler", [record.name for record in REGISTRIES["scheduler"] if not record.watches])
def test_every_plan_is_what_the_optimizer_of_a_run_is_given(scheduler: str, optimizer: str) -> None:
    """The other way: torch's own optimizer, moved step by step by the class that moves it in a run."""
    cfg = compose([f"scheduler={scheduler}", f"optimizer={optimizer}", "optimizer.lr=0.3", "trainer.max_epochs=2"])
    found = plan(cfg)
    assert found.total == 2 * EPOCH
    make = component("optimizer", cfg.values["optimizer"])
    assert make is not None
    real = make([nn.Parameter(torch.zeros(1))])
    moved, rates, momenta = ScheduleLR.of(real, make_schedule(cfg, 1294), found.total), [], []
    for _ in range(found.total):
        group = real.param_groups[0]
        rates.append(group["lr"])
        momenta.append(group["betas"][0] if "betas" in group else group.get("momentum", 0))
        moved.seek(moved.last_epoch + 1)
    assert found.rate.curve.values == rates
    assert (found.momentum.curve.values if found.momentum is not None else [0] * found.total) == momenta


def test_json_holds_every_step_and_groups_and_the_file(workdir: Path, saved: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    groups = "optimizer.groups=[{match: output, lr_scale: 0.5}]"
    found = json.loads(told(capsys, "plot", "scheduler=polynomial", groups, "--steps", "100", "--json", "--output=a/b.png"))
    (one,) = found["schedules"]
    assert found["figure"] == "a/b.png"
    assert (workdir / "a/b.png").is_file()
    assert (one["total_steps"], one["lr_scales"], one["follows"]) == (100, {"match output": 0.5}, None)
    numpy.testing.assert_allclose(one["lr"]["values"], 0.05 * (1 - numpy.arange(100) / 100), rtol=1e-12)
    assert (one["lr"]["peak"], one["lr"]["peak_step"]) == (0.05, 0)
    numpy.testing.assert_allclose(data(saved[0].axes[0], "match output (× 0.5)")[1], 0.025 * (1 - numpy.arange(100) / 100), rtol=1e-12)


def test_the_jobs_of_a_sweep_are_in_one_figure_by_what_they_do_not_share(
    workdir: Path, saved: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = told(capsys, "plot", "-m", "scheduler=constant,one_cycle", "optimizer=sgd", "--steps=50")
    (figure,) = saved
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert labels == ["scheduler=constant", "scheduler=one_cycle"]
    assert len(figure.axes) == 1  # plain SGD stays plain
    assert "figure: schedules.png" in out
    assert "0.01 at every step" in out  # the default of sgd


def test_a_schedule_that_follows_a_metric_says_so(workdir: Path, saved: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "plot", "scheduler=performance", "--steps=9")
    assert "follows        val/loss: the rate is cut when it gets no better; shown as if the metric got better every time\n" in out


@pytest.mark.parametrize(("steps", "words"), [(1, "the first step\n"), (2, "the first 2 steps\n")])
def test_the_warm_up_is_counted(steps: int, words: str, workdir: Path, saved: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert f"  warm-up        {words}" in told(capsys, "plot", f"scheduler.warmup_steps={steps}", "--steps=9")


def test_a_long_run_is_looked_at_in_bounded_time_from_its_first_step_to_its_last() -> None:
    found = plan(compose(["scheduler=cosine"]), 10**9 + 7)
    assert found.rate.curve.steps[0] == 0
    assert found.rate.curve.steps[-1] == 10**9 + 6
    assert found.rate.start == 0.05
    assert found.rate.end < 1e-15


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["data=fashion_mnist"], 4, "--steps N says how many optimizer steps the run has"),
        (["--steps=0"], 2, "--steps: must be an integer at least 1, got '0'"),
        (["--output", "a.jpg"], 2, "must be the name of a PNG file"),
        (["scheduler=cosin"], 2, "'cosine'"),
        (["scheduler.warmup_steps=50", "--steps=50"], 2, "must be less than the 50 optimizer steps of the run"),
        (["--stepps=5"], 2, "no such option"),
    ],
)
def test_what_cannot_be_drawn_is_said_and_nothing_is_written(
    words: list[str], code: int, said: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DNNKIT_DATA", str(workdir))
    monkeypatch.setattr("dnnkit.data.download.user_cache", lambda: workdir)
    assert said in told(capsys, "plot", *words, code=code)
    assert list(workdir.iterdir()) == []


# What a component does


def test_leaky_relu_is_drawn_with_the_slope_that_is_given(workdir: Path, saved: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "describe", "activation", "leaky_relu", "activation.negative_slope=0.2", "--figure")
    z, y = data(saved[0].axes[0], "f(z)")
    numpy.testing.assert_allclose(y, numpy.maximum(0.2 * z, z), rtol=1e-12)
    z, slope = data(saved[0].axes[0], "derivative f ′(z)")
    assert set(slope[z < 0]) == {0.2}
    assert set(slope[z > 0]) == {1.0}
    assert saved[0].get_suptitle() == "activation=leaky_relu activation.negative_slope=0.2"
    assert out.startswith("activation=leaky_relu\n")
    assert out.endswith("\n  figure: activation_leaky_relu.png\n")
    assert (workdir / "activation_leaky_relu.png").is_file()


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["--figure", "activation", "selu"], "activation_selu.png"),
        (["--figure", "selu"], "activation_selu.png"),
        (["activation", "--figure", "selu"], "activation_selu.png"),
        (["--figure", "x.png", "selu", "--json"], "x.png"),
        (["selu", "--figure=x.png"], "x.png"),
    ],
)
def test_the_figure_may_be_asked_for_anywhere(
    words: list[str], file: str, workdir: Path, saved: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert file in told(capsys, "describe", *words)
    assert saved[0].get_suptitle() == "activation=selu"
    assert [path.name for path in workdir.iterdir()] == [file]


#: Name, and the law that its docstring states, of a weight with SHAPE's fans.
FAN_OUT, FAN_IN = SHAPE
LAWS: Mapping[str, Any] = {
    "he_uniform": stats.uniform(-math.sqrt(6 / FAN_IN), 2 * math.sqrt(6 / FAN_IN)),
    "glorot_uniform": stats.uniform(-math.sqrt(6 / (FAN_IN + FAN_OUT)), 2 * math.sqrt(6 / (FAN_IN + FAN_OUT))),
    "lecun_normal": stats.truncnorm(-2, 2, scale=math.sqrt(1 / FAN_IN) / 0.87962566103423978),
    "normal": stats.norm(0, 1),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_law_beside_the_weights_is_the_one_that_the_initializer_states(name: str) -> None:
    """The curve has the drawn deviation, which of 235,200 weights is within 1 % of the law's; edges, where it jumps, are left out."""
    figure = component_figure("initializer", node("initializer", name), name)
    (axes,) = figure.axes
    x, density = data(axes)
    inside = numpy.abs(x) < 0.97 * (LAWS[name].support()[1] if math.isfinite(LAWS[name].support()[1]) else 4)
    assert inside.sum() > 500
    numpy.testing.assert_allclose(density[inside], LAWS[name].pdf(x[inside]), rtol=0.1 if name == "normal" else 0.03)
    (bars,) = axes.patches
    heights, edges, _ = bars.get_data()
    assert float((heights * numpy.diff(edges)).sum()) == pytest.approx(1, abs=1e-4)


def test_equal_weights_have_no_law_and_are_drawn() -> None:
    assert law_like(torch.full((3, 4), 0.25)) is None
    assert law_like(torch.zeros(3, 4)) is None
    (axes,) = component_figure("initializer", node("initializer", "zeros"), "zeros").axes
    assert not axes.lines


@pytest.mark.parametrize(("group", "name"), [(group, record.name) for group in FIGURES for record in REGISTRIES[group]])
def test_every_component_of_these_groups_is_drawn(group: str, name: str) -> None:
    (axes,) = component_figure(group, node(group, name), name).axes
    assert axes.lines or axes.patches
    assert all(len(line.get_ydata()) == len(line.get_xdata()) for line in axes.lines)
    assert axes.get_xlabel()
    assert axes.get_ylabel()


def test_what_others_registered_is_drawn_too(registries: None) -> None:
    @activations.register("theirs")
    def theirs(scale: float = 3.0) -> nn.Module:
        """scale · tanh(z)."""

        class Theirs(nn.Module):
            def forward(self, z: torch.Tensor) -> torch.Tensor:
                return scale * torch.tanh(z)

        return Theirs()

    z, y = data(component_figure("activation", {"name": "theirs", "scale": 2.0}, "theirs").axes[0], "f(z)")
    numpy.testing.assert_allclose(y, 2 * numpy.tanh(z), rtol=1e-12)


def test_a_schedule_is_drawn_with_its_momentum(workdir: Path, saved: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "describe", "scheduler", "polynomial", "scheduler.exponent=2", "--figure", "x.png")
    t = numpy.arange(component_figures.STEPS)
    numpy.testing.assert_allclose(data(saved[0].axes[0])[1], (1 - t / 1000) ** 2, rtol=1e-12)
    (axes,) = component_figure("scheduler", node("scheduler", "one_cycle"), "x").axes
    momenta = data(axes, "momentum")[1]
    assert (momenta.max(), momenta[-1]) == (0.95, 0.95)
    assert (workdir / "x.png").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optimizer", "sgd", "--figure"], "dnnkit describe activation NAME --figure"),
        (["activation", "selu", "model.hidden=[3]", "--figure"], "takes settings of that alone"),
        (["activation", "leaky_relu", "activation.negative_slope=2", "--figure"], "activation.negative_slope"),
        (["activation", "sel", "--figure"], "'selu'"),
        (["initializer", "auto", "--figure"], "auto is what the activation pairs with: name one, dnnkit describe initializer NAME"),
        (["activation", "selu", "--figure=x.jpg"], "--figure FILE.png"),
        (["activation", "--figure"], "the command is: dnnkit describe GROUP NAME"),
    ],
)
def test_a_figure_that_there_is_not_is_said(words: list[str], said: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in told(capsys, "describe", *words, code=2)
    assert list(workdir.iterdir()) == []
