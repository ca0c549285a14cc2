"""Kernels: the weights that penalties and constraints act on."""

from collections.abc import Iterator

from torch import Tensor, nn

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def kernels(module: nn.Module) -> Iterator[tuple[nn.Module, Tensor]]:
    """Every dense or convolutional layer inside with its weight: by type, so never a bias, a normalization or a slope."""
    return ((layer, layer.weight) for layer in module.modules() if isinstance(layer, _LAYERS))
