"""The source `image_folder`: what its files become, and which are refused by name. Oracle: Pillow, read another way."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dnnkit import compose, plugins
from dnnkit.data import Source
from dnnkit.data.source import check
from dnnkit.errors import DataError
from dnnkit.registry import data_sources
from dnnkit.training.assemble import load_data

plugins.load()


def made(**settings: Any) -> Source:
    """What the source gives for its settings, checked as training checks it."""
    source: Source = data_sources.get("image_folder").function(None, **settings)
    check("image_folder", source)
    return source


def picture(path: Path, size: tuple[int, int] = (6, 4), mode: str = "RGB", value: int = 0, **options: Any) -> Path:
    """An image of (width, height) with random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(value).integers(0, 256, (size[1], size[0], bands)).astype(np.uint8)
    Image.fromarray(values if bands > 1 else values[:, :, 0], mode="L" if bands == 1 else mode).convert(mode).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, name in enumerate(("bee/2.png", "bee/10.png", "ant/b.PNG", "ant/a.bmp", "cat/c.png")):
        picture(tmp_path / "images" / name, value=index)
    return tmp_path / "images"


def pixels(path: Path) -> Any:
    """What Pillow shows as RGB, channels first."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def test_images_are_read_in_the_order_of_class_and_name(folder: Path) -> None:
    source = made(path=str(folder))
    assert source.classes == ("ant", "bee", "cat")
    assert source.train.y.tolist() == [0, 0, 1, 1, 2]
    names = ("ant/a.bmp", "ant/b.PNG", "bee/10.png", "bee/2.png", "cat/c.png")
    np.testing.assert_array_equal(source.train.x, np.stack([pixels(folder / name) for name in names]))
    assert (source.train.x.dtype, source.train.x.shape, source.kind) == (torch.uint8, (5, 3, 4, 6), "image")
    assert (source.test, source.validation) == (None, None)


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "bmp", "gif", "webp"])
def test_every_format_is_read(ending: str, folder: Path) -> None:
    path = picture(folder / "ant" / f"x.{ending}", size=(6, 4))
    np.testing.assert_array_equal(made(path=str(folder)).train.x[2], pixels(path))


def test_splits_of_the_folder_s_own_are_used(folder: Path, tmp_path: Path) -> None:
    for split, name in (("train", "ant/a.png"), ("train", "bee/b.png"), ("val", "ant/c.png"), ("test", "bee/d.png"), ("test", "ant/e.png")):
        picture(tmp_path / "own" / split / name)
    source = made(path=str(tmp_path / "own"))
    assert source.validation is not None
    assert source.test is not None
    assert [part.y.tolist() for part in (source.train, source.validation, source.test)] == [[0, 1], [0], [0, 1]]
    assert "splits of its own: train, val, test" in source.notes["decisions"]


def test_channels_are_one_where_all_images_are_grey_and_as_asked_otherwise(folder: Path, tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png"):
        picture(tmp_path / "grey" / name, mode="L")
    grey, colour = (str(tmp_path / "grey"), str(folder))
    assert made(path=grey).train.x.shape[1] == 1
    assert made(path=grey, channels=3).train.x.shape[1] == 3
    luma = made(path=colour, channels=1).train.x[0, 0].double()
    red, green, blue = pixels(folder / "ant" / "a.bmp").astype(float)
    np.testing.assert_allclose(luma, 0.299 * red + 0.587 * green + 0.114 * blue, atol=0.6)
    picture(tmp_path / "grey" / "a" / "2.png")
    assert made(path=grey).train.x.shape[1] == 3


@pytest.mark.parametrize(("size", "shape"), [(8, (8, 8)), ([2, 3], (2, 3))])
def test_a_size_resizes_bilinearly_and_says_so(size: Any, shape: tuple[int, int], folder: Path) -> None:
    picture(folder / "ant" / "other.png", size=(11, 7))
    source = made(path=str(folder), size=size)
    assert source.train.x.shape[2:] == shape
    with Image.open(folder / "ant" / "other.png") as image:
        expected = np.asarray(image.resize(shape[::-1], Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    np.testing.assert_array_equal(source.train.x[2], expected)
    assert any("6 of 6 images were resized" in said and "bilinear" in said for said in source.notes["decisions"])


def test_resizing_is_linear_interpolation(tmp_path: Path) -> None:
    """A horizontal ramp of 2 pixels, 0 and 100, at 4: centres at 1/4, 3/4, 5/4 and 7/4 give 0, 25, 75, 100."""
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(np.array([[0, 100]], dtype=np.uint8)).save(tmp_path / "images" / name / "1.png")
    source = made(path=str(tmp_path / "images"), size=[1, 4])
    assert source.train.x[0, 0, 0].tolist() == [0, 25, 75, 100]


def test_images_are_turned_as_their_exif_says(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    path = picture(folder / "ant" / "turned.jpg", size=(4, 6), exif=exif)
    source = made(path=str(folder))
    # Orientation 6: the first row of the file is the right-hand side of the picture.
    np.testing.assert_array_equal(source.train.x[2], np.rot90(pixels(path), k=-1, axes=(1, 2)))


def test_transparency_is_dropped_and_said(folder: Path) -> None:
    path = picture(folder / "ant" / "see.png", mode="RGBA")
    source = made(path=str(folder))
    np.testing.assert_array_equal(source.train.x[2], pixels(path))
    assert "the transparency of 1 images was dropped" in source.notes["decisions"]


def test_other_files_are_not_used_and_said(folder: Path) -> None:
    (folder / "ant" / "readme.txt").write_text("hello")
    (folder / "ant" / ".DS_Store").write_bytes(b"")
    (folder / "readme.md").write_text("hello")
    assert "not used, by their endings: 1 × .txt" in made(path=str(folder)).notes["decisions"]


def spoil(folder: Path, fault: str) -> dict[str, Any]:
    """Do that to the folder; settings that the fault needs."""
    match fault:
        case "text":
            (folder / "ant" / "x.png").write_text("no image")
        case "cut":
            path = picture(folder / "ant" / "x.png", size=(60, 40))
            path.write_bytes(path.read_bytes()[:1000])
            return {"size": 8}
        case "damaged":
            path = picture(folder / "ant" / "x.png", size=(60, 40))
            content = bytearray(path.read_bytes())
            content[200] ^= 255
            path.write_bytes(content)
            return {"size": 8}
        case "another format":
            buffer = io.BytesIO()
            Image.new("RGB", (6, 4)).save(buffer, "TIFF")
            (folder / "ant" / "x.png").write_bytes(buffer.getvalue())
        case "16 bits":
            Image.fromarray(np.zeros((4, 6), dtype=np.uint16)).save(folder / "ant" / "x.png")
        case "another size":
            picture(folder / "ant" / "x.png", size=(5, 4))
        case "empty class":
            (folder / "dog").mkdir()
        case "nested":
            picture(folder / "dog" / "deeper" / "1.png")
        case "bomb":
            (folder / "ant" / "x.png").write_bytes(png_header(9000, 9000))
        case "larger bomb":
            (folder / "ant" / "x.png").write_bytes(png_header(100_000, 100_000))
    return {}


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims that size in a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("text", r"ant/x\.png cannot be read as an image"),
        ("cut", r"ant/x\.png cannot be read as an image"),
        ("damaged", r"ant/x\.png cannot be read as an image"),
        ("another format", r"ant/x\.png cannot be read as an image"),
        ("16 bits", r"ant/x\.png has more than 8 bits for each value"),
        ("another size", r"(?s)a\.bmp has 4 × 6, .*ant/x\.png has 4 × 5.*data\.size=\[4,6\] resizes all"),
        ("empty class", "(?s)images/dog holds no images.*png"),
        ("nested", "(?s)images/dog holds no images.*images in deeper/ are not looked for"),
        ("bomb", r"ant/x\.png claims more than 67108864 pixels"),
        ("larger bomb", r"ant/x\.png claims more than 67108864 pixels"),
    ],
)
def test_a_folder_with_something_unusable_is_refused_by_its_name(fault: str, message: str, folder: Path) -> None:
    settings = spoil(folder, fault)
    with pytest.raises(DataError) as caught:
        made(path=str(folder), **settings)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert caught.value.exit_code == 4


def test_a_folder_without_classes_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least two, got 2 images outside of any"):
        made(path=str(folder / "ant"))
    picture(tmp_path / "alone" / "ant" / "1.png")
    with pytest.raises(DataError, match="at least two, got 'ant' alone"):
        made(path=str(tmp_path / "alone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="at least two, got none"):
        made(path=str(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"(?s)no folder .*imges.*did you mean .*images"):
        made(path=str(tmp_path / "imges"))
    with pytest.raises(DataError, match="is a file, not a folder"):
        made(path=str(folder / "ant" / "a.bmp"))


def test_classes_and_folders_that_training_does_not_know_are_refused(tmp_path: Path) -> None:
    for name in ("train/ant/1.png", "train/bee/1.png", "test/ants/1.png"):
        picture(tmp_path / "own" / name)
    with pytest.raises(DataError, match=r"(?s)test/ants is a class that .*train has not.*did you mean ant"):
        made(path=str(tmp_path / "own"))
    picture(tmp_path / "other" / "train" / "ant" / "1.png")
    picture(tmp_path / "other" / "tset" / "ant" / "1.png")
    with pytest.raises(DataError, match=r"(?s)no other folders than train, val and test, got tset.*did you mean test"):
        made(path=str(tmp_path / "other"))


def test_images_are_loaded_by_a_config(folder: Path, workdir: Path) -> None:
    for index in range(12):
        for name in ("ant", "bee", "cat"):
            picture(folder / name / f"more{index}.png", value=index)
    data = load_data(compose(["data=image_folder", f"data.path={folder}", "data.size=[5,7]", "data.channels=1"]))
    assert (data.inputs, data.classes, data.card["standardize"]) == ((1, 5, 7), ("ant", "bee", "cat"), "channel")
