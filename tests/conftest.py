"""Fixtures for every test, and an environment in which the user's own settings cannot change a result."""

from __future__ import annotations

import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from torch import nn

# Two workers share the machine, and sums depend on the number of threads. Read when torch and matplotlib are imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
# Tests enter folders of their own, where a relative path would lead nowhere.
if os.environ.get("DNNKIT_DATA"):
    os.environ["DNNKIT_DATA"] = str(Path(os.environ["DNNKIT_DATA"]).resolve())


@pytest.hookimpl(trylast=True)  # when what was not asked for is out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a test of many minutes come first, then those with many tests: begun last, they would leave other workers idle."""
    tests = Counter(item.path for item in items)
    minutes: dict[Path, float] = defaultdict(float)
    for item in items:
        minutes[item.path] += sum(mark.kwargs.get("minutes", 0) for mark in item.iter_markers("slow"))
    items.sort(key=lambda item: (-minutes[item.path], -tests[item.path], item.path))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> None:
    """What dnnkit keeps from run to run is kept for these tests alone, and shared by their workers."""
    base = tmp_path_factory.getbasetemp()
    os.environ["XDG_CACHE_HOME"] = str((base if worker_id == "master" else base.parent) / "cache")


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that steer a run's record and messages are unset, here and in the processes that a test starts."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DNNKIT_DEBUG", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DNNKIT_MIRRORS", "")  # nothing is downloaded


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, entered: whatever a run leaves behind ends up here."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty, migrated database, made once: making one takes seconds."""
    from dnnkit.sender.store import Store

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    assert Store(f"sqlite:///{file}", file.parent / "mlruns").client is not None
    return file


@pytest.fixture
def uri(workdir: Path, migrated: Path) -> str:
    """The default store of an empty working folder, migrated already."""
    from dnnkit.sender import resolve_uri

    shutil.copy(migrated, workdir / "mlflow.db")
    return resolve_uri(None, workdir, {})


@pytest.fixture(scope="session", autouse=True)
def one_drawer() -> Iterator[Callable[[Any], None]]:
    """Runs of this process without MLflow share the process that draws their figures: to start one for each takes a second.

    Gives `Senders.close` as it is by itself.
    """
    from dnnkit.sender import Sender
    from dnnkit.training import Senders

    close, start, kept = Senders.close, Senders.start, {}

    def start_or_share(senders: Senders, uri: str | None) -> Sender:
        if uri is None and None not in senders._senders:
            if None not in kept or not kept[None]._in.open:
                kept[None] = Sender.start(None)
            senders._senders[None] = kept[None]
        return start(senders, uri)

    def close_the_others(senders: Senders) -> None:
        for run_dir, (sender, wait_s) in senders._runs.items():
            sender.wait(run_dir, wait_s)
        if senders._senders.get(None) is kept.get(None):
            senders._senders.pop(None, None)
        close(senders)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Senders, "start", start_or_share)
        patch.setattr(Senders, "close", close_the_others)
        yield close
    for sender in kept.values():
        sender.close(10.0)


@pytest.fixture
def unrecorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs have no pictures and list no packages, which is most of the time of a run of a few steps; what is drawn here is empty."""
    from matplotlib.figure import Figure

    from dnnkit.training import Senders

    announce = Senders.announce
    monkeypatch.setattr(Senders, "announce", lambda senders, sender, *told: sender.uri is None or announce(senders, sender, *told))
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **__: path.touch())
    monkeypatch.setattr("matplotlib.backends.backend_agg.FigureCanvasAgg.print_png", lambda *_, **__: None)
    monkeypatch.setattr("dnnkit.record.folder.packages", str)


@pytest.fixture
def data_root() -> Path:
    """The folder with real data sets that DNNKIT_DATA names; a test that asks for it is skipped where there is none."""
    root = os.environ.get("DNNKIT_DATA")
    if not root:
        pytest.skip("DNNKIT_DATA is not set: no real data sets here")
    if not Path(root).is_dir():
        pytest.fail(f"DNNKIT_DATA={root} is not a folder")
    return Path(root).resolve()


@pytest.fixture
def registries() -> Iterator[None]:
    """Components that a test registers, replaces or removes are as before after it."""
    from dnnkit import plugins
    from dnnkit.registry import REGISTRIES

    plugins.load()  # which happens once: what it would register inside a test would be forgotten after it
    before = {group: dict(registry._components) for group, registry in REGISTRIES.items()}
    yield
    for group, registry in REGISTRIES.items():
        registry._components.clear()
        registry._components.update(before[group])


@pytest.fixture
def presets(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """Writes a folder of presets for --config-dir: `presets({"experiment/mine.yaml": "name: mine"})`."""

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / "presets" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path / "presets"

    return write


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is drawn, kept for inspection."""
    from dnnkit.record import figures

    kept: list[Figure] = []
    make: Callable[..., Figure] = figures.blank_figure

    def keep(*size: float) -> Figure:
        kept.append(make(*size))
        return kept[-1]

    monkeypatch.setattr(figures, "blank_figure", keep)
    return kept


@pytest.fixture
def every_network() -> Callable[[], Iterator[tuple[str, nn.Module]]]:
    """Makes every registered model × normalization × activation, by name, as small as the model's settings allow."""
    from dnnkit.config import compose
    from dnnkit.errors import ConfigError
    from dnnkit.network import build_network
    from dnnkit.registry import REGISTRIES
    from dnnkit.schema import node

    small = {"mlp": ["model.hidden=[4,3]"], "cnn": ["model.channels=[2]", "model.hidden=[3]"], "resmlp": ["model.width=4"]}

    def make() -> Iterator[tuple[str, nn.Module]]:
        compose([])  # which loads the plugins
        for model in REGISTRIES["model"].names():
            config = compose([f"model={model}", *small.get(model, [])]).values
            config["task"] = REGISTRIES["model"].get(model).facts.get("task", "classification")
            for normalization in [*REGISTRIES["normalization"].names(), "none"]:
                config["normalization"] = {**node("normalization", normalization), "on_input": True}
                for record in REGISTRIES["activation"]:
                    config["activation"] = node("activation", record.name)
                    try:
                        network = build_network(config, (1, 8, 8), 64 if config["task"] == "reconstruction" else 3, 0)
                    except ConfigError:
                        continue  # a normalization that is not for layers of this width
                    yield f"{model}-{normalization}-{record.name}", network

    return make


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimpleNamespace]:
    """Trains a module by one engine of the chunked loop, and gives everything in which engines must agree as `state`.

    `fit(module, x, y, engine)` with `batch_size`, `callbacks`, `ckpt_path`, `augment` and settings of the Trainer. `engine` of what comes
    back is the loop's own, `graphs` how many graphs it made.
    """
    import pytorch_lightning as pl
    import torch

    from dnnkit.data.resident import Batches
    from dnnkit.loop import engine as engines
    from dnnkit.loop import use_chunks

    made: list[object] = []
    capture = engines.capture

    def counted(*arguments: Any, **named: Any) -> object:
        graph = capture(*arguments, **named)
        made.append(type(graph))
        return graph

    monkeypatch.setattr(engines, "capture", counted)
    monkeypatch.setattr(engines, "_WORTHWHILE", 0)

    class Kept(pl.loggers.logger.Logger):
        name, version, save_dir = "kept", 0, None

        def __init__(self) -> None:
            super().__init__()
            self.lines: list[tuple[int | None, str, float]] = []

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.lines += [(step, key, value) for key, value in metrics.items()]

        def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def train(
        module: Any,
        x: torch.Tensor,
        y: torch.Tensor,
        engine: str,
        *,
        batch_size: int = 8,
        callbacks: Sequence[Any] = (),
        ckpt_path: Path | None = None,
        augment: Any = None,
        **settings: Any,
    ) -> SimpleNamespace:
        logger, before = Kept(), len(made)
        quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            logger=logger,
            callbacks=list(callbacks),
            **{"max_epochs": 2, "log_every_n_steps": 10, **quiet, **settings},
        )
        use_chunks(trainer, 50, engine)  # type: ignore[arg-type]
        batches = Batches(x, y, batch_size, seed=3, augment=augment), Batches(x[:16], y[:16], 16, seed=0, shuffle=False)
        torch.manual_seed(len(engine))  # what ran before must not matter
        trainer.fit(module, *batches, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
        state = {
            "weights": module.state_dict(),
            "gradients": {name: parameter.grad for name, parameter in module.named_parameters()},
            "optimizer": trainer.optimizers[0].state_dict(),
            "schedule": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
            "logged": logger.lines,
            "steps": trainer.global_step,
            "random": torch.get_rng_state(),
        }
        loop: Any = trainer.fit_loop.epoch_loop
        return SimpleNamespace(state=state, trainer=trainer, module=module, engine=loop._engine, graphs=len(made) - before)

    return train


@pytest.fixture(scope="session")
def in_two_processes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[int], dict[str, Any]]], list[dict[str, Any]]]:
    """Asks a function of the rank in two new processes, which form one group; what each has found."""
    import torch

    from tests.helpers import as_rank

    def start(find: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("ranks")
        context = torch.multiprocessing.get_context("spawn")
        processes = [context.Process(target=as_rank, args=(find, rank, folder)) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(240)
        assert [process.exitcode for process in processes] == [0, 0]
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]

    return start


@pytest.fixture
def assert_same() -> Callable[[Any, Any], None]:
    """Asserts that two states are equal to the last bit, NaN included, through dicts, lists and tensors."""
    import torch

    def check(one: Any, other: Any, where: str = "") -> None:
        assert type(one) is type(other), where
        if isinstance(one, dict):
            assert one.keys() == other.keys(), where
            for key in one:
                check(one[key], other[key], f"{where}/{key}")
        elif isinstance(one, list | tuple):
            assert len(one) == len(other), where
            for index, pair in enumerate(zip(one, other, strict=True)):
                check(*pair, f"{where}/{index}")
        elif isinstance(one, torch.Tensor):
            assert (one.dtype, one.shape) == (other.dtype, other.shape), where
            same = torch.equal(*(tensor.reshape(-1).contiguous().view(torch.uint8) for tensor in (one, other)))
            assert same, f"{where}: differ by {(one.double() - other.double()).abs().max() if not one.is_complex() else '?'}"
        else:
            assert one == other or (one != one and other != other), where

    return check
