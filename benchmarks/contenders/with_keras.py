"""Keras as its guides show it: `compile` and `fit` with checkpoints, early stopping, validation and bar; no MLflow.

On JAX the process is pinned to one core and XLA to one thread, before JAX is imported. The rate follows the same 1cycle. The
momentum stays at Keras's own 0.9: it is a number inside the compiled step, so that it cannot be cycled. Keras has the rate
inside SGD's velocity, and its NAdam another decay of the momentum.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from benchmarks.jobs import CHANNELS, EVALUATION_BATCH, ONE_CYCLE, Boundary, Facts, Rows, Work, load

if TYPE_CHECKING:
    import keras

_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def train(work: Work, boundary: Boundary, backend: str) -> Facts:
    _choose(backend)
    import keras

    if backend == "torch":
        keras.config.set_image_data_format("channels_first")  # what torch's convolutions take
    keras.utils.set_random_seed(0)
    rows = load(work)
    steps = -(-len(rows.x) // work.batch_size) * work.epochs
    channels_last = work.network == "cnn" and backend != "torch"
    if channels_last:
        rows = rows._replace(x=rows.x.transpose(0, 2, 3, 1).copy(), x_val=rows.x_val.transpose(0, 2, 3, 1).copy())
    net = _network(work, rows)
    among = [keras.metrics.SparseTopKCategoricalAccuracy(k, name=f"among_{k}") for k in range(2, work.metrics + 1)]
    net.compile(_optimizer(work, steps), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy", *among])
    history = net.fit(
        rows.x,
        rows.y,
        batch_size=work.batch_size,
        epochs=work.epochs,
        validation_data=(rows.x_val, rows.y_val),
        validation_batch_size=EVALUATION_BATCH,
        callbacks=[_meter(boundary), *_callbacks(work)],
        verbose=1,
    )
    return {"parameters": net.count_params(), "steps": int(net.optimizer.iterations), "val_acc": history.history["val_accuracy"][-1]}


def _choose(backend: str) -> None:
    """Before anything imports Keras. On macOS a process cannot be pinned, and XLA's threads are all that is held to one."""
    os.environ["KERAS_BACKEND"] = backend
    if backend == "jax":
        os.environ["XLA_FLAGS"] = _ONE_THREAD
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _network(work: Work, rows: Rows) -> keras.Model:
    from keras import Sequential, layers

    def settings() -> dict[str, Any]:
        return {"activation": "selu", "kernel_initializer": "lecun_normal"}

    net = Sequential([layers.Input(rows.x.shape[1:])])
    if work.network == "cnn":
        for channels in CHANNELS:
            net.add(layers.Conv2D(channels, 3, padding="same", **settings()))
            net.add(layers.MaxPooling2D(2))
        net.add(layers.Flatten())
    for width in work.layers:
        net.add(layers.Dense(width, **settings()))
    net.add(layers.Dense(rows.classes, kernel_initializer="lecun_normal"))
    return net


def _optimizer(work: Work, steps: int) -> keras.optimizers.Optimizer:
    import keras

    rates = one_cycle(work.rate, steps)
    if work.optimizer == "nadam":
        return keras.optimizers.Nadam(rates)
    return keras.optimizers.SGD(rates, momentum=0.9)


def one_cycle(peak: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """torch's OneCycleLR as a function of the step: lines from peak / 10 up, down again and on to its thousandth."""
    import keras
    from keras import ops

    start = peak / ONE_CYCLE["div_factor"]
    end = start / ONE_CYCLE["final_div_factor"]
    top = ONE_CYCLE["pct_start"] * steps - 1

    class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step: Any) -> Any:
            t = ops.cast(step, "float32")
            up, down = start + (peak - start) * t / top, peak - (peak - start) * (t - top) / top
            last = start + (end - start) * (t - 2 * top) / (steps - 1 - 2 * top)
            return ops.where(t <= top, up, ops.where(t <= 2 * top, down, last))

        def get_config(self) -> dict[str, Any]:
            return {"peak": peak, "steps": steps}

    return OneCycle()


def _meter(boundary: Boundary) -> keras.callbacks.Callback:
    import keras

    class Meter(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            boundary()

        def on_train_end(self, logs: Any = None) -> None:
            boundary()

    return Meter()


def _callbacks(work: Work) -> list[keras.callbacks.Callback]:
    from keras.callbacks import EarlyStopping, ModelCheckpoint

    return [
        ModelCheckpoint("best.keras", monitor="val_accuracy", mode="max", save_best_only=True),
        ModelCheckpoint("last.keras"),
        EarlyStopping("val_accuracy", mode="max", patience=work.epochs),
    ]
