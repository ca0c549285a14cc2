"""The samples of some works, compared with the floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from statistics import median
from typing import Any

from benchmarks.contenders import CONTENDERS, FLOOR
from benchmarks.driver import Finish, Play, Sample
from benchmarks.jobs import Work


@dataclass(frozen=True)
class Results:
    """`works` by their place; `contenders` in the order in which they are shown."""

    works: Mapping[int, Work]
    contenders: Sequence[str]
    play: Play

    def of(self, contender: str, place: int) -> list[Sample]:
        return [sample for sample in self.play.samples if (sample.contender, sample.work) == (contender, place)]

    def finishes(self, contender: str, place: int) -> list[Finish]:
        return [finish for finish in self.play.finishes if (finish.contender, finish.work) == (contender, place)]

    def ratios(self, contender: str, place: int) -> list[float]:
        """CPU time over the floor's in the same turn, one for each epoch; none without a floor."""
        floor = {(sample.round, sample.epoch): sample.cpu_s for sample in self.of(FLOOR, place)}
        turns = ((sample.cpu_s, floor.get((sample.round, sample.epoch))) for sample in self.of(contender, place))
        return [cpu / base for cpu, base in turns if base]

    def fastest(self, contender: str, place: int) -> float:
        """CPU seconds of the fastest epoch: what is left when the neighbours' noise, which only adds, is smallest."""
        return min(sample.cpu_s for sample in self.of(contender, place))

    def fastest_ratio(self, contender: str, place: int) -> float | None:
        return self.fastest(contender, place) / self.fastest(FLOOR, place) if self.of(FLOOR, place) else None

    def median_of(self, contender: str, place: int, quantity: str) -> float | None:
        """Of `cpu_s`, `children_s` or `wall_s`; None where it was not measured."""
        values = [value for sample in self.of(contender, place) if (value := getattr(sample, quantity)) is not None]
        return median(values) if values else None

    def accuracy(self, contender: str, place: int) -> float:
        """On the rows of validation, after the last epoch."""
        return median(finish.facts["val_acc"] for finish in self.finishes(contender, place))

    def to_json(self) -> dict[str, Any]:
        """Samples as rows under their columns; the folder of a work says nothing once it is done."""
        works = {place: {key: value for key, value in asdict(work).items() if key != "folder"} for place, work in self.works.items()}
        samples = [[*map(_short, astuple(sample))] for sample in self.play.samples]
        columns = [field.name for field in fields(Sample)]
        return {"works": works, "columns": columns, "samples": samples, "finishes": [asdict(one) for one in self.play.finishes]}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Results:
        """What `to_json` gave, as JSON gives it back."""
        works = {int(place): Work(folder="", **{**work, "hidden": tuple(work["hidden"])}) for place, work in found["works"].items()}
        samples = [Sample(*row) for row in found["samples"]]
        play = Play(samples, [Finish(**one) for one in found["finishes"]])
        seen = {sample.contender for sample in samples}
        return cls(works, [name for name in CONTENDERS if name in seen], play)


def _short(value: object) -> object:
    return round(value, 4) if isinstance(value, float) else value
