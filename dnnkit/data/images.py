"""Folders of image files, one folder for each class: checked by their headers first, then decoded into bytes."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dnnkit.data.own import absent
from dnnkit.data.source import Examples, Source
from dnnkit.errors import DataError, nearest

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
#: Of one image: 8192 × 8192. A file of a few bytes can claim billions.
MOST_PIXELS = 2**26
#: Folders of splits beside `train`, by what they are in a Source.
SPLITS = {"validation": ("val", "validation"), "test": ("test",)}
_GREY = ("1", "L", "LA")
_EXIF_ORIENTATION = 0x0112
_KINDS = f"images are files that end in {', '.join(ENDINGS)}"


@dataclass(frozen=True)
class Header:
    """What a file says of itself before it is decoded: height and width as it is shown, and whether it is grey or see-through."""

    path: Path
    height: int
    width: int
    grey: bool
    alpha: bool


def image_source(path: Path, size: tuple[int, int] | None, channels: int | None) -> Source:
    """The images below a folder as bytes `(n, channels, height, width)`; see `data=image_folder` for the rules and errors.

    `size` is (height, width), None where all images must have one size already; `channels` None is 1 if all images are grey, else 3.
    """
    if path.exists() and not path.is_dir():
        raise DataError(f"{path} is a file, not a folder", "name the folder that holds one folder for each class")
    if not path.exists():
        raise absent(path, "folder")
    said: list[str] = []
    folders = _folders(path, said)
    classes, files = _files(folders, said)
    headers = {split: [(_header(file), label) for file, label in found] for split, found in files.items()}
    everything = [header for found in headers.values() for header, _ in found]
    height, width = size or _common_size(everything)
    channels = channels or (1 if all(header.grey for header in everything) else 3)
    _say(everything, (height, width), channels, said)
    parts = {split: _decoded(found, (channels, height, width)) for split, found in headers.items()}
    description = f"{len(everything)} images, {height} × {width}"
    return Source(
        parts["train"], parts.get("test"), parts.get("validation"), kind="image", classes=classes, origin=str(path.absolute()),
        description=description, notes={"decisions": said},
    )  # fmt: skip


def _folders(path: Path, said: list[str]) -> dict[str, Path]:
    """The folders of the splits: `path` itself is the training split where it holds no folder `train`."""
    if not (path / "train").is_dir():
        return {"train": path}
    found = {"train": path / "train"}
    for split, names in SPLITS.items():
        there = [path / name for name in names if (path / name).is_dir()]
        if len(there) > 1:
            raise DataError(f"{path} holds both {there[0].name} and {there[1].name}", "keep one of them")
        if there:
            found[split] = there[0]
    others = sorted(entry.name for entry in _visible(path) if entry.is_dir() and entry not in found.values())
    if others:
        close = nearest(others[0], ("val", "test"))
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        cause = f"{path} holds a folder train, and so no other folders than train, val and test, got {', '.join(others)}"
        raise DataError(cause, f"{hint}move others elsewhere")
    said.append(f"splits of its own: {', '.join(folder.name for folder in found.values())}")
    return found


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, in the order of code points, whatever the file system's is."""
    return sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _files(folders: dict[str, Path], said: list[str]) -> tuple[tuple[str, ...], dict[str, list[tuple[Path, int]]]]:
    """The classes, those of the training split, and the files of each split with their class."""
    found: dict[str, list[tuple[Path, int]]] = {}
    classes = tuple(entry.name for entry in _visible(folders["train"]) if entry.is_dir())
    if len(classes) < 2:
        loose = sum(entry.suffix.lower() in ENDINGS for entry in _visible(folders["train"]))
        got = f"got {classes[0]!r} alone" if classes else f"got {loose} images outside of any" if loose else "got none"
        raise DataError(f"{folders['train']} must hold one folder for each class, at least two, {got}")
    left: Counter[str] = Counter()
    for split, folder in folders.items():
        found[split] = []
        for entry in (entry for entry in _visible(folder) if entry.is_dir()):
            if entry.name not in classes:
                close = nearest(entry.name, classes)
                hint = f"did you mean {' or '.join(close)}? " if close else ""
                raise DataError(f"{entry} is a class that {folders['train']} has not", f"{hint}there are: {', '.join(classes)}")
            found[split] += [(file, classes.index(entry.name)) for file in _images(entry, left)]
    if left:
        said.append(f"not used, by their endings: {', '.join(f'{count} × {ending}' for ending, count in sorted(left.items()))}")
    return classes, found


def _images(folder: Path, left: Counter[str]) -> list[Path]:
    entries = _visible(folder)
    images = [entry for entry in entries if entry.suffix.lower() in ENDINGS and entry.is_file()]
    left.update(entry.suffix or "no ending" for entry in entries if entry not in set(images))
    if not images:
        deeper = next((entry.name for entry in entries if entry.is_dir()), None)
        hint = f"images in {deeper}/ are not looked for: they must lie in the class's own folder; " if deeper else ""
        raise DataError(f"{folder} holds no images", hint + _KINDS)
    return images


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """The file as Pillow opens it; DataError naming it where it cannot be opened or decoded."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # A warning about a bomb, or about damage that is read over, is an error here.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                yield image
    except DataError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _too_large(path) from error
    # Decoders of damaged files raise whatever they stumble over.
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as an image ({error})", "replace it by an intact one, or take it out of the folder"
        ) from error


def _too_large(path: Path) -> DataError:
    return DataError(f"{path} claims more than {MOST_PIXELS} pixels: it was not decoded", "make it smaller, or take it out of the folder")


def _header(path: Path) -> Header:
    with _opened(path) as image:
        width, height = image.size
        if width * height > MOST_PIXELS:
            raise _too_large(path)
        if image.mode.startswith(("I", "F")):
            cause = f"{path} has more than 8 bits for each value (mode {image.mode}), images must have 8"
            raise DataError(cause, "convert it, or save the values with numpy.savez for data=npz")
        # Orientations from 5 on are turned by 90°.
        turned = image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
        alpha = image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info
        grey = image.mode in _GREY
        return Header(path, *((width, height) if turned else (height, width)), grey, alpha)


def _common_size(headers: Sequence[Header]) -> tuple[int, int]:
    first = headers[0]
    other = next((header for header in headers if (header.height, header.width) != (first.height, first.width)), None)
    if other is not None:
        cause = (
            f"images must have one size: {first.path} has {first.height} × {first.width}, {other.path} has {other.height} × {other.width}"
        )
        raise DataError(cause, f"data.size=[{first.height},{first.width}] resizes all of them")
    return first.height, first.width


def _say(headers: Sequence[Header], size: tuple[int, int], channels: int, said: list[str]) -> None:
    resized = sum((header.height, header.width) != size for header in headers)
    grey, alpha = sum(header.grey for header in headers), sum(header.alpha for header in headers)
    said.append(f"{channels} channel{'s' if channels > 1 else ''}: {grey} of {len(headers)} images are grey")
    if resized:
        said.append(f"{resized} of {len(headers)} images were resized to {size[0]} × {size[1]}, bilinear, whatever their proportions")
    if alpha:
        said.append(f"the transparency of {alpha} images was dropped")


def _decoded(files: Sequence[tuple[Header, int]], shape: tuple[int, int, int]) -> Examples:
    x = torch.empty((len(files), *shape), dtype=torch.uint8)
    for row, (header, _) in enumerate(files):
        x[row] = decode(header.path, shape)
    return Examples(x, torch.tensor([label for _, label in files]))


def decode(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """One image as uint8 of shape `(channels, height, width)`: turned as its EXIF says, resized bilinearly where it differs.

    Grey is ITU-R 601 luma. Raises DataError naming the file where it cannot be decoded.
    """
    from PIL import ImageOps
    from PIL.Image import Resampling

    channels, height, width = shape
    with _opened(path) as image:
        shown: Any = ImageOps.exif_transpose(image)
        shown = shown.convert("L" if channels == 1 else "RGB")
        if shown.size != (width, height):
            shown = shown.resize((width, height), Resampling.BILINEAR)
        values = np.array(shown)
    return torch.from_numpy(values).reshape(height, width, channels).permute(2, 0, 1)
