"""Augmentations: one standardised example at a time becomes another of the same shape and the same target.

Everything random is drawn from `generator`, which the caller has seeded for this example; nothing waits for the device.
"""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Interval
from torch import Generator, Tensor

from dnnkit.errors import ConfigError, Problem
from dnnkit.registry import augmentations


@augmentations.register("shift")
def shift(x: Tensor, generator: Generator, pixels: Annotated[int, Ge(0)] = 2) -> Tensor:
    """The image `(…, h, w)` moved by whole pixels, down and right by one of −pixels … pixels each, every pair equally likely.

    What comes in from outside repeats the row or column at the edge. Zeros would not do: in a standardised image 0 is its mean
    grey, and a bar of it is brighter than the black around a digit. ConfigError for pixels that are not less than h and w.
    Source: Simard, Steinkraus & Platt 2003, section 2, who displace by fractions of a pixel too.
    """
    height, width = _image("shift", x)
    if pixels >= min(height, width):
        message = f"must be less than the sides of the images, {height} × {width}, got {pixels}"
        raise ConfigError([Problem("augmentation.pixels", message)])
    by = torch.randint(-pixels, pixels + 1, (2,), generator=generator, device=generator.device).to(x.device)
    rows = (torch.arange(height, device=x.device) - by[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) - by[1]).clamp(0, width - 1)
    return x[..., rows[:, None], columns]


@augmentations.register("flip")
def flip(
    x: Tensor,
    generator: Generator,
    p: Annotated[float, Interval(ge=0, le=1)] = 0.5,
    axis: Literal["horizontal", "vertical"] = "horizontal",
) -> Tensor:
    """With probability p the mirror image of `(…, h, w)`: left and right exchanged, or with `vertical` top and bottom.

    Only for pictures whose mirror images are of the same class: clothes, not digits.
    Source: Krizhevsky, Sutskever & Hinton 2012, section 4.1, who mirror horizontally.
    """
    _image("flip", x)
    drawn = torch.rand((), generator=generator, device=generator.device).to(x.device)
    return torch.where(drawn < p, x.flip(-1 if axis == "horizontal" else -2), x)


@augmentations.register("noise")
def noise(x: Tensor, generator: Generator, std: Annotated[float, Ge(0)] = 0.1) -> Tensor:
    """Gaussian noise: x + std · e, e from N(0, 1) independently for every value of any shape.

    std is in standardised units: 1 is as much as the data's own deviation.
    With a squared error it acts, for small std, as a penalty on the slope of the network.
    Source: Bishop 1995, "Training with noise is equivalent to Tikhonov regularization".
    """
    drawn = torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype)
    return x + std * drawn.to(x.device)


def _image(name: str, x: Tensor) -> tuple[int, int]:
    if x.ndim < 2:
        message = f"{name} needs images, examples of shape (channels, height, width), got {tuple(x.shape)}"
        raise ConfigError([Problem("augmentation", message, ("noise", "none"))])
    return x.shape[-2], x.shape[-1]
