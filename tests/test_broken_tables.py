"""Files that the sources `csv` and `parquet` refuse: each with the row or column, the rule and what to do, as exit code 4."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dnnkit import plugins
from dnnkit.data.tables import TableEncoding, encode_file
from dnnkit.errors import ConfigError, DataError, DnnkitError
from dnnkit.registry import data_sources

plugins.load()


def refusal(path: Path | str, target: str = "y", kind: str = "csv", error: type[DnnkitError] = DataError, **settings: Any) -> str:
    """The message with which a file is refused."""
    settings = {"task": "auto", **settings}
    with pytest.raises(error) as caught:
        data_sources.get(kind).function(None, path=str(path), target=target, **settings)
    return str(caught.value)


def column_of(cells: Callable[[int], str], rows: int = 40) -> str:
    """A table with a column `a` of these cells and a target of two classes."""
    return "a,y\n" + "".join(f"{cells(index)},{'uv'[index % 2]}\n" for index in range(rows))


BROKEN: dict[str, tuple[str | bytes, dict[str, Any], list[str]]] = {
    "too long a row": ("a,y\n1,u\n2,v,3\n", {}, ["line 3 has 3 values", "the header has 2 columns"]),
    "too short a row": ("a,b,y\n1,2,u\n2\n", {}, ["line 3 has 1 value,", "the header has 3 columns", "'b'"]),
    "a ragged row after a line break in quotes": ('a,b,y\n1,"x\n\ny",u\n2,z,v\n3,w,u,4\n', {}, ["line 6 has 4 values"]),
    "a ragged row after empty lines": ("a,y\n\n\n1,u\n2\n", {}, ["line 5 has 1 value,"]),
    "text in latin-1": ("a,y\n1,u\n2,é\n".encode("latin-1"), {}, ["line 3 is not UTF-8", "byte 0xe9 at offset 10", "save it as UTF-8"]),
    "latin-1 after a byte-order mark": (b"\xef\xbb\xbfa,y\n1,\xe9\n", {}, ["line 2 is not UTF-8", "byte 0xe9 at offset 9"]),
    "latin-1 after lines that end as on Windows": (b"a,y\r\n1,u\r\n2,\xe9\r\n", {}, ["line 3 is not UTF-8"]),
    "text in UTF-16": ("a,y\n1,u\n".encode("utf-16"), {}, ["UTF-16", "offset 0", "UTF-8"]),
    "a NUL byte": (b"a,y\n1,u\n2,\0\n", {}, ["line 3 holds a NUL byte", "offset 10"]),
    "a quote that is never closed": ('a,y\n1,u\n"2,v\n3,u\n', {}, ["line 3 is never closed"]),
    "a quote that is never closed in a long file": ('a,y\n"1,u\n' + "2,v\n" * 50_000, {}, ["line 2", "never closed"]),
    "a letter after a closing quote": ('a,y\n1,u\n"2"x,v\n', {}, ["line 3", "expected after"]),
    "an empty file": ("", {}, ["is empty", "must name the columns"]),
    "nothing but blanks": ("\n \n", {}, ["is empty"]),
    "a header alone": ("a,y\n", {}, ["a header and no rows", "'a', 'y'"]),
    "two columns of one name": ("a,b,a,y\n1,2,3,u\n", {}, ["'a' is columns 1, 3"]),
    "a column without a name": (",a,y\n0,5,u\n1,6,v\n", {}, ["column 1 has no name", "\"data.ignore=['']\""]),
    "no such target": ("a,species\n1,u\n2,v\n", {"target": "specis"}, ["no column 'specis'", "did you mean 'species'?"]),
    "a target like no column": ("a,b\n1,u\n2,v\n", {"target": "quality"}, ["no column 'quality'", "there are: 'a', 'b'"]),
    "an ignored column that is not there": ("abc,y\n1,u\n2,v\n", {"ignore": ["abd"]}, ["no column 'abd'", "data.ignore", "'abc'"]),
    "categories that are not there": ("abc,y\n1,u\n2,v\n", {"categories": ["abd"]}, ["no column 'abd'", "data.categories", "'abc'"]),
    "a target and nothing else": ("y\n1\n2\n", {}, ["no column besides the target", "data.delimiter"]),
    "a constant target": ("a,y\n1,2.5\n2,2.5\n", {}, ["'y' is '2.5' in all 2 rows"]),
    "a constant target of a regression": ("a,y\n1,2\n2,2\n", {"task": "regression"}, ["'y' is '2' in all 2 rows", "nothing to predict"]),
    "a name that the shell would take apart": ("a b (cm),y\n,u\n,v\n", {}, ["\"data.ignore=['a b (cm)']\""]),
    "too many texts to be classes": (
        "a,y\n" + "".join(f"{index % 7},t{index}\n" for index in range(40)),
        {},
        ["40 distinct values in 40 rows", "\n  name another column with data.target"],
    ),
    "codes where numbers are to be predicted": ("a,y\n1,05\n2,10\n", {"task": "regression"}, ["'y' holds texts", "leading zeros"]),
    "a name in other letters": ("Abc,y\n1,u\n2,v\n", {"ignore": ["aBC"]}, ["no column 'aBC'", "did you mean 'Abc'?"]),
    "a letter in the other case": ("A,y\n1,u\n2,v\n", {"ignore": ["a"]}, ["no column 'a'", "did you mean 'A'?"]),
    "one class": ("a,y\n1,u\n2,u\n3,u\n", {}, ["'y' is 'u' in all 3 rows", "at least two classes"]),
    "a missing target": ("a,y\n1,u\n2,\n3,v\n4,NA\n", {}, ["'y' is missing in 2 rows, the first is line 3"]),
    "texts where numbers are to be predicted": ("a,y\n1,u\n2,v\n", {"task": "regression"}, ["'y' holds texts", "'u' in line 2"]),
    "values where classes are wanted": (
        "a,y\n" + "".join(f"{index % 7},{index}.5\n" for index in range(40)),
        {"task": "classification"},
        ["40 distinct values in 40 rows", "task=regression"],
    ),
    "an infinite target": ("a,y\n1,2.5\n2,inf\n", {}, ["'y' must be finite", "'inf' in line 3"]),
    "a column without a value": ("a,b,y\n1,,u\n2,NA,v\n", {}, ["column 'b' has no value in any of 2 rows", "data.ignore=[b]"]),
    "an infinity": ("a,b,y\n1,2,u\n1,-inf,v\n", {}, ["column 'b' must be finite", "'-inf' in line 3"]),
    "a number beyond all": ("a,b,y\n1,2,u\n1e999,3,v\n", {}, ["column 'a' must be finite", "'1e999' in line 3"]),
    "a number beyond float32": ("a,b,y\n1,2,u\n4e38,3,v\n", {}, ["column 'a' must be finite in float32", "'4e38' in line 3"]),
    "texts among numbers": (
        column_of(lambda row: "unknown" if row in (7, 9) else str(row % 13)),
        {},
        ["column 'a' holds numbers in 38 of its 40 values", "'unknown' in 2 rows, the first is line 9", "data.missing"],
    ),
    "ids": (column_of(lambda row: f"id-{row}"), {}, ["column 'a' has 40 distinct texts in 40 rows", "'id-0' in line 2", "data.ignore=[a]"]),
    "too many categories": (
        column_of(lambda row: f"c{row % 30}", 120),
        {"max_categories": 29},
        ["column 'a' has 30 categories, more than data.max_categories=29", "data.ignore=[a]"],
    ),
    "more categories than the default allows": (column_of(lambda row: f"c{row % 51}", 300), {}, ["more than data.max_categories=50"]),
    "dates": (column_of(lambda row: f"2024-01-{row % 28 + 1:02d}"), {"max_categories": 5}, ["column 'a'", "look like dates"]),
    "a decimal comma": ("a;y\n1,5;u\n2,5;v\n", {}, ["column 'a'", "'1,5' in line 2", "decimal comma"]),
    "a decimal comma and points between thousands": ("a;y\n1.000,5;u\n2,5;v\n", {}, ["column 'a'", "'1.000,5' in line 2", "decimal comma"]),
    "a decimal comma in the target": ("a;y\n1;1,5\n2;2,5\n", {}, ["column 'y'", "'1,5' in line 2", "decimal comma"]),
    "two features of one name": ("a,a=x,y\nx,1,u\nz,2,v\n", {}, ["a feature called 'a=x'"]),
    "a Parquet file": (b"PAR1....PAR1", {}, ["is a Parquet file", "data=parquet"]),
    "damaged compression": (gzip.compress(b"a,y\n1,u\n2,v\n" * 99)[:-20], {}, ["compressed data cannot be read"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_csv_file_is_refused_with_its_place_and_the_cure(tmp_path: Path, fault: str) -> None:
    content, settings, said = BROKEN[fault]
    path = tmp_path / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refusal(path, **settings)
    assert str(path) in message
    for words in said:
        assert words in message


def test_a_file_that_is_not_there_is_refused_with_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "berries.csv").write_text("a,y\n1,u\n")
    assert f"did you mean {tmp_path / 'berries.csv'}?" in refusal(tmp_path / "beries.csv")
    assert "no folder" in refusal(tmp_path / "nowhere" / "berries.csv")
    assert "is a folder" in refusal(tmp_path)
    assert "the home folder of '~nobody-of-that-name' is not known" in refusal("~nobody-of-that-name/berries.csv")
    assert "did you mean bundled:berries.csv?" in refusal("bundled:beries.csv")
    assert "no table that comes with dnnkit" in refusal("bundled:../table_data.py")


def test_the_target_cannot_be_ignored_too(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,y\n1,u\n2,v\n")
    assert "data.target" in refusal(tmp_path / "table.csv", error=ConfigError, ignore=["y"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,y\n1,w\n", ["test.csv", "'y' is 'w' in line 2", "'u', 'v'"]),
        ("a,y\n1,\n", ["test.csv", "'y' is missing in line 2"]),
        ("a\n1\n", ["test.csv", "no column 'y'"]),
        ("b,y\n1,u\n", ["test.csv", "no column 'a'", "'b'"]),
        ("a,y\n1,u\nx,v\n", ["test.csv", "column 'a' holds numbers, but 'x' in line 3"]),
    ],
)
def test_a_test_file_that_does_not_fit_the_training_file_is_refused(tmp_path: Path, text: str, said: list[str]) -> None:
    (tmp_path / "table.csv").write_text("a,y\n1,u\n2,v\n")
    (tmp_path / "test.csv").write_text(text)
    message = refusal(tmp_path / "table.csv", test_path=str(tmp_path / "test.csv"))
    assert all(words in message for words in said)


# Parquet


def parquet_file(folder: Path, columns: dict[str, Any]) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), folder / "table.parquet")
    return folder / "table.parquet"


def test_a_file_that_is_not_parquet_or_is_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    path.write_text("a,y\n1,u\n")
    assert "data=csv" in refusal(path, kind="parquet")
    whole = parquet_file(tmp_path, {"a": [1, 2], "y": ["u", "v"]}).read_bytes()
    for damaged in (b"", whole[:-9], whole[:20], whole[:4] + b"\xff" * 60 + whole[64:]):
        path.write_bytes(damaged)
        assert f"{path} is not a Parquet file that can be read" in refusal(path, kind="parquet")


@pytest.mark.parametrize(
    ("values", "kind"), [([[1], [2]], "list"), ([{"b": 1}, {"b": 2}], "struct"), ([b"x", b"y"], "binary"), (["2024-01-01"] * 2, "date32")]
)
def test_a_column_of_another_type_is_refused_by_name_until_it_is_ignored(tmp_path: Path, values: list[Any], kind: str) -> None:
    import pyarrow

    cells = pyarrow.array(values).cast(pyarrow.date32()) if kind == "date32" else pyarrow.array(values)
    path = parquet_file(tmp_path, {"a": [1, 2], "odd": cells, "y": ["u", "v"]})
    message = refusal(path, kind="parquet")
    assert f"column 'odd' has the type {kind}" in message
    assert "data.ignore=[odd]" in message
    assert f"column 'odd' has the type {kind}" in refusal(path, "odd", "parquet")
    data_sources.get("parquet").function(None, path=str(path), target="y", task="auto", ignore=["odd"])


def test_other_faults_of_a_parquet_file_are_named_by_column_and_row(tmp_path: Path) -> None:
    import pyarrow

    rows = {"a": [1.0, 2.0, float("inf")], "n": pyarrow.nulls(3), "y": ["u", None, "v"], "z": ["u", "v", "u"]}
    path = parquet_file(tmp_path, rows)
    assert "did you mean" in refusal(path, "yy", "parquet")
    assert "'y' is missing in row 2" in refusal(path, "y", "parquet", ignore=["a", "n"])
    assert "column 'a' must be finite in float32, got inf in row 3" in refusal(path, "z", "parquet", ignore=["y", "n"])
    assert "column 'n' has no value in any of 3 rows" in refusal(path, "z", "parquet", ignore=["y", "a"])
    assert "has no rows" in refusal(parquet_file(tmp_path, {"a": pyarrow.array([], pyarrow.int8())}), kind="parquet")
    index = parquet_file(tmp_path, {"a": [1, 2], "__index_level_0__": [0, 1], "y": ["u", "v"]})
    assert "data.ignore=[__index_level_0__]" in refusal(index, kind="parquet")


# Later files


@pytest.fixture
def encoding(tmp_path: Path) -> TableEncoding:
    (tmp_path / "train.csv").write_text("height,wild,colour,y\n1,true,red,u\n2,false,blue,v\n")
    source = data_sources.get("csv").function(None, path=str(tmp_path / "train.csv"), target="y", task="auto")
    return TableEncoding.from_dict(source.encoding)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("heigth,wild,colour\n1,true,red\n", ["no column 'height'", "did you mean 'heigth'?"]),
        ("height,wild,colour\n1,true,red\ntall,true,red\n", ["column 'height' holds numbers, but 'tall' in line 3"]),
        ("height,wild,colour\n1,maybe,red\n", ["column 'wild' holds true and false, but 'maybe' in line 2"]),
        ("height,wild,colour\ninf,true,red\n", ["column 'height' must be finite", "line 2"]),
        ("height,wild,colour\n1,true\n", ["line 2 has 2 values"]),
        ("", ["is empty"]),
    ],
)
def test_a_new_file_that_does_not_fit_the_training_is_refused(tmp_path: Path, encoding: TableEncoding, text: str, said: list[str]) -> None:
    (tmp_path / "new.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        encode_file(tmp_path / "new.csv", encoding)
    assert all(words in str(caught.value) for words in said)


@pytest.mark.parametrize(
    "damage",
    [
        {"kind": "image"},
        {"version": 99},
        {"columns": [{"name": "a", "kind": "python"}]},
        {"columns": "os"},
        {"target": {"name": 3, "kind": "text", "classes": None}},
        {"more": 1},
    ],
)
def test_a_damaged_encoding_is_a_data_error(encoding: TableEncoding, damage: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="encoding of a table"):
        TableEncoding.from_dict({**encoding.to_dict(), **damage})


@pytest.mark.parametrize("cell", ["tall", "inf"])
def test_the_cure_for_a_later_file_names_no_setting_of_training(tmp_path: Path, encoding: TableEncoding, cell: str) -> None:
    header = "height,wild,colour\n"
    for text in (f"{header}{cell},true,red\n", f"{header}1,maybe,red\n", header, "HEIGHT,wild\n1,1\n"):
        (tmp_path / "new.csv").write_text(text)
        with pytest.raises(DataError) as caught:
            encode_file(tmp_path / "new.csv", encoding)
        assert "data." not in caught.value.cure
        assert "learned" not in caught.value.cure


# The command line


@pytest.mark.parametrize("name", ["", "a b", "it's", 'say "x"', "a\\b", "$HOME", "a,b", "true", "12", "!x", "[c]", "{d}", "a=b"])
def test_a_cure_can_be_typed_in_a_shell_as_it_stands(workdir: Path, name: str) -> None:
    from dnnkit import compose
    from dnnkit.data.tables.table import override

    typed = subprocess.run(["bash", "-c", f"printf %s {override('data.ignore', name)}"], capture_output=True, text=True, check=True).stdout
    assert compose(["data=csv", "data.path=x", "data.target=y", typed]).values["data"]["ignore"] == [name]


@pytest.mark.parametrize("fault", ["too long a row", "no such target"])
def test_a_run_on_a_broken_file_ends_with_4_before_anything_is_made_and_without_a_traceback(workdir: Path, fault: str) -> None:
    content, settings, said = BROKEN[fault]
    (workdir / "table.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    words = ["data=csv", "data.path=table.csv", f"data.target={settings.get('target', 'y')}"]
    done = subprocess.run([sys.executable, "-m", "dnnkit", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 4, done.stderr
    assert all(part in done.stderr + done.stdout for part in said)
    assert "Traceback" not in done.stderr + done.stdout
    assert [path.name for path in workdir.iterdir()] == ["table.csv"]
