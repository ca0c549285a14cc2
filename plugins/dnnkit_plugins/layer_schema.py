"""The JSON Schema of the layer list of `model=sequential`: each layer by itself, as `layer_list` judges it; not their order."""

from typing import Any

from dnnkit.registry import REGISTRIES, parameters
from dnnkit.schema import Settings, choice_schema
from dnnkit_plugins.layer_list import SOFTMAX, AvgPool, Conv2d, Dense, Flatten, MaxPool

Schema = dict[str, Any]

_NULL: Schema = {"type": "null"}
#: Layers whose name alone will do.
_BY_NAME = ("flatten", "max_pool", "avg_pool", "dropout", "alpha_dropout")


def schema() -> Schema:
    """The schema of the list, from the components that are registered now."""
    own = [_own(key, declared) for key, declared in _OWN.items()]
    layers = [{"enum": list(_BY_NAME)}, *own, _component("activation", (SOFTMAX,)), _component("normalization"), *_dropouts()]
    return {"type": "array", "items": {"anyOf": layers}}


_OWN = {"dense": Dense, "conv2d": Conv2d, "flatten": Flatten, "max_pool": MaxPool, "avg_pool": AvgPool}
_SWITCHES = {"activation": (SOFTMAX,), "initializer": ("auto",)}


def _own(key: str, declared: type) -> Schema:
    """A layer with settings of its own; the key that says which it is has to be there."""
    made = Settings.of(declared).json_schema()
    for group, switches in _SWITCHES.items():
        if group in made["properties"]:
            choices = _choices(group, switches)
            made["properties"][group] = {"anyOf": [_NULL, {"enum": list(choices)}, choice_schema(choices)]}
    return {**made, "required": [key]}


def _component(group: str, switches: tuple[str, ...] = ()) -> Schema:
    """A component as a layer: `{activation: elu, alpha: 0.1}`."""
    return choice_schema(_choices(group, switches), key=group)


def _choices(group: str, switches: tuple[str, ...] = ()) -> dict[str, Schema]:
    """The settings of each component of a group, without those that belong to the kind."""
    made = {record.name: Settings(parameters(record.kind, record.function)).json_schema() for record in REGISTRIES[group]}
    return {name: choice for name, choice in made.items() if name not in switches} | {name: Settings([]).json_schema() for name in switches}


def _dropouts() -> list[Schema]:
    """`{dropout: 0.2}`, `{alpha_dropout: 0.2}`, without p where the layer's key holds it; `{dropout: gaussian, …}` by another's name."""
    choices = _choices("dropout")
    made = [choice_schema(choices, key="dropout")]
    for key in ("dropout", "alpha_dropout"):
        settings = choices[key]
        others = {name: value for name, value in settings["properties"].items() if name != "p"}
        made.append({**settings, "properties": {**settings["properties"], key: _NULL}, "required": [key]})
        made.append({**settings, "properties": {**others, key: {**settings["properties"]["p"], "type": "number"}}, "required": [key]})
    return made
