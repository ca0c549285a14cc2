"""Layers, losses and what acts on weights beside Keras on its torch backend, in float64: values, gradients, laws and statistics.

Where the two libraries differ, the test states the translation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from dnnkit import plugins
from dnnkit.registry import REGISTRIES, activations, initializers, losses, metrics

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
assert keras.backend.backend() == "torch"

plugins.load()

# Keras asks NumPy for its own arrays in a way that NumPy 2 calls old.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

EXACT: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx(before)


def ours(group: str, name: str, *arguments: Any, **settings: Any) -> Any:
    return REGISTRIES[group].get(name).function(*arguments, **settings)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def array(values: Any) -> Any:
    return keras.ops.convert_to_numpy(values)


def names(registry: Any) -> set[str]:
    return {component.name for component in registry if component.origin.package == "dnnkit"}


# Activations


def calls(name: str, **settings: Any) -> Callable[[Tensor], Tensor]:
    return lambda z: getattr(keras.activations, name)(z, **settings)


#: Ours, its settings, Keras's; a layer where Keras has one.
ACTIVATIONS: list[tuple[str, dict[str, Any], Callable[[], Callable[[Tensor], Any]]]] = [
    ("identity", {}, lambda: calls("linear")),
    ("relu", {}, lambda: calls("relu")),
    ("relu", {}, lambda: keras.layers.ReLU()),
    ("leaky_relu", {"negative_slope": 0.2}, lambda: calls("leaky_relu", negative_slope=0.2)),
    ("leaky_relu", {"negative_slope": 0.3}, lambda: keras.layers.LeakyReLU()),
    ("rrelu", {}, lambda: keras.layers.LeakyReLU(negative_slope=(1 / 8 + 1 / 3) / 2)),  # in evaluation; Keras has none
    ("prelu", {"init": 0.0}, lambda: keras.layers.PReLU()),
    ("prelu", {}, lambda: keras.layers.PReLU(alpha_initializer=keras.initializers.Constant(0.25))),
    ("elu", {}, lambda: keras.layers.ELU()),
    ("elu", {"alpha": 0.1}, lambda: keras.layers.ELU(alpha=0.1)),
    ("elu", {"alpha": 2.0}, lambda: calls("elu", alpha=2.0)),
    ("selu", {}, lambda: calls("selu")),
    ("selu", {}, lambda: keras.layers.Activation("selu")),
    ("celu", {"alpha": 2.0}, lambda: calls("celu", alpha=2.0)),
    ("gelu", {}, lambda: calls("gelu", approximate=False)),
    ("gelu", {"approximate": "tanh"}, lambda: calls("gelu", approximate=True)),
    ("silu", {}, lambda: calls("silu")),
    ("swish", {}, lambda: calls("swish")),
    ("hard_swish", {}, lambda: calls("hard_swish")),
    ("hard_swish", {}, lambda: calls("hard_silu")),
    ("mish", {}, lambda: calls("mish")),
    ("tanh", {}, lambda: calls("tanh")),
    ("sigmoid", {}, lambda: calls("sigmoid")),
    ("softplus", {}, lambda: calls("softplus")),
    ("softsign", {}, lambda: calls("softsign")),
]


def test_every_built_in_activation_is_compared() -> None:
    assert {name for name, *_ in ACTIVATIONS} == names(activations)


@pytest.mark.parametrize(("name", "settings", "theirs"), ACTIVATIONS, ids=lambda value: value if isinstance(value, str) else "")
def test_an_activation_and_its_slope_are_those_of_keras(name: str, settings: dict[str, Any], theirs: Any) -> None:
    grid = torch.linspace(-30, 30, 12_002, dtype=torch.float64)[:, None]  # without 0, where a kink may have any slope between
    found = []
    for function in (ours("activation", name, **settings).double().eval(), theirs()):
        z = grid.clone().requires_grad_()
        y = function(z)
        assert y.dtype == torch.float64
        (slope,) = torch.autograd.grad(y.sum(), z)
        found.append((y.detach(), slope))
    torch.testing.assert_close(found[0], found[1], **EXACT)


def test_prelu_per_unit_learns_the_slopes_of_keras_s_layer() -> None:
    x, target = randn(40, 6), randn(40, 6, seed=1)
    prelu, layer = ours("activation", "prelu", 6, init=0.0, per_unit=True).double(), keras.layers.PReLU()
    layer.build((None, 6))
    assert prelu.weight.shape == tuple(layer.alpha.shape) == (6,)
    for function, parameter in ((prelu, prelu.weight), (layer, layer.alpha.value)):
        for _ in range(20):
            (gradient,) = torch.autograd.grad((function(x) - target).square().mean(), parameter)
            with torch.no_grad():
                parameter -= 0.5 * gradient
    assert prelu.weight.abs().min() > 0
    torch.testing.assert_close(prelu.weight.detach(), layer.alpha.value.detach(), **EXACT)


def test_prelu_per_channel_is_keras_s_layer_with_shared_pixels() -> None:
    x = randn(3, 4, 5, 6)
    layer = keras.layers.PReLU(shared_axes=[2, 3])
    layer.build((None, 4, 5, 6))
    alpha = randn(4)
    layer.alpha.assign(alpha.view(4, 1, 1))
    prelu = ours("activation", "prelu", 4, per_unit=True).double()
    with torch.no_grad():
        prelu.weight.copy_(alpha)
        torch.testing.assert_close(prelu(x), layer(x).detach(), **EXACT)


# Losses


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return nn.functional.one_hot(labels, classes).double()


def entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    given = {"from_logits": True, "label_smoothing": smoothing}
    return keras.losses.categorical_crossentropy(one_hot(labels, logits.shape[1]), logits, **given).mean()


LOSSES: list[tuple[str, dict[str, Any], Callable[[Tensor, Tensor], Tensor]]] = [
    ("cross_entropy", {}, lambda p, t: keras.losses.sparse_categorical_crossentropy(t, p, from_logits=True).mean()),
    ("cross_entropy", {"label_smoothing": 0.1}, lambda p, t: entropy(p, t, 0.1)),
    ("cross_entropy", {"label_smoothing": 0.6}, lambda p, t: entropy(p, t, 0.6)),
    ("mse", {}, lambda p, t: keras.losses.mean_squared_error(t, p).mean()),
    ("mae", {}, lambda p, t: keras.losses.mean_absolute_error(t, p).mean()),
    ("huber", {}, lambda p, t: keras.losses.huber(t, p).mean()),
    ("binary_cross_entropy", {}, lambda p, t: keras.losses.binary_crossentropy(t, p, from_logits=True).mean()),
    ("huber", {"delta": 2.5}, lambda p, t: keras.losses.huber(t, p, delta=2.5).mean()),
]


def test_every_built_in_loss_is_compared() -> None:
    assert {name for name, *_ in LOSSES} == names(losses)


@pytest.mark.parametrize(("name", "settings", "theirs"), LOSSES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_loss_and_its_gradient_are_those_of_keras(name: str, settings: dict[str, Any], theirs: Any) -> None:
    target = torch.arange(64) % 5 if name == "cross_entropy" else randn(64, 5, seed=1) * 2
    target = (target > 0).to(target.dtype) if name == "binary_cross_entropy" else target
    found = []
    for function in (lambda p: ours("loss", name, p, target, **settings), lambda p: theirs(p, target)):
        prediction = (randn(64, 5) * 3).requires_grad_()
        value = function(prediction)
        (gradient,) = torch.autograd.grad(value, prediction)
        found.append((value.detach(), gradient))
    torch.testing.assert_close(found[0], found[1], **EXACT)


def test_a_softmax_before_the_loss_would_be_a_double_one_that_keras_does_not_compute_either() -> None:
    logits, labels = randn(64, 5) * 3, torch.arange(64) % 5
    right = float(keras.losses.sparse_categorical_crossentropy(labels, logits.softmax(1), from_logits=False).mean())
    assert float(ours("loss", "cross_entropy", logits, labels)) == pytest.approx(right, abs=1e-6)
    assert abs(float(ours("loss", "cross_entropy", logits.softmax(1), labels)) - right) > 0.1


# Metrics


def flat(metric: Any, target: Tensor, prediction: Tensor) -> float:
    metric.update_state(target, prediction)
    return float(metric.result())


def test_metrics_are_those_of_keras() -> None:
    logits, labels = randn(500, 10) * 2, torch.arange(500) % 10
    hot, p = one_hot(labels, 10), logits.softmax(1)
    values, target = randn(200, 3), randn(200, 3, seed=1)
    several = (target > 0.5).to(target.dtype)
    theirs = {
        "acc": flat(keras.metrics.SparseCategoricalAccuracy(), labels, logits),
        "top_k": flat(keras.metrics.SparseTopKCategoricalAccuracy(k=5), labels, logits),
        "f1": flat(keras.metrics.F1Score(average="macro"), hot, p),
        "macro_f1": flat(keras.metrics.F1Score(average="macro", threshold=0.5), several, values.sigmoid()),
        "mse": flat(keras.metrics.MeanSquaredError(), target, values),
        "mae": flat(keras.metrics.MeanAbsoluteError(), target, values),
        "r2": flat(keras.metrics.R2Score(), target, values),
    }
    # Keras's areas under curves are approximations by 200 thresholds.
    assert {*theirs, "auroc", "mean_average_precision"} == names(metrics)
    for name, value in theirs.items():
        given = {"macro_f1": (values, several)} | dict.fromkeys(("mse", "mae", "r2"), (values, target))
        assert float(ours("metrics", name, *given.get(name, (logits, labels)))) == pytest.approx(value, abs=1e-6), name
    two = logits[:, :2]
    auc = keras.metrics.AUC(num_thresholds=20_001)
    assert float(ours("metrics", "auroc", two, labels % 2)) == pytest.approx(flat(auc, labels % 2, two.softmax(1)[:, 1]), abs=1e-3)


# Initializers, by law: the draws themselves come from other generators

SHAPE = (300, 200)  # out, in
INITIALIZERS: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "glorot_normal": ({}, lambda: keras.initializers.GlorotNormal(seed=1)),
    "glorot_uniform": ({}, lambda: keras.initializers.GlorotUniform(seed=1)),
    "he_normal": ({}, lambda: keras.initializers.HeNormal(seed=1)),
    "he_uniform": ({}, lambda: keras.initializers.HeUniform(seed=1)),
    "lecun_normal": ({}, lambda: keras.initializers.LecunNormal(seed=1)),
    "lecun_uniform": ({}, lambda: keras.initializers.LecunUniform(seed=1)),
    "variance_scaling": (
        {"scale": 2.0, "mode": "fan_avg", "distribution": "uniform"},
        lambda: keras.initializers.VarianceScaling(2.0, "fan_avg", "uniform", seed=1),
    ),
    "normal": ({"std": 0.05}, lambda: keras.initializers.RandomNormal(seed=1)),
    "uniform": ({}, lambda: keras.initializers.RandomUniform(seed=1)),
    "orthogonal": ({"gain": 2.0}, lambda: keras.initializers.Orthogonal(2.0, seed=1)),
    "zeros": ({}, lambda: keras.initializers.Zeros()),
    "constant": ({"value": 0.3}, lambda: keras.initializers.Constant(0.3)),
}
CONSTANT = ("zeros", "constant")


def test_every_built_in_initializer_is_compared() -> None:
    assert set(INITIALIZERS) == names(initializers)


def draws(name: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Ours of `(out, in, *kernel)`, and Keras's of `(*kernel, in, out)`."""
    settings, theirs = INITIALIZERS[name]
    torch.manual_seed(0)
    found = ours("initializer", name, torch.empty(shape, dtype=torch.float64), **settings).numpy()
    return found, array(theirs()((*shape[2:], shape[1], shape[0])))


@pytest.mark.parametrize("shape", [SHAPE, (64, 32, 3, 3)], ids=["dense", "conv"])
@pytest.mark.parametrize("name", [name for name in INITIALIZERS if name not in CONSTANT])
def test_an_initializer_has_the_law_of_keras_s(name: str, shape: tuple[int, ...]) -> None:
    found, theirs = draws(name, shape)
    assert found.std() == pytest.approx(theirs.std(), rel=0.02)
    assert np.abs(found).max() == pytest.approx(np.abs(theirs).max(), rel=0.25 if name in ("normal", "orthogonal") else 2e-3)
    assert stats.ks_2samp(found.ravel(), theirs.ravel()).pvalue > 0.01


@pytest.mark.parametrize("name", CONSTANT)
def test_a_constant_is_that_of_keras(name: str) -> None:
    found, theirs = draws(name, SHAPE)
    assert np.array_equal(found, theirs.T)


def test_orthogonal_gives_the_singular_values_of_keras_dense_and_convolutional() -> None:
    for shape in ((30, 20), (20, 30), (8, 4, 3, 3)):
        found, theirs = draws("orthogonal", shape)
        rows = np.linalg.svd(found.reshape(shape[0], -1), compute_uv=False)
        columns = np.linalg.svd(theirs.reshape(-1, shape[0]), compute_uv=False)
        np.testing.assert_allclose(rows, 2.0, rtol=1e-10)
        np.testing.assert_allclose(columns, 2.0, rtol=1e-6)


# Normalizations


def batch_norms(layer: str, features: int, momentum: float, unbiased: bool) -> tuple[nn.Module, Any]:
    """Ours by the documented translation, and Keras's, with the same γ and β."""
    norm = ours("normalization", "batch_norm", features, layer, momentum=1 - momentum, eps=1e-3, unbiased=unbiased).double()
    theirs = keras.layers.BatchNormalization(axis=1, momentum=momentum)
    theirs.build((None, features) if layer == "dense" else (None, features, 3, 5))
    gamma, beta = randn(features, seed=8), randn(features, seed=9)
    with torch.no_grad():
        norm.weight.copy_(gamma)
        norm.bias.copy_(beta)
    theirs.gamma.assign(gamma)
    theirs.beta.assign(beta)
    return norm, theirs


@pytest.mark.parametrize(("layer", "shape"), [("dense", (32, 6)), ("conv", (4, 6, 3, 5))])
@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("unbiased", [False, True])
def test_batch_norm_and_its_moving_statistics_are_those_of_keras_over_ten_minibatches(
    layer: str, shape: tuple[int, ...], momentum: float, unbiased: bool
) -> None:
    """Momentum 1 − Keras's, eps 1e-3. Unbiased, what the minibatches add to the moving variance is n / (n − 1) times as much."""
    norm, theirs = batch_norms(layer, 6, momentum, unbiased)
    n = torch.Size(shape).numel() // 6
    for step in range(1, 11):
        x = randn(*shape, seed=step) * step + 2
        torch.testing.assert_close(norm.train()(x).detach(), theirs(x, training=True).detach(), **EXACT)
        mean, variance = (torch.as_tensor(array(value)) for value in (theirs.moving_mean, theirs.moving_variance))
        torch.testing.assert_close(norm.running_mean, mean, **EXACT)
        left = momentum**step  # of the initial 1
        expected = left + (variance - left) * n / (n - 1) if unbiased else variance
        torch.testing.assert_close(norm.running_var, expected, **EXACT)
    x = randn(*shape, seed=99)
    close = np.allclose(norm.eval()(x).detach(), array(theirs(x, training=False)), rtol=1e-6, atol=1e-6)
    assert close != unbiased


def test_the_gradients_of_batch_norm_are_those_of_keras() -> None:
    norm, theirs = batch_norms("dense", 6, 0.99, unbiased=False)
    found = []
    for function, weights in (
        (norm.train(), [norm.weight, norm.bias]),
        (lambda x: theirs(x, training=True), [theirs.gamma.value, theirs.beta.value]),
    ):
        x = randn(32, 6).requires_grad_()
        found.append(torch.autograd.grad((function(x) * randn(32, 6, seed=1)).sum(), [x, *weights]))
    torch.testing.assert_close(found[0], found[1], **EXACT)


#: Ours, its settings, the shape, Keras's layer; all channels first. For images the means are over channels and pixels.
NORMS: list[tuple[str, dict[str, Any], tuple[int, ...], Callable[[], Any]]] = [
    ("layer_norm", {"eps": 1e-3}, (7, 8), lambda: keras.layers.LayerNormalization()),
    ("layer_norm", {"eps": 1e-3}, (7, 8, 3, 5), lambda: keras.layers.LayerNormalization(axis=[1, 2, 3])),
    ("rms_norm", {"eps": 1e-6}, (7, 8), lambda: keras.layers.RMSNormalization()),
    ("rms_norm", {"eps": 1e-6}, (7, 8, 3, 5), lambda: keras.layers.RMSNormalization(axis=[1, 2, 3])),
    ("group_norm", {"num_groups": 2, "eps": 1e-3}, (7, 8), lambda: keras.layers.GroupNormalization(2)),
    ("group_norm", {"num_groups": 2, "eps": 1e-3}, (7, 8, 3, 5), lambda: keras.layers.GroupNormalization(2, axis=1)),
    ("group_norm", {"num_groups": 8, "eps": 1e-3}, (7, 8, 3, 5), lambda: keras.layers.GroupNormalization(8, axis=1)),
]


def test_every_built_in_normalization_is_compared() -> None:
    assert {name for name, *_ in NORMS} | {"batch_norm"} == names(REGISTRIES["normalization"])


@pytest.mark.parametrize(("name", "settings", "shape", "theirs"), NORMS, ids=lambda value: str(value) if isinstance(value, str) else "")
def test_a_normalization_of_samples_is_keras_s(name: str, settings: dict[str, Any], shape: tuple[int, ...], theirs: Any) -> None:
    norm = ours("normalization", name, 8, layer="dense" if len(shape) == 2 else "conv", **settings).double()
    layer = theirs()
    layer.build(shape)
    found = []
    for function in (norm, layer):
        x = (randn(*shape) * 3 + 2).requires_grad_()
        y = function(x)
        (gradient,) = torch.autograd.grad((y * randn(*shape, seed=1)).sum(), x)
        found.append((y.detach(), gradient))
    # Keras's group normalization computes in float32 whatever it is given.
    torch.testing.assert_close(found[0], found[1], **({"rtol": 2e-5, "atol": 2e-5} if name == "group_norm" else EXACT))


# Dropouts


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_dropout_masks_have_the_statistics_of_keras_s(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(4000, 100, dtype=torch.float64)
    for y in (ours("dropout", "dropout", p)(x), keras.layers.Dropout(p, seed=1)(x, training=True)):
        kept = y != 0
        torch.testing.assert_close(y[kept], x[kept] / (1 - p), **EXACT)
        deviation = (p * (1 - p) / y.numel()) ** 0.5
        assert float(kept.double().mean()) == pytest.approx(1 - p, abs=4 * deviation)
        # Each element is drawn by itself: the counts of units and of samples are binomial.
        for axis, n in ((0, 4000), (1, 100)):
            assert float(kept.double().sum(axis).var()) == pytest.approx(n * p * (1 - p), rel=0.5 if axis == 0 else 0.1)


def test_alpha_dropout_maps_0_to_keras_s_two_values_as_often() -> None:
    torch.manual_seed(0)
    x = torch.zeros(400, 500, dtype=torch.float64)
    for y in (ours("dropout", "alpha_dropout", 0.2)(x), keras.layers.AlphaDropout(0.2, seed=1)(x, training=True)):
        assert sorted(y.unique().tolist()) == [pytest.approx(-1.23616, abs=5e-6), pytest.approx(0.30904, abs=5e-6)]
        assert float((y < 0).double().mean()) == pytest.approx(0.2, abs=4 * (0.16 / 200_000) ** 0.5)


# Penalties, constraints and clippings


def pair(seed: int = 0) -> tuple[nn.Sequential, list[Any]]:
    """A convolution and a dense layer, and Keras's with the same kernels, biases not zero."""
    net = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(16, 5)).double()
    for index, parameter in enumerate(net.parameters()):
        parameter.data = randn(*parameter.shape, seed=seed + index) * 2
    conv, dense = net[0].weight.detach(), net[2].weight.detach()
    return net, [conv.permute(2, 3, 1, 0), dense.T]


@pytest.mark.parametrize(
    ("name", "settings", "theirs"),
    [
        ("l1", {"factor": 0.03}, lambda: keras.regularizers.L1(0.03)),
        ("l2", {}, lambda: keras.regularizers.L2()),
        ("l2", {"factor": 0.03}, lambda: keras.regularizers.L2(0.03)),
        ("l1_l2", {"l1": 0.03, "l2": 0.002}, lambda: keras.regularizers.L1L2(0.03, 0.002)),
        ("l1_l2", {}, lambda: keras.regularizers.L1L2(0.01, 0.01)),
    ],
)
def test_a_penalty_is_the_loss_term_of_keras_s_layers(name: str, settings: dict[str, Any], theirs: Any) -> None:
    net, (conv, dense) = pair()
    layers = [keras.layers.Conv2D(4, 2, kernel_regularizer=theirs()), keras.layers.Dense(5, kernel_regularizer=theirs())]
    for layer, kernel, shape in zip(layers, (conv, dense), ((None, 3, 3, 3), (None, 16)), strict=True):
        layer.build(shape)
        layer.kernel.assign(kernel)
    expected = sum(loss.item() for layer in layers for loss in layer.losses)
    assert ours("regularizer", name, net, **settings).item() == pytest.approx(expected, rel=1e-6)


def test_every_built_in_penalty_is_compared() -> None:
    assert names(REGISTRIES["regularizer"]) == {"l1", "l2", "l1_l2"}


@pytest.mark.parametrize("c", [1.0, 4.0, 100.0])
def test_max_norm_is_keras_s_constraint_per_unit_and_per_kernel(c: float) -> None:
    net, (conv, dense) = pair()
    conv_before = keras.constraints.MaxNorm(c, axis=[0, 1, 2])(conv.clone())
    dense_before = keras.constraints.MaxNorm(c, axis=0)(dense.clone())
    ours("constraint", "max_norm", net, c)
    torch.testing.assert_close(net[0].weight.detach().permute(2, 3, 1, 0), conv_before, **EXACT)
    torch.testing.assert_close(net[2].weight.detach().T, dense_before, **EXACT)


def clipped(**settings: float) -> list[Tensor]:
    """What Keras's optimizer makes of the gradients below."""
    variables = [keras.Variable(torch.zeros_like(gradient)) for gradient in GRADIENTS]
    keras.optimizers.SGD(1.0, **settings).apply(GRADIENTS, variables)
    return [-variable.value.detach() for variable in variables]


GRADIENTS = [randn(4, 3) * 5, randn(4, seed=1) * 0.1, torch.tensor([0.9, 100.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]


def ours_clipped(name: str, threshold: float, gradients: list[Tensor] = GRADIENTS) -> list[Tensor]:
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    total = ours("clipping", name, parameters, threshold)
    assert float(total) == pytest.approx(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()), rel=1e-12)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


@pytest.mark.parametrize("threshold", [0.5, 1.0, 20.0, 1000.0])
def test_clipping_by_value_and_per_parameter_is_keras_s_clipvalue_and_clipnorm(threshold: float) -> None:
    for name, keras_s in (("value", "clipvalue"), ("per_parameter_norm", "clipnorm")):
        torch.testing.assert_close(ours_clipped(name, threshold), clipped(**{keras_s: threshold}), rtol=1e-7, atol=0)


def test_clipping_by_norm_is_keras_s_global_clipnorm_but_for_torch_s_millionth() -> None:
    """torch adds 1e-6 to the norm: nothing to see at 100, half of it at 1e-6."""
    theirs = clipped(global_clipnorm=1.0)
    norm = float(torch.cat([gradient.flatten() for gradient in GRADIENTS]).norm())
    torch.testing.assert_close(ours_clipped("norm", 1.0), [g / (norm + 1e-6) for g in GRADIENTS], rtol=1e-12, atol=0)
    torch.testing.assert_close(ours_clipped("norm", 1.0), theirs, **EXACT)
    (tiny,) = ours_clipped("norm", 1e-7, [torch.tensor([6e-7, 8e-7], dtype=torch.float64)])
    torch.testing.assert_close(tiny, torch.tensor([3e-8, 4e-8], dtype=torch.float64), rtol=1e-9, atol=0)


def test_every_built_in_clipping_dropout_and_constraint_is_compared() -> None:
    assert names(REGISTRIES["clipping"]) == {"value", "norm", "per_parameter_norm"}
    assert names(REGISTRIES["dropout"]) == {"dropout", "alpha_dropout"}
    assert names(REGISTRIES["constraint"]) == {"max_norm"}
