"""What a parameter is for is told by the type of its module, and a config finds it by role, layer, block or depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from dnnkit.config import compose
from dnnkit.config.groups import Entry
from dnnkit.network import build_network, layer_names, make_part, matching, named, part_of, places, roles
from dnnkit.network.groups import Grouping
from dnnkit.registry import REGISTRIES, activations, normalizations

#: Layers whose `weight` is a kernel, written down apart from what the framework goes by.
KERNELS = (nn.Linear, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def network(*overrides: str, inputs: tuple[int, ...] = (1, 8, 8), outputs: int = 3, **replaced: Any) -> nn.Module:
    values = {**compose(list(overrides)).values, **replaced}
    task = REGISTRIES["model"].get(values["model"]["name"]).facts.get("task", "classification")
    return build_network({**values, "task": task}, inputs, 64 if task == "reconstruction" else outputs, 0)


def test_every_parameter_of_every_network_has_one_place_one_group_and_the_role_of_its_module(
    every_network: Callable[[], Iterator[tuple[str, nn.Module]]],
) -> None:
    seen = 0
    for name, net in every_network():
        found = {place.name: place for place in places(net)}
        assert list(found) == [key for key, _ in net.named_parameters()], name
        modules = dict(net.named_modules())
        for key, place in found.items():
            module, own = modules[place.layer], key.rpartition(".")[2]
            expected = (
                "norm" if isinstance(module, NORMS) else "weight" if isinstance(module, KERNELS) and own == "weight"
                else "bias" if isinstance(module, KERNELS) else "slope"
            )  # fmt: skip
            assert place.role == expected, (name, key, type(module))
        assert_partition(net, name)
        seen += 1
    assert seen > 100


SEVERAL = (
    Entry("0", match="output", lr_scale=0.1),
    Entry("1", role="bias", depth=0, weight_decay=0.5),
    Entry("2", match="norm", weight_decay=0.25, lr_scale=3.0),
    Entry("3", depth=(0, 1), clipping={"name": "norm", "max_norm": 1.0}),
)


def assert_partition(net: nn.Module, name: str) -> None:
    """Groups and clipped parts hold every parameter once, and the weight decay of all is for kernels and nothing else."""
    everything = sorted(key for key, _ in net.named_parameters())
    for grouping in (Grouping(SEVERAL, 0.01), Grouping((), 0.01)):
        groups = grouping.groups(net)
        assert sorted(key for group in groups for key in group.names) == everything, name
        assert not grouping.entries or sorted(key for part in grouping.clipped(net) for key in part.names) == everything, name
    decayed = {key for group in groups if group.weight_decay for key in group.names}
    assert decayed == {f"{key}.weight" for key, module in net.named_modules() if isinstance(module, KERNELS)}, name


def test_depth_counts_weight_layers_and_what_follows_one_has_its_depth() -> None:
    net = network(
        "model.hidden=[4,3]", "normalization=batch_norm", "normalization.on_input=true", "activation=prelu", "model.use_bias=true"
    )
    depths: dict[str, int] = {place.layer: place.depth for place in places(net)}
    assert depths == {
        "input_batch_norm": 0,
        **{"00_dense": 0, "00_batch_norm": 0, "00_prelu": 0},
        **{"01_dense": 1, "01_batch_norm": 1, "01_prelu": 1},
        "02_dense": 2,
    }


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ("weight", ["00_dense.weight", "01_dense.weight", "02_dense.weight"]),
        ("bias", ["00_dense.bias", "01_dense.bias", "02_dense.bias"]),
        ("norm", ["00_layer_norm.weight", "00_layer_norm.bias", "01_layer_norm.weight", "01_layer_norm.bias"]),
        ("slope", ["00_prelu.weight", "01_prelu.weight"]),
        ("output", ["02_dense.weight", "02_dense.bias"]),
        ("01_dense", ["01_dense.weight", "01_dense.bias"]),
        ("01_prelu.weight", ["01_prelu.weight"]),
        ("01_*", ["01_dense.weight", "01_dense.bias", "01_layer_norm.weight", "01_layer_norm.bias", "01_prelu.weight"]),
        ("0[12]_dense", ["01_dense.weight", "01_dense.bias", "02_dense.weight", "02_dense.bias"]),
        ("0?_prelu", ["00_prelu.weight", "01_prelu.weight"]),
        ("*.bias", ["00_dense.bias", "00_layer_norm.bias", "01_dense.bias", "01_layer_norm.bias", "02_dense.bias"]),
        ("dense", []),
        ("01", []),
        ("", []),
    ],
)
def test_a_match_is_a_role_or_the_output_or_a_name_with_wildcards(match: str, expected: list[str]) -> None:
    net = network("model.hidden=[4,3]", "normalization=layer_norm", "normalization.position=post", "activation=prelu")
    assert sorted(matching(net, match)) == sorted(expected)


def test_match_role_and_depth_have_to_fit_together() -> None:
    net = network("model.hidden=[4,3]", "normalization=layer_norm", "activation=relu", "model.use_bias=true")
    assert matching(net, "*_dense", "bias") == ["00_dense.bias", "01_dense.bias", "02_dense.bias"]
    assert matching(net, "*_dense", "bias", 1) == ["01_dense.bias"]
    assert matching(net, None, "norm", (0, 0)) == ["00_layer_norm.weight", "00_layer_norm.bias"]
    assert matching(net, depth=(1, 2), role="weight") == ["01_dense.weight", "02_dense.weight"]
    assert matching(net, "output", "norm") == []


def test_a_name_of_a_block_stands_for_all_inside_it() -> None:
    net = network("model=resmlp", "model.width=4", "model.blocks=1", "activation=relu")
    inside = ["block_1.01_dense.weight", "block_1.01_dense.bias", "block_1.02_dense.weight", "block_1.02_dense.bias"]
    assert matching(net, "block_1") == matching(net, "block_*") == matching(net, depth=(1, 2)) == inside
    assert named("block_1.01_dense.weight", "block_1.01_dense")
    assert not named("block_10.01_dense.weight", "block_1")


# Modules of other people


class Gated(nn.Module):
    """A normalization of somebody's own, whose parameters have two dimensions and are in a module inside it."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.inner = nn.Linear(features, features)
        self.gate = nn.Parameter(torch.ones(1, features))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.gate


class Maxout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.table.sum()


def test_all_that_somebodys_normalization_and_activation_own_has_their_role_whatever_its_shape(registries: None) -> None:
    normalizations.register("gated")(lambda features: Gated(features))
    activations.register("maxout")(lambda: Maxout())
    net = network("model.hidden=[4]", "normalization=gated", "activation=maxout", "model.use_bias=true")
    assert roles(net) == {
        **{"00_dense.weight": "weight", "00_dense.bias": "bias"},
        **{"00_gated.gate": "norm", "00_gated.inner.weight": "norm", "00_gated.inner.bias": "norm"},
        "00_maxout.table": "slope",
        **{"01_dense.weight": "weight", "01_dense.bias": "bias"},
    }
    assert {place.depth for place in places(net) if place.layer.startswith("00_")} == {0}, "a kernel inside a normalization is no depth"


class Own(nn.Module):
    """A model with bare parameters, recurrence, attention, an embedding, and an attribute that looks like a mark of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.part = "upper"
        self.scale = nn.Parameter(torch.ones(3))
        self.table = nn.Embedding(5, 4)
        self.cell = nn.GRU(4, 2)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.InstanceNorm1d(4, affine=True)
        self.slopes = nn.Sequential(nn.PReLU(3), nn.Bilinear(2, 2, 2))


def test_torchs_own_modules_in_a_model_of_somebodys_own_are_told_by_their_type() -> None:
    net = Own()
    assert roles(net) == {
        "scale": "bias",
        "table.weight": "weight",
        **{f"cell.{kind}_{which}_l0": role for kind, role in (("weight", "weight"), ("bias", "bias")) for which in ("ih", "hh")},
        **{"attention.in_proj_weight": "weight", "attention.in_proj_bias": "bias"},
        **{"attention.out_proj.weight": "weight", "attention.out_proj.bias": "bias"},
        **{"norm.weight": "norm", "norm.bias": "norm"},
        "slopes.0.weight": "slope",
        **{"slopes.1.weight": "weight", "slopes.1.bias": "bias"},
    }
    assert part_of(net) is None
    assert layer_names(net)[0] == "", "the network itself owns a parameter"
    assert matching(net, "scale") == ["scale"]


def test_part_of_names_the_group_of_the_component_that_made_a_module() -> None:
    config = compose(["normalization=batch_norm", "dropout=alpha_dropout"]).values
    assert part_of(make_part("normalization", config["normalization"], 3, layer="dense")) == "normalization"
    assert part_of(make_part("dropout", config["dropout"])) == "dropout"
    assert part_of(nn.Linear(1, 1)) is None


# Parametrized and shared weights


def test_what_a_parametrization_makes_a_weight_of_is_a_weight_of_its_layer() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), parametrizations.weight_norm(nn.Linear(3, 2)))
    parametrize.register_parametrization(net[1], "weight", nn.Softplus())
    found = {place.name: (place.layer, place.role, place.depth) for place in places(net)}
    assert set(found) == {name for name, _ in net.named_parameters()}
    assert found["1.parametrizations.weight.original"] == ("1", "norm", 0)
    assert found["2.bias"] == ("2", "bias", 1)
    assert found["2.parametrizations.weight.original0"] == found["2.parametrizations.weight.original1"] == ("2", "weight", 1)
    assert sorted(matching(net, "output")) == sorted(matching(net, "2")) == sorted(name for name in found if name.startswith("2."))


def test_a_magnitude_without_dimensions_is_still_a_part_of_its_weight() -> None:
    net = parametrizations.weight_norm(nn.Linear(3, 2), dim=None)
    assert min(parameter.ndim for parameter in net.parameters()) == 0
    assert sorted(roles(net).values()) == ["bias", "weight", "weight"]


def test_asking_for_roles_changes_nothing_in_a_network_that_counts_its_calls() -> None:
    net = parametrizations.spectral_norm(nn.Linear(6, 5)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert roles(net)["parametrizations.weight.original"] == "weight"
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


class Tied(nn.Module):
    """An autoencoder whose second layer decodes with the weight of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.middle, self.decoder = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight
        self.again = self.middle


def test_a_shared_parameter_has_one_place_and_fits_by_each_of_its_layers() -> None:
    net = Tied()
    found = places(net)
    assert [place.name for place in found] == ["encoder.weight", "encoder.bias", "middle.weight", "middle.bias", "decoder.bias"]
    assert [place.depth for place in found] == [0, 0, 1, 1, 2], "the layer that shares its weight is a layer too"
    assert matching(net, "decoder") == matching(net, "output") == matching(net, depth=2) == ["encoder.weight", "decoder.bias"]
    assert matching(net, "decoder.weight") == ["encoder.weight"]
    assert matching(net, "encoder", depth=2) == [], "no one layer is both"
