"""Many runs from one command: Hydra's sweeper and launcher do the counting, every job is a run like any other."""

from __future__ import annotations

import atexit
import itertools
import json
import logging
import math
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.rule import Rule

from dnnkit.config import Composer, Config, compose
from dnnkit.config.triage import CLI, line, parse, quoted
from dnnkit.console import open_console
from dnnkit.errors import ConfigError, DnnkitError, Interrupted, Problem
from dnnkit.record import strip_credentials

if TYPE_CHECKING:
    from dnnkit.training.check import Checked
    from dnnkit.training.result import Result
    from dnnkit.training.senders import Senders

log = logging.getLogger("dnnkit")

_PARAMS = "hydra.sweeper.params"
#: How Hydra, its sweepers and its launchers refuse; the last three are what settings of a wrong type or value come to. Jobs raise nothing.
_REFUSALS = (HydraException, OmegaConfBaseException, AssertionError, TypeError, ValueError)
#: What Hydra's own sweeper says of an interval.
_NO_INTERVALS = "does not support sweep type"
#: Up to so many jobs are checked one by one before the first starts; of more, every value of every axis.
CHECKED_ONE_BY_ONE = 32
#: An axis with more values than this is a slip of the keyboard, such as seed=range(0,1e9).
MOST_VALUES = 1000


@dataclass(frozen=True)
class Outcome:
    """What became of one job; `message` is empty where it finished."""

    job: int
    overrides: list[str]
    exit_code: int
    metrics: dict[str, float]
    run_dir: str | None = None
    message: str = ""


def is_sweep(overrides: Sequence[str], config_dir: str | None = None) -> bool:
    """Whether the overrides ask for a sweep by themselves: `hydra.mode=MULTIRUN`, typed or in a file of `sweeps/`."""
    if not any(text.lstrip("+").startswith(("sweeps=", "hydra.mode=")) for text in overrides):
        return False
    return bool(Composer(config_dir).sweep(spelt_out(overrides)).hydra.mode == RunMode.MULTIRUN)


def spelt_out(overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra's grammar takes them; `hydra.sweeper.params`, which OmegaConf cannot merge, typed as axes."""
    words: list[str] = []
    for override, text in ((parsed[0] if (parsed := parse([text])[0]) else None, text) for text in overrides):
        key = override.key_or_group if override is not None else ""
        value = override.value() if override is not None else None
        if key == _PARAMS and isinstance(value, dict):
            words += [f"{name}={axis}" for name, axis in value.items()]
        elif key.startswith(f"{_PARAMS}."):
            words.append(f"{key.removeprefix(f'{_PARAMS}.')}={value if isinstance(value, str) else text.partition('=')[2]}")
        else:
            words.append(quoted(text))
    return words


def run_sweep(overrides: Sequence[str], *, config_dir: str | None = None, console: Console) -> list[Outcome]:
    """Check every job, then run them all; a job that fails does not stop the others.

    Raises ConfigError before the first job starts, and Interrupted where a signal stopped a job and with it the sweep.
    """
    composer, overrides = Composer(config_dir), spelt_out(overrides)
    name = check_sweep(composer, overrides)
    with tempfile.TemporaryDirectory(prefix="dnnkit-sweep-") as scratch:
        job = Job(f"{name}-{uuid.uuid4().hex[:8]}", swept_keys(composer, overrides), config_dir, scratch, console.is_terminal)
        hydra = Hydra("dnnkit", composer.loader)
        try:
            hydra.multirun("config", job, [*overrides, f"hydra.sweep.dir={scratch}"], with_log_configuration=False)
        except _REFUSALS as error:
            if any(Path(scratch).glob("*.begun")):  # then nothing is wrong with how the sweep was asked for
                raise
            raise ConfigError(_refused(error, composer, overrides)) from error
        except KeyboardInterrupt as error:
            stopped = [outcome for outcome in _outcomes(scratch) if outcome.exit_code > 128]
            raise Interrupted(stopped[-1].exit_code - 128, stopped[-1].message) if stopped else error from None
        finally:
            _senders().close()
        return _outcomes(scratch)


def swept_keys(composer: Composer, overrides: Sequence[str]) -> list[str]:
    """The settings and choices in which the jobs of a sweep differ, by the command line and by the file of the study."""
    params, _ = _params(composer, overrides)
    typed, _ = parse(overrides)
    return [*map(str, params), *(override.key_or_group for override in typed if override.is_sweep_override())]


def check_jobs(composer: Composer, overrides: Sequence[str]) -> list[Checked]:
    """Judge every job of a sweep, by its data too, as `check_run` does one config, and raise what that raises.

    ConfigError has every problem of every job, each once; where there is none, that for which Hydra would refuse the sweep.
    """
    from dnnkit.training.check import check_run

    found: list[Checked] = []
    check_sweep(composer, overrides, lambda cfg: found.append(check_run(cfg)))
    _rehearse(composer, spelt_out(overrides))
    return found


def _rehearse(composer: Composer, overrides: Sequence[str]) -> None:
    """ConfigError for a sweep that Hydra refuses: its sweeper and its launcher do all that they do, but nothing is launched.

    Another sweeper than Hydra's own may go by the results of its jobs, so that no more than its settings are tried.
    """
    with tempfile.TemporaryDirectory(prefix="dnnkit-check-") as scratch:
        try:
            hydra = Hydra("dnnkit", composer.loader)
            tree = hydra.compose_config("config", [*overrides, f"hydra.sweep.dir={scratch}"], RunMode.MULTIRUN)
            context = HydraContext(composer.loader, Callbacks(tree))
            sweeper = Plugins.instance().instantiate_sweeper(hydra_context=context, task_function=_nothing, config=tree)
            if type(sweeper).__name__ == "BasicSweeper":  # by name, since Hydra's plugin manager imports a copy of its module
                sweeper.launcher = _Unlaunched()
                sweeper.sweep(list(tree.hydra.overrides.task))
        except _REFUSALS as error:
            raise ConfigError(_refused(error, composer, overrides)) from error


class _Unlaunched(Launcher):
    """A launcher that launches nothing."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Nothing is needed for it."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """No job returns anything."""
        return []


def _nothing(_cfg: DictConfig) -> None:
    """The task of a job that is never launched."""


def _refused(error: Exception, composer: Composer, overrides: Sequence[str]) -> list[Problem]:
    """What to say where Hydra refuses a sweep: the intervals, which only an adaptive sweeper takes, or Hydra's own words."""
    if isinstance(error, HydraException) and _NO_INTERVALS in str(error):
        return _intervals(composer, overrides)
    words = " ".join(str(error).split()) or "a setting of hydra.sweeper or hydra.launcher is out of its bounds"
    return [Problem("the sweep", f"cannot be run: {words}")]


def _intervals(composer: Composer, overrides: Sequence[str]) -> list[Problem]:
    """A problem for each interval of a sweep, of its file or typed."""
    params, files = _params(composer, overrides)
    words = [*(f"{key}={value}" for key, value in params.items()), *overrides]
    found = [override for override in parse(words)[0] if override.is_sweep_override() and not override.is_discrete_sweep()]
    typed = [override.input_line for override in parse(overrides)[0]]
    return [_interval(override) if override.input_line in typed else _placed(_interval(override), params, files) for override in found]


def _params(composer: Composer, overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The axes that a file of the sweep gives, and the files that give any."""
    params = dict(OmegaConf.select(composer.sweep(overrides), _PARAMS) or {})
    return params, [file for file, keys in composer.loader.setters() if any(key.startswith(_PARAMS) for key in keys)]


def _interval(override: Override) -> Problem:
    key, interval = override.get_key_element(), override.value()
    assert isinstance(interval, IntervalSweep)
    message = "is an interval, from which only an adaptive sweeper can draw; Hydra's own, hydra/sweeper=basic, takes values"
    return Problem(line(override), message, (f"{key}={interval.start:g},{interval.end:g}",), origin=CLI)


def check_sweep(composer: Composer, overrides: Sequence[str], judge: Callable[[Config], None] | None = None) -> str:
    """The name of the study, after its jobs have been composed and validated; ConfigError with every problem.

    Of a large grid those that `_jobs` chooses; with `judge`, which may raise ConfigError too, every one.
    """
    problems: list[Problem] = []
    params: dict[str, Any] = {}
    files: list[str] = []
    overrides = spelt_out(overrides)
    lines = [text for text in overrides if not text.lstrip("+~").startswith(("hydra.", "hydra/"))]
    try:
        params, files = _params(composer, overrides)
        lines = [*(f"{key}={value}" for key, value in params.items()), *lines]
    except ConfigError as error:
        problems += error.problems
    for job in _jobs(lines, composer, every=judge is not None):
        try:
            cfg = composer.one(job)
            if judge is not None:
                judge(cfg)
        except ConfigError as error:
            found = [_placed(problem, params, files) for problem in error.problems]
            problems += [problem for problem in found if problem not in problems]
    if problems:
        raise ConfigError(problems)
    study = [text.partition("=")[2] for text in overrides if text.startswith("+sweeps=")]
    return study[0] if study else "sweep"


def _placed(problem: Problem, params: Mapping[str, Any], files: Sequence[str]) -> Problem:
    """The problem with the file whose `hydra.sweeper.params` gave the value, instead of the command line."""
    key = problem.where.partition("=")[0]
    return replace(problem, origin=files[-1]) if files and (key in params or key in (name.lstrip("+~") for name in params)) else problem


def _jobs(lines: Sequence[str], composer: Composer, every: bool = False) -> Iterator[list[str]]:
    """The jobs to check: all of a small grid, or `every` one, else one for each value of each axis, the other axes at their first.

    What is no override at all is left to the composer, as the first job.
    """
    parser = OverridesParser.create(composer.loader)
    axes: dict[str, list[str]] = {}
    for text in lines:
        try:
            (override,) = parser.parse_overrides([text])  # the plural alone knows the loader, which glob() asks for names
            axes[override.get_key_element()] = _values(override)  # as Hydra has it, the last of one key counts
        except (HydraException, OmegaConfBaseException, ValueError, RecursionError):
            axes[text] = [text]
    if every or math.prod(map(len, axes.values())) <= CHECKED_ONE_BY_ONE:
        yield from (list(job) for job in itertools.product(*axes.values()))
        return
    for key, axis in axes.items():
        yield from ([value if other == key else values[0] for other, values in axes.items()] for value in axis)


def _values(override: Override) -> list[str]:
    """The values of one axis; an interval of an adaptive sweeper has its ends."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    key = override.get_key_element()
    if not override.is_discrete_sweep():
        interval: Any = override.value()
        return [f"{key}={interval.start}", f"{key}={interval.end}"]
    values = list(itertools.islice(override.sweep_string_iterator(), MOST_VALUES + 1))
    if len(values) > MOST_VALUES:
        raise ConfigError([Problem(override.input_line or key, f"gives more than {MOST_VALUES} values")])
    if not values:
        raise ConfigError([Problem(override.input_line or key, "gives no value at all")])
    return [f"{key}={value}" for value in values]


class Job:
    """One job of a sweep, called by Hydra's launcher, possibly in another process; writes its outcome to a file."""

    def __init__(self, sweep: str, swept: Sequence[str], config_dir: str | None, scratch: str, terminal: bool) -> None:
        self.sweep, self.swept, self.config_dir, self.scratch, self.terminal = sweep, swept, config_dir, scratch, terminal

    def __call__(self, _cfg: DictConfig) -> None:
        """Compose this job's config by the same way as a single run's, train it, and note what became of it."""
        hydra = HydraConfig.get()
        number, overrides = int(hydra.job.num), list(hydra.overrides.task)
        Path(self.scratch, f"{number}.begun").touch()
        console = open_console(force_terminal=self.terminal or None)
        shown = [strip_credentials(word) for word in overrides]
        console.print(Rule(f"job {number}", align="left"), width=min(console.width, 80))
        console.print(" ".join(shown), markup=False, highlight=False, soft_wrap=True)
        try:
            cfg = compose(overrides, config_dir=self.config_dir)
            result = self._train(cfg, console)
            outcome = Outcome(number, shown, 0, dict(result.metrics), str(result.run_dir))
        except Interrupted as error:
            self._note(Outcome(number, shown, error.exit_code, {}, message=str(error)))
            raise KeyboardInterrupt from error
        except Exception as error:
            code = error.exit_code if isinstance(error, DnnkitError) else 1
            message = str(error) if isinstance(error, DnnkitError) else f"{type(error).__name__}: {error}"
            console.print(message, markup=False, style="red")
            log.info("job %d failed", number, exc_info=True)
            outcome = Outcome(number, shown, code, {}, self._folder(overrides), message)
        self._note(outcome)

    def _train(self, cfg: Config, console: Console) -> Result:
        from dnnkit.training import train

        return train(cfg, senders=_senders(), sweep=self.sweep, swept=self.swept, console=console)

    def _folder(self, overrides: list[str]) -> str | None:
        """The run folder of a job that failed, if it got as far as having one."""
        try:
            cfg = compose(overrides, config_dir=self.config_dir)
        except DnnkitError:
            return None  # and so it was its config that failed
        for tags in Path(cfg.tracking.runs).glob("*/tags.json"):
            if f'"{self.sweep}"' in tags.read_text(encoding="utf-8", errors="replace"):
                typed = yaml.safe_load((tags.parent / "config" / "overrides.yaml").read_text(encoding="utf-8"))
                if typed == overrides:
                    return str(tags.parent)
        return None

    def _note(self, outcome: Outcome) -> None:
        Path(self.scratch, f"{outcome.job}.outcome.json").write_text(json.dumps(asdict(outcome)), encoding="utf-8")


@cache
def _senders() -> Senders:
    """The senders of this process's jobs: the sweep's own, or those of a worker process that a launcher started."""
    from dnnkit.training.senders import Senders

    senders = Senders()
    atexit.register(senders.close)
    return senders


def _outcomes(scratch: str) -> list[Outcome]:
    """What became of the jobs so far, in their order."""
    found = [Outcome(**json.loads(path.read_text(encoding="utf-8"))) for path in Path(scratch).glob("*.outcome.json")]
    return sorted(found, key=lambda outcome: outcome.job)
