"""Checkpoints: written whole or not at all, refused when damaged, foreign or executable."""

from __future__ import annotations

import pickle
import random
import resource
import zipfile
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from dnnkit.checkpoint import RunState, load, load_weights, save
from dnnkit.checkpoint.lightning import AtomicCheckpointIO
from dnnkit.errors import CheckpointError, DiskError

Weights = dict[str, torch.Tensor]


def state() -> RunState:
    return RunState(
        config={"seed": 3, "model": {"hidden": [4, 2]}},
        digest="d" * 64,
        inputs=(1, 8, 8),
        outputs=2,
        classes=("cat", "dog"),
        mean=torch.tensor([0.5]),
        std=torch.tensor([0.25]),
        seed=3,
        version="0",
    )


@pytest.fixture
def written(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "best.ckpt"
    save({"state_dict": nn.Linear(5, 3).state_dict(), "dnnkit": state().as_dict()}, path)
    return path


def equal(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_saved_is_loaded(written: Path) -> None:
    held = load(written)
    torch.manual_seed(0)
    assert equal(held["state_dict"], nn.Linear(5, 3).state_dict())
    assert RunState.of(held, written).as_dict() == state().as_dict()
    assert [path.name for path in written.parent.iterdir()] == ["best.ckpt"]


def test_no_flipped_byte_anywhere_in_the_file_changes_a_weight_unnoticed(written: Path) -> None:
    good, reference = written.read_bytes(), load(written)
    with zipfile.ZipFile(written) as archive:
        contents = archive.start_dir
    places = [*random.Random(0).sample(range(contents), 400), *range(contents, len(good))]
    refused = 0
    for place in places:
        damaged = bytearray(good)
        damaged[place] ^= 0xFF
        written.write_bytes(damaged)
        try:
            held = load(written)
        except CheckpointError:
            refused += 1
        else:  # padding and dates mean nothing
            assert equal(held["state_dict"], reference["state_dict"])
    assert refused > len(places) / 3


def test_four_overwritten_bytes_in_a_weight_are_refused_with_the_file_and_a_cure(written: Path) -> None:
    with zipfile.ZipFile(written) as archive:
        weight = max(archive.infolist(), key=lambda member: (member.filename.endswith("/data/0"), member.header_offset))
    data = bytearray(written.read_bytes())
    where = data.index(load(written)["state_dict"]["weight"].numpy().tobytes(), weight.header_offset)
    data[where : where + 4] = b"\0\0\0\0"
    written.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged") as caught:
        load(written)
    assert str(written) in caught.value.cause
    assert "Use another checkpoint" in caught.value.cure
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_a_truncated_file_is_refused(written: Path, size: int) -> None:
    written.write_bytes(written.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="damaged"):
        load(written)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (ran,)

    torch.save({"state_dict": {}, "trap": Trap()}, tmp_path / "trap.ckpt")
    with pytest.raises(CheckpointError, match="not a checkpoint of tensors"):
        load(tmp_path / "trap.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="damaged or is no checkpoint"):
        load(tmp_path / "plain.ckpt")
    assert not ran.exists()


@pytest.mark.parametrize("address", ["http://127.0.0.1/best.ckpt", "https://host/best.ckpt", "s3://bucket/best.ckpt"])
def test_addresses_are_refused_for_loading_and_saving(address: str) -> None:
    with pytest.raises(CheckpointError, match="is an address"):
        AtomicCheckpointIO().load_checkpoint(address)
    with pytest.raises(CheckpointError, match="is an address"):
        AtomicCheckpointIO().save_checkpoint({}, address)


def test_weights_only_cannot_be_turned_off(written: Path) -> None:
    with pytest.raises(CheckpointError, match="weights_only=False"):
        AtomicCheckpointIO().load_checkpoint(written, weights_only=False)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*nowhere\.ckpt"):
        load(tmp_path / "nowhere.ckpt")


def test_a_full_disk_keeps_the_old_checkpoint_and_leaves_nothing_else(written: Path) -> None:
    before = written.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(DiskError, match=r"cannot write .*best\.ckpt"):
            save({"state_dict": {"w": torch.zeros(1_000_000)}}, written)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert written.read_bytes() == before
    assert [path.name for path in written.parent.iterdir()] == ["best.ckpt"]


def test_a_folder_that_cannot_be_written_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file is in the way")
    with pytest.raises(DiskError):
        save({}, tmp_path / "checkpoints" / "last.ckpt")


def test_something_that_cannot_be_saved_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save({"f": lambda: None}, tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_a_prefix_loads_one_part_of_a_module(tmp_path: Path) -> None:
    whole = nn.ModuleDict({"net": nn.Linear(5, 3), "other": nn.Linear(2, 2)})
    save({"state_dict": whole.state_dict()}, tmp_path / "a.ckpt")
    net = nn.Linear(5, 3)
    load_weights(tmp_path / "a.ckpt", net, prefix="net.")
    assert equal(net.state_dict(), whole["net"].state_dict())


def test_weights_of_another_network_are_listed_and_nothing_is_loaded(written: Path) -> None:
    net = nn.Sequential(nn.Linear(5, 3))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(written, net)
    assert "0.weight: shape (3, 5), missing from the checkpoint" in caught.value.cause
    assert "bias: shape (3,), not in the network" in caught.value.cause
    other = nn.Linear(5, 4)
    with pytest.raises(CheckpointError, match=r"weight: shape \(3, 5\) in the checkpoint, \(4, 5\) in the network"):
        load_weights(written, other)
    assert equal(net.state_dict(), before)


def test_a_checkpoint_of_another_program_or_format_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    for extra, said in (
        ({}, "not written by dnnkit"),
        ({"dnnkit": {"format": 99}}, "format 99"),
        ({"dnnkit": {"format": 1}}, "incomplete"),
    ):
        save({"state_dict": {}, **extra}, path)
        with pytest.raises(CheckpointError, match=said):
            RunState.of(load(path), path)
        with pytest.raises(CheckpointError, match="no weights"):
            load_weights(Path(save({"a": 1}, path) or path), nn.Identity())


class Tiny(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        loss: torch.Tensor = self.net(batch).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["dnnkit"] = state().as_dict()


@pytest.mark.filterwarnings("ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning", "ignore:Checkpoint directory")
def test_lightning_saves_and_resumes_through_our_door(tmp_path: Path) -> None:
    data = torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=2)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    keep = pl.callbacks.ModelCheckpoint(dirpath=tmp_path, save_last=True)
    pl.Trainer(max_epochs=1, callbacks=[keep], plugins=[AtomicCheckpointIO()], **quiet).fit(Tiny(), data)
    last = tmp_path / "last.ckpt"
    assert RunState.of(load(last), last).outputs == 2
    keep = pl.callbacks.ModelCheckpoint(dirpath=tmp_path)
    again = pl.Trainer(max_epochs=2, callbacks=[keep], plugins=[AtomicCheckpointIO()], **quiet)
    again.fit(Tiny(), data, ckpt_path=last)
    assert again.global_step == 8
