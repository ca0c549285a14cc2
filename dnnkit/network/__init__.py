"""Layers from parts: a model component asks for layers, and this room makes them from the chosen names."""

from dnnkit.network.layers import (
    FALLBACK_INITIALIZER,
    Initializer,
    LayerKind,
    component,
    conv_layers,
    dense_layer,
    has_offset,
    initializer_for,
    initializers,
    make_part,
)
from dnnkit.network.parts import Parts, build_network, chosen_initializers, remarks
from dnnkit.network.roles import OUTPUT, ROLES, Place, layer_names, matching, named, part_of, places, roles
from dnnkit.schema import Role

__all__ = [
    "FALLBACK_INITIALIZER",
    "OUTPUT",
    "ROLES",
    "Initializer",
    "LayerKind",
    "Parts",
    "Place",
    "Role",
    "build_network",
    "chosen_initializers",
    "component",
    "conv_layers",
    "dense_layer",
    "has_offset",
    "initializer_for",
    "initializers",
    "layer_names",
    "make_part",
    "matching",
    "named",
    "part_of",
    "places",
    "remarks",
    "roles",
]
