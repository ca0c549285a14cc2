"""The source `npz`: what its arrays become, and what is refused before it does harm. Oracles: NumPy."""

from __future__ import annotations

import re
import struct
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dnnkit import compose, plugins
from dnnkit.cli.card import card_text
from dnnkit.data import Source, prepare
from dnnkit.data.source import check
from dnnkit.errors import DataError
from dnnkit.registry import data_sources
from dnnkit.training.assemble import load_data

plugins.load()


def made(root: Path | None = None, task: str = "auto", **settings: Any) -> Source:
    """What the source gives for its settings, checked as training checks it."""
    source: Source = data_sources.get("npz").function(root, task, **settings)
    check("npz", source)
    return source


# What it may hold

X = np.arange(24, dtype=np.float32).reshape(8, 3)
Y = np.array([0, 1, 2, 0, 1, 2, 0, 1])


@pytest.fixture
def save(tmp_path: Path) -> Any:
    def run(compressed: bool = False, name: str = "mine.npz", **arrays: Any) -> str:
        (np.savez_compressed if compressed else np.savez)(tmp_path / name, **arrays)
        return str(tmp_path / name)

    return run


@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_is_what_was_saved(compressed: bool, save: Any) -> None:
    own = {"x_test": X[:2], "y_test": Y[:2], "x_val": X[2:5], "y_val": Y[2:5]}
    source = made(path=save(compressed, x=X, y=Y, **own))
    for given, x, y in ((source.train, X, Y), (source.test, X[:2], Y[:2]), (source.validation, X[2:5], Y[2:5])):
        assert given is not None
        np.testing.assert_array_equal(given.x, x)
        np.testing.assert_array_equal(given.y, y)
    assert source.classes == ("0", "1", "2")
    assert source.kind == "table"


def test_the_keys_of_keras_s_own_files_are_understood(save: Any) -> None:
    source = made(path=save(x_train=X, y_train=Y, x_test=X, y_test=Y))
    np.testing.assert_array_equal(source.train.x, X)


LABELS = {
    "integers": (np.array([5, -3, 5, 7, -3, 7, 5, 5]), ("-3", "5", "7"), [1, 0, 1, 2, 0, 2, 1, 1]),
    "sparse integers": (np.array([10**12, 0] * 4), ("0", "1000000000000"), [1, 0] * 4),
    "unsigned bytes": (np.array([2, 1] * 4, dtype=np.uint8), ("1", "2"), [1, 0] * 4),
    "a column": (Y[:, None], ("0", "1", "2"), Y.tolist()),
    "texts": (np.array(["cat", "ant", "bee", "cat"] * 2), ("ant", "bee", "cat"), [2, 0, 1, 2] * 2),
    "byte texts": (np.array([b"no", b"yes"] * 4), ("no", "yes"), [0, 1] * 4),
    "truth values": (np.array([True, False] * 4), ("false", "true"), [1, 0] * 4),
    "big-endian": (np.array([2, 1] * 4, dtype=">i4"), ("1", "2"), [1, 0] * 4),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_become_indices_of_classes_that_are_named_by_them(kind: str, save: Any) -> None:
    y, classes, indices = LABELS[kind]
    source = made(path=save(x=X, y=y))
    assert source.classes == classes
    assert source.train.y.tolist() == indices
    assert not source.train.y.is_floating_point()


@pytest.mark.parametrize(
    ("y", "task", "expected"),
    [
        (Y, "auto", "classes"),
        (Y, "classification", "classes"),
        (Y, "regression", "values"),
        (Y.astype(np.float32), "auto", "values"),
        (Y.astype(np.float64), "regression", "values"),
        (Y.astype(np.float64), "classification", "classes"),
        (Y / 7, "auto", "values"),
        (np.stack([Y, Y / 3], 1), "auto", "values"),
        (np.stack([Y, Y], 1), "regression", "values"),
    ],
)
def test_the_dtype_of_y_decides_unless_the_task_does(y: Any, task: str, expected: str, save: Any) -> None:
    source = made(task=task, path=save(x=X, y=y))
    assert (source.classes is None) == (expected == "values")
    assert source.train.y.is_floating_point() == (expected == "values")
    np.testing.assert_allclose(source.train.y, y)
    said = source.notes["decisions"]
    assert expected in said[0]
    data = prepare("npz", source, task=task, val_size=1, test_size=2, split="random", standardize="auto", seed=0)
    assert data.task == ("regression" if expected == "values" else "classification")
    assert data.card["decisions"] == said


def test_a_reconstruction_needs_no_y(save: Any, workdir: Path) -> None:
    path = save(x=np.random.default_rng(0).normal(size=(20, 3)))
    data = load_data(compose(["data=npz", f"data.path={path}", "task=reconstruction"]))
    assert (data.task, data.outputs) == ("reconstruction", 3)
    assert data.card["decisions"] == ["no y for every split: none is used, a reconstruction needs none"]
    assert "class" not in card_text(data.card)
    with pytest.raises(DataError, match=r"(?s)no key 'y'.*task=reconstruction needs no targets"):
        made(path=path)


def test_one_hot_values_are_told_how_to_become_classes_and_values_of_one_column_how_to_be_taken_so(save: Any) -> None:
    [said] = made(path=save(x=X, y=np.eye(3)[Y])).notes["decisions"]
    assert "task=classification" not in said
    assert "y.argmax(1)" in said
    [said] = made(path=save(x=X, y=np.stack([Y, Y], 1) / 1.0)).notes["decisions"]
    assert said == "y holds floating numbers: values of a regression"
    [said] = made(path=save(x=X, y=Y / 1.0)).notes["decisions"]
    assert "task=classification would take its 3 whole ones as classes" in said


def test_integers_beyond_2_to_the_53_are_exact_classes_and_no_values(save: Any) -> None:
    y = 2**53 + np.arange(2).repeat(4)
    own = {"x_test": X[:2], "y_test": y[-2:].astype(np.uint64)}
    source = made(path=save(x=X, y=y, **own))
    assert source.classes == (str(2**53), str(2**53 + 1))
    assert source.test is not None
    assert (source.train.y.tolist(), source.test.y.tolist()) == ([0] * 4 + [1] * 4, [1, 1])
    with pytest.raises(DataError, match=r"'y' holds whole numbers that float64 rounds: 9007199254740993 in row 5"):
        made(task="regression", path=save(x=X, y=y))


SHAPES = {
    "rows of values": ((8, 5), "table", (5,)),
    "grey images": ((8, 6, 5), "image", (1, 6, 5)),
    "channels first": ((8, 3, 6, 5), "image", (3, 6, 5)),
    "one channel first": ((8, 1, 6, 5), "image", (1, 6, 5)),
    "channels last": ((8, 6, 5, 3), "image", (3, 6, 5)),
    "one channel last": ((8, 6, 5, 1), "image", (1, 6, 5)),
    "four channels last": ((8, 6, 5, 4), "image", (4, 6, 5)),
    "both could be channels": ((8, 3, 6, 3), "image", (3, 6, 3)),
    "no channels": ((8, 6, 5, 7), "table", (6, 5, 7)),
    "five dimensions": ((8, 2, 3, 2, 3), "table", (2, 3, 2, 3)),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_the_shape_of_x_says_whether_it_is_images_and_where_the_channels_are(kind: str, save: Any) -> None:
    shape, what, inputs = SHAPES[kind]
    x = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    source = made(path=save(x=x, y=Y, x_test=x[:3], y_test=Y[:3]))
    assert (source.kind, tuple(source.train.x.shape[1:])) == (what, inputs)
    expected = x[:, None] if len(shape) == 3 else np.transpose(x, (0, 3, 1, 2)) if inputs != shape[1:] else x
    np.testing.assert_array_equal(source.train.x, expected)
    assert source.test is not None
    np.testing.assert_array_equal(source.test.x, expected[:3])
    assert source.train.x.dtype == torch.uint8
    assert any("moved" in said for said in source.notes["decisions"]) == ("last" in kind)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "uint32", "uint64", ">i2", ">f4", "float16", "float64", "longdouble"])
def test_any_real_dtype_of_x_keeps_its_values(dtype: str, save: Any) -> None:
    x = (np.arange(24).reshape(8, 3) % 2 if dtype == "bool" else np.arange(24).reshape(8, 3)).astype(dtype)
    np.testing.assert_array_equal(made(path=save(x=x, y=Y)).train.x.double(), x.astype(np.float64))


def test_keys_that_are_not_used_are_said(save: Any) -> None:
    assert "key 'ids' is not used" in made(path=save(x=X, y=Y, ids=Y)).notes["decisions"]


def test_a_path_is_relative_to_the_root_else_to_the_working_folder(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workdir / "sub").mkdir()
    np.savez(workdir / "sub" / "mine.npz", x=X, y=Y)
    assert made(path="sub/mine.npz").origin == str(workdir / "sub" / "mine.npz")
    made(root=workdir / "sub", path="mine.npz")
    monkeypatch.setenv("HOME", str(workdir))
    made(path="~/sub/mine.npz")
    assert load_data(compose(["data=npz", "data.path=sub/mine.npz"])).outputs == 3


# What it may not hold

NAN = X.copy()
NAN[5, 1] = np.nan
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no y": ({"x": X}, "no key 'y'"),
    "a misspelled key": ({"x": X, "yy": Y}, "(?s)no key 'y'.*did you mean yy"),
    "a test split without labels": ({"x": X, "y": Y, "x_test": X}, "no key 'y_test'"),
    "different lengths": ({"x": X, "y": Y[:7]}, "'x' and 'y' must have equally many rows, got 8 and 7"),
    "different lengths in test": ({"x": X, "y": Y, "x_test": X, "y_test": Y[:7]}, "'x_test' and 'y_test' must"),
    "no rows": ({"x": X[:0], "y": Y[:0]}, r"'x' must hold at least one row and one value per row, got shape \(0, 3\)"),
    "no values": ({"x": X[:, :0], "y": Y}, "at least one row and one value"),
    "a single number": ({"x": np.array(1.0), "y": Y}, "'x' must hold at least one row"),
    "one value per row, flat": ({"x": X[:, 0], "y": Y}, r"(?s)'x' must have shape \(rows, …\), got \(8,\).*reshape\(-1, 1\)"),
    "a nan": ({"x": NAN, "y": Y}, r"'x' must be finite in float32, got nan in row 6 \(counted from 1\)"),
    "an infinity in test": ({"x": X, "y": Y, "x_test": np.where(X == 4, np.inf, X), "y_test": Y}, "'x_test' must be finite"),
    "too large for float32": ({"x": X.astype(float) * 1e38, "y": Y}, r"float32, got 4.*e.38 in row 2 \(7 such rows, counted from 1\)"),
    "a nan among the values": ({"x": X, "y": NAN[:, 1]}, "'y' must be finite in float32, got nan in row 6"),
    "texts for x": ({"x": X.astype(str), "y": Y}, "'x' must hold real numbers, got <U"),
    "complex x": ({"x": X.astype(complex), "y": Y}, "'x' must hold real numbers, got complex128"),
    "dates for y": ({"x": X, "y": Y.astype("datetime64[D]")}, "'y' must hold whole numbers or texts"),
    "objects": ({"x": X, "y": Y.astype(object)}, r"(?s)'y' holds Python objects \(pickled\).*it was not unpickled"),
    "records": ({"x": X, "y": np.zeros(8, dtype=[("a", int), ("b", int)])}, "'y' holds .*it must hold numbers or texts"),
    "one class": ({"x": X, "y": Y * 0 + 3}, "'y' must hold at least two classes, got '3' in all 8 rows"),
    "one text": ({"x": X, "y": np.array(["a"] * 8)}, "at least two classes, got 'a'"),
    "one-hot labels": ({"x": X, "y": np.eye(3, dtype=int)[Y]}, r"(?s)'y' must hold one label for each row.*one-hot.*argmax\(1\)"),
    "test examples of another shape": ({"x": X, "y": Y, "x_test": X[:, :2], "y_test": Y}, r"'x_test' must hold examples of shape \(3,\)"),
    "test targets of another kind": ({"x": X, "y": Y, "x_test": X, "y_test": Y / 3}, "'y_test' must hold what 'y' does, int64"),
    "test values of another number": (
        {"x": X, "y": Y / 3, "x_test": X, "y_test": np.stack([Y, Y], 1) / 3},
        "'y_test' must have shape",
    ),
    "hardly classes": ({"x": np.arange(50.0)[:, None], "y": np.arange(50)}, "(?s)50 different whole numbers in 50 rows.*task=regression"),
    "huge unsigned": ({"x": np.array([[2**64 - 1], [0]], dtype=np.uint64), "y": Y[:2]}, "'x' must be below 2"),
}


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("fault", WRONG)
def test_arrays_that_cannot_be_used_are_refused_with_file_key_and_rule(fault: str, tmp_path: Path) -> None:
    arrays, message = WRONG[fault]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.savez(tmp_path / "mine.npz", **arrays, allow_pickle=True) if fault != "objects" else np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(DataError) as caught:
        made(path=str(tmp_path / "mine.npz"))
    assert re.search(message, str(caught.value)), str(caught.value)
    assert str(tmp_path / "mine.npz") in caught.value.cause
    assert caught.value.exit_code == 4


def test_fractions_are_no_classes(save: Any) -> None:
    with pytest.raises(DataError, match=r"'y' must hold whole numbers for task=classification, got 0\.5 in row 2"):
        made(task="classification", path=save(x=X, y=Y / 2))


def test_what_is_hardly_classes_is_taken_so_where_the_task_says_it(save: Any) -> None:
    path = save(x=np.arange(50.0)[:, None], y=np.arange(50))
    assert made(task="classification", path=path).classes == tuple(map(str, range(50)))
    assert made(task="regression", path=path).classes is None


def test_a_file_that_is_not_there_is_named_with_its_neighbours(save: Any) -> None:
    path = save(name="berries.npz", x=X, y=Y)
    with pytest.raises(DataError, match=r"(?s)no file .*beries\.npz.*did you mean .*berries\.npz"):
        made(path=path.replace("berries", "beries"))
    with pytest.raises(DataError, match="and no folder"):
        made(path="no/such/folder/mine.npz")
    with pytest.raises(DataError, match="is a folder, not a file"):
        made(path=str(Path(path).parent))


def member(header: bytes, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def claiming(shape: str, dtype: str = "<f8", body: bytes = bytes(64)) -> bytes:
    return member(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n", body)


def archive(path: Path, content: bytes, method: int = zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("x.npy", content)
        file.writestr("y.npy", content)
    return str(path)


def lying_archive(path: Path, method: int) -> str:
    """A member whose directory entry agrees with its header that there is 1 GB, while a few bytes are there."""
    content = claiming("(125000000,)")
    body = content if method == zipfile.ZIP_STORED else zlib.compressobj(9, zlib.DEFLATED, -15).compress(content)
    claimed = len(content) - 64 + 10**9
    archive(path, content, method)
    raw = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = -1
        while (at := raw.find(signature, at + 1)) >= 0:
            struct.pack_into("<I", raw, at + offset, claimed)
    path.write_bytes(raw)
    assert len(body) < 1000
    return str(path)


CRAFTED = {
    "1 GB in the header, stored": lambda path: archive(path, claiming("(125000000,)")),
    "1 GB in the header, compressed": lambda path: archive(path, claiming("(125000000,)"), zipfile.ZIP_DEFLATED),
    "1 GB in header and directory, stored": lambda path: lying_archive(path, zipfile.ZIP_STORED),
    "1 GB in header and directory, compressed": lambda path: lying_archive(path, zipfile.ZIP_DEFLATED),
    "more values than there are numbers": lambda path: archive(path, claiming("(10**9, 10**9)".replace("10**9", str(10**9)))),
    "values of no size": lambda path: archive(path, claiming("(1000000000000,)", "<U0", b"")),
    "negative sizes": lambda path: archive(path, claiming("(-2, -4)")),
    "an unknown compression": lambda path: archive(path, claiming("(8,)"), zipfile.ZIP_BZIP2),
    "a header that is no dictionary": lambda path: archive(path, member(b"__import__('os').abort()".ljust(117) + b"\n")),
    "no header": lambda path: archive(path, b"\x93NUMPY"),
    "no array": lambda path: archive(path, b"<html>"),
    "an unknown version": lambda path: archive(path, b"\x93NUMPY\x09\x00" + bytes(100)),
}


@pytest.mark.parametrize("fault", CRAFTED)
def test_a_crafted_archive_is_refused_before_anything_is_allocated_for_it(fault: str, tmp_path: Path) -> None:
    path = CRAFTED[fault](tmp_path / "mine.npz")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"mine\.npz: key 'x' (claims|is damaged|is compressed|holds)"):
            made(path=path)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an .npz archive: it begins with nothing"),
        (b"x,y\n1,2\n", "is not an .npz archive: it begins with 78 2c 79"),
        (b"PK\x03\x04 cut", "is damaged"),
    ],
)
def test_a_file_that_is_no_archive_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)):
        made(path=str(tmp_path / "mine.npz"))


def test_a_single_array_is_told_from_an_archive(tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", X)
    with pytest.raises(DataError, match=r"(?s)holds one array \(\.npy\).*numpy\.savez"):
        made(path=str(tmp_path / "mine.npy"))


@pytest.mark.parametrize("compressed", [False, True])
def test_any_flipped_or_missing_byte_is_a_data_error_or_harmless(compressed: bool, save: Any) -> None:
    path = Path(save(compressed, x=X, y=Y))
    good = path.read_bytes()
    draw = np.random.default_rng(0)
    for _ in range(300):
        bad = bytearray(good)
        bad[draw.integers(len(bad))] ^= 1 << draw.integers(8)
        path.write_bytes(bad if draw.random() < 0.8 else good[: draw.integers(len(good))])
        try:
            source = made(path=str(path))
        except DataError as error:
            assert str(path) in error.cause  # noqa: PT017
        else:
            np.testing.assert_array_equal(source.train.x, X)
