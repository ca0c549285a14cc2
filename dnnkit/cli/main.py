"""The command line: train by names, sweep, list, describe."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from dnnkit.cli.completion import ASK, answer, print_script
from dnnkit.cli.discover import asks_help, describe, list_choices, list_plugins, print_schema
from dnnkit.cli.doctor import doctor
from dnnkit.cli.finished import evaluate_run, predict_with, resume_run
from dnnkit.cli.fuse import fuse_weights
from dnnkit.cli.installed import missing_package
from dnnkit.cli.meant import no_such_command, subcommand_first
from dnnkit.cli.options import Options, parse_options
from dnnkit.cli.plot import plot_schedule
from dnnkit.cli.ui import open_ui
from dnnkit.errors import ConfigError, DnnkitError, PluginError, Problem, SweepError

if TYPE_CHECKING:
    from dnnkit.config import Config
    from dnnkit.training import Senders
    from dnnkit.training.check import Checked

HELP = """\
dnnkit trains a deep network that you describe in names, and records every number of the run.

  python -m dnnkit                                   train the default: digits, a SELU network, 1cycle
  python -m dnnkit +experiment=selu_mnist            train an experiment by its name
  python -m dnnkit activation=relu optimizer=nadam   change any choice by its name
  python -m dnnkit optimizer.lr=0.1 seed=1           change any setting
  python -m dnnkit -m activation=selu,relu,tanh      run a sweep, one run for each value
  python -m dnnkit -m +sweeps=activations            run a study from the folder sweeps/

To see what there is:
  dnnkit list                        every group of choices; dnnkit list optimizer: the optimizers
  dnnkit describe activation selu    what a choice means: formula, settings, bounds, source
  dnnkit describe data csv data.path=FILE data.target=COLUMN   a data set's card: sizes, balance, what is missing
  dnnkit check OVERRIDES             say what is wrong with a config, and do nothing
  dnnkit doctor OVERRIDES            what is wrong with a network before it is trained, and what mends it
  dnnkit plot OVERRIDES              the learning rate and the momentum of a run, drawn before it is trained
  dnnkit plugins                     the installed plugin packages, and whether they loaded
  dnnkit schema                      the JSON Schema of a config, for editors
  dnnkit completion bash             the script by which bash, zsh or fish completes all of this at the TAB key

To look at the runs, and to go on from one; RUN is its folder, or the 8 letters at the end of the folder's name:
  dnnkit ui [RUN]                    MLflow on the page of the runs of an experiment, by default dnnkit, or of one run
  dnnkit evaluate RUN                measure its weights again, on its own data or on others
  dnnkit predict RUN --input FILE --output FILE   classes and probabilities, or values, for new rows or arrays
  dnnkit fuse RUN                    fold batch normalization into the layers, for faster predictions
  dnnkit resume RUN trainer.max_epochs=40         more epochs, in the same folder and the same MLflow run

Options:
  -m, --multirun       run a sweep over every value that is given with commas
  --config-dir DIR     a folder with presets of your own, such as DIR/experiment/mine.yaml
  --cfg                print the composed config and do nothing
  --version            the version
  -h, --help           this text; after a subcommand, its own

A run leaves a folder under runs/ and a run in MLflow; its last lines say where, and how to look at it.
Exit codes: 0 finished, 1 our fault, 2 config, 3 plugin, 4 data, 5 diverged, 6 checkpoint, 7 part of a sweep failed,
8 disk, 130 and 143 stopped by a signal. DNNKIT_DEBUG=1 shows tracebacks.
"""


CHECK = """\
dnnkit check [-m] [OVERRIDES] [--config-dir DIR]

Says everything that is wrong with a config, and makes nothing. Where its data are here, the network is built for them, and
whatever names a layer of it or depends on the length of the run is checked too: optimizer.groups, freeze, the schedule.
Nothing is downloaded. Of a sweep (-m) every job is checked, and none is run; what Hydra would refuse of it is refused.

Then it says what the rules of the linter find: what is right by itself and does not go together, and what to type instead. A
remark offers nothing: what one would change was measured, and it did not help.
lint.ignore=[RULE], lint.strict=true and lint.severity={RULE: error} say which rules count; dnnkit list lint shows them, and
which are asked only where lint.severity names them.

Exit codes: 0 nothing is wrong, and otherwise that of the run: 2 config, 3 plugin, 4 data, 6 checkpoint."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    words = subcommand_first(sys.argv[1:] if argv is None else argv, SUBCOMMANDS)
    if argv is None and not (words and _is_subcommand(words[0])) and not {"-m", "--multirun"} & set(words):
        from dnnkit.training import own

        own.begin()  # of a process that trains one network
    try:
        code = _dispatch(words)
        sys.stdout.flush()  # here, where a reader that is gone is no error, not when the interpreter ends
        return code
    except DnnkitError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output is gone: `dnnkit list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        message = missing_package(error, words)
        if message is None:
            return _blame(error)
        _complain(message)
        return PluginError.exit_code
    except Exception as error:
        return _blame(error)


def _blame(error: Exception) -> int:
    """Say that something went wrong which no user could help."""
    _complain(f"internal error: {type(error).__name__}: {error}\n  this is a fault of dnnkit or of a plugin; DNNKIT_DEBUG=1 shows where")
    return 1


def _dispatch(words: list[str]) -> int:
    if words[:1] == [ASK]:
        return answer(words[1:], SUBCOMMANDS, HELP)
    if words and _is_subcommand(words[0]):
        if words[0] not in (*SUBCOMMANDS, "version"):
            raise ConfigError([no_such_command(words, SUBCOMMANDS)])
        if words[0] in SUBCOMMANDS:
            return SUBCOMMANDS[words[0]](words[1:])
    if "-h" in words or "--help" in words:
        print(HELP, end="")
        return 0
    if {"--version", "version"} & {*words[:1], *(word for word in words if word.startswith("-"))}:
        from importlib.metadata import version

        print(version("dnnkit"))
        return 0
    return _train(parse_options(words, SUBCOMMANDS))


def _is_subcommand(word: str) -> bool:
    return word.replace("-", "").replace("_", "").isalnum() and not word.startswith("-")


def _train(options: Options) -> int:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from dnnkit.worker import joined_torchrun, leave

        code = joined_torchrun()
        if code is not None:
            leave(code)
    if options.multirun:
        return _sweep(options)
    from dnnkit.training import Senders

    # Before anything heavy is imported here: MLflow is imported beside it, in the process that needs it.
    with Senders() as senders:
        if not options.show_config and "tracking=none" not in options.overrides:
            senders.warm()
        cfg = _composed(options)
        if cfg is not None:
            return _run(cfg, options, senders)
    return _sweep(options)


def _composed(options: Options) -> Config | None:
    """The config of one run; None where it turns out to be a sweep."""
    from dnnkit.config import Composer
    from dnnkit.sweep import is_sweep

    if is_sweep(options.overrides, options.config_dir):
        return None
    composer = Composer(options.config_dir)
    cfg = composer.one(options.overrides)
    return None if composer.asks_for_sweep else cfg


def _run(cfg: Config, options: Options, senders: Senders) -> int:
    if options.show_config:
        print(cfg.to_yaml(), end="")
        return 0
    from dnnkit.console import open_console
    from dnnkit.training import train
    from dnnkit.training.report import report

    console = open_console(quiet=not cfg.trainer.progress_bar)
    report(senders.settle(train(cfg, senders=senders, console=console)), open_console())
    return 0


def _sweep(options: Options) -> int:
    from dnnkit.cli.sweep_table import report_sweep
    from dnnkit.console import open_console
    from dnnkit.sweep import check_sweep, run_sweep
    from dnnkit.training.devices import check_no_torchrun

    check_no_torchrun()

    if options.show_config:
        from dnnkit.config import Composer

        check_sweep(Composer(options.config_dir), options.overrides)
        raise ConfigError([Problem("--cfg", "shows the config of one run; leave -m out")])
    console = open_console()
    outcomes = run_sweep(options.overrides, config_dir=options.config_dir, console=console)
    report_sweep(outcomes, console)
    failed = [outcome for outcome in outcomes if outcome.exit_code]
    if failed:
        numbers = ", ".join(str(outcome.job) for outcome in failed)
        raise SweepError(f"{len(failed)} of {len(outcomes)} jobs failed: {numbers}", failed[0].message)
    return 0


def _complain(message: str) -> None:
    if os.environ.get("DNNKIT_DEBUG") == "1":
        traceback.print_exc()
    print(message, file=sys.stderr)


def _check(words: list[str]) -> int:
    """Compose and validate, build the network for data that are there, and make nothing: dnnkit check OVERRIDES."""
    if asks_help(words, CHECK):
        return 0
    options = parse_options(words)
    from dnnkit.config import Composer
    from dnnkit.sweep import check_jobs, is_sweep

    composer = Composer(options.config_dir)
    sweep = options.multirun or is_sweep(options.overrides, options.config_dir)
    cfg = None if sweep else composer.one(options.overrides)  # before PyTorch is imported
    if cfg is None or composer.asks_for_sweep:
        checked = check_jobs(composer, options.overrides)
        valid = f"all {len(checked)} jobs are valid" if len(checked) > 1 else "the one job is valid"
    else:
        from dnnkit.training.check import check_run

        checked, valid = [check_run(cfg)], "the config is valid"
    print("\n".join([*_found(checked), valid + _as_far_as_known(checked)]))
    return 0


def _found(checked: Sequence[Checked]) -> Iterator[str]:
    """What the linter found in one config or in several, each finding once."""
    from dnnkit.lint import SEVERITIES

    findings = [finding for one in checked for finding in one.findings]
    for finding in sorted(dict.fromkeys(findings), key=lambda finding: SEVERITIES.index(finding.severity)):
        first, *rest = finding.lines()
        jobs = f" ({findings.count(finding)} of {len(checked)} jobs)" if len(checked) > 1 else ""
        yield from (first + jobs, *rest)


def _as_far_as_known(checked: Sequence[Checked]) -> str:
    unknown = dict.fromkeys(one.unknown for one in checked if one.unknown)
    return f" as far as can be told without the data: {'; '.join(unknown)}" if unknown else ""


_HELP = """\
dnnkit help [COMMAND]

The help of dnnkit, or that of one of its commands."""


def _help(words: list[str]) -> int:
    """Show the help of dnnkit or of a command: dnnkit help check."""
    if asks_help(words, _HELP):
        return 0
    return _dispatch([*words[:1], "--help"])


SUBCOMMANDS: Mapping[str, Callable[[list[str]], int]] = {
    "list": list_choices,
    "describe": describe,
    "check": _check,
    "doctor": doctor,
    "plot": plot_schedule,
    "plugins": list_plugins,
    "schema": print_schema,
    "evaluate": evaluate_run,
    "predict": predict_with,
    "resume": resume_run,
    "fuse": fuse_weights,
    "ui": open_ui,
    "completion": print_script,
    "help": _help,
}
