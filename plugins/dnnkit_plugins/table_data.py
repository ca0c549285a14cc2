"""The user's own tables: one file, one target column, and kinds of columns that are decided from the cells."""

from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Len

from dnnkit.data import Source
from dnnkit.data.tables import MISSING, Question, Table, located, read_csv, read_parquet, table_source
from dnnkit.errors import ConfigError, DataError, Problem, nearest
from dnnkit.registry import data_sources

#: Tables that come with this package, named in a config as `bundled:NAME`.
EXAMPLES = Path(__file__).parent / "examples"
_BUNDLED = "bundled:"

Text = Annotated[str, Len(min_length=1)]
Target = Text | Annotated[list[Text], Len(min_length=1)]


@data_sources.register("csv")
def csv(
    root: Path | None,
    task: str,
    path: Text,
    target: Target,
    test_path: Text | None = None,
    delimiter: Literal["auto", "comma", "semicolon", "tab", "pipe"] = "auto",
    ignore: list[str] = [],  # noqa: B006  a setting's default is a JSON value, and is never changed
    categories: list[str] = [],  # noqa: B006
    max_categories: Annotated[int, Ge(1)] = 50,
    missing: list[str] = list(MISSING),  # noqa: B006
) -> Source:
    """A table in delimited text: `target` is the column to predict, all others are features unless `ignore` names them.

    `path` is relative to `data.root` where that is set, else to the working folder; `~` is home; plain or gzipped (with `.gz`
    added, if only that is there); `bundled:berries.csv` is an example that comes with dnnkit. `test_path` is a second file
    whose rows are the test split; without it test, like validation, is taken as `data.split` says.

    The file is UTF-8; its first line names the columns; a value with the delimiter, a quote or a line break in it stands in
    quotes ("), quotes doubled. `delimiter=auto` is judged by the first line. Blanks around values are dropped, empty lines
    are skipped, and a row with more or fewer values than the header is an error that names its line.

    Each column is one of three kinds, told in the log and the data card. Number: every cell is digits with a decimal point
    or an exponent. Boolean: every cell is true or false, in any case; 1 and 0. Category: any other text; one 0-or-1 value
    per category of the file, in alphabetical order, named `column=category`. `categories` names columns to take so although
    they hold numbers. Digits that begin with a zero, such as 007 or 02134, are codes: a column with such cells is a category
    unless one of its numbers has a sign, a point or an exponent (0, 0.5 and -05 are numbers). Dates are not read: they are
    texts like others. Refused, with the row and what to do about it: more than `max_categories`, texts that differ in nearly
    all rows (ids, names), a few texts among numbers, a decimal comma, an infinity, a column without a value. Categories,
    though no statistics, are those of all rows of the file, before validation and test are taken.

    Integers beyond 2^53 are told apart as classes and categories; as features they are rounded to float64, which is said,
    and as values to predict they are refused if that changes one.

    Cells that are one of `missing` have no value: a number or boolean gets the training mean, a category none of its values.
    That something was missing is not itself a feature. A missing target is an error.

    `task=auto`: a target of texts or booleans means classification, with classes in alphabetical order; numbers with a
    fraction or an exponent mean regression; integers mean classification where there are at most 10 different ones in at
    least twice as many rows, or at most 20 in at least 20 times as many, otherwise regression.

    Several columns, `data.target=[a,b,c]`, are labels where each has two values, and mean multi_label: a row has the label where
    the column holds the second of the two in sorted order, such as 1, true or yes. Otherwise they are the values of a regression.
    """
    question = Question(target, task, tuple(ignore), tuple(categories), max_categories, tuple(missing))
    train, test = _paths(root, path, test_path)
    known = [*([target] if isinstance(target, str) else target), *ignore]
    tables = [read_csv(file, delimiter, question.missing, known) for file in (train, test) if file is not None]
    return _source(tables, question)


@data_sources.register("parquet")
def parquet(
    root: Path | None,
    task: str,
    path: Text,
    target: Target,
    test_path: Text | None = None,
    ignore: list[str] = [],  # noqa: B006  as above
    categories: list[str] = [],  # noqa: B006
    max_categories: Annotated[int, Ge(1)] = 50,
) -> Source:
    """A table in a Parquet file: `target` is the column to predict, all others are features unless `ignore` names them.

    As `data=csv`, with the same values from the same table, except that a column's kind is the type that the file declares:
    integers, floats and decimals are numbers, truth values booleans, texts (also as a dictionary) categories; texts that
    spell numbers stay texts. Nulls and NaN are missing. Other types, such as dates, lists and structures, are errors until
    `ignore` names the column. Needs pyarrow.
    """
    question = Question(target, task, tuple(ignore), tuple(categories), max_categories)
    return _source([read_parquet(file) for file in _paths(root, path, test_path) if file is not None], question)


def _source(tables: list[Table], question: Question) -> Source:
    return table_source(tables[0], tables[1] if len(tables) > 1 else None, question)


def _paths(root: Path | None, path: str, test_path: str | None) -> tuple[Path, Path | None]:
    """Where the two files are; ConfigError where they are one, because a test on rows of training measures nothing."""
    train, test = _path(root, path), None if test_path is None else _path(root, test_path)
    if test is not None and train.resolve() == test.resolve():
        raise ConfigError([Problem("data.test_path", f"must be another file than data.path, both are {train}")])
    return train, test


def _path(root: Path | None, path: str) -> Path:
    if not path.startswith(_BUNDLED):
        return located(path, root)
    name, there = path.removeprefix(_BUNDLED), sorted(file.name for file in EXAMPLES.iterdir() if file.suffix != ".py" and file.is_file())
    if name not in there:
        close = nearest(name, there)
        hint = f"did you mean {' or '.join(_BUNDLED + one for one in close)}?" if close else f"there are: {', '.join(there)}"
        raise DataError(f"no table that comes with dnnkit is called {name!r}", hint)
    return EXAMPLES / name
