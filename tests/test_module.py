from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger
from sklearn.metrics import accuracy_score, log_loss
from torch import Tensor, nn

from dnnkit.data.loaders import evaluation_batches
from dnnkit.data.resident import Batches, epoch_order
from dnnkit.errors import ConfigError, DivergedError
from dnnkit.loop import use_chunks
from dnnkit.module import Module, Recipe, ScheduleLR, Task, Window

X = torch.randn(22, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(22) % 3
LOOPS = pytest.mark.parametrize("size", [None, 1, 50], ids=["stock", "chunks of 1", "chunks of 50"])


class Memory(Logger):
    name, version = "memory", 0

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[tuple[str, int | None], float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert all(type(value) is float for value in metrics.values())
        assert not {(key, step) for key in metrics} & self.lines.keys(), "a key and step are logged once"
        self.lines |= {(key, step): value for key, value in metrics.items()}

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def steps(self, key: str) -> list[int | None]:
        return [step for name, step in self.lines if name == key]


def accuracy(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction.argmax(1) == target).float().mean()


def constant(step: int, total: int) -> float:
    return 1.0


def standing(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Rate 0: the weights stay, so every number has a closed form."""
    return torch.optim.SGD(parameters, lr=0.0)


def linear() -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(4, 3)


TASK = Task(nn.functional.cross_entropy, {"acc": accuracy})


def fit(net: nn.Module, recipe: Recipe, size: int | None, log_every: int = 50, task: Task = TASK, **settings: Any) -> tuple[Module, Memory]:
    memory = Memory()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "log_every_n_steps": 1}
    trainer = pl.Trainer(accelerator="cpu", devices=1, **{"max_epochs": 1, "logger": memory, **quiet, **settings})
    if size is not None:
        use_chunks(trainer, size)
    module = Module(net, task, recipe, log_every)
    trainer.fit(module, Batches(X, Y, 5, seed=0), evaluation_batches(X[:9], Y[:9], 4))
    return module, memory


def probabilities(net: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        return net(x).double().softmax(1).numpy()


@LOOPS
def test_training_loss_and_accuracy_are_means_over_samples_not_minibatches(size: int | None) -> None:
    net = linear()
    _, memory = fit(net, Recipe(standing, constant), size)
    guess = probabilities(net, X)  # five minibatches, the last of 2 samples
    assert memory.lines["train/loss", 5] == pytest.approx(log_loss(Y, guess), rel=1e-6)
    assert memory.lines["train/acc", 5] == pytest.approx(accuracy_score(Y, guess.argmax(1)), rel=1e-6)


@LOOPS
@pytest.mark.parametrize(("log_every", "steps"), [(1, range(1, 11)), (2, (2, 4, 5, 6, 8, 10)), (4, (4, 5, 8, 10)), (50, (5, 10))])
def test_every_row_of_the_training_loss_is_about_equally_many_updates(log_every: int, steps: Sequence[int], size: int | None) -> None:
    """The last `log_every`, or an epoch's where it has fewer, also across the end of an epoch."""
    net = linear()
    _, memory = fit(net, Recipe(standing, constant), size, log_every=log_every, max_epochs=2)
    minibatches = [part for epoch in (0, 1) for part in epoch_order(22, 0, epoch).split(5)]
    assert memory.steps("train/loss") == memory.steps("train/acc") == memory.steps("grad_norm") == list(steps)
    for step in steps:
        part = torch.cat(minibatches[step - min(log_every, 5) : step])
        guess = probabilities(net, X[part])
        assert memory.lines["train/loss", step] == pytest.approx(log_loss(Y[part], guess, labels=[0, 1, 2]), rel=1e-6)
        assert memory.lines["train/acc", step] == pytest.approx(accuracy_score(Y[part], guess.argmax(1)), rel=1e-6)


@LOOPS
def test_the_window_lets_go_of_what_the_next_row_is_not_about(size: int | None) -> None:
    """Minibatches kept on the device are never more than a row needs; of 5 an epoch, the row at step 6 needs 4 and 5 too."""
    kept: dict[int, list[int]] = {}

    class Look(pl.Callback):
        chunked = True

        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
            kept[trainer.global_step] = list(module.window.updates)

    fit(linear(), Recipe(standing, constant), size, log_every=3, max_epochs=2, callbacks=[Look()])
    assert {step: kept[step] for step in (3, 5, 6, 9, 10)} == {3: [3], 5: [4, 5], 6: [], 9: [8, 9], 10: [10]}


@LOOPS
def test_penalty_is_minimised_but_not_part_of_the_loss(size: int | None) -> None:
    net = linear()
    weight = net.weight.detach().clone()
    recipe = Recipe(standing, constant, penalty=lambda net: net.weight.square().sum())
    _, memory = fit(net, recipe, size)
    assert memory.lines["train/loss", 5] == pytest.approx(log_loss(Y, probabilities(net, X)), rel=1e-6)
    assert memory.lines["train/penalty", 5] == pytest.approx(float(weight.square().sum()), rel=1e-6)

    flat = Task(lambda prediction, target: 0 * prediction.sum())
    fit(net, Recipe(partial(torch.optim.SGD, lr=0.1), constant, penalty=recipe.penalty), size, task=flat)
    assert torch.allclose(net.weight, weight * 0.8**5, rtol=1e-6), "w − 0.1 · 2w, five times"


@LOOPS
def test_validation_is_measured_once_on_all_samples(size: int | None) -> None:
    calls: list[int] = []

    def counting(prediction: Tensor, target: Tensor) -> Tensor:
        calls.append(len(target))
        return accuracy(prediction, target)

    net = linear()
    module, memory = fit(net, Recipe(standing, constant), size, task=Task(TASK.loss, {"acc": counting}))
    guess = probabilities(net, X[:9])
    assert memory.lines["val/loss", 5] == pytest.approx(log_loss(Y[:9], guess), rel=1e-6)
    assert memory.lines["val/acc", 5] == pytest.approx(accuracy_score(Y[:9], guess.argmax(1)), rel=1e-6)
    assert calls == [8, 22, 9], "the sanity check's two batches, training, validation"
    assert memory.steps("val/loss") == [5], "and the sanity check logs nothing"
    assert float(module.trainer.callback_metrics["val/loss"]) == memory.lines["val/loss", 5]


@LOOPS
def test_test_pass_is_logged_at_the_last_step_and_keeps_its_predictions(size: int | None) -> None:
    module, memory = fit(linear(), Recipe(partial(torch.optim.SGD, lr=0.1), constant), size)
    module.trainer.test(module, evaluation_batches(X, Y, 4), verbose=False)
    evaluation = module.evaluations["test"]
    assert torch.equal(evaluation.target, Y)
    assert torch.equal(evaluation.prediction.argmax(1), module(X).argmax(1))
    assert memory.lines["test/loss", 5] == pytest.approx(log_loss(Y, probabilities(module.net, X)), rel=1e-6)
    assert memory.steps("test/acc") == [module.trainer.global_step] == [5]


def gradient_norm(net: nn.Module, parts: list[Tensor]) -> float:
    """Of the mean, over minibatches, of their mean losses."""
    loss = sum(nn.functional.cross_entropy(net(X[part]), Y[part]) for part in parts) / len(parts)
    return math.sqrt(sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(net.parameters()))))  # type: ignore[arg-type]


@LOOPS
@pytest.mark.parametrize("clip", [None, partial(nn.utils.clip_grad_norm_, max_norm=1e-3)], ids=["unclipped", "clipped"])
def test_gradient_norm_is_the_last_updates_before_clipping(clip: Callable[[list[nn.Parameter]], Tensor] | None, size: int | None) -> None:
    net = linear()
    _, memory = fit(net, Recipe(standing, constant, clip=clip), size, log_every=2)
    parts = epoch_order(22, 0, 0).split(5)
    assert [memory.lines["grad_norm", step] for step in (2, 4, 5)] == pytest.approx([gradient_norm(net, [parts[i]]) for i in (1, 3, 4)])


@LOOPS
def test_gradient_norm_under_accumulation_is_that_of_the_groups_gradient(size: int | None) -> None:
    net = linear()
    _, memory = fit(net, Recipe(standing, constant), size, log_every=1, accumulate_grad_batches=2)
    parts = list(epoch_order(22, 0, 0).split(5))
    expected = [gradient_norm(net, parts[:2]), gradient_norm(net, parts[2:4]), gradient_norm(net, parts[4:])]
    assert [memory.lines["grad_norm", step] for step in (1, 2, 3)] == pytest.approx(expected)


@LOOPS
def test_clipping_bounds_the_update(size: int | None) -> None:
    net = linear()
    before = torch.cat([p.detach().flatten().clone() for p in net.parameters()])
    clip = partial(nn.utils.clip_grad_norm_, max_norm=1e-3)
    fit(net, Recipe(partial(torch.optim.SGD, lr=1.0), constant, clip=clip), size, limit_train_batches=1)
    assert float((torch.cat([p.detach().flatten() for p in net.parameters()]) - before).norm()) == pytest.approx(1e-3, rel=1e-3)


@LOOPS
def test_clipping_that_the_trainer_was_told_to_do_is_done_too(size: int | None) -> None:
    net = linear()
    before = torch.cat([p.detach().flatten().clone() for p in net.parameters()])
    fit(net, Recipe(partial(torch.optim.SGD, lr=1.0), constant), size, limit_train_batches=1, gradient_clip_val=1e-3)
    assert float((torch.cat([p.detach().flatten() for p in net.parameters()]) - before).norm()) == pytest.approx(1e-3, rel=1e-3)


@LOOPS
@pytest.mark.parametrize(("log_every", "steps"), [(50, [3]), (2, [2, 3])])
def test_last_step_is_flushed_whole_where_max_steps_ends_an_epoch_early(log_every: int, steps: list[int], size: int | None) -> None:
    """Its row too is about `log_every` updates, where there were so many."""
    net = linear()
    _, memory = fit(net, Recipe(standing, constant), size, log_every=log_every, max_steps=3, max_epochs=-1)
    seen = epoch_order(22, 0, 0)[:15][-5 * log_every :]
    assert memory.lines["train/loss", 3] == pytest.approx(log_loss(Y[seen], probabilities(net, X[seen])), rel=1e-6)
    assert memory.steps("train/loss") == memory.steps("grad_norm") == steps
    assert memory.steps("lr") == [0, *steps]


@pytest.mark.parametrize("size", [None, 1])
def test_where_training_is_stopped_between_two_rows_the_last_is_about_what_was_made_of_the_next(size: int | None) -> None:
    """The row at step 4 would have been about updates 3 and 4."""

    class Stop(pl.Callback):
        chunked = True

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.should_stop or trainer.global_step == 3

    net = linear()
    _, memory = fit(net, Recipe(standing, constant), size, log_every=2, callbacks=[Stop()])
    seen = epoch_order(22, 0, 0)[10:15]
    assert memory.lines["train/loss", 3] == pytest.approx(log_loss(Y[seen], probabilities(net, X[seen]), labels=[0, 1, 2]), rel=1e-6)


@LOOPS
def test_the_rates_of_training_that_diverged_are_on_record_where_that_shows_in_a_row(
    size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where nothing waits for the loss of a minibatch."""
    monkeypatch.setattr("dnnkit.module.guard.costs_nothing", lambda device: False)

    def two_pieces(step: int, total: int) -> float:
        return 1.0 if step < 2 else 0.5

    healthy, broken = Memory(), Memory()
    fit(linear(), Recipe(partial(torch.optim.SGD, lr=1e-3), two_pieces), size, logger=healthy)
    with pytest.raises(DivergedError, match=r"train/loss is (inf|nan) at step"):
        fit(linear(), Recipe(partial(torch.optim.SGD, lr=1e38), two_pieces), size, logger=broken)
    assert broken.steps("lr") == healthy.steps("lr") == [0, 2, 3, 5]
    assert broken.lines["lr", 5] == pytest.approx(0.5e38)
    assert broken.steps("train/loss") == []


@LOOPS
def test_constraint_acts_after_every_update(size: int | None) -> None:
    norms: list[float] = []

    def shrink(net: nn.Module) -> None:
        norms.append(float(net.weight.norm()))
        net.weight.mul_(0)

    net = linear()
    fit(net, Recipe(partial(torch.optim.SGD, lr=0.1), constant, constrain=shrink), size)
    assert len(norms) == 5
    assert float(net.weight.detach().abs().max()) == 0


@LOOPS
def test_rate_logged_at_step_s_is_that_of_the_s_th_update(size: int | None) -> None:
    recipe = Recipe(partial(torch.optim.SGD, lr=0.5), lambda step, total: 1 - step / total)
    module, memory = fit(linear(), recipe, size, log_every=1, max_epochs=2)
    assert [memory.lines["lr", step] for step in range(1, 11)] == [0.5 * (1 - step / 10) for step in range(10)]
    assert memory.lines["lr", 0] == 0.5, "and at the beginning that of the first one"
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == 0.5 * (1 - 9 / 10), "it ends at factor(total − 1)"


@LOOPS
def test_trains_without_a_logger_and_without_metrics(size: int | None) -> None:
    module, _ = fit(linear(), Recipe(standing, constant), size, task=Task(nn.functional.cross_entropy), logger=False)
    assert set(module.trainer.callback_metrics) == {"train/loss", "lr", "grad_norm", "val/loss"}


@LOOPS
def test_sixteen_bit_outputs_are_measured_in_32(size: int | None) -> None:
    types: list[torch.dtype] = []

    def noting(prediction: Tensor, target: Tensor) -> Tensor:
        types.append(prediction.dtype)
        return accuracy(prediction, target)

    module, _ = fit(linear(), Recipe(standing, constant), size, task=Task(TASK.loss, {"acc": noting}), precision="bf16-mixed")
    assert set(types) == {torch.float32}
    assert module.evaluations["val"].prediction.dtype is torch.float32


@LOOPS
def test_frozen_parameters_are_not_given_to_the_optimizer(size: int | None) -> None:
    net = linear()
    net.bias.requires_grad_(False)
    bias = net.bias.clone()
    module, _ = fit(net, Recipe(partial(torch.optim.SGD, lr=0.1, weight_decay=0.1), constant), size)
    assert len(module.trainer.optimizers[0].param_groups[0]["params"]) == 1
    assert torch.equal(net.bias, bias)


@LOOPS
def test_validation_loss_that_is_not_finite_ends_the_run(size: int | None) -> None:
    def explode(net: nn.Module) -> None:
        net.weight.fill_(math.inf)

    with pytest.raises(DivergedError, match="val/loss is nan at step 1"):
        fit(linear(), Recipe(standing, constant, constrain=explode), size, limit_train_batches=1, num_sanity_val_steps=0)


def test_schedule_without_an_end_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs"):
        fit(linear(), Recipe(standing, constant), None, max_epochs=-1)


def test_module_predicts_without_a_trainer() -> None:
    net = linear()
    assert torch.equal(Module(net, TASK, Recipe(standing, constant))(X), net(X))


def test_checkpoint_with_an_open_window_loads_as_plain_tensors(tmp_path: Path) -> None:
    class SaveMidway(pl.Callback):
        chunked = True

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "midway.ckpt")

    fit(linear(), Recipe(standing, constant, penalty=lambda net: net.weight.sum()), 3, callbacks=[SaveMidway()])
    window = torch.load(tmp_path / "midway.ckpt", weights_only=True)["dnnkit_window"]
    assert window["sizes"].tolist() == [5, 5, 5]
    assert window["outputs"].shape == (15, 3)


def test_a_window_that_a_version_before_updates_were_counted_has_saved_is_taken_as_empty() -> None:
    window = Window()
    window.load_state_dict({"losses": torch.ones(3), "sizes": torch.tensor([5, 5, 5])}, torch.device("cpu"))
    assert (window.losses, window.sizes, window.updates) == ([], [], [])


WEIGHT = [nn.Parameter(torch.zeros(2))]


def cycling(step: int) -> tuple[float, float]:
    return 1 + step, 0.95 - step / 10


@pytest.mark.parametrize(
    ("optimizer", "momentum", "expected"),
    [
        (partial(torch.optim.SGD, momentum=0.9), "momentum", 0.85),
        (partial(torch.optim.SGD, momentum=0.9, nesterov=True), "momentum", 0.85),
        (torch.optim.SGD, "momentum", 0),
        (torch.optim.RMSprop, "momentum", 0),
        (partial(torch.optim.RMSprop, momentum=0.5), "momentum", 0.85),
        (torch.optim.Adam, "betas", (0.85, 0.999)),
        (torch.optim.AdamW, "betas", (0.85, 0.999)),
        (torch.optim.NAdam, "betas", (0.85, 0.999)),
        (torch.optim.Adamax, "betas", (0.85, 0.999)),
    ],
)
def test_momentum_is_cycled_where_there_is_one_and_nowhere_else(optimizer: Any, momentum: str, expected: object) -> None:
    instance = optimizer(WEIGHT, lr=0.1)
    schedule = ScheduleLR(instance, cycling, 10)
    schedule.step()
    assert instance.param_groups[0][momentum] == expected
    assert instance.param_groups[0]["lr"] == pytest.approx(0.2)


def test_optimizer_without_momentum_or_betas_takes_a_cycle_unchanged() -> None:
    optimizer = torch.optim.Adagrad(WEIGHT, lr=0.1)
    ScheduleLR(optimizer, cycling, 10).step()
    assert not {"momentum", "betas"} & optimizer.param_groups[0].keys()


def test_momentum_that_a_cycle_brings_to_zero_comes_back() -> None:
    optimizer = torch.optim.SGD(WEIGHT, lr=0.1, momentum=0.9)
    schedule = ScheduleLR(optimizer, lambda step: (1.0, (0.9, 0.0, 0.5)[step]), 3)
    seen = []
    for _ in range(3):
        seen.append(optimizer.param_groups[0]["momentum"])
        schedule.step()
    assert seen == [0.9, 0.0, 0.5]


@pytest.mark.filterwarnings("ignore:Detected call of")
def test_schedule_gives_the_rates_of_torchs_own_for_every_group() -> None:
    def optimizer() -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))]}, {"params": [nn.Parameter(torch.zeros(1))], "lr": 0.01}], lr=0.1)

    ours, theirs = ScheduleLR(optimizer(), lambda t: 0.9**t, 8), torch.optim.lr_scheduler.LambdaLR(optimizer(), lambda t: 0.9**t)
    for _ in range(7):
        assert ours.get_last_lr() == theirs.get_last_lr() == [group["lr"] for group in ours.optimizer.param_groups]
        assert ours.get_lr() == ours.get_last_lr()
        ours.step()
        theirs.step()


def test_schedule_is_asked_for_no_step_past_the_last() -> None:
    asked: list[int] = []
    schedule = ScheduleLR(torch.optim.SGD(WEIGHT, lr=0.1), lambda step: asked.append(step) or 1.0, 3)  # type: ignore[func-returns-value]
    for _ in range(5):
        schedule.step()
    assert max(asked) == 2
    assert schedule.last_epoch == 5


def test_putting_a_step_leaves_the_schedule_where_it_is_and_seeking_moves_it() -> None:
    schedule = ScheduleLR(torch.optim.SGD(WEIGHT, lr=1.0), lambda t: 1 - t / 10, 10)
    schedule.put(4)
    assert (schedule.rate, schedule.optimizer.param_groups[0]["lr"], schedule.last_epoch) == (0.6, 0.6, 0)
    schedule.seek(4)
    stepped = ScheduleLR(torch.optim.SGD(WEIGHT, lr=1.0), lambda t: 1 - t / 10, 10)
    for _ in range(4):
        stepped.step()
    assert schedule.state_dict() == stepped.state_dict() == {"last_epoch": 4}
    assert schedule.get_last_lr() == stepped.get_last_lr()
    stepped.load_state_dict({"last_epoch": 7})
    assert stepped.rate == 1 - 7 / 10


@LOOPS
def test_a_metric_that_is_not_defined_stays_out_of_the_journal_and_is_told_of_once(
    size: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    def undefined(prediction: Tensor, target: Tensor) -> Tensor:
        return torch.tensor(math.nan)

    module, memory = fit(linear(), Recipe(standing, constant), size, log_every=2, task=Task(TASK.loss, {"never": undefined}))
    assert {key for key, _ in memory.lines} == {"train/loss", "val/loss", "lr", "grad_norm"}
    assert math.isnan(module.trainer.callback_metrics["val/never"])
    told = [record.getMessage() for record in caplog.records if record.name == "dnnkit" and "is not defined here" in record.getMessage()]
    assert sorted(message.split()[0] for message in told) == ["train/never", "val/never"], "once, not at each of the three flushes"
