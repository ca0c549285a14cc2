"""Data sources of tables that need no files: bundled with scikit-learn, or drawn from a law."""

from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Interval

from dnnkit.data import Examples, Source
from dnnkit.data.tasks import form_asked
from dnnkit.errors import ConfigError, Problem
from dnnkit.registry import data_sources

#: More values than this are no exercise any more: 8 GB in float64.
MOST_VALUES = 10**9
#: scikit-learn puts the samples of a class around this many corners of a hypercube.
CLUSTERS = 2


@data_sources.register("breast_cancer")
def breast_cancer(root: Path | None) -> Source:
    """569 breast tumours by 30 measurements of their cell nuclei; classes malignant (212) and benign (357); bundled, offline.

    It has no splits of its own: test and validation are taken as `data.split` says. A table, standardised by feature.
    Source: Street, Wolberg & Mangasarian 1993, "Nuclear feature extraction for breast tumor diagnosis"; UCI, by way of scikit-learn.
    """
    from sklearn.datasets import load_breast_cancer

    return _classes(load_breast_cancer(), "breast tumours by measurements of their cell nuclei")


@data_sources.register("wine")
def wine(root: Path | None) -> Source:
    """178 wines by 13 chemical measurements; classes are three growers (59, 71, 48); bundled, offline.

    It has no splits of its own: test and validation are taken as `data.split` says. A table, standardised by feature.
    Source: Forina et al. 1988, PARVUS; UCI, by way of scikit-learn.
    """
    from sklearn.datasets import load_wine

    return _classes(load_wine(), "wines by chemical measurements")


@data_sources.register("iris")
def iris(root: Path | None) -> Source:
    """150 irises by length and width of sepal and petal in cm; classes setosa, versicolor and virginica (50 each); bundled, offline.

    It has no splits of its own: test and validation are taken as `data.split` says. A table, standardised by feature.
    Source: Fisher 1936, "The use of multiple measurements in taxonomic problems", by way of scikit-learn, which has Fisher's
    numbers where UCI has two wrong ones.
    """
    from sklearn.datasets import load_iris

    return _classes(load_iris(), "irises by the size of sepal and petal")


@data_sources.register("diabetes")
def diabetes(root: Path | None) -> Source:
    """442 diabetes patients by 10 values (age, sex, body mass index, blood pressure, six of blood serum); bundled, offline.

    Regression: the target `progression` is a measure of the disease one year later, 25 to 346. The values are in their own
    units, not in scikit-learn's scaled ones; sex is 1 or 2. It has no splits of its own: test and validation are taken as
    `data.split` says. A table, standardised by feature.
    Source: Efron, Hastie, Johnstone & Tibshirani 2004, "Least angle regression", by way of scikit-learn.
    """
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    train = Examples(torch.from_numpy(bunch.data), torch.from_numpy(bunch.target))
    return _source(train, tuple(bunch.feature_names), "progression of diabetes after a year", targets=("progression",))


@data_sources.register("synthetic")
def synthetic(
    root: Path | None,
    task: str,
    samples: Annotated[int, Interval(ge=10, le=10**8)] = 1000,
    features: Annotated[int, Interval(ge=1, le=10**6)] = 20,
    informative: Annotated[int, Ge(1)] | None = None,
    classes: Annotated[int, Ge(2)] = 3,
    targets: Annotated[int, Ge(1)] = 1,
    separation: Annotated[float, Gt(0)] = 1.0,
    noise: Annotated[float, Ge(0)] = 0.1,
    seed: Annotated[int, Interval(ge=0, le=2**32 - 1)] = 0,
) -> Source:
    """A table of features `x0`, `x1`, … that are drawn anew from `seed`, `informative` of which say something about y; offline.

    Classification (and `task=auto`): classes of equal size, each two Gaussian clouds around corners of a hypercube of side
    2 · `separation`; of the labels the share `noise`, at most 1, is drawn at random. `targets` has no effect.
    With `task=regression`: `targets` linear functions of Gaussian features, to each of which Gaussian noise of `noise`
    times its own deviation is added, so that no model has an R² above 1/(1 + noise²) but by chance. `classes` and
    `separation` have no effect. Otherwise x is what it is for classification, in both the other features are N(0, 1).

    `informative`: null means half of the features, and at least as many as the classes need, 2 · classes ≤ 2^informative.
    It has no splits of its own: test and validation are taken as `data.split` says. A table, standardised by feature.
    Source: Guyon 2003, "Design of experiments for the NIPS 2003 variable selection benchmark", as scikit-learn draws it,
    without redundant features.
    """
    regression = form_asked(task) == "values"
    needed = 1 if regression else (CLUSTERS * classes - 1).bit_length()
    chosen = min(features, max(features // 2, needed)) if informative is None else informative
    _check(samples, features, chosen, needed, classes, noise, regression)
    settings = {"n_samples": samples, "n_features": features, "n_informative": chosen, "random_state": seed}
    columns = tuple(f"x{index}" for index in range(features))
    if regression:
        train = _linear(settings, targets, noise)
        names = ("y",) if targets == 1 else tuple(f"y{index}" for index in range(targets))
        return _source(train, columns, "linear functions of Gaussian features", targets=names)
    train = _clouds(settings, classes, separation, noise)
    return _source(train, columns, "Gaussian clouds", classes=tuple(f"class_{index}" for index in range(classes)))


def _clouds(settings: dict[str, Any], classes: int, separation: float, noise: float) -> Examples:
    from sklearn.datasets import make_classification

    shape = {"n_classes": classes, "n_clusters_per_class": CLUSTERS, "n_redundant": 0}
    x, y = make_classification(**settings, **shape, class_sep=separation, flip_y=noise)
    return Examples(torch.from_numpy(x), torch.from_numpy(y).long())


def _linear(settings: dict[str, Any], targets: int, noise: float) -> Examples:
    import numpy as np
    from sklearn.datasets import make_regression

    x, y = make_regression(**settings, n_targets=targets)
    y = y.reshape(len(x), targets)
    # A stream of its own: the features stay the same whatever the noise is.
    drawn = np.random.default_rng([settings["random_state"], 1]).standard_normal(y.shape)
    return Examples(torch.from_numpy(x), torch.from_numpy(y + noise * y.std(0) * drawn))


def _check(samples: int, features: int, informative: int, needed: int, classes: int, noise: float, regression: bool) -> None:
    """ConfigError naming every setting that does not fit the others."""
    problems = []
    if informative > features:
        problems.append(Problem("data.informative", f"must be at most data.features = {features}, got {informative}"))
    elif informative < needed:
        where = "data.informative" if features >= needed else "data.features"
        problems.append(Problem(where, f"must be at least {needed} for {classes} classes, got {min(informative, features)}"))
    if not regression and samples < CLUSTERS * classes:
        problems.append(Problem("data.samples", f"must be at least {CLUSTERS * classes} for {classes} classes, got {samples}"))
    if not regression and noise > 1:
        problems.append(Problem("data.noise", f"must be a share of the labels, at most 1, got {noise}"))
    if samples * features > MOST_VALUES:
        message = f"{samples} samples of {features} features are {samples * features} values: must be at most {MOST_VALUES}"
        problems.append(Problem("data.samples", message))
    if problems:
        raise ConfigError(problems)


def _classes(bunch: Any, description: str) -> Source:
    train = Examples(torch.from_numpy(bunch.data), torch.from_numpy(bunch.target).long())
    return _source(train, tuple(map(str, bunch.feature_names)), description, classes=tuple(map(str, bunch.target_names)))


def _source(train: Examples, columns: tuple[str, ...], description: str, **names: tuple[str, ...]) -> Source:
    import sklearn

    return Source(train, None, columns=columns, origin=f"scikit-learn {sklearn.__version__}", description=description, **names)
