"""From tables to the Source that training prepares."""

from __future__ import annotations

import torch

from dnnkit.data.source import Examples, Source
from dnnkit.data.tables.deciding import Question, decide
from dnnkit.data.tables.encoding import TableEncoding, encode, encode_targets
from dnnkit.data.tables.table import Table, counted


def table_source(table: Table, test: Table | None, question: Question) -> Source:
    """The examples of a table: x float64 of shape `(n, features)`, NaN where a value is missing, and its target.

    Kinds, categories and classes are decided on `table` alone; `test` is encoded as any later file is. What was decided is
    kept for the card as `table_columns` (one mapping per column) and `decisions` (sentences, which a run also logs). The
    card's `missing` counts the gaps of every column here, because those of a category are no NaN in x.
    """
    decision = decide(table, question)
    train, _ = _examples(table, decision.encoding)
    own, notices = (None, []) if test is None else _examples(test, decision.encoding)
    sentences = [*decision.sentences, *notices]
    encoding = decision.encoding
    gaps = {row["column"]: row["missing"] for row in decision.columns if row["missing"]}
    return Source(
        train,
        own,
        kind="table",
        classes=encoding.classes,
        origin=str(table.path),
        description=f"{counted(len(table), 'row')}, {counted(len(encoding.columns), 'column')}",
        columns=encoding.features,
        targets=tuple(target.name for target in encoding.targets) if encoding.classes is None else None,
        missing=True,
        encoding=encoding.to_dict(),
        notes={"table_columns": list(decision.columns), "decisions": sentences, "missing": gaps},
    )


def _examples(table: Table, encoding: TableEncoding) -> tuple[Examples, list[str]]:
    x, notices = encode(table, encoding)
    return Examples(torch.from_numpy(x), torch.from_numpy(encode_targets(table, encoding))), notices
