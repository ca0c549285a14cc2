"""What training leaves on the device until it is measured."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dnnkit.module.gather import gather, gather_batches, several
from dnnkit.module.task import Outcome


class Window:
    """The minibatches of the latest updates, on the device; nothing here waits for the device before `summary`.

    A row of the training loss is about the last W updates (W as in `Module`), so that minibatches stay after it which the next
    one is about too.
    """

    __slots__ = ("due", "last", "latest", "left", "losses", "norm", "outputs", "penalties", "sizes", "targets", "update", "updates")

    def __init__(self) -> None:
        self.update = 0  # the number of the update at hand
        self.last = True  # whether somebody may look at what the update at hand leaves, before the next one
        self.latest: tuple[Tensor, Tensor] | None = None  # the minibatch at hand or the last one, or this rank's share of it
        self.left = 0.0  # how many updates of the epoch come after the one at hand
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.losses: list[Tensor] = []
        self.penalties: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.sizes: list[int] = []
        self.updates: list[int] = []  # of each minibatch, the number of the update that it is for
        self.norm: Tensor | None = None  # of the last update's gradient, before clipping
        self.due = False  # whether the window is measured after the update at hand

    def keep(self, outcome: Outcome, target: Tensor, with_output: bool) -> None:
        """Add one minibatch."""
        self.losses.append(_plain(outcome.loss))
        self.sizes.append(target.shape[0])
        self.updates.append(self.update)
        if outcome.penalty is not None:
            self.penalties.append(_plain(outcome.penalty))
        if with_output:
            self.outputs.append(_plain(outcome.output))
            self.targets.append(target)

    def forget(self, update: int) -> None:
        """Let go of the minibatches of the updates up to `update`."""
        gone = bisect_right(self.updates, update)
        for part in (self.losses, self.penalties, self.outputs, self.targets, self.sizes, self.updates):
            del part[:gone]

    def summary(self, metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]]) -> dict[str, float]:
        """The sample-weighted mean of the losses, and metrics of all outputs at once, by journal key."""
        values = {"train/loss": self._mean(self.losses)}
        if self.penalties:
            values["train/penalty"] = self._mean(self.penalties)
        if self.outputs:
            output, target = at_least_float32(torch.cat(self.outputs)), torch.cat(self.targets)
            values |= {f"train/{name}": float(metric(output, target)) for name, metric in metrics.items()}
        return values

    def first_not_finite(self, step: int) -> int:
        """Which update has the first loss or penalty that is not finite; `step` where all are."""
        parts = [torch.stack(part) for part in (self.losses, self.penalties) if part]
        broken = [place for part in parts for place in (~torch.isfinite(part)).nonzero().flatten().tolist()]
        return self.updates[min(broken)] if broken else step

    def gathered(self) -> Window:
        """The window over the whole minibatches, of which several devices keep their shares; without several, this one.

        The loss of a minibatch is the mean over its samples; penalties are the same on every rank.
        """
        if not several() or not self.sizes:
            return self
        whole = Window()
        device = self.losses[0].device
        sizes = torch.stack(gather(torch.tensor(self.sizes, device=device)))
        losses = torch.stack(gather(torch.stack(self.losses)))
        whole.sizes = sizes.sum(0).tolist()
        whole.losses = list(((losses * sizes).sum(0) / sizes.sum(0)).to(losses.dtype).unbind())
        whole.outputs = gather_batches([at_least_float32(output) for output in self.outputs])
        whole.targets = gather_batches(self.targets)
        whole.penalties, whole.updates = self.penalties, self.updates
        return whole

    def _mean(self, scalars: list[Tensor]) -> float:
        values: list[float] = torch.stack(scalars).tolist()
        return sum(value * size for value, size in zip(values, self.sizes, strict=True)) / sum(self.sizes)

    def state_dict(self) -> dict[str, Any]:
        """Tensors that `load_state_dict` takes back; empty where there is nothing to keep."""
        if not self.sizes:
            return {}
        tensors = {"losses": torch.stack(self.losses), "sizes": torch.tensor(self.sizes), "updates": torch.tensor(self.updates)}
        if self.penalties:
            tensors["penalties"] = torch.stack(self.penalties)
        if self.outputs:
            tensors |= {"outputs": torch.cat(self.outputs), "targets": torch.cat(self.targets)}
        return tensors

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Put a saved window in the place of this one."""
        self.clear()
        if "updates" not in state:  # nothing was kept, or by a version that did not count updates: the first row is about fewer
            return
        self.sizes, self.updates = state["sizes"].tolist(), state["updates"].tolist()
        for name in ("losses", "penalties"):
            if name in state:
                setattr(self, name, list(state[name].to(device).unbind()))
        for name in ("outputs", "targets"):
            if name in state:
                setattr(self, name, list(state[name].to(device).split(self.sizes)))

    def keep_no_samples(self) -> None:
        """Minibatches stay counted, but as shares without samples: the samples of a loaded window are rank 0's alone."""
        self.sizes = [0] * len(self.sizes)
        self.losses = [torch.zeros_like(loss) for loss in self.losses]
        self.outputs = [output[:0] for output in self.outputs]
        self.targets = [target[:0] for target in self.targets]


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.requires_grad else tensor


def at_least_float32(output: Tensor) -> Tensor:
    """Mixed precision leaves outputs in 16 bits, too few for a mean over thousands of samples."""
    return output.float() if output.is_floating_point() and output.element_size() < 4 else output
