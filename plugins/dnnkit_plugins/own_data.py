"""Data sources of the user's own arrays and images."""

from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval, Len

from dnnkit.data import Source
from dnnkit.data.arrays import array_source
from dnnkit.data.images import image_source
from dnnkit.data.own import own_path
from dnnkit.registry import data_sources

Side = Annotated[int, Interval(ge=1, le=4096)]


@data_sources.register("npz")
def npz(root: Path | None, task: str, path: Annotated[str, Len(1)]) -> Source:
    """The arrays of an .npz file: x and y, and, where it has splits of its own, x_test and y_test, x_val and y_val.

    `path` is relative to `data.root` where that is set, else to the working folder; `~` is home. Nothing is unpickled.
    x, shape `(n, …)`, real and finite. Shape (n, height, width) is images of one channel; of four dimensions it is images
    if the second, or else the last, is 1, 3 or 4: the channels, which are moved to the second. Anything else is a table.
    y, shape `(n,)`: whole numbers, truth values or texts are classes, in sorted order and named by their value; floating
    numbers, also `(n, values)`, are the values of a regression. `task=regression` takes whole numbers as values,
    `task=classification` takes floating ones as classes if all are whole; `task=reconstruction` needs no y. Whole numbers or truth
    values of shape `(n, labels)`, 0 or 1 each, are labels; where each row has a single 1 only if the task says so. What was decided
    is in the card as `decisions`. `x_train` and `y_train` are taken for x and y.
    A split that the file has not is taken as `data.split` says. Images are standardised by channel, tables by feature.

    Raises DataError naming file, key and row: no such file; not an .npz; damaged, or claiming more than it holds; Python
    objects; x and y of different lengths, without rows, not finite; a single class.
    """
    return array_source(own_path(path, root), task)


@data_sources.register("image_folder")
def image_folder(
    root: Path | None,
    path: Annotated[str, Len(1)],
    size: Side | Annotated[list[Side], Len(2, 2)] | None = None,
    channels: Literal["auto", 1, 3] = "auto",
) -> Source:
    """The images below a folder, one folder for each class: `path/<class>/*`, ending in png, jpg, jpeg, bmp, gif or webp.

    `path` is relative to `data.root` where that is set, else to the working folder; `~` is home. Where it holds a folder
    `train`, the classes are below `train`, and below `test` and `val`, if there are such, which are then the source's own
    splits; a split that it has not is taken as `data.split` says. Classes and files are in the order of their names.
    Bytes from 0 to 255, shape `(channels, height, width)`, standardised by channel.

    `size`: a side, or [height, width], to which all images are resized, bilinearly and whatever their proportions; null
    means that they must have one size. `channels`: 1 is grey (ITU-R 601 luma), 3 is red, green and blue; auto is 1 if all
    images are grey, else 3. Images are turned as their EXIF says; of an animation the first frame is taken; transparency
    is dropped.

    Raises DataError naming the file or folder: no such folder; a class without images; fewer than two classes; an image
    that cannot be decoded, has more than 8 bits for each value, more than 2^26 pixels, or a size of its own.
    """
    sides = (size, size) if isinstance(size, int) else None if size is None else (size[0], size[1])
    return image_source(own_path(path, root), sides, None if channels == "auto" else channels)
