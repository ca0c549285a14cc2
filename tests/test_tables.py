"""The sources `csv` and `parquet`, and the same encoding for later files. Oracles: tensors by hand, pandas, scikit-learn."""

from __future__ import annotations

import csv
import gzip
import json
import random
import runpy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_wine
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import dnnkit
from dnnkit import plugins
from dnnkit.data import Source
from dnnkit.data.source import check, fingerprint
from dnnkit.data.tables import TableEncoding, encode_file
from dnnkit.data.tables.spelling import all_numbers, number
from dnnkit.errors import ConfigError, DataError
from dnnkit.registry import data_sources
from dnnkit.training.assemble import load_data

plugins.load()
NAN = float("nan")
#: Numbers, booleans and texts with a missing cell each, and a target of texts in no alphabetical order.
ANIMALS = """height,wild,colour,species
10,true,red,dog
2.5,FALSE,,cat
,true,blue,dog
-4e1, ,red,cat
1,false,green,dog
"""


def written(folder: Path, text: str, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def made(path: Path, target: str = "y", kind: str = "csv", task: str = "auto", **settings: Any) -> Source:
    """What the source gives for a file, checked as training checks it."""
    source: Source = data_sources.get(kind).function(None, path=str(path), target=target, task=task, **settings)
    check(kind, source)
    return source


def assert_same_bits(one: torch.Tensor, other: torch.Tensor) -> None:
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def kinds(source: Source) -> dict[str, str]:
    return {row["column"]: row["kind"] for row in source.notes["table_columns"]}


# What columns become


def test_numbers_booleans_and_texts_become_the_features_worked_out_by_hand(tmp_path: Path) -> None:
    source = made(written(tmp_path, ANIMALS), "species")
    by_hand = [
        [10.0, 1.0, 0.0, 0.0, 1.0],
        [2.5, 0.0, 0.0, 0.0, 0.0],
        [NAN, 1.0, 1.0, 0.0, 0.0],
        [-40.0, NAN, 0.0, 0.0, 1.0],
        [1.0, 0.0, 0.0, 1.0, 0.0],
    ]
    np.testing.assert_array_equal(source.train.x, by_hand)
    assert source.train.x.dtype == torch.float64
    assert source.columns == ("height", "wild", "colour=blue", "colour=green", "colour=red")
    assert source.classes == ("cat", "dog")
    assert source.train.y.tolist() == [1, 0, 1, 0, 1]
    assert (source.kind, source.missing, source.test, source.targets) == ("table", True, None, None)


def test_every_decision_is_in_the_notes_as_values_and_as_sentences(tmp_path: Path) -> None:
    notes = made(written(tmp_path, ANIMALS), "species").notes
    assert notes["table_columns"] == [
        {"column": "height", "kind": "number", "missing": 1},
        {"column": "wild", "kind": "boolean", "missing": 1},
        {"column": "colour", "kind": "category", "missing": 1, "categories": ["blue", "green", "red"]},
    ]
    assert notes["decisions"] == [
        "data.target 'species' has 2 distinct texts: classification",
        "column 'height': number, missing in 1 row",
        "column 'wild': boolean, missing in 1 row",
        "column 'colour': category of 3: 'blue', 'green', 'red', missing in 1 row",
    ]
    assert notes["missing"] == {"height": 1, "wild": 1, "colour": 1}  # also of the category, whose gaps are no NaN
    assert json.loads(json.dumps(notes)) == notes


def test_missing_numbers_are_filled_with_the_training_mean_by_the_preparation(workdir: Path) -> None:
    written(workdir, "a,y\n1,u\n3,v\n,u\n8,v\n100,u\n100,v\n")
    data = load_data(
        dnnkit.compose(["data=csv", "data.path=table.csv", "data.target=y", "data.split=tail", "data.val_size=1", "data.test_size=1"])
    )
    np.testing.assert_allclose(data.scaling.mean, [4.0])
    assert data.train.x[2, 0] == 0.0
    assert data.card["missing"] == {"a": 1}
    assert data.card["decisions"][0] == "data.target 'y' has 2 distinct texts: classification"


def test_a_column_listed_in_categories_is_taken_as_one_although_it_holds_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, "zone,y\n10,u\n2,v\n10,u\n,v\n")
    assert made(path).columns == ("zone",)
    source = made(path, categories=["zone"])
    assert source.columns == ("zone=10", "zone=2")
    assert source.train.x.tolist() == [[1, 0], [0, 1], [1, 0], [0, 0]]


def test_as_many_categories_as_are_allowed_are_taken(tmp_path: Path) -> None:
    path = written(tmp_path, "a,y\n" + "".join(f"c{row % 30},{'uv'[row % 2]}\n" for row in range(120)))
    assert len(made(path, max_categories=30).columns or ()) == 30


def test_ignored_columns_may_hold_anything(tmp_path: Path) -> None:
    rows = "".join(f"id-{i},{i % 7 * 0.5},,{'uv'[i % 2]}\n" for i in range(60))
    path = written(tmp_path, f"id,a,empty,y\n{rows}")
    assert made(path, ignore=["id", "empty"]).columns == ("a",)


def test_cells_that_mark_a_missing_value_are_a_setting(tmp_path: Path) -> None:
    path = written(tmp_path, "a,y\n1,u\n-999,v\nNA,u\n2,v\n")
    assert made(path, missing=["NA", "-999"]).train.x.flatten().isnan().tolist() == [False, True, True, False]
    np.testing.assert_array_equal(made(path).train.x[:, 0], [1, -999, NAN, 2])


@pytest.mark.parametrize("cell", ["", "NA", "N/A", "NaN", "nan", "null", "None", "?", "  "])
def test_the_usual_marks_and_blanks_are_missing_numbers(tmp_path: Path, cell: str) -> None:
    assert made(written(tmp_path, f"a,y\n1,u\n{cell},v\n2,u\n")).train.x[:, 0].isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    "cell", ["0.1", "1e-5", "-3.", ".5", "+7", "179769313486231.57e2", "0.30000000000000004", "1e22", "9007199254740993"]
)
def test_numbers_are_rounded_correctly(tmp_path: Path, cell: str) -> None:
    assert made(written(tmp_path, f"a,y\n{cell},u\n1,v\n")).train.x[0, 0].item() == float(cell)


@pytest.mark.parametrize("cell", ["1_000", "0x10", "1e", "--1", "１２", "1 2", "NAN", "-nan", "."])
def test_what_only_python_or_nobody_calls_a_number_is_a_text(cell: str) -> None:
    assert np.isnan(number(cell))
    assert np.isnan(all_numbers(["1", cell, "2"])).tolist() == [False, True, False]


def test_reading_many_numbers_at_once_gives_those_of_reading_one_by_one() -> None:
    draw = random.Random(0)
    cells = [repr(draw.uniform(-1, 1) * 10 ** draw.randint(-30, 30)) for _ in range(1000)] + ["inf", "-Infinity", "3"]
    np.testing.assert_array_equal(all_numbers(cells), [float(cell) for cell in cells])
    np.testing.assert_array_equal(all_numbers([*cells, "x"])[:-1], [float(cell) for cell in cells])


def test_a_column_that_counts_the_rows_is_pointed_out(tmp_path: Path) -> None:
    path = written(tmp_path, "n,a,y\n" + "".join(f"{i},{i * i},{'uv'[i % 2]}\n" for i in range(20)))
    assert "column 'n' counts the rows; if it is an id, leave it out: data.ignore=[n]" in made(path).notes["decisions"]
    assert not any("counts the rows" in said for said in made(path, ignore=["n"]).notes["decisions"])


# The file's form


@pytest.mark.parametrize(("delimiter", "setting"), [(",", "comma"), (";", "semicolon"), ("\t", "tab"), ("|", "pipe")])
def test_the_delimiter_is_found_or_given(tmp_path: Path, delimiter: str, setting: str) -> None:
    path = written(tmp_path, ANIMALS.replace(",", delimiter))
    expected = made(written(tmp_path, ANIMALS, "commas.csv"), "species")
    for chosen in ("auto", setting):
        source = made(path, "species", delimiter=chosen)
        assert_same_bits(source.train.x, expected.train.x)
        assert source.columns == expected.columns


def test_the_delimiter_is_the_one_under_which_the_target_is_a_column(tmp_path: Path) -> None:
    source = made(written(tmp_path, "a, b, c;y\n1;u\n2;v\n"))
    assert source.columns == ("a, b, c",)


def test_values_in_quotes_hold_delimiters_quotes_and_line_breaks(tmp_path: Path) -> None:
    source = made(written(tmp_path, 'a,y\n"x, ""z""",u\n"two\nlines",v\n"x, ""z""",u\n'))
    assert source.columns == ("a=two\nlines", 'a=x, "z"')


@pytest.mark.parametrize("form", ["\r\n", "\r", "bom", "blank lines", "blanks", "gzip"])
def test_other_forms_of_a_file_hold_the_same_table(tmp_path: Path, form: str) -> None:
    expected = made(written(tmp_path, ANIMALS), "species")
    path = tmp_path / "other.csv"
    forms = {
        "\r\n": ANIMALS.replace("\n", "\r\n").encode(),
        "\r": ANIMALS.replace("\n", "\r").encode(),
        "bom": b"\xef\xbb\xbf" + ANIMALS.encode(),
        "blank lines": ("\n" + ANIMALS.replace("\n", "\n\n")).encode(),
        "blanks": ANIMALS.replace(",", " ,  ").encode(),
        "gzip": gzip.compress(ANIMALS.encode()),
    }
    path.write_bytes(forms[form])
    source = made(path, "species")
    assert fingerprint(source) == fingerprint(expected)
    assert source.columns == expected.columns


def test_a_path_is_below_the_root_where_one_is_given_and_may_lack_gz(workdir: Path) -> None:
    (workdir / "deep").mkdir()
    (workdir / "deep" / "table.csv.gz").write_bytes(gzip.compress(ANIMALS.encode()))
    make = data_sources.get("csv").function
    for root, path in ((None, "deep/table.csv"), (Path("deep"), "table.csv"), (workdir / "deep", "table.csv.gz")):
        assert len(make(root, path=path, target="species", task="auto").train.y) == 5


def test_home_is_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, ANIMALS)
    assert len(made(Path("~/table.csv"), "species").train.y) == 5


def test_a_test_file_is_encoded_as_the_training_file_was(tmp_path: Path) -> None:
    train = written(tmp_path, "a,b,y\n1,red,u\n2,blue,v\n3,red,u\n")
    test = written(tmp_path, "y,extra,b,a\nv,9,violet,\nu,9,blue,7\n", "test.csv")
    source = made(train, test_path=str(test))
    assert source.test is not None
    np.testing.assert_array_equal(source.test.x, [[NAN, 0, 0], [7, 1, 0]])
    assert source.test.y.tolist() == [1, 0]
    [extra, gap, violet] = source.notes["decisions"][-3:]
    assert "'extra'" in extra
    assert "column 'a' has no value in line 2; training missed none there: the training mean is put there" in gap
    assert "column 'b': 'violet' is no category of training, so none is set (1 row, the first is line 2)" in violet


def test_a_test_file_must_be_another_one_than_the_training_file(workdir: Path) -> None:
    path = written(workdir, ANIMALS)
    with pytest.raises(ConfigError, match=r"data\.test_path"):
        made(path, "species", test_path="table.csv")


# The target


def targets(tmp_path: Path, values: list[str], task: str = "auto") -> Source:
    rows = "".join(f"{index * index % 17}.5,{value}\n" for index, value in enumerate(values))
    return made(written(tmp_path, f"a,y\n{rows}"), task=task)


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["b", "a", "b"] * 4, ("a", "b")),
        (["True", "false"] * 5, ("false", "true")),
        ([str(value) for value in range(10)] * 2, tuple(map(str, range(10)))),
        ([str(value) for value in range(11)] * 2, None),  # more than ten, in too few rows
        ([str(value) for value in range(20)] * 20, tuple(map(str, range(20)))),
        ([str(value) for value in range(20)] * 19, None),
        ([str(value) for value in range(21)] * 50, None),
        ([str(value) for value in range(5)], None),  # each in one row
        (["1.0", "2.0"] * 20, None),
        (["1e0", "2"] * 20, None),
        (["-1", "10", "2"] * 5, ("-1", "2", "10")),
    ],
)
def test_auto_tells_classes_from_values_by_the_stated_rule(tmp_path: Path, values: list[str], classes: tuple[str, ...] | None) -> None:
    source = targets(tmp_path, values)
    assert source.classes == classes
    assert source.targets == (None if classes else ("y",))
    if classes is None:
        assert source.train.y.tolist() == [float(value) for value in values]
    else:
        assert [source.classes[index] for index in source.train.y.tolist()] == [value.lower() for value in values]


def test_the_task_overrides_what_the_target_looks_like(tmp_path: Path) -> None:
    grades = ["1", "2", "3"] * 10
    assert targets(tmp_path, grades, "regression").train.y.tolist() == [1.0, 2.0, 3.0] * 10
    assert targets(tmp_path, ["0.5", "2.0"] * 10, "classification").classes == ("0.5", "2")
    assert targets(tmp_path, ["true", "false"] * 10, "regression").train.y.tolist() == [1.0, 0.0] * 10
    assert "regression, as task=regression says" in targets(tmp_path, grades, "regression").notes["decisions"][0]
    assert "classification; task=regression says otherwise" in targets(tmp_path, grades).notes["decisions"][0]


def test_a_reconstruction_needs_nothing_of_the_target(tmp_path: Path) -> None:
    assert targets(tmp_path, ["same"] * 10, "reconstruction").train.x.shape == (10, 1)


@pytest.mark.parametrize("seed", range(5))
def test_a_class_of_a_single_row_is_said_and_survives_a_stratified_split(workdir: Path, seed: int) -> None:
    written(workdir, "a,y\n" + "".join(f"{i * i % 13},{'uv'[i % 2]}\n" for i in range(40)) + "5,lone\n")
    data = load_data(dnnkit.compose(["data=csv", "data.path=table.csv", "data.target=y", f"seed={seed}"]))
    assert data.outputs == 3
    assert sum(balance[0] for balance in data.card["class_balance"].values()) == 1
    assert "class 'lone' has a single row, which can be in one split only" in data.card["decisions"]


# Integers that float64 cannot hold, and digits that are no numbers

BIG = 2**53


def parquet_of(folder: Path, **columns: Any) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), folder / "table.parquet")
    return folder / "table.parquet"


@pytest.mark.parametrize("kind", ["csv", "parquet", "decimal"])
def test_classes_of_integers_beyond_2_to_the_53_stay_apart(tmp_path: Path, kind: str) -> None:
    import pyarrow

    labels = [BIG + 1, BIG, BIG + 1, -BIG - 1, -BIG, BIG] * 3
    path = written(tmp_path, "a,y\n" + "".join(f"{index % 5},{label}\n" for index, label in enumerate(labels)))
    if kind != "csv":
        cells = pyarrow.array(labels, pyarrow.int64() if kind == "parquet" else pyarrow.decimal128(20, 0))
        path = parquet_of(tmp_path, a=[index % 5 for index in range(18)], y=cells)
    source = made(path, kind="csv" if kind == "csv" else "parquet", task="classification")
    assert source.classes == (str(-BIG - 1), str(-BIG), str(BIG), str(BIG + 1))
    assert source.train.y.tolist() == [3, 2, 3, 0, 1, 2] * 3
    again = encode_file(path, TableEncoding.from_dict(source.encoding or {}))
    assert again.target is not None
    assert again.target.tolist() == source.train.y.tolist()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_values_that_float64_would_round_are_refused_and_features_are_told_of(tmp_path: Path, kind: str) -> None:
    values = [10**18 + index for index in range(30)]
    path = written(tmp_path, "a,y\n" + "".join(f"{value},{value}\n" for value in values))
    path = path if kind == "csv" else parquet_of(tmp_path, a=values, y=values)
    with pytest.raises(DataError, match="column 'y' holds integers that float64 rounds: 1000000000000000001 in 29 rows, the first is"):
        made(path, kind=kind)
    labels = ["u", "v"] * 15
    path = written(tmp_path, "a,y\n" + "".join(f"{value},{label}\n" for value, label in zip(values, labels, strict=True)))
    source = made(path if kind == "csv" else parquet_of(tmp_path, a=values, y=labels), kind=kind)
    assert source.train.x[:, 0].tolist() == [float(value) for value in values]
    assert "column 'a' holds integers beyond 2^53, which float64 rounds, in 29 rows" in source.notes["decisions"][-1]


def test_integers_that_float64_holds_are_no_matter_however_large(tmp_path: Path) -> None:
    source = made(written(tmp_path, f"a,y\n{BIG},u\n{2**60},v\n1{'0' * 22},u\n"))
    assert source.train.x[:, 0].tolist() == [2.0**53, 2.0**60, 1e22]
    assert not any("2^53" in said for said in source.notes["decisions"])


def test_codes_with_leading_zeros_are_categories_and_classes_of_their_own(tmp_path: Path) -> None:
    source = made(written(tmp_path, "zip,y\n02134,007\n2134,7\n02134,07\n10001,7\n"), max_categories=3)
    assert source.columns == ("zip=02134", "zip=10001", "zip=2134")
    assert source.classes == ("007", "07", "7")
    assert source.train.y.tolist() == [0, 2, 1, 2]
    said = source.notes["decisions"]
    assert "column 'zip' has leading zeros, as codes have ('02134' in line 2): taken as texts, not as numbers" in said
    assert "the target has leading zeros, as codes have ('007' in line 2): taken as texts, not as numbers" in said


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ("0 0 1", "number"),
        ("0.5 -0.5 0", "number"),
        ("-05 +07 3", "number"),
        ("00.5 007 1", "number"),
        ("0e3 1 2", "number"),
        ("00 1 2", "category"),
        ("007 A12 3", "category"),
        ("NA 01 NA", "category"),
    ],
)
def test_a_zero_before_digits_makes_a_code_unless_a_number_has_a_sign_or_a_point(tmp_path: Path, cells: str, kind: str) -> None:
    rows = "".join(f"{cell},{label}\n" for cell, label in zip(cells.split(), "uvu", strict=True))
    assert kinds(made(written(tmp_path, f"a,y\n{rows}"))) == {"a": kind}


def test_dates_are_told_to_be_taken_as_texts(tmp_path: Path) -> None:
    path = written(tmp_path, "day,y\n2024-01-01,u\n2024-01-02,v\n2024-01-01,u\n")
    assert "column 'day' looks like dates: taken as plain texts, without their order or distance" in made(path).notes["decisions"]
    assert not any("dates" in said for said in made(path, categories=["day"]).notes["decisions"])


# Parquet


def mixed(rows: int = 150) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "real": draw.normal(size=rows) * 10.0 ** draw.integers(-9, 9, rows),
            "count": draw.integers(0, 1000, rows),
            "truth": draw.random(rows) < 0.5,
            "text": draw.choice(["red", "green", "blue, dark", 'say "x"'], rows),
            "gaps": draw.normal(size=rows),
            "few": draw.choice(["a", "b"], rows),
            "label": draw.choice(["yes", "no", "perhaps"], rows),
        }
    )
    table.loc[3:20, "gaps"] = np.nan
    table.loc[40:44, "few"] = None
    return table


@pytest.mark.parametrize("target", ["label", "real", "truth"])
def test_a_table_is_the_same_from_csv_and_from_parquet(tmp_path: Path, target: str) -> None:
    table = mixed()
    table.to_csv(tmp_path / "table.csv", index=False)
    table.to_parquet(tmp_path / "table.parquet")
    one, other = made(tmp_path / "table.csv", target), made(tmp_path / "table.parquet", target, "parquet")
    assert_same_bits(one.train.x, other.train.x)
    assert_same_bits(one.train.y, other.train.y)
    assert fingerprint(one) == fingerprint(other)
    assert (one.columns, one.classes, one.notes, one.encoding) == (other.columns, other.classes, other.notes, other.encoding)


def test_values_are_those_of_pandas(tmp_path: Path) -> None:
    table = mixed()
    table.to_csv(tmp_path / "table.csv", index=False)
    source = made(tmp_path / "table.csv", "label")
    coded = pd.get_dummies(table.drop(columns="label"), columns=["text", "few"], prefix_sep="=", dtype=float).astype(float)
    assert set(source.columns or ()) == set(coded.columns)
    np.testing.assert_array_equal(source.train.x, coded[list(source.columns or ())])


def test_other_types_of_parquet_are_read_as_what_they_stand_for(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table(
        {
            "half": pa.array([1.5, None, float("nan")], pa.float32()),
            "decimal": pa.array([1, 2, None], pa.decimal128(5, 2)),
            "large": pa.array([2**40, 1, None], pa.uint64()),
            "truth": pa.array([True, None, False]),
            "word": pa.array(["b", None, "a"]).dictionary_encode(),
            "digits": pa.array(["1", "2", "1"], pa.large_string()),
            "y": pa.array([1, 2, 1], pa.int8()),
        }
    )
    parquet.write_table(table, tmp_path / "table.parquet")
    source = made(tmp_path / "table.parquet", kind="parquet", task="regression")
    by_hand = [[1.5, 1, 2**40, 1, 0, 1, 1, 0], [NAN, 2, 1, NAN, 0, 0, 0, 1], [NAN, NAN, NAN, 0, 1, 0, 1, 0]]
    np.testing.assert_array_equal(source.train.x, by_hand)
    assert source.columns == ("half", "decimal", "large", "truth", "word=a", "word=b", "digits=1", "digits=2")
    assert source.train.y.tolist() == [1.0, 2.0, 1.0]


def test_a_null_is_no_category_where_the_text_none_is_one(tmp_path: Path) -> None:
    pd.DataFrame({"a": ["None", None, "x"], "y": ["u", "v", "u"]}).to_parquet(tmp_path / "table.parquet")
    source = made(tmp_path / "table.parquet", kind="parquet")
    assert source.columns == ("a=None", "a=x")
    assert source.train.x.tolist() == [[1, 0], [0, 0], [0, 1]]


def test_every_nan_has_the_same_bits(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1.0, -np.nan, np.nan], "y": ["u", "v", "u"]}).to_parquet(tmp_path / "table.parquet")
    source = made(tmp_path / "table.parquet", kind="parquet")
    assert_same_bits(source.train.x, made(written(tmp_path, "a,y\n1,u\n,v\nNA,u\n")).train.x)


# The card


def test_the_card_shows_the_gaps_of_categories_too(workdir: Path) -> None:
    from dnnkit.cli.card import card_text

    written(workdir, ANIMALS + "1,true,red,dog\n2,true,red,cat\n3,true,blue,cat\n")
    data = load_data(dnnkit.compose(["data=csv", "data.path=table.csv", "data.target=species", "data.val_size=1", "data.test_size=1"]))
    assert "height (1), wild (1), colour (1)" in card_text(data.card)


def test_a_line_break_in_a_name_does_not_tear_the_card(workdir: Path) -> None:
    from dnnkit.cli.card import card_text

    written(workdir, "a,y\n" + '1,"u\nz"\n2,v\n' * 10)
    text = card_text(load_data(dnnkit.compose(["data=csv", "data.path=table.csv", "data.target=y"])).card)
    [line] = [line for line in text.splitlines() if "u\\nz" in line and "%" in line]
    assert line.count("%") == 3
    assert "20 rows, 1 column\n" in text


# Later files


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_encoding_gives_training_rows_the_same_bits_in_either_format(tmp_path: Path, task: str, kind: str) -> None:
    table, target = mixed(), "label" if task == "classification" else "real"
    table.to_csv(tmp_path / "table.csv", index=False)
    table.to_parquet(tmp_path / "table.parquet")
    source = made(tmp_path / f"table.{kind}", target, kind)
    encoding = TableEncoding.from_dict(json.loads(json.dumps(source.encoding)))
    shuffled = table[sorted(table.columns)]
    shuffled.to_csv(tmp_path / "again.csv", index=False, sep=";")
    shuffled.to_parquet(tmp_path / "again.parquet")
    for name in ("table.csv", "table.parquet", "again.csv", "again.parquet"):
        found = encode_file(tmp_path / name, encoding)
        assert_same_bits(found.x, source.train.x)
        assert found.target is not None
        assert_same_bits(found.target, source.train.y)
        assert found.notices == ()
    assert encoding.features == source.columns


def encoding_of(tmp_path: Path, text: str = ANIMALS, target: str = "species", **settings: Any) -> TableEncoding:
    return TableEncoding.from_dict(made(written(tmp_path, text, "train.csv"), target, **settings).encoding or {})


def test_an_encoding_survives_json_and_is_immutable(tmp_path: Path) -> None:
    encoding = encoding_of(tmp_path)
    assert TableEncoding.from_dict(json.loads(json.dumps(encoding.to_dict()))) == encoding
    assert encoding.features == ("height", "wild", "colour=blue", "colour=green", "colour=red")
    assert hash(encoding) == hash(replace(encoding))


def test_a_new_file_needs_no_target_and_its_rows_are_found_again(tmp_path: Path) -> None:
    path = written(tmp_path, 'colour,height,wild\nred,1,true\n\n"bl\nue",2,false\nblue,NA,true\n', "new.csv")
    found = encode_file(path, encoding_of(tmp_path))
    np.testing.assert_array_equal(found.x, [[1, 1, 0, 0, 1], [2, 0, 0, 0, 0], [NAN, 1, 1, 0, 0]])
    assert found.target is None
    assert (found.rows, found.unit) == ((2, 4, 6), "line")


def test_what_training_had_not_is_told_with_its_count(tmp_path: Path) -> None:
    rows = "\n".join(["1,true,pink,x", "1,true,red,x", "1,true,pink,x", "1,true,grey,x"])
    [extra, pink, grey] = encode_file(written(tmp_path, f"height,wild,colour,shoe\n{rows}\n", "new.csv"), encoding_of(tmp_path)).notices
    assert "ignored: 'shoe'" in extra
    assert "column 'colour': 'pink' is no category of training, so none is set (2 rows, the first is line 2)" in pink
    assert "column 'colour': 'grey' is no category of training, so none is set (1 row, the first is line 5)" in grey


def test_gaps_where_training_had_none_are_told_with_column_count_and_place(tmp_path: Path) -> None:
    encoding = encoding_of(tmp_path, "a,b,c,y\n1,r,1,u\n2,s,,v\n", "y")
    [number, category] = encode_file(written(tmp_path, "a,b,c\n,r,\n1,,2\nNA,s,1\n", "new.csv"), encoding).notices
    assert "column 'a' has no value in 2 rows, the first is line 2; training missed none there: the training mean" in number
    assert "column 'b' has no value in line 3; training missed none there: it sets none of the categories" in category


def test_an_encoding_from_before_gaps_were_kept_is_read(tmp_path: Path) -> None:
    old = {key: value for key, value in encoding_of(tmp_path).to_dict().items() if key != "complete"}
    assert TableEncoding.from_dict(old).complete == ()


def test_columns_that_training_ignored_are_ignored_in_silence(tmp_path: Path) -> None:
    encoding = encoding_of(tmp_path, "id,a,y\nx,1,u\nz,2,v\n", "y", ignore=["id"])
    assert encode_file(written(tmp_path, "a,id\n1,k\n", "new.csv"), encoding).notices == ()


@pytest.mark.parametrize(("cell", "said"), [("", "missing in line 3"), ("cow", "'cow' in line 3")])
def test_a_target_that_cannot_be_used_is_left_out_and_told(tmp_path: Path, cell: str, said: str) -> None:
    found = encode_file(
        written(tmp_path, f"height,wild,colour,species\n1,true,red,dog\n1,true,red,{cell}\n", "new.csv"), encoding_of(tmp_path)
    )
    assert found.target is None
    [notice] = found.notices
    assert said in notice


def test_a_new_file_may_be_in_the_other_format_with_other_types(tmp_path: Path) -> None:
    pd.DataFrame({"height": ["1.5", "NA"], "wild": [1, 0], "colour": pd.Categorical(["red", None])}).to_parquet(tmp_path / "new.parquet")
    encoding = encoding_of(tmp_path)
    with pytest.raises(DataError, match="column 'height' holds numbers, but 'NA' in row 2"):
        encode_file(tmp_path / "new.parquet", encoding)
    pd.DataFrame({"height": ["1.5", None], "wild": [1, 0], "colour": pd.Categorical(["red", None])}).to_parquet(tmp_path / "new.parquet")
    found = encode_file(tmp_path / "new.parquet", encoding)
    np.testing.assert_array_equal(found.x, [[1.5, 1, 0, 0, 1], [NAN, 0, 0, 0, 0]])
    assert (found.rows, found.unit) == ((1, 2), "row")


# Whole runs


def wine_with_texts_and_gaps() -> pd.DataFrame:
    """scikit-learn's wine: two columns cut into texts, one made boolean, one cell in thirty emptied, classes by name."""
    bunch = load_wine(as_frame=True)
    table, draw = bunch.data.copy(), np.random.default_rng(0)
    table["hue"] = pd.cut(table["hue"], 4, labels=["dull", "mild", "bright", "vivid"]).astype(object)
    table["magnesium"] = pd.cut(table["magnesium"], 3, labels=["low", "middle", "high"]).astype(object)
    table["ash"] = (table["ash"] > 2.3).astype(object)
    for column in table:
        table.loc[draw.random(len(table)) < 1 / 30, column] = None
    table["cultivar"] = pd.Series(["barolo", "grignolino", "barbera"])[bunch.target].to_numpy()
    return table


def logistic_regression(train: pd.DataFrame, test: pd.DataFrame) -> float:
    """The accuracy of a pipeline of scikit-learn's: means for missing numbers, nothing for missing texts."""
    texts = ["hue", "magnesium"]
    measured = [name for name in train if name not in (*texts, "cultivar")]
    coded = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), measured),
        (OneHotEncoder(categories=[sorted(train[name].dropna().unique()) for name in texts], handle_unknown="ignore"), texts),
    )
    made = make_pipeline(coded, LogisticRegression(max_iter=1000))
    as_floats = {"ash": float}
    return float(made.fit(train.astype(as_floats), train["cultivar"]).score(test.astype(as_floats), test["cultivar"]))


def test_a_mixed_table_with_gaps_trains_to_about_the_accuracy_of_a_logistic_regression(workdir: Path) -> None:
    """The same rows for both, but for the 12 that validation takes; at most 3 of the 60 test rows apart."""
    table = wine_with_texts_and_gaps()
    train, test = train_test_split(table, test_size=60, random_state=0, stratify=table["cultivar"])
    train.to_csv("train.csv", index=False)
    test.to_csv("test.csv", index=False)
    settings = ["data=csv", "data.path=train.csv", "data.test_path=test.csv", "data.target=cultivar", "data.val_size=12"]
    settings += ["optimizer.lr=0.02", "model.hidden=[20]", "checkpoint.monitor=val/loss", "tracking=none", "trainer.progress_bar=false"]
    accuracy = dnnkit.train(dnnkit.compose(settings)).metrics["test/acc"]
    assert abs(accuracy - logistic_regression(train, test)) <= 0.05 + 1e-6


def test_what_was_decided_is_in_the_log_of_the_run(workdir: Path) -> None:
    result = dnnkit.train(
        dnnkit.compose(["+experiment=csv_berries", "tracking=none", "trainer.progress_bar=false", "trainer.max_epochs=1"])
    )
    said = (result.run_dir / "run.log").read_text()
    assert "data.target 'species' has 3 distinct texts: classification" in said
    assert "column 'wild': boolean, missing in" in said


def test_the_bundled_table_is_what_its_script_makes() -> None:
    examples = Path(data_sources.get("csv").function.__code__.co_filename).parent / "examples"
    lines = runpy.run_path(str(examples / "berries.py"))["lines"]()
    assert (examples / "berries.csv").read_text().splitlines() == list(lines)


def test_a_large_table_is_read_in_seconds(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    columns = [draw.normal(size=20_000).round(6).astype(str) for _ in range(15)] + [draw.choice(["a", "b", "c"], 20_000) for _ in range(5)]
    with open(tmp_path / "large.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"c{index}" for index in range(19)), "y"])
        writer.writerows(zip(*columns, strict=True))
    start = time.process_time()
    assert made(tmp_path / "large.csv").train.x.shape == (20_000, 15 + 4 * 3)
    assert time.process_time() - start < 5  # it takes about one on a slow core, 0.1 million rows about five
