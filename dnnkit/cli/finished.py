"""The subcommands for runs that have been: evaluate, predict, resume."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dnnkit.cli.discover import asks_help
from dnnkit.errors import ConfigError, Problem, nearest

RUN = """\
RUN is the path of a run folder; or, of a folder under runs/, its name, the beginning or the end of its name (the end is
its 8-letter id), its UUID, or the id of its MLflow run."""

EVALUATE = f"""\
dnnkit evaluate RUN [OVERRIDES] [--split test|validation|train] [--mc-samples N] [--checkpoint best|last|fused] [--runs DIR] [--json]

Measures the weights of a run: the loss and the metrics of its test split, as the run itself measured them. The network
comes from the checkpoint, and the data are standardised with the statistics in it. Nothing is written.

{RUN}

OVERRIDES may change where the data are (data.root=…, data.path=…, and the other settings of data) and metrics=[…].
On the same data the numbers equal those of the run's journal bit for bit, on the same kind of device and with as many CPU
threads as the run had, which is the default. On other data there is a warning.

  --split S            test (default), validation or train
  --mc-samples N       Monte-Carlo dropout too: mc_loss and the other mc_… of the mean of N passes with dropout on, and how far
                       the passes are apart: mc_std_right and mc_std_wrong, the deviation of the predicted class's probability
                       over right and over wrong answers; of values mc_std (default: as many as the run's dropout.mc_samples)
  --checkpoint C       best (default): the weights with the best validation; last: those at the end; fused: see dnnkit fuse
  --runs DIR           where run folders are (default: runs)
  --json               print everything as JSON

Exit codes: 0 done, 2 command line, 4 data, 6 no such run or checkpoint, or a damaged one."""

PREDICT = f"""\
dnnkit predict RUN --input FILE --output FILE [--mc-samples N] [--batch-size N] [--overwrite] [--checkpoint C] [--runs DIR] [--json]

Predicts with the weights of a run. Neither the data that it was trained on nor MLflow is needed: whatever was done to the
training's examples is in the checkpoint and is done to these.

{RUN}

  --input FILE         .csv or .parquet: the columns of the run's table, in any order; other columns are left out, with a word.
                       .npz: raw examples under the key x, of shape (n, …) as the run's; images also (n, h, w).
  --output FILE        .csv: for each row of the input its number (row), the class (prediction) and the probability of each (p_<class>), or
                       the values, in the units of the target and by its names. .npz: the same as arrays: row, prediction (class
                       indices), probabilities and classes, or values and targets. Of labels the prediction is those with a
                       probability of at least 1/2 (in .npz 0 and 1, and labels for classes). A reconstruction is .npz alone.
                       Rows are counted from 1 in every format, without the header. Where a target is called row itself, the
                       number is in the column row_number.
  --mc-samples N       Monte-Carlo dropout: the predictions are the mean of N passes with dropout on, and there are columns for how
                       sure they are: the deviation over the passes of each probability (std_<class>) or value (std_<target>);
                       of classes also entropy, and mutual_information between class and weights, in nats. In .npz the arrays
                       std, entropy and mutual_information. The same numbers every time, whatever --batch-size is.
  --overwrite          replace an output file that is there
  --batch-size N       examples at a time (default: chosen by what the network needs for one)
  --checkpoint C       best (default), last, or fused: see dnnkit fuse
  --runs DIR           where run folders are (default: runs)
  --json               print a summary as JSON

Where the input has the target (the column; y in .npz), the loss and the metrics are printed too.
Exit codes: 0 done, 2 command line, 4 input, 6 no such run or checkpoint, or a damaged one, 8 disk."""

RESUME = f"""\
dnnkit resume RUN [trainer.max_epochs=N …] [--gone] [--runs DIR]

Goes on with a run from the end of its last whole epoch: in its folder, and in its MLflow run. A finished run needs more
epochs than it had; one that was stopped or killed goes on to the end that it had.

{RUN}

What may change: trainer.max_epochs, trainer.early_stopping, trainer.progress_bar, trainer.threads, trainer.chunk_size,
trainer.engine, diagnostics.every, tracking.wait_s, and where the data are (data.root, data.path, data.loader,
data.workers, data.memory_share).
Everything else would make it another experiment: start a new run with it.

With a schedule that does not depend on the length of the run (constant, …) the result is, bit for bit, that of a run that was
never interrupted, on the same kind of device and with as many CPU threads as the run had, which is the default. A schedule
over the whole run (one_cycle, cosine, …) is that of the longer run from there on.

A run that was stopped inside an epoch goes back to the end of the epoch before, and the rows of metrics.jsonl after that are
taken out; MLflow keeps what it has been sent. Settings that changed are tags in MLflow, dnnkit.changed.<setting>, because
a parameter cannot change there; config/config.yaml is the config that now holds, config/config.1.yaml the one before.

  --gone               the process of the run is gone, although this machine cannot see that
  --runs DIR           where run folders are (default: runs)

Exit codes: those of a run; 6 for a run that is still going, or has no checkpoint to go on from."""


@dataclass
class Words:
    """A command line, taken apart."""

    rest: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)

    def number(self, name: str, default: int) -> int:
        """The whole number given for an option."""
        text = self.options.get(name)
        if text is None:
            return default
        if not text.isdecimal() or int(text) < 1:
            raise ConfigError([Problem(name, f"must be an integer at least 1, got {text!r}")])
        return int(text)


def take_apart(words: Sequence[str], options: Sequence[str], flags: Sequence[str], usage: str, least: int = 1) -> Words:
    """RUN and overrides, `least` of them, options with a value (`--split test`, `--split=test`) and flags. Raises ConfigError."""
    found, left = Words(), iter(words)
    for word in left:
        name, equals, value = word.partition("=")
        if not word.startswith("-") or word == "-":
            found.rest.append(word)
        elif name in options:
            given = value if equals else next(left, None)
            if given is None or given == "":
                raise ConfigError([Problem(name, f"needs a value; the command is: {usage}")])
            found.options[name] = given
        elif word in flags:
            found.flags.add(word)
        else:
            known = [*options, *flags, "--help"]
            raise ConfigError([Problem(word, f"there is no such option; there are: {', '.join(known)}", nearest(name, known))])
    if len(found.rest) < least:
        raise ConfigError([Problem("RUN", f"name the run; the command is: {usage}")])
    return found


def _usage(text: str) -> str:
    return text.splitlines()[0]


def evaluate_run(words: list[str]) -> int:
    """Measure a run's weights: dnnkit evaluate RUN."""
    if asks_help(words, EVALUATE):
        return 0
    given = take_apart(words, ("--split", "--mc-samples", "--checkpoint", "--runs"), ("--json",), _usage(EVALUATE))
    from dnnkit.training.evaluate import evaluate

    run, *overrides = given.rest
    names = {"split": "--split", "checkpoint": "--checkpoint", "runs": "--runs"}
    samples = given.number("--mc-samples", 0) or None
    options = {key: given.options[name] for key, name in names.items() if name in given.options}
    found = evaluate(run, overrides, mc_samples=samples, **options)
    for notice in found.notices:
        print(f"warning: {notice}", file=sys.stderr)
    if "--json" in given.flags:
        shown = {
            "run_dir": str(found.run_dir), "uuid": found.uuid, "checkpoint": found.checkpoint, "step": found.step,
            "split": found.split, "rows": found.rows, "metrics": dict(found.metrics), "recorded": dict(found.recorded),
            "fingerprint": found.fingerprint, "recorded_fingerprint": found.trained_on, "notices": list(found.notices),
        }  # fmt: skip
        print(json.dumps(shown, indent=2, ensure_ascii=False))
        return 0
    examples = "1 example" if found.rows == 1 else f"{found.rows} examples"
    print(f"{found.run_dir.name}, {found.checkpoint} weights (step {found.step}), {examples} of {found.split}")
    print(_line(found.metrics))
    if found.recorded:
        equal = all(found.recorded[name] == value for name, value in found.metrics.items() if name in found.recorded)
        print("equal to the run's journal, bit for bit" if equal else f"the run's journal has: {_line(found.recorded, digits=9)}")
    return 0


def predict_with(words: list[str]) -> int:
    """Predict with a run's weights: dnnkit predict RUN --input FILE --output FILE."""
    if asks_help(words, PREDICT):
        return 0
    options = ("--input", "--output", "--mc-samples", "--batch-size", "--checkpoint", "--runs")
    given = take_apart(words, options, ("--overwrite", "--json"), _usage(PREDICT))
    problems = [Problem(name, "is missing: name a file") for name in ("--input", "--output") if name not in given.options]
    problems += [Problem(word, "predict takes no overrides: the run's config is in its checkpoint") for word in given.rest[1:]]
    if problems:
        raise ConfigError(problems)
    from dnnkit.training.predict import predict_file

    names = {"checkpoint": "--checkpoint", "runs": "--runs"}
    found = predict_file(
        given.rest[0],
        given.options["--input"],
        given.options["--output"],
        batch_size=given.number("--batch-size", 0) if "--batch-size" in given.options else None,
        overwrite="--overwrite" in given.flags,
        mc_samples=given.number("--mc-samples", 0),
        **{key: given.options[name] for key, name in names.items() if name in given.options},
    )
    for notice in found.notices:
        print(f"note: {notice}", file=sys.stderr)
    if "--json" in given.flags:
        shown = {
            "run_dir": str(found.run_dir), "checkpoint": found.checkpoint, "step": found.step, "rows": found.rows,
            "output": str(found.output), "metrics": found.metrics, "notices": list(found.notices),
        }  # fmt: skip
        print(json.dumps(shown, indent=2, ensure_ascii=False))
        return 0
    said = "prediction of {} ({} weights, step {}) is in {}" if found.rows == 1 else "predictions of {} ({} weights, step {}) are in {}"
    print(found.rows, said.format(found.run_dir.name, found.checkpoint, found.step, found.output))
    if found.metrics:
        print(_line(found.metrics))
    return 0


def resume_run(words: list[str]) -> int:
    """Go on with a run: dnnkit resume RUN trainer.max_epochs=40."""
    if asks_help(words, RESUME):
        return 0
    given = take_apart(words, ("--runs",), ("--gone",), _usage(RESUME))
    from dnnkit.console import open_console
    from dnnkit.training.report import report
    from dnnkit.training.resume import resume

    run, *overrides = given.rest
    report(resume(run, overrides, runs=given.options.get("--runs", "runs"), gone="--gone" in given.flags), open_console())
    return 0


def _line(metrics: Mapping[str, float], digits: int = 4) -> str:
    return "  ".join(f"{name} {value:.{digits}g}" for name, value in metrics.items())
