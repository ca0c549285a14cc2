"""Finding, verifying and reading files: every kind of damage is exit code 4, and nothing damaged is ever used."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dnnkit import plugins
from dnnkit.data.files import Known, find_files, places, read_verified, user_cache
from dnnkit.data.idx import parse_idx
from dnnkit.disk import write_to_cache
from dnnkit.errors import DataError
from dnnkit.registry import data_sources

plugins.load()
built_in = sys.modules[data_sources.get("mnist").origin.module]

NAME, OTHER = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
CONTENT = bytes([0, 0, 8, 3]) + struct.pack(">3I", 5, 4, 3) + bytes(range(60))
LABELS = bytes([0, 0, 8, 1]) + struct.pack(">I", 5) + bytes([0, 1, 2, 1, 0])


def known(content: bytes) -> Known:
    return Known(hashlib.sha256(content).hexdigest(), len(content))


FILES = {NAME: known(CONTENT), OTHER: known(LABELS)}


def put(place: Path, images: bytes = CONTENT) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / NAME).write_bytes(images)
    (place / OTHER).write_bytes(LABELS)
    return place


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without data: no variable, an empty working folder, an empty cache."""
    monkeypatch.delenv("DNNKIT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# The format


@pytest.mark.parametrize(
    ("code", "letter", "dtype"),
    [
        (8, "B", torch.uint8),
        (9, "b", torch.int8),
        (11, "h", torch.int16),
        (12, "i", torch.int32),
        (13, "f", torch.float32),
        (14, "d", torch.float64),
    ],
)
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_every_type_of_the_format_is_read_with_its_byte_order(code: int, letter: str, dtype: torch.dtype, kind: type) -> None:
    values = [1, 2, 3, 100, 5, 6]
    tensor = parse_idx(kind(bytes([0, 0, code, 2]) + struct.pack(">2I", 2, 3) + struct.pack(f">6{letter}", *values)), "mine")
    assert tensor.dtype == dtype
    assert tensor.tolist() == [[1, 2, 3], [100, 5, 6]]


HEADERS = {
    "empty": (b"", "begins with nothing"),
    "three bytes": (CONTENT[:3], "is not an IDX file"),
    "text": (b"<html>not found</html>", "begins with 3c 68 74 6d"),
    "an unknown type": (b"\0\0\x07" + CONTENT[3:], "is not an IDX file"),
    "no dimensions": (b"\0\0\x08\0" + bytes(10), "is not an IDX file"),
    "cut inside the header": (CONTENT[:9], "ends inside its IDX header"),
    "one byte short": (CONTENT[:-1], "takes 76 bytes, found 75"),
    "one byte long": (CONTENT + b"\0", "takes 76 bytes, found 77"),
    "another type of the same length": (b"\0\0\x0b" + CONTENT[3:], "takes 136 bytes, found 76"),
    "huge dimensions": (bytes([0, 0, 14, 3]) + b"\xff" * 12, "does not fit its IDX header"),
}


@pytest.mark.parametrize("fault", HEADERS)
def test_a_wrong_header_is_a_data_error(fault: str) -> None:
    content, message = HEADERS[fault]
    with pytest.raises(DataError, match=f"^mine .*{message}"):
        parse_idx(content, "mine")


# Damage

DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "a short plain file": ("", lambda good: good[:-1], "found 75 bytes"),
    "an empty plain file": ("", lambda good: b"", "found 0 bytes"),
    "a long plain file": ("", lambda good: good + b"\0", "found more bytes"),
    "a flipped byte in a plain file": ("", lambda good: good[:40] + bytes([good[40] ^ 1]) + good[41:], "found SHA-256 [0-9a-f]{64}"),
    "a wrong header in a plain file": ("", lambda good: b"\0\0\x09" + good[3:], "found SHA-256"),
    "a page of text": ("", lambda good: b"<html>moved</html>".ljust(len(good)), "found SHA-256"),
    "a truncated gzip": (".gz", lambda good: gzip.compress(good)[:-12], "ends too early"),
    "a gzip without its checksum": (".gz", lambda good: gzip.compress(good)[:-8], "ends too early"),
    "a flipped byte in a gzip": (".gz", lambda good: flipped(gzip.compress(good), 30), "damaged|SHA-256"),
    "a flipped checksum in a gzip": (".gz", lambda good: flipped(gzip.compress(good), -6), "CRC"),
    "a plain file called .gz": (".gz", lambda good: good, "Not a gzipped file"),
    "an empty file called .gz": (".gz", lambda good: b"", "found 0 bytes"),
    "a gzip of something else": (".gz", lambda good: gzip.compress(good[::-1]), "found SHA-256"),
    "a gzip of too little": (".gz", lambda good: gzip.compress(good[:-1]), "found 75 bytes"),
    "a gzip of too much": (".gz", lambda good: gzip.compress(good + b"\0"), "found more bytes"),
    "rubbish after a gzip": (".gz", lambda good: gzip.compress(good) + b"rubbish", "Not a gzipped file"),
}


def flipped(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("fault", DAMAGE)
def test_a_damaged_file_is_refused_by_name_and_the_next_place_is_not_tried(
    fault: str, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suffix, damage, found = DAMAGE[fault]
    place = put(nowhere / "first" / "mine")
    (place / NAME).unlink()
    (place / (NAME + suffix)).write_bytes(damage(CONTENT))
    put(nowhere / "data" / "mine")
    monkeypatch.setenv("DNNKIT_DATA", str(nowhere / "first"))
    with pytest.raises(DataError) as caught:
        find_files(None, "mine", FILES)
    assert str(place / (NAME + suffix)) in caught.value.cause
    assert FILES[NAME].sha256 in caught.value.cause
    assert re.search(found, caught.value.cause)
    assert "intact copy" in caught.value.cure
    assert caught.value.exit_code == 4


def test_a_compressed_bomb_is_not_blown_up(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(bytes(100_000_000)))
    tracemalloc.start()
    with pytest.raises(DataError, match="found more bytes"):
        read_verified(bomb, Known("0" * 64, 1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_a_file_that_may_not_be_read_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_verified(tmp_path, known(CONTENT))


# Places


def test_the_variable_comes_first_then_the_working_folder_then_the_cache_then_the_system(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = put(nowhere / "usr" / "datasets")
    chosen = [find_files(None, "mine", FILES, system=[system]).place]
    for place in (user_cache(), nowhere / "data", nowhere / "named"):
        put(place / "mine")
        monkeypatch.setenv("DNNKIT_DATA", str(nowhere / "named"))
        chosen.append(find_files(None, "mine", FILES, system=[system]).place)
    assert chosen == [system, nowhere / "cache" / "dnnkit" / "mine", nowhere / "data" / "mine", nowhere / "named" / "mine"]


def test_an_explicit_root_is_the_only_place(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(nowhere / "data" / "mine")
    monkeypatch.setenv("DNNKIT_DATA", str(nowhere / "data"))
    with pytest.raises(DataError, match="no files of mine were found"):
        find_files(nowhere / "elsewhere", "mine", FILES, system=[nowhere / "data" / "mine"])
    assert find_files(nowhere / "data", "mine", FILES).place == nowhere / "data" / "mine"


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_the_cache_is_the_platform_s_own(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv("HOME", "/home/ada")
    assert user_cache() == Path("/home/ada/Library/Caches/dnnkit" if platform == "darwin" else "/home/ada/.cache/dnnkit")


@pytest.mark.parametrize("spelling", [NAME, "train-images.idx3-ubyte", NAME + ".gz", "train-images.idx3-ubyte.gz"])
def test_a_file_may_be_plain_or_gzipped_and_dotted(spelling: str, tmp_path: Path) -> None:
    place = put(tmp_path / "mine")
    (place / NAME).unlink()
    (place / spelling).write_bytes(gzip.compress(CONTENT) if spelling.endswith(".gz") else CONTENT)
    found = find_files(tmp_path, "mine", FILES)
    assert found.contents == {NAME: CONTENT, OTHER: LABELS}
    assert parse_idx(found.contents[NAME], NAME).flatten().tolist() == list(range(60))


def test_any_compression_will_do(tmp_path: Path) -> None:
    for level in (0, 1, 9):
        (tmp_path / "file.gz").write_bytes(gzip.compress(CONTENT, level) + gzip.compress(b""))
        assert read_verified(tmp_path / "file.gz", known(CONTENT)) == CONTENT


def test_a_place_with_some_of_the_files_is_an_error_that_names_the_others(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (put(nowhere / "named" / "mine") / OTHER).unlink()
    put(nowhere / "data" / "mine")
    monkeypatch.setenv("DNNKIT_DATA", str(nowhere / "named"))
    with pytest.raises(DataError, match=f"named/mine lacks {OTHER}\\b"):
        find_files(None, "mine", FILES)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_where_nothing_is_found_the_message_says_what_to_put_where(name: str, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(built_in, "DEBIAN", nowhere / "usr" / "datasets" / "fashion-mnist")
    with pytest.raises(DataError) as caught:
        getattr(built_in, name)(None)
    message = str(caught.value)
    for place in places(None, name):
        assert str(place) in message
    for word in (*built_in.MNIST, "DNNKIT_DATA", "data=digits", ".gz"):
        assert word in message
    assert ("apt install dataset-fashion-mnist" in message) == (name == "fashion_mnist")
    assert (str(built_in.DEBIAN) in message) == (name == "fashion_mnist")
    assert caught.value.exit_code == 4


def test_the_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    source = built_in.digits(None)
    assert source.train.x.shape == (1797, 1, 8, 8)
    np.testing.assert_array_equal(source.train.x[:, 0], load_digits().images)
    np.testing.assert_array_equal(source.train.y, load_digits().target)
    assert source.test is None


def test_what_killed_processes_left_in_the_cache_a_day_ago_is_cleared_away(tmp_path: Path) -> None:
    old, young = tmp_path / "kept" / ".file.1.tmp", tmp_path / "kept" / ".file.2.tmp"
    write_to_cache(tmp_path / "kept" / "file", b"first")
    for leftover, hours in ((old, 25), (young, 23)):
        leftover.write_bytes(b"half")
        os.utime(leftover, (time.time() - hours * 3600,) * 2)
    write_to_cache(tmp_path / "kept" / "file", b"second")
    assert {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()} == {"file": b"second", ".file.2.tmp": b"half"}
