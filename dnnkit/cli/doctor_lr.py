"""dnnkit doctor --lr: the learning rate to begin with, as the overrides to paste."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from dnnkit.cli.options import Options

if TYPE_CHECKING:
    from dnnkit.config import Config
    from dnnkit.diagnostics.ramp import Ramp


def suggest(cfg: Config, options: Options, folder: Path, as_json: bool) -> int:
    """Try rates on the network of a config, write numbers and a figure, and say which rate they suggest."""
    from dnnkit.disk import disk
    from dnnkit.record.signal import write_ramp
    from dnnkit.training.lr_finder import find_rate

    ramp = find_rate(cfg)
    rate = ramp.suggest().rate
    pasted = () if rate is None else (*options.overrides, f"optimizer.lr={rate:g}")
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_ramp(folder, ramp)
    if as_json:
        print(json.dumps({**ramp.to_dict(), "overrides": list(pasted)}, indent=2, ensure_ascii=False))
    else:
        _say(ramp, pasted, options.config_dir, folder)
    return 0


def _say(ramp: Ramp, pasted: tuple[str, ...], config_dir: str | None, folder: Path) -> None:
    from dnnkit.console import open_console

    updates = f"{len(ramp.rates)} optimizer step{'s' if len(ramp.rates) != 1 else ''}"
    reached = f", the rate climbing from {ramp.rates[0]:.2g} to {ramp.rates[-1]:.2g}" if len(ramp.rates) > 1 else ""
    lines = [f"{updates}{reached}; the scheduler plays no part", ramp.suggest().reason]
    if pasted:
        lines.append("a tenth of that, to be pasted:")
        lines.append(f"  {shlex.join([*pasted, *([] if config_dir is None else ['--config-dir', config_dir])])}")
    else:
        lines.append("no rate is suggested")
    console = open_console()
    for line in [*lines, f"numbers and figure: {folder / 'diagnostics'}"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
