"""What each column of a training file is, and what its target asks for; decided from the cells, and said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Literal

import numpy as np

from dnnkit.data.source import Form
from dnnkit.data.tables.cells import beyond_float64, numbers, texts
from dnnkit.data.tables.comma import MISSING
from dnnkit.data.tables.encoding import ColumnEncoding, TableEncoding, TargetEncoding, class_labels
from dnnkit.data.tables.spelling import Floats, codes, comma_numbers, dates, hint, integers, true_or_false
from dnnkit.data.tables.table import Column, Table, counted, listed, override
from dnnkit.data.tasks import form_asked, usual
from dnnkit.errors import ConfigError, DataError, Problem

#: A column of which at least this share is numbers was meant as numbers.
_MEANT_AS_NUMBERS = 0.9
#: A text column is taken for ids or names where it has more than so many values and this share of its rows differ.
_ID_VALUES, _ID_SHARE = 10, 0.9
#: Integers are classes where there are at most so many, each of so many rows on average.
_FEW_INTEGERS, _MORE_INTEGERS = (10, 2), (20, 20)


@dataclass(frozen=True)
class Question:
    """What the config asks of a table: its target, the task, and which columns are left out or taken as categories.

    `task` is `auto`, or the name of one that the target has to allow, unless it needs none. `target` is a column, or several: a row of
    labels or values.
    """

    target: str | Sequence[str]
    task: str = "auto"
    ignore: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    max_categories: int = 50
    missing: tuple[str, ...] = MISSING


@dataclass(frozen=True)
class Decision:
    """How a table is read: the encoding, the columns as JSON values for the card, and the same in sentences."""

    encoding: TableEncoding
    columns: tuple[dict[str, Any], ...]
    sentences: tuple[str, ...]


def decide(table: Table, question: Question) -> Decision:
    """The kind of every column and of the target. Raises DataError and ConfigError as `data=csv` documents them."""
    used = _used(table, question)
    targets, said = decide_targets(table, question)
    columns = tuple(_feature(table, column, question) for column in used)
    complete = tuple(column.name for column in used if not column.missing.any())
    more = targets[1:] if _in_rows(question) else None
    encoding = TableEncoding(columns, targets[0], question.missing, question.ignore, complete, more)
    if len(set(encoding.features)) < len(encoding.features):
        twice = next(name for name, count in Counter(encoding.features).items() if count > 1)
        raise DataError(f"{table.path}: two columns would both give a feature called {twice!r}", "rename one of them")
    rows = tuple(_row(table, column) for column in columns)
    return Decision(encoding, rows, (*said, *(_sentence(row) for row in rows), *_suspects(table, encoding, question)))


def _names(question: Question) -> tuple[str, ...]:
    return (question.target,) if isinstance(question.target, str) else tuple(question.target)


def _in_rows(question: Question) -> bool:
    """Whether the target is a row for each example: of several columns, or of one that is asked for as a list or as a label."""
    return not isinstance(question.target, str) or form_asked(question.task) == "labels"


def _used(table: Table, question: Question) -> list[Column]:
    """The columns that are features, in the order of the file."""
    targets = _names(question)
    for name in question.ignore:
        if name != "":
            table.column(name, "data.ignore names it")
    for name in question.categories:
        table.column(name, "data.categories names it")
    for name in targets:
        table.column(name, "data.target names it")
    twice = [name for name in targets if name in (*question.ignore, *question.categories)]
    if twice:
        raise ConfigError([Problem("data.target", f"{twice[0]!r} is the target: it cannot be in data.ignore or data.categories")])
    used = [column for name, column in table.columns.items() if name not in (*targets, *question.ignore)]
    nameless = [column.name for column in used if column.name == "" or column.name.startswith("__index_level_")]
    if nameless:
        number = list(table.columns).index(nameless[0]) + 1
        cause = f"{table.path}: column {number} has no name of its own; it may be the index that pandas writes beside a table"
        raise DataError(cause, f"name it in the file, or leave it out: {override('data.ignore', nameless[0])}")
    if not used:
        raise DataError(f"{table.path} has no column besides the target {listed(targets)} and those that are ignored", _DELIMITER)
    return used


_DELIMITER = "name the delimiter with data.delimiter if the columns were not told apart"


def _feature(table: Table, column: Column, question: Question) -> ColumnEncoding:
    where, ignoring = f"{table.path}: column {column.name!r}", f"leave it out: {override('data.ignore', column.name)}"
    if column.said != "other" and column.missing.all():
        raise DataError(f"{where} has no value in any of {len(table)} rows", ignoring)
    kind = "category" if column.name in question.categories else kind_of(table, column)
    if kind == "number":
        numbers(table, column)  # an infinity is refused here
        return ColumnEncoding(column.name, "number")
    if kind == "boolean":
        return ColumnEncoding(column.name, "boolean")
    held = [text for text, gone in zip(texts(table, column), column.missing.tolist(), strict=True) if not gone]
    categories = sorted(set(held))
    advice = f"{hint(held)}; or {ignoring}" if hint(held) else ignoring
    if len(categories) > _ID_VALUES and len(categories) > _ID_SHARE * len(held):
        cause = f"{where} has {len(categories)} distinct texts in {len(held)} rows, as ids and names have; {_first(table, column)}"
        raise DataError(cause, advice)
    if len(categories) > question.max_categories:
        rule = f"more than data.max_categories={question.max_categories}"
        raise DataError(f"{where} has {len(categories)} categories, {rule}; {_first(table, column)}", advice)
    return ColumnEncoding(column.name, "category", tuple(categories))


def _first(table: Table, column: Column) -> str:
    row = int((~column.missing).argmax())
    return f"the first is {texts(table, column)[row]!r} in {table.at(row)}"


def kind_of(table: Table, column: Column) -> Literal["number", "boolean", "category"]:
    """What the values are. DataError for numbers with a decimal comma, and for numbers among which a few texts stand."""
    if column.said in ("integer", "floating"):
        return "number"
    if column.said in ("boolean", "text", "other"):
        return "boolean" if column.said == "boolean" else "category"
    present = column.present
    if true_or_false(present):
        return "boolean"
    if codes(present):
        return "category"
    strange = np.isnan(column.numbers) & ~column.missing
    if not strange.any():
        return "number"
    where, text = f"{table.path}: column {column.name!r}", column.texts[int(strange.argmax())]
    if comma_numbers(present):
        raise DataError(f"{where} is not read as numbers: {text!r} in {table.at(int(strange.argmax()))}", hint(present))
    if strange.sum() <= (1 - _MEANT_AS_NUMBERS) * len(present):
        share = f"{len(present) - int(strange.sum())} of its {len(present)} values"
        all_texts = override("data.categories", column.name)
        cure = f"mend it, add it to data.missing if it marks a missing value, or take all as texts: {all_texts}"
        raise DataError(f"{where} holds numbers in {share}, but {text!r} in {table.places(strange)}", cure)
    return "category"


def decide_targets(table: Table, question: Question) -> tuple[tuple[TargetEncoding, ...], list[str]]:
    """How every column of the target is read, and sentences that say so and why. Raises as `decide_target`, and ConfigError."""
    if not _in_rows(question):
        target, said = decide_target(table, question, _names(question)[0])
        return (target,), [said]
    names = _names(question)
    if len(set(names)) < len(names) or not names:
        raise ConfigError([Problem("data.target", f"must name columns, each once, got {list(names)}")])
    asked = form_asked(question.task)
    if asked == "classes":
        message = f"task={question.task} takes one column, got {list(names)}"
        raise ConfigError([Problem("data.target", message, (f"data.target={names[0]}",))])
    if asked == "labels" or (asked != "values" and all(_two_values(table, name) for name in names)):
        return _labels(table, names)
    values = replace(question, task=question.task if asked == "values" else usual("values"))
    held = [decide_target(table, values, name) for name in names]
    return tuple(target for target, _ in held), [sentence for _, sentence in held]


def _two_values(table: Table, name: str) -> bool:
    return len(_distinct(table, _target_column(table, name))[1]) == 2


def _labels(table: Table, names: Sequence[str]) -> tuple[tuple[TargetEncoding, ...], list[str]]:
    """Columns of two values each, the second of which, in sorted order, is that the row has the label."""
    held, said = [], []
    for name in names:
        column, where = _target_column(table, name), f"{table.path}: the target {name!r}"
        kind, distinct = _distinct(table, column)
        if len(distinct) != 2:
            cause = f"{where} has {counted(len(distinct), 'distinct value')}, and a label has two; {_first(table, column)}"
            raise DataError(cause, "leave it out of data.target" if len(distinct) < 2 else "name columns of two values, such as 0 and 1")
        held.append(TargetEncoding(name, kind, tuple(distinct)))
        said.append(f"data.target {name!r} has the values {distinct[0]} and {distinct[1]}: a label, there where it is {distinct[1]}")
    return tuple(held), said


def decide_target(table: Table, question: Question, name: str) -> tuple[TargetEncoding, str]:
    """How the target in the column `name` is read, and a sentence that says so and why.

    `auto`: texts and truth values are classes, numbers with a fraction or an exponent are values to predict; integers are
    classes where there are at most 10 of them in at least twice as many rows, or at most 20 in 20 times as many.
    Raises DataError where the target is missing somewhere, constant, or not what the task needs.
    """
    column = _target_column(table, name)
    kind, distinct = _distinct(table, column)
    whole = column.said == "integer" or (column.said == "cells" and kind == "number" and integers(column.present))
    form, task, reason = _form(question.task, kind, whole, len(distinct), len(table))
    said = _NOUNS["integer" if whole else kind].format(len(distinct))
    sentence = f"data.target {column.name!r} has {said}: {task}{reason}"
    if form_asked(question.task) != "itself":
        _check_form(table, column, form, task, kind, distinct)
    return TargetEncoding(column.name, kind, tuple(distinct) if form == "classes" else None), sentence


def _target_column(table: Table, name: str) -> Column:
    column = table.column(name, "data.target names it")
    if column.missing.any():
        cause = f"{table.path}: the target {column.name!r} is missing in {table.places(column.missing)}"
        raise DataError(cause, "fill it in, or take these rows out of the file")
    return column


def _kind(table: Table, column: Column) -> Literal["number", "boolean", "text"]:
    found = kind_of(table, column)
    return "text" if found == "category" else found


def _distinct(table: Table, column: Column) -> tuple[Literal["number", "boolean", "text"], list[str]]:
    """What a target holds, and its values as class names, in order."""
    kind = _kind(table, column)
    names = set(class_labels(table, column, kind))
    return kind, sorted(names, key=Decimal) if kind == "number" else sorted(names)


_NOUNS = {
    "text": "{} distinct texts",
    "boolean": "{} distinct truth values",
    "integer": "{} distinct integers",
    "number": "{} distinct numbers, not all integers",
}


def _form(task: str, kind: str, whole: bool, distinct: int, rows: int) -> tuple[Form, str, str]:
    """What the target becomes, the task that it is for, and why."""
    asked = form_asked(task)
    if asked in ("classes", "values"):
        return asked, task, f", as task={task} says"
    if kind != "number":
        return "classes", usual("classes"), ""
    few = any(distinct <= most and distinct * each <= rows for most, each in (_FEW_INTEGERS, _MORE_INTEGERS))
    form: Form = "classes" if whole and few else "values"
    other: Form = "values" if form == "classes" else "classes"
    return form, usual(form), f"; task={usual(other)} says otherwise" if whole else ""


def _check_form(table: Table, column: Column, form: Form, task: str, kind: str, distinct: Sequence[str]) -> None:
    where = f"{table.path}: the target {column.name!r}"
    if form == "values" and kind == "text":
        cause = f"{where} holds texts, and task={task} needs numbers; {_first(table, column)}"
        raise DataError(cause, hint(column.texts) or f"take task={usual('classes')}, or name another column with data.target")
    if len(distinct) == 1:
        rule = f"{task} needs at least two classes" if form == "classes" else "there is nothing to predict"
        raise DataError(f"{where} is {distinct[0]!r} in all {len(table)} rows: {rule}", "name another column with data.target")
    if form == "classes" and len(distinct) > max(10, len(table) / 2):
        cause = f"{where} has {len(distinct)} distinct values in {len(table)} rows, too many to be classes; {_first(table, column)}"
        numeric = "" if kind == "text" else f"take task={usual('values')}, or "
        raise DataError(cause, (kind == "text" and hint(column.texts)) or f"{numeric}name another column with data.target")


def _row(table: Table, column: ColumnEncoding) -> dict[str, Any]:
    """What was decided about a column, as JSON."""
    row: dict[str, Any] = {"column": column.name, "kind": column.kind, "missing": int(table.columns[column.name].missing.sum())}
    return {**row, "categories": list(column.categories)} if column.kind == "category" else row


def _sentence(row: dict[str, Any]) -> str:
    missing = f", missing in {counted(row['missing'], 'row')}" if row["missing"] else ""
    what = f"category of {len(row['categories'])}: {listed(row['categories'], 10)}" if row["kind"] == "category" else row["kind"]
    return f"column {row['column']!r}: {what}{missing}"


def _suspects(table: Table, encoding: TableEncoding, question: Question) -> list[str]:
    """What is allowed but seldom meant: texts that might be something else, columns that count the rows, classes of a single row."""
    taken = [(f"column {column.name!r}", column.name) for column in encoding.columns if column.kind == "category"]
    taken += [("the target", target.name) for target in encoding.targets if target.kind == "text"]
    told = [_as_texts(table, words, table.columns[name]) for words, name in taken if name not in question.categories]
    told += [_rounded(table, table.columns[column.name]) for column in encoding.columns if column.kind == "number"]
    measured = [column.name for column in encoding.columns if column.kind == "number"]
    counting = [name for name in measured if _counts(numbers(table, table.columns[name]))]
    said = [f"column {name!r} counts the rows; if it is an id, leave it out: {override('data.ignore', name)}" for name in counting]
    if encoding.classes is not None:
        sizes = Counter(class_labels(table, table.columns[encoding.target.name], encoding.target.kind))
        said += [f"class {name!r} has a single row, which can be in one split only" for name in encoding.classes if sizes[name] == 1]
    return [*filter(None, told), *said]


def _as_texts(table: Table, words: str, column: Column) -> str:
    """A sentence on texts that look like codes or dates, else nothing."""
    present = column.present
    if column.said == "cells" and codes(present):
        row = next(row for row, text in enumerate(column.texts) if not column.missing[row] and codes([text]))
        return f"{words} has leading zeros, as codes have ({column.texts[row]!r} in {table.at(row)}): taken as texts, not as numbers"
    if dates(present):
        return f"{words} looks like dates: taken as plain texts, without their order or distance"
    return ""


def _rounded(table: Table, column: Column) -> str:
    wrong = beyond_float64(column)
    where = f"column {column.name!r} holds integers beyond 2^53, which float64 rounds, in {table.places(wrong)}" if wrong.any() else ""
    return where and f"{where}; if they are ids, leave it out: {override('data.ignore', column.name)}"


def _counts(values: Floats) -> bool:
    return len(values) > 1 and bool((np.diff(values) == 1).all())
