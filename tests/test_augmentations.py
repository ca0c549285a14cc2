"""Augmentations: what they do to the last pixel, how often they do it, and that nothing but their generator decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from dnnkit import plugins
from dnnkit.errors import ConfigError
from dnnkit.registry import REGISTRIES

plugins.load()
NAMES = ["flip", "noise", "shift"]
IMAGE = torch.arange(2 * 5 * 7, dtype=torch.float32).reshape(2, 5, 7)


def augment(name: str, x: Tensor, seed: int | Generator, **settings: Any) -> Tensor:
    generator = seed if isinstance(seed, Generator) else Generator().manual_seed(seed)
    return REGISTRIES["augmentation"].get(name).function(x, generator, **settings)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5, 9), (8, 8)])
def test_shape_type_and_the_example_itself_stay_as_they_are(name: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    kept = x.clone()
    y = augment(name, x, 0)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("name", NAMES)
def test_the_generator_alone_decides_and_the_global_one_is_left_alone(name: str) -> None:
    before = torch.get_rng_state()
    first = [augment(name, IMAGE, seed) for seed in range(20)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert all(torch.equal(augment(name, IMAGE, seed), image) for seed, image in enumerate(first))
    assert len({tuple(image.flatten().tolist()) for image in first}) > 1


@pytest.mark.parametrize("pixels", [0, 1, 3])
def test_shift_moves_by_whole_pixels_and_repeats_the_edge(pixels: int) -> None:
    padded = np.pad(IMAGE.numpy(), ((0, 0), (pixels, pixels), (pixels, pixels)), mode="edge")
    moved = {
        (down, right): padded[:, pixels - down : pixels - down + 5, pixels - right : pixels - right + 7]
        for down in range(-pixels, pixels + 1)
        for right in range(-pixels, pixels + 1)
    }
    seen = set()
    for seed in range(600):
        y = augment("shift", IMAGE, seed, pixels=pixels).numpy()
        found = [by for by, expected in moved.items() if np.array_equal(y, expected)]
        assert len(found) == 1
        seen.add(found[0])
    assert seen == set(moved)


def test_every_shift_is_equally_likely() -> None:
    generator, n = Generator().manual_seed(0), 5000
    corners = [int(augment("shift", IMAGE, generator, pixels=1)[0, 2, 3]) for _ in range(n)]
    counts = np.unique(corners, return_counts=True)[1]
    assert len(counts) == 9
    assert ((counts - n / 9) ** 2 / (n / 9)).sum() < 26.1  # chi-squared of 8 degrees of freedom, 1 in 1000


def test_shift_brings_in_the_background_not_a_bar_of_mean_grey() -> None:
    background = torch.full((1, 6, 6), -0.42)
    assert all(torch.equal(augment("shift", background, seed), background) for seed in range(20))


@pytest.mark.parametrize(("axis", "expected"), [("horizontal", np.fliplr), ("vertical", np.flipud)])
def test_flip_mirrors_every_channel_with_probability_p(axis: str, expected: Any) -> None:
    mirror = torch.from_numpy(np.stack([expected(channel) for channel in IMAGE.numpy()]))
    generator, n = Generator().manual_seed(0), 4000
    flipped = 0
    for _ in range(n):
        y = augment("flip", IMAGE, generator, p=0.3, axis=axis)
        assert torch.equal(y, mirror) or torch.equal(y, IMAGE)
        flipped += torch.equal(y, mirror)
    assert flipped / n == pytest.approx(0.3, abs=4 * (0.21 / n) ** 0.5)


def test_flip_never_and_always() -> None:
    for seed in range(50):
        assert torch.equal(augment("flip", IMAGE, seed, p=0.0), IMAGE)
        assert torch.equal(augment("flip", IMAGE, seed, p=1.0), IMAGE.flip(-1))


def test_noise_is_normal_with_the_deviation_asked_for() -> None:
    from scipy import stats

    x = torch.zeros(1, 200, 200)
    drawn = augment("noise", x, 0, std=0.3).flatten().numpy()
    assert stats.kstest(drawn, "norm", args=(0, 0.3)).pvalue > 0.01
    assert torch.equal(augment("noise", IMAGE, 0, std=0.0), IMAGE)
    torch.testing.assert_close(augment("noise", x + 5, 0, std=0.3) - 5, augment("noise", x, 0, std=0.3), rtol=0, atol=1e-6)


def test_noise_takes_rows_of_a_table_and_the_others_say_that_they_need_images() -> None:
    row = torch.zeros(13)
    assert augment("noise", row, 0).shape == (13,)
    for name in ("shift", "flip"):
        with pytest.raises(ConfigError, match=rf"augmentation: {name} needs images.*got \(13,\)"):
            augment(name, row, 0)


@pytest.mark.parametrize(("pixels", "shape"), [(8, (1, 8, 8)), (5, (1, 5, 9)), (5, (1, 9, 5)), (80, (8, 8))])
def test_shift_by_a_side_of_the_image_or_more_is_refused(pixels: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="less than the sides"):
        augment("shift", torch.zeros(shape), 0, pixels=pixels)
    assert augment("shift", torch.zeros(shape), 0, pixels=min(shape[-2:]) - 1).shape == shape
