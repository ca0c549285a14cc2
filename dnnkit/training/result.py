"""What a run leaves in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from dnnkit.errors import CheckpointError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from dnnkit.module import Module

#: Keys of the journal that are no part of the history of training: each is in `Result.journal`.
_APART = ("signal/", "test/", "time/")
#: What the table of a notebook calls the parts of the data; the weights that are tested are the best, not the last.
_PARTS = {"test": "test", "val": "last validation", "train": "last training"}


@dataclass(frozen=True, repr=False)
class Result:
    """What a run leaves in Python: final metrics by key, the MLflow run's id (None without one), its folder, its module.

    The module holds the best weights. `message` says why MLflow does not have everything, if it does not,
    or which figure is missing. `history`, `journal` and
    `plot` read the run folder: of a folder that was moved, `dataclasses.replace(result, run_dir=Path(...))` says where it is now.
    """

    metrics: Mapping[str, float]
    run_id: str | None
    run_dir: Path
    module: Module
    uuid: str
    tracking_uri: str | None
    message: str = ""

    @property
    def history(self) -> DataFrame:
        """How training went: a row for each optimizer step that was measured, a column for each of `train/…`, `val/…`, `lr` and others.

        The index is `step`, the number of optimizer steps done. The validation is measured less often than the training, so its
        columns have gaps: `result.history["val/loss"].dropna()`. The test, the signal of the layers and times are in `journal`.
        Raises CheckpointError where the run folder is gone.
        """
        frame = self._frame(lambda key: not key.startswith(_APART))
        return frame[sorted(frame.columns, key=_place)]

    @property
    def journal(self) -> DataFrame:
        """`history` with every other number of the run: `test/…`, `signal/<layer>/…`, `time/…`; columns as they were first written."""
        return self._frame(bool)

    def plot(self) -> Figure:
        """The learning curves, as in `figures/learning_curves.png`: a matplotlib figure, which notebooks show.

        Raises CheckpointError where the run folder is gone.
        """
        from dnnkit.record.figures import draw_learning_curves

        figure = draw_learning_curves(self._folder())
        if figure is None:
            raise CheckpointError(f"the journal of {self.run_dir} holds no loss to draw", "Give the folder of the run as it was recorded.")
        return figure

    def __repr__(self) -> str:
        tested = [f"{key} {value:.4g}" for key, value in sorted(self.metrics.items()) if key.startswith("test/")]
        return f"Result({', '.join([*tested, f'run {self.uuid[:8]} in {self.run_dir}'])})"

    def _repr_html_(self) -> str:
        """The same for notebooks: the last loss and metrics of each part of the data, the folder, the MLflow run."""
        facts = {"run folder": str(self.run_dir), "MLflow run": self.run_id or "none"}
        facts["figures" if self.tracking_uri is None else "MLflow"] = self.message
        lines = "<br>".join(f"{name} <code>{escape(text)}</code>" for name, text in facts.items() if text)
        return f"<div><table>{''.join(self._html_rows())}</table>{lines}</div>"

    def _html_rows(self) -> Iterator[str]:
        """The table's head and a row for each metric of a part of the data, the last value of each."""
        held: dict[str, dict[str, float]] = {part: {} for part in _PARTS}
        for key, value in self.metrics.items():
            part, _, name = key.partition("/")
            held.get(part, {})[name] = value
        parts = [part for part in _PARTS if held[part]]
        yield f"<tr><th></th>{''.join(f'<th>{_PARTS[part]}</th>' for part in parts)}</tr>"
        for name in dict.fromkeys(name for part in parts for name in held[part]):
            cells = "".join(f"<td>{held[part][name]:.4g}</td>" if name in held[part] else "<td></td>" for part in parts)
            yield f"<tr><th>{escape(name)}</th>{cells}</tr>"

    def _frame(self, wanted: Callable[[str], bool]) -> DataFrame:
        from dnnkit.record.frame import journal_frame

        return journal_frame(self._folder(), wanted)

    def _folder(self) -> Path:
        """The run folder. Raises CheckpointError where it has no journal."""
        from dnnkit.record.journal import METRICS

        if not (self.run_dir / METRICS).is_file():
            missing = f"{self.run_dir / METRICS} is not there: the run folder was moved or removed"
            raise CheckpointError(missing, "Of one that was moved, dataclasses.replace(result, run_dir=Path(...)) says where it is now.")
        return self.run_dir


def _place(key: str) -> int:
    """Where a column stands in the history: training first, then validation, then the others, each kind as it was written."""
    return next((place for place, part in enumerate(("train/", "val/")) if key.startswith(part)), 2)
