"""The pieces of a run on several devices: where a rank is, what it must have in common, who is blamed, and shares made whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn

import dnnkit
from dnnkit import worker
from dnnkit.config import Trainer
from dnnkit.data.resident import Batches, share
from dnnkit.errors import ConfigError, DataError, RankError
from dnnkit.loop import use_chunks
from dnnkit.loop.strategy import RankStrategy
from dnnkit.loop.synced import SyncBatchNorm
from dnnkit.module import Module, Outcome, Recipe, Task, Window
from dnnkit.module.gather import gather, gather_batches, several
from dnnkit.training import ranks
from dnnkit.training.devices import check_no_torchrun, check_world, choose_device, most_threads
from dnnkit.training.place import Identity, Place, differences, gather_identities, give_verdict, hear_verdict, weights_digest
from dnnkit.training.ranks import LOST, Watch, broke_collective, failed, leave_word, told, word_path
from dnnkit.training.run import prepare_run

SMALL = ("tracking=none", "trainer.progress_bar=false")
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}
SHAPES = {"dense": [7, 3], "convolution": [5, 3, 4, 2]}
OWN = Identity(0, "c", "d", "w", "1", "2", 1, 10, "here")


def ended(code: int) -> subprocess.Popen[bytes]:
    """A process that has ended so: a negative code is a signal."""
    does = f"import os; os.kill(os.getpid(), {-code})" if code < 0 else f"raise SystemExit({code})"
    process = subprocess.Popen([sys.executable, "-S", "-c", does])
    process.wait()
    return process


def running() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])


@pytest.fixture(scope="module")
def two_ranks(in_two_processes: Callable[[Callable[[int], dict[str, Any]]], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What two processes with a process group between them have found; started once, because they import PyTorch."""
    return in_two_processes(_rank)


def _rank(rank: int) -> dict[str, Any]:
    found = {"gathering": _gathering(rank)} | {kind: _normalising(rank, shape) for kind, shape in SHAPES.items()}
    found |= {"stock": _training(rank, None), "chunks": _training(rank, 50)}
    return found


# Where a rank is.


def test_a_place_is_read_from_the_variables_of_torchrun() -> None:
    assert Place.of_torchrun(TORCHRUN) == Place(rank=1, world=2, local_rank=1, node=0, nodes=1)
    assert Place.of_torchrun({}) is None
    assert Place.of_torchrun({**TORCHRUN, "WORLD_SIZE": "1"}) is None, "one process alone is an ordinary run"
    assert Place.of_torchrun({name: value for name, value in TORCHRUN.items() if name != "TORCHELASTIC_RUN_ID"}) is None


def test_devices_times_machines_must_be_torchruns_number_of_processes() -> None:
    check_world(Trainer("ddp_cpu", devices=2), TORCHRUN)
    check_world(Trainer("ddp", devices=4), {**TORCHRUN, "WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2"})
    check_world(Trainer("cpu"), {})
    with pytest.raises(ConfigError, match=r"trainer\.devices: must be 2: .* got 3.*'trainer\.devices=2'"):
        check_world(Trainer("ddp_cpu", devices=3), TORCHRUN)
    with pytest.raises(ConfigError, match=r"trainer=ddp_cpu trainer\.devices=2"):
        check_world(Trainer("auto"), TORCHRUN)
    with pytest.raises(ConfigError, match="leave torchrun out"):
        check_no_torchrun(TORCHRUN)
    check_no_torchrun({})


def test_gpus_that_are_not_there_are_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="trainer=ddp_cpu"):
        choose_device(Trainer("ddp", devices=2))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device(Trainer("ddp", devices=2), 1) == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match=r"must be at most 2, the number of GPUs here, got 3.*'trainer\.devices=2'"):
        choose_device(Trainer("ddp", devices=3))
    assert choose_device(Trainer("ddp_cpu", devices=3), 2) == torch.device("cpu")


def test_the_cores_are_divided_among_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnnkit.training.devices._cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert most_threads(Trainer("ddp_cpu", devices=3)) == 2
    assert most_threads(Trainer("ddp_cpu", devices=16)) == 1
    assert most_threads(Trainer("cpu")) == 8
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert most_threads(Trainer("ddp_cpu", devices=2)) == 1, "OMP_NUM_THREADS=1 counts"


def problem(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        prepare_run(dnnkit.compose([*SMALL, "trainer=ddp_cpu", *overrides]))
    return str(caught.value)


def test_every_minibatch_must_have_an_example_for_every_device() -> None:
    cfg = dnnkit.compose([*SMALL, "trainer=ddp_cpu"])
    rows = len(prepare_run(cfg).data.train.y)
    said = problem(f"data.batch_size={rows - 1}")
    assert f"leaves a minibatch of 1 out of {rows} examples, and every minibatch needs one example on each device" in said
    assert f"Did you mean 'data.batch_size={rows}'?" in said
    assert "at least trainer.devices (2)" in problem_of_composing("data.batch_size=1", "trainer=ddp_cpu")


def problem_of_composing(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        dnnkit.compose([*SMALL, *overrides])
    return str(caught.value)


def test_batch_normalization_needs_two_examples_on_each_device_or_two_in_all_where_it_is_synchronised() -> None:
    rows = len(prepare_run(dnnkit.compose([*SMALL])).data.train.y)
    words = (f"data.batch_size={rows - 3}", "normalization=batch_norm")
    assert "two examples on each device" in problem(*words)
    prepare_run(dnnkit.compose([*SMALL, "trainer=ddp_cpu", *words, "trainer.sync_batch_norm=true"]))
    assert "needs two examples, whose variance" in problem(
        f"data.batch_size={rows - 1}", "normalization=batch_norm", "trainer.sync_batch_norm=true"
    )


# What the ranks must have in common.


def test_the_digest_of_weights_sees_one_flipped_bit_a_name_and_a_shape() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    digest = weights_digest(net)
    assert digest == weights_digest(net)
    with torch.no_grad():
        net[0].weight.view(torch.int32)[1, 2] ^= 1
    assert weights_digest(net) != digest
    same = torch.zeros(6)
    assert len({weights_digest(_holding(name, same.reshape(shape))) for name, shape in (("a", (2, 3)), ("a", (3, 2)), ("b", (2, 3)))}) == 3


def _holding(name: str, value: Tensor) -> nn.Module:
    net = nn.Module()
    net.register_buffer(name, value)
    return net


@pytest.mark.parametrize(
    ("field", "what"), [("config", "config"), ("data", "data"), ("weights", "initial weights"), ("torch", "version of PyTorch")]
)
def test_a_rank_that_would_train_something_else_is_named_with_the_difference(field: str, what: str) -> None:
    other = replace(OWN, rank=1, pid=11, threads=4)
    assert differences([OWN, other]) == []
    (found,) = differences([OWN, other, replace(other, rank=2, **{field: "other"})])
    assert found == f"the {what} of rank 2 (other) differs from rank 0's ({getattr(OWN, field)})"


def test_both_sides_hear_of_a_difference_and_of_none() -> None:
    for weights in ("w", "other"):
        store = dist.HashStore()
        other = replace(OWN, rank=1, weights=weights)
        store.set("identity/1", json.dumps(vars(other)))
        found = gather_identities(store, OWN, 2, lambda: None, 1)
        assert found == [OWN, other]
        if weights == "w":
            give_verdict(store, found)
            hear_verdict(store, other)
            continue
        with pytest.raises(RankError, match="initial weights of rank 1"):
            give_verdict(store, found)
        with pytest.raises(RankError, match="initial weights of rank 1"):
            hear_verdict(store, other)


def test_a_rank_that_never_comes_is_waited_for_in_bounded_time() -> None:
    with pytest.raises(RankError, match=r"rank 1 was not ready after 0\.2 s"):
        gather_identities(dist.HashStore(), OWN, 2, lambda: None, 0.2)


# Who is blamed.


def test_the_rank_that_a_signal_ended_is_blamed_before_those_that_missed_it() -> None:
    assert failed({1: ended(0), 2: ended(0)}) is None
    assert failed({1: ended(LOST), 2: ended(1), 3: ended(-9)}) == 3
    assert failed({1: ended(LOST), 2: ended(1)}) == 2
    assert failed({1: ended(0), 2: ended(LOST)}) == 2


def test_a_failed_rank_is_told_of_in_its_own_words(tmp_path: Path) -> None:
    assert leave_word(tmp_path, 1, DataError("the file is gone", "put it back")) == 4
    error = told(tmp_path, 1, 4)
    assert (error.cause, error.cure, error.exit_code) == ("rank 1 failed: the file is gone", "put it back", 4)
    assert leave_word(tmp_path, 2, ZeroDivisionError("1/0")) == 1
    assert told(tmp_path, 2, 1).cause == "rank 2 failed: ZeroDivisionError: 1/0"
    (tmp_path / "rank3.log").write_text("Traceback\nImportError: no torch\n")
    error = told(tmp_path, 3, 1)
    assert error.cause == "rank 3 ended with exit code 1: ImportError: no torch"
    assert error.cure == f"its log is {tmp_path / 'rank3.log'}"
    assert told(tmp_path, 4, -9).cause == "rank 4 was ended by SIGKILL"


def test_a_rank_whose_partner_is_gone_leaves_no_word(tmp_path: Path) -> None:
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer")
    assert broke_collective(lost)
    assert broke_collective(dist.DistBackendError("nccl"))
    assert not broke_collective(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not broke_collective(None)
    assert leave_word(tmp_path, 1, lost) == LOST
    assert not word_path(tmp_path, 1).exists()


def test_the_watch_ends_the_other_ranks_then_the_group_then_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    living = running()
    monkeypatch.setattr(ranks, "abort", lambda: done.append(living.wait(5)))
    watch = Watch({1: living, 2: ended(-9)}, done.append, patience=(0.05, 0.3, 0.05))
    watch.start()
    watch.join(10)
    assert done == [-9, 2]


def test_the_watch_leaves_a_run_alone_that_has_noticed_by_itself() -> None:
    done: list[int] = []
    living = running()
    try:
        watch = Watch({1: living, 2: ended(1)}, done.append, patience=(60, 60, 60))
        watch.start()
        watch.join(0.6)
        watch.over.set()
        watch.join(5)
        assert not watch.is_alive()
        assert not done
        assert living.poll() is None
    finally:
        living.kill()
        living.wait()


# The worker's door.


def test_a_worker_started_by_hand_says_what_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DNNKIT_STARTED_BY", raising=False)
    assert worker.main(["somewhere"]) == 2
    assert worker.main([]) == 2
    assert "is started by dnnkit itself" in capsys.readouterr().err


def test_a_worker_validates_the_config_that_it_reads(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    path = tmp_path / "config" / "config.yaml"
    with pytest.raises(RankError, match=r"config\.yaml"):
        worker.read_config(tmp_path)
    cfg = dnnkit.compose([*SMALL, "optimizer.lr=1e-5", "model.hidden=[7]", "data.val_size=0.25"])
    path.write_text(yaml.safe_dump(cfg.values))
    assert worker.read_config(tmp_path).values == cfg.values
    path.write_text(yaml.safe_dump({**cfg.values, "activation": {"name": "selu", "_target_": "os.system"}}))
    with pytest.raises(ConfigError, match="_target_"):
        worker.read_config(tmp_path)
    path.write_text("!!python/object/apply:os.system [true]")
    with pytest.raises(RankError, match=r"config\.yaml"):
        worker.read_config(tmp_path)


def test_a_worker_whose_starter_is_gone_ends() -> None:
    code = "import time; from dnnkit.worker import _end_with; _end_with(1 << 30); time.sleep(60)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=50).returncode == 1


LEAVING = """
import atexit, sys, threading, torch
from dnnkit.worker import leave

def compute():
    numbers = torch.zeros(100)
    while True:
        numbers + numbers

threading.Thread(target=compute, daemon=True).start()
atexit.register(print, "tidied up")
print("worked")
leave(int(sys.argv[1]))
"""


def test_a_worker_leaves_with_its_code_and_its_last_words_whatever_its_threads_do() -> None:
    done = subprocess.run([sys.executable, "-c", LEAVING, "75"], check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (75, "worked\ntidied up\n", "")


# Shares made whole.


def _gathering(rank: int) -> dict[str, Any]:
    window, parts = Window(), {}
    x = torch.arange(20.0).reshape(10, 2)
    for start, stop in ((0, 5), (5, 9), (9, 10)):  # the last minibatch has no example for the second rank
        mine = x[start:stop][share(stop - start, rank, 2)]
        loss = mine.mean() if len(mine) else torch.zeros(())
        window.keep(Outcome(loss, loss, mine, torch.tensor(3.0)), mine[:, 0].long(), with_output=True)
    parts["uneven"] = torch.cat(gather(torch.full((rank + 1, 2), rank)))
    parts["batches"] = torch.cat(gather_batches(window.outputs))
    whole = window.gathered()
    parts |= whole.state_dict()
    parts["summary"] = whole.summary({"mean": lambda output, target: output.mean()})
    resumed = Window()
    resumed.load_state_dict(whole.state_dict(), torch.device("cpu"))
    if rank:
        resumed.keep_no_samples()
    parts["resumed"] = resumed.gathered().summary({})["train/loss"]
    assert several()
    return parts


def test_shares_are_joined_in_the_order_of_one_device(two_ranks: list[dict[str, Any]]) -> None:
    first, second = (found["gathering"] for found in two_ranks)
    x = torch.arange(20.0).reshape(10, 2)
    for held in (first, second):
        assert held["uneven"].tolist() == [[0, 0], [1, 1], [1, 1]]
        assert torch.equal(held["batches"], x)
        assert torch.equal(held["outputs"], x)
        assert torch.equal(held["targets"], x[:, 0].long())
        assert held["sizes"].tolist() == [5, 4, 1]
        assert held["losses"].tolist() == pytest.approx([x[:5].mean().item(), x[5:9].mean().item(), x[9:].mean().item()])
        assert held["summary"] == pytest.approx({"train/loss": x.mean().item(), "train/penalty": 3.0, "train/mean": x.mean().item()})
        assert held["resumed"] == pytest.approx(x.mean().item()), "a loaded window counts once, not once per rank"


def test_the_weights_of_shares_make_their_mean_the_mean_of_the_minibatch() -> None:
    torch.manual_seed(0)
    net, x, y = nn.Linear(3, 2), torch.randn(7, 3), torch.arange(7) % 2
    penalised = Recipe(
        lambda parameters: torch.optim.SGD(parameters, lr=0.1), lambda step, total: 1.0, penalty=lambda net: net.weight.sum()
    )
    module = Module(net, Task(nn.functional.cross_entropy), penalised)
    whole = module.objective(x, y)
    shares = [(x[part], y[part], (part.stop - part.start) * 3 / 7) for part in (share(7, rank, 3) for rank in range(3))]
    outcomes = [module.objective(*given) for given in shares]
    assert sum(outcome.total.item() for outcome in outcomes) / 3 == pytest.approx(whole.total.item(), rel=1e-5)
    for outcome, (mine, target, _) in zip(outcomes, shares, strict=True):
        assert outcome.loss.item() == nn.functional.cross_entropy(net(mine), target).item(), "`loss` is the share's own mean"


def _noisy(parameters: list[nn.Parameter]) -> Tensor:
    """A clipping that draws from the generator."""
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad += 0.1 * torch.randn_like(parameter.grad)
    return torch.nn.utils.clip_grad_norm_(parameters, 1.0)


def _training(rank: int, size: int | None) -> dict[str, Any]:
    torch.manual_seed(3)
    x, y = torch.randn(22, 4), torch.arange(22) % 3
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    recipe = Recipe(lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), lambda step, total: 1.0, clip=_noisy, seed=5)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy=RankStrategy(rank, 2, rank, 0), max_epochs=3, accumulate_grad_batches=2,
        use_distributed_sampler=False, **quiet,
    )  # fmt: skip
    if size is not None:
        use_chunks(trainer, size)
    module = Module(net, Task(nn.functional.cross_entropy), recipe)
    batches = [Batches(x, y, size, seed=0, shuffle=shuffle, rank=rank, world=2) for size, shuffle in ((5, True), (21, False))]
    trainer.fit(module, *batches)
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    return {"weights": dict(net.state_dict()), "logged": logged, "step": trainer.global_step}


def test_chunks_on_two_devices_end_as_the_stock_loop_does_and_both_devices_with_the_same_weights(two_ranks: list[dict[str, Any]]) -> None:
    stock, chunks = two_ranks[0]["stock"], two_ranks[0]["chunks"]
    assert stock["step"] == chunks["step"] == 9
    assert stock["logged"] == chunks["logged"] == two_ranks[1]["chunks"]["logged"]
    assert {"train/loss", "val/loss", "grad_norm"} <= stock["logged"].keys()
    for name, value in stock["weights"].items():
        assert torch.equal(value, chunks["weights"][name])
        assert torch.equal(value, two_ranks[1]["chunks"]["weights"][name]), "dropout differs, what an update draws does not"


def _normalising(rank: int, shape: list[int]) -> dict[str, Tensor]:
    net, x, g = _batch_norm(shape)
    sync = SyncBatchNorm()
    names = list(net.state_dict())
    original = net[0]
    sync.apply(net)
    assert list(net.state_dict()) == names
    rows = share(len(x), rank, 2)
    mine = x[rows].detach().requires_grad_()
    for _ in range(2):
        y = net(mine)
        net.zero_grad()
        mine.grad = None
        (y * g[rows]).sum().backward()
    sync.revert(net)
    assert net[0] is original
    grads = {name: parameter.grad for name, parameter in net.named_parameters()}
    return {
        "y": y.detach(),
        "x.grad": mine.grad,
        "eval": net.eval()(x[rows]).detach(),
        **dict(net.state_dict()),
        **{f"{n}.grad": v for n, v in grads.items()},
    }


def _batch_norm(shape: list[int]) -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    net = nn.Sequential(kind(shape[1], momentum=None if len(shape) == 2 else 0.2), nn.Tanh()).double()
    with torch.no_grad():
        net[0].weight.uniform_(0.5, 2)
        net[0].bias.uniform_(-1, 1)
    return net, torch.randn(shape, dtype=torch.float64) * 3 + 100, torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("kind", SHAPES)
def test_synchronised_batch_normalization_is_torchs_own_on_the_whole_minibatch(two_ranks: list[dict[str, Any]], kind: str) -> None:
    first, second = (found[kind] for found in two_ranks)
    net, x, g = _batch_norm(SHAPES[kind])
    x.requires_grad_()
    for _ in range(2):
        y = net(x)
        net.zero_grad()
        x.grad = None
        (y * g).sum().backward()
    exact = {"rtol": 1e-10, "atol": 1e-10}
    assert x.grad is not None
    torch.testing.assert_close(torch.cat([first["y"], second["y"]]), y, **exact)
    torch.testing.assert_close(torch.cat([first["x.grad"], second["x.grad"]]), x.grad, **exact)
    torch.testing.assert_close(torch.cat([first["eval"], second["eval"]]), net.eval()(x), **exact)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(first[f"{name}.grad"] + second[f"{name}.grad"], parameter.grad, **exact)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(first[name], value, **exact)
        torch.testing.assert_close(second[name], value, **exact)


def test_a_process_group_of_one_is_not_several() -> None:
    assert not several()
    assert "RANK" not in os.environ
