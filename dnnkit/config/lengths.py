"""How long a run is: its minibatches, and the measurements that still have an update after them."""

from __future__ import annotations

import math

from dnnkit.schema import Keyed


def limited(limit: int | float, whole: int) -> int:
    """What a limit leaves of `whole` minibatches: that count of them, or that share, rounded down."""
    return int(limit * whole) if isinstance(limit, float) else min(limit, whole)


def minibatches(config: Keyed, rows: int) -> int:
    """The minibatches of an epoch over so many training examples."""
    return limited(config["trainer"]["limit_train_batches"], math.ceil(rows / config["data"]["batch_size"]))


def validations(config: Keyed, rows: int) -> int:
    """The validations that have an update after them: all but one at the end of the last epoch."""
    trainer, epoch = config["trainer"], minibatches(config, rows)
    interval = trainer["val_check_interval"]
    each = max(1, int(interval * epoch)) if isinstance(interval, float) else interval
    return int(trainer["max_epochs"] * (epoch // each) - (epoch % each == 0))


def flushes(config: Keyed, steps: int) -> int:
    """The points at which what is measured in training is written and an update follows, in a run of so many updates."""
    trainer = config["trainer"]
    each, epoch = trainer["log_every_n_steps"], steps // trainer["max_epochs"]
    return int(steps // each + steps // epoch - steps // math.lcm(each, epoch) - 1)
