"""Rules of the linter about SELU networks: what else a config holds that SELU's fixed point does not go with."""

import math
from collections.abc import Iterator

from torch import nn

from dnnkit.config.groups import entries
from dnnkit.data import DataSet
from dnnkit.diagnostics import evenly_spaced, far_from_lecun, standardised
from dnnkit.lint import Fault
from dnnkit.network.blocks import is_dropout, is_normalization
from dnnkit.registry import rules
from dnnkit_plugins.rule_parts import Config, chosen, modules, more_than_a_sequence, of_part, remark, with_activation

_ALPHA = (nn.AlphaDropout, nn.FeatureAlphaDropout)


def _on_selu(config: Config, network: nn.Module, group: str) -> Iterator[Fault]:
    """That a SELU network has any choice of a group but none."""
    if config[group]["name"] != "none" and with_activation(network, nn.SELU):
        yield Fault((f"{group}.name",), f"{chosen(config, group)} on a SELU network", (f"{group}=none",))


@rules.register("selu_initializer")
def selu_initializer(config: Config, network: nn.Module) -> Iterator[Fault]:
    """SELU keeps mean 0 and variance 1 from layer to layer only if the weights have variance 1/fan_in.

    Found by the weights themselves: their deviation is more than a tenth away from it.
    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017.
    """
    if config["init_from"]:
        return
    far = far_from_lecun({block.name: block.layer for block in with_activation(network, nn.SELU)})
    if far:
        name, times = max(far.items(), key=lambda pair: abs(math.log(max(pair[1], 1e-9))))
        found = f"gives the weights of {name}, before a SELU, {times:.2f} times LeCun's deviation"
        yield of_part(config, "initializer", found, "initializer=lecun_normal")


@rules.register("selu_inputs")
def selu_inputs(config: Config, network: nn.Module, data: DataSet) -> Iterator[Fault]:
    """SELU normalizes what comes in with mean 0 and variance 1; other inputs start its fixed point from elsewhere.

    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017.
    """
    if not with_activation(network, nn.SELU):
        return
    condition = standardised(data.train.x[evenly_spaced(len(data.train.x), 1000)])
    if not condition.holds:
        yield Fault(("data.standardize",), f"a SELU network's {condition.found}", ("data.standardize=auto",))


@rules.register("selu_dropout", severity="remark")
def selu_dropout(config: Config, network: nn.Module) -> Iterator[Fault]:
    """Dropout sets units to 0, which moves the mean and the variance that SELU keeps; alpha dropout keeps both.

    Alpha dropout disturbs more at the same probability: its authors took .05 and .1.
    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017, section on new dropout technique.
    """
    plain = modules(network, lambda module: is_dropout(module) and not isinstance(module, _ALPHA))
    if plain and with_activation(network, nn.SELU):
        yield remark(of_part(config, "dropout", f"({plain[0]}) in a SELU network"), "selu_dropout")


@rules.register("selu_normalization", severity="remark")
def selu_normalization(config: Config, network: nn.Module) -> Iterator[Fault]:
    """A normalization between SELU layers replaces the mean and the variance that they keep by themselves.

    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017.
    """
    found = modules(network, is_normalization)
    if found and with_activation(network, nn.SELU):
        yield remark(of_part(config, "normalization", f"({found[0]}) in a SELU network"), "selu_normalization")


@rules.register("selu_penalty")
def selu_penalty(config: Config, network: nn.Module) -> Iterator[Fault]:
    """A penalty pulls the weights together, and SELU's fixed point rests on their variance of 1/fan_in.

    Penalties with a part of l1 were measured to do harm. Of any other this is a remark: that of l2 was measured not to.
    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017; Géron 2019, ch. 11.
    """
    harmful = config["regularizer"]["name"] in ("l1", "l1_l2")
    for fault in _on_selu(config, network, "regularizer"):
        yield fault if harmful else remark(fault, "selu_penalty")


@rules.register("selu_weight_decay", severity="remark")
def selu_weight_decay(config: Config, network: nn.Module) -> Iterator[Fault]:
    """Weight decay pulls the weights together, and SELU's fixed point rests on their variance of 1/fan_in.

    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017; Géron 2019, ch. 11.
    """
    if not with_activation(network, nn.SELU):
        return
    optimizer = config["optimizer"]
    given = [("optimizer", f"optimizer.weight_decay={amount:g} on a SELU network")] if (amount := optimizer.get("weight_decay")) else []
    for entry in entries(optimizer):
        if entry.weight_decay:
            given.append((entry.where, f"{entry.where} decays weights of a SELU network by {entry.weight_decay:g}"))
    yield from (remark(Fault((f"{where}.weight_decay",), found), "selu_weight_decay") for where, found in given)


@rules.register("selu_constraint", severity="remark")
def selu_constraint(config: Config, network: nn.Module) -> Iterator[Fault]:
    """A bound on weights changes their variance, on which SELU's fixed point rests.

    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017; Géron 2019, ch. 11.
    """
    yield from (remark(fault, "selu_constraint") for fault in _on_selu(config, network, "constraint"))


@rules.register("selu_skip_connection", severity="remark")
def selu_skip_connection(config: Config, network: nn.Module) -> Iterator[Fault]:
    """A skip connection adds two signals, whose variances add up; SELU's fixed point is that of layers one after the other.

    Found by modules that are more than an `nn.Sequential` of layers. ELU does not need the fixed point.
    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017; Géron 2019, ch. 11.
    """
    if not with_activation(network, nn.SELU):
        return
    others = modules(network, more_than_a_sequence)
    if others:
        text = (
            f"activation=selu in {chosen(config, 'model')}, where {others[0] or 'the network'} is more than its layers one after the other"
        )
        yield remark(Fault(("activation.name", "model.name"), text), "selu_skip_connection")


@rules.register("alpha_dropout_without_selu")
def alpha_dropout_without_selu(config: Config, network: nn.Module) -> Iterator[Fault]:
    """Alpha dropout sets units to SELU's lowest value and rescales for SELU's mean and variance; after other activations it keeps neither.

    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017.
    """
    found = modules(network, lambda module: isinstance(module, _ALPHA))
    if found and not with_activation(network, nn.SELU):
        p = config["dropout"].get("p")
        same = () if p is None else (f"dropout.p={p}",)
        yield of_part(config, "dropout", f"({found[0]}) in a network without SELU", "dropout=dropout", *same)
