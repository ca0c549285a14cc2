"""The built-in components, one file per family; importing this package registers them all."""

from dnnkit_plugins import (
    activations,
    clippings,
    constraints,
    data_sources,
    dropouts,
    initializers,
    losses,
    metrics,
    models,
    normalizations,
    optimizers,
    regularizers,
    schedulers,
)

__all__ = [
    "activations",
    "clippings",
    "constraints",
    "data_sources",
    "dropouts",
    "initializers",
    "losses",
    "metrics",
    "models",
    "normalizations",
    "optimizers",
    "regularizers",
    "schedulers",
]
