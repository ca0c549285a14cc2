"""The subcommand that folds batch normalization into the layers of a run: fuse."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from dnnkit.cli.discover import asks_help
from dnnkit.cli.finished import RUN, take_apart
from dnnkit.errors import ConfigError, Problem

if TYPE_CHECKING:
    from dnnkit.training.fuse import FusedRun

FUSE = f"""\
dnnkit fuse RUN [--checkpoint best|last] [--overwrite] [--runs DIR] [--json]

Folds the batch normalizations of a run into the weight layers beside them, which then compute the same with less work, and
writes checkpoints/fused.ckpt into the run folder. evaluate and predict take it with --checkpoint fused; it is for evaluation,
so no run can be resumed from it or start with it.

{RUN}

One after a dense or convolutional layer folds into that layer; one after an activation, or on the input, into the next. One
that stays is named with the reason: layer normalization and its like, whose statistics are those of each example; one before a
convolution that surrounds its input with zeros; one at the end of a residual branch; and so on.
Both networks are compared before anything is written: on the validation split of the run or, where its data cannot be loaded,
on random standardised inputs. The times of a batch are measured in turn, on the CPU.

  --checkpoint C       best (default) or last: the weights that are fused
  --overwrite          replace a fused.ckpt that is there
  --runs DIR           where run folders are (default: runs)
  --json               print everything as JSON

Exit codes: 0 done, 2 command line, 6 no such run or checkpoint, a damaged one, or nothing that can be fused, 8 disk."""


def fuse_weights(words: list[str]) -> int:
    """Fold batch normalization into the layers of a run: dnnkit fuse RUN."""
    if asks_help(words, FUSE):
        return 0
    given = take_apart(words, ("--checkpoint", "--runs"), ("--overwrite", "--json"), FUSE.splitlines()[0])
    if given.rest[1:]:
        raise ConfigError([Problem(word, "fuse takes no overrides: the run's config is in its checkpoint") for word in given.rest[1:]])
    from dnnkit.training.fuse import fuse_run

    names = {"checkpoint": "--checkpoint", "runs": "--runs"}
    options = {key: given.options[name] for key, name in names.items() if name in given.options}
    found = fuse_run(given.rest[0], overwrite="--overwrite" in given.flags, **options)
    for notice in found.notices:
        print(f"note: {notice}", file=sys.stderr)
    print(json.dumps(asdict(found), indent=2, ensure_ascii=False, default=str) if "--json" in given.flags else _told(found))
    return 0


def _told(found: FusedRun) -> str:
    lines = [f"{found.run_dir.name}, {found.checkpoint} weights (step {found.step}) are fused in {found.output}"]
    lines += [f"  {fold.normalization} is now in {fold.into}, the layer {fold.side} it" for fold in found.folds]
    lines += [f"  {refusal.normalization} stays: {refusal.reason}" for refusal in found.refusals]
    lines.append(f"{found.parameters:,} numbers before, {found.fused_parameters:,} now")
    share = f"{found.relative:.2g} of the greatest output"
    lines.append(f"greatest difference {found.difference:.3g}, {share}, over {found.compared:,} {found.compared_on}")
    lines.append(f"a batch of {found.batch} takes {found.time_ratio:.2f} of the time that it took")
    return "\n".join(lines)
