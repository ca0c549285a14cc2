"""Data sources of images: scikit-learn's digits, MNIST and Fashion-MNIST; found on this machine, or downloaded once."""

import io
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from dnnkit.data import Examples, Source
from dnnkit.data.bundled import bundled_file
from dnnkit.data.download import obtain_files
from dnnkit.data.files import Found, Known
from dnnkit.data.idx import parse_idx
from dnnkit.data.selection import only_classes
from dnnkit.registry import data_sources

_TRAIN_X, _TRAIN_Y = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
_TEST_X, _TEST_Y = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"

MNIST = {
    _TRAIN_X: Known("ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db", 47040016),
    _TRAIN_Y: Known("65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5", 60008),
    _TEST_X: Known("0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7", 7840016),
    _TEST_Y: Known("ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2", 10008),
}
FASHION_MNIST = {
    _TRAIN_X: Known("c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888", 47040016),
    _TRAIN_Y: Known("bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9", 60008),
    _TEST_X: Known("5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b", 7840016),
    _TEST_Y: Known("0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34", 10008),
}
#: The file behind scikit-learn's `load_digits`. Importing scikit-learn takes half a second.
SKLEARN_DIGITS = Known("6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8", 264712)
#: Folders on the web that hold the four files, each with `.gz` after its name.
MNIST_MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist")
FASHION_MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
)
DIGITS = tuple("0123456789")
CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
#: Where Debian's package dataset-fashion-mnist puts the files.
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
#: Indices or names of classes, in the order of their new indices; null for all.
Classes = list[int | str] | None
OFFLINE = "or train on data that needs no files: data=digits"


@data_sources.register("digits")
def digits(root: Path | None, classes: Classes = None) -> Source:
    """1797 handwritten digits of 8 × 8 pixels from 0 to 16, shape `(1, 8, 8)`, ten classes; bundled with scikit-learn, offline.

    `classes` takes some of them alone, as the classes 0, 1, … in the order given: `data.classes=[5,6]`.
    It has no splits of its own: test and validation are taken as `data.split` says. Images, standardised by channel.
    Source: Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI; the 1797 are its test part.
    """
    rows = torch.from_numpy(_digit_rows())
    train = Examples(rows[:, :-1].to(torch.uint8).reshape(-1, 1, 8, 8), rows[:, -1].contiguous())
    origin = f"scikit-learn {version('scikit-learn')}"
    everything = Source(train, None, kind="image", classes=DIGITS, origin=origin, description="handwritten digits, 8 × 8")
    return only_classes(everything, classes)


def _digit_rows() -> np.ndarray:
    """int64 of shape `(1797, 65)`: the pixels, then the class."""
    content = bundled_file("sklearn", "datasets/data/digits.csv.gz", SKLEARN_DIGITS)
    if content is not None:
        return np.loadtxt(io.BytesIO(content), delimiter=",", dtype=np.int64)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data.astype(np.int64), bunch.target])


@data_sources.register("mnist")
def mnist(root: Path | None, classes: Classes = None) -> Source:
    """70,000 handwritten digits of 28 × 28 pixels from 0 to 255, shape `(1, 28, 28)`, ten classes; four IDX files.

    They are looked for on this machine, else downloaded (12 MB). Its own test split of 10,000 is used; validation is taken
    from the other 60,000 as `data.split` says. Images, standardised by channel. `classes` takes some digits alone, as the
    classes 0, 1, … in the order given: `data.classes=[5,6]`.
    Source: LeCun, Bottou, Bengio & Haffner 1998.
    """
    found = obtain_files(root, "mnist", MNIST, MNIST_MIRRORS, cure=OFFLINE)
    return only_classes(_images(found, DIGITS, "handwritten digits, 28 × 28"), classes)


@data_sources.register("fashion_mnist")
def fashion_mnist(root: Path | None, classes: Classes = None) -> Source:
    """70,000 pictures of clothes, 28 × 28 pixels from 0 to 255, shape `(1, 28, 28)`, ten classes; four IDX files.

    They are looked for on this machine, else downloaded (31 MB). Its own test split of 10,000 is used; validation is taken
    from the other 60,000 as `data.split` says. Images, standardised by channel. `classes` takes some kinds of clothes alone,
    by index or name, as the classes 0, 1, … in the order given: `data.classes=[sandal,shirt]`.
    Source: Xiao, Rasul & Vollgraf 2017.
    """
    cure = f"or, on Debian and Ubuntu: apt install dataset-fashion-mnist\n  {OFFLINE}"
    found = obtain_files(root, "fashion_mnist", FASHION_MNIST, FASHION_MIRRORS, system=(DEBIAN,), cure=cure)
    return only_classes(_images(found, CLOTHES, "pictures of clothes, 28 × 28"), classes)


def _images(found: Found, classes: tuple[str, ...], description: str) -> Source:
    tensors = {name: parse_idx(content, str(found.place / name)) for name, content in found.contents.items()}
    train = Examples(tensors[_TRAIN_X].unsqueeze(1), tensors[_TRAIN_Y].long())
    test = Examples(tensors[_TEST_X].unsqueeze(1), tensors[_TEST_Y].long())
    return Source(train, test, kind="image", classes=classes, origin=str(found.place), description=description)
