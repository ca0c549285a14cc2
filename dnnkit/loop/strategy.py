"""Several devices, as Lightning sees them: one process each, which are there already."""

from __future__ import annotations

import inspect
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins import ClusterEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel


class RankEnvironment(ClusterEnvironment):
    """Says which rank this process is. It was told so, and looks for nothing in the environment's variables."""

    def __init__(self, rank: int, world: int, local_rank: int, node_rank: int) -> None:
        super().__init__()
        self._rank, self._world, self._local_rank, self._node_rank = rank, world, local_rank, node_rank

    @property
    def creates_processes_externally(self) -> bool:
        """Lightning starts no process."""
        return True

    @property
    def main_address(self) -> str:
        """Lightning opens no connection."""
        raise NotImplementedError("the ranks have met before Lightning starts")

    @property
    def main_port(self) -> int:
        """Lightning opens no connection."""
        raise NotImplementedError("the ranks have met before Lightning starts")

    @staticmethod
    def detect() -> bool:
        """Never chosen by itself."""
        return False

    def world_size(self) -> int:
        """How many ranks there are."""
        return self._world

    def set_world_size(self, size: int) -> None:
        """It is known already."""

    def global_rank(self) -> int:
        """Among all ranks."""
        return self._rank

    def set_global_rank(self, rank: int) -> None:
        """It is known already."""

    def local_rank(self) -> int:
        """Among those of this machine."""
        return self._local_rank

    def node_rank(self) -> int:
        """The number of this machine."""
        return self._node_rank


class RankStrategy(DDPStrategy):
    """DistributedDataParallel over a process group that exists: gradients are averaged over the ranks in each update.

    Buffers are not sent around in every step; the module takes rank 0's where it matters, before a validation.
    """

    def __init__(self, rank: int, world: int, local_rank: int, node_rank: int) -> None:
        # PyTorch is renaming the argument.
        renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
        buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        super().__init__(cluster_environment=RankEnvironment(rank, world, local_rank, node_rank), **buffers)

    def _configure_launcher(self) -> None:
        """There is nothing to launch: Lightning's own launcher would run the command line again."""


def leave_signals_alone(trainer: pl.Trainer) -> pl.Trainer:
    """Hand `trainer` back without Lightning's handler of SIGTERM, which calls a collective in the middle of another."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer
