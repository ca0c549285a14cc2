"""The conditions under which a SELU network normalizes itself, measured on a network and what it is fed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from dnnkit.network import part_of

#: How far from 0 a mean, from 1 a deviation of the inputs may be, and by what share a weight's deviation from 1/√fan_in.
MEAN, STD, WEIGHT = 0.05, 0.1, 0.1

_NORMALIZATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Condition:
    """One condition: `name`, whether it `holds`, and what was `found`."""

    name: str
    holds: bool
    found: str

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, in JSON values."""
        return asdict(self)


def selu_conditions(network: nn.Module, x: Tensor, config: Mapping[str, Any]) -> list[Condition]:
    """The conditions of self-normalization, each with what was found; empty for a network without a SELU.

    `network` with its initial weights, `x` `(n, *inputs)` standardised training examples, `config` the resolved config.
    Inputs: |mean| < .05 and |std − 1| < .1, of all values for images, of every feature for tables, constant ones left out.
    Weights of hidden layers: deviation within a tenth of 1/√fan_in, and what chance allows for so many; not asked of weights
    that come from another run. Then: layers one after the
    other, hidden ones all dense, and nothing that moves mean or variance: no dropout but alpha dropout, no normalization, no
    penalty, weight decay or bound on weights.
    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017; the four first ones are those of textbooks.
    """
    if not any(isinstance(module, nn.SELU) for module in network.modules()):
        return []
    weighted = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear | _ConvNd)}
    hidden = dict(list(weighted.items())[:-1])
    initial = [] if config["init_from"] else [_lecun(hidden)]
    return [standardised(x), *initial, _sequential(network), _dense(hidden), _undisturbed(network, config)]


def selu_line(conditions: Sequence[Condition]) -> str:
    """The conditions in one line: what holds, or what does not."""
    broken = [condition.found for condition in conditions if not condition.holds]
    if broken:
        return f"SELU does not normalize itself here: {'; '.join(broken)}"
    return f"SELU normalizes itself: {'; '.join(f'{condition.name} ({condition.found})' for condition in conditions)}"


def standardised(x: Tensor) -> Condition:
    """Whether examples `(n, *inputs)` are standardised: all values of images together, every feature of tables by itself."""
    values = x.double()
    if x.ndim == 2:
        std, mean = values.std(0, correction=0), values.mean(0)
        varying = std > 0
        means, stds = mean[varying], std[varying]
    else:
        means, stds = values.mean()[None], values.std(correction=0)[None]
    if not len(means):
        return Condition("inputs standardised", False, "every input feature is constant")
    far = int(((means.abs() / MEAN).maximum((stds - 1).abs() / STD)).argmax())
    holds = bool((means.abs() < MEAN).all() and ((stds - 1).abs() < STD).all())
    which = "" if len(means) == 1 else f"feature {far + 1}, the farthest of {len(means)}: "
    measured = f"{which}mean {_rounded(means[far])}, std {_rounded(stds[far])}"
    return Condition("inputs standardised", holds, measured if holds else f"inputs are not standardised ({measured})")


def _rounded(value: Tensor) -> str:
    return f"{round(float(value), 2) + 0.0:.2f}"  # no -0.00


def far_from_lecun(layers: Mapping[str, nn.Module]) -> dict[str, float]:
    """Those whose weights have another deviation than 1/√fan_in, beyond what chance allows for so many: how many times it."""
    off = {}
    for name, layer in layers.items():
        weight = layer.weight
        assert isinstance(weight, Tensor)
        fan_in = weight[0].numel()
        share = float(weight.detach().double().std(correction=0)) * math.sqrt(fan_in) - 1
        # A deviation that is estimated from n numbers has a relative error of 1/√(2n).
        if abs(share) > WEIGHT + 3 / math.sqrt(2 * weight.numel()):
            off[name] = share + 1
    return off


def _lecun(hidden: Mapping[str, nn.Module]) -> Condition:
    off = far_from_lecun(hidden)
    if not off:
        return Condition("LeCun's weights", True, "deviation 1/√fan_in")
    name, times = max(off.items(), key=lambda pair: abs(math.log(max(pair[1], 1e-9))))
    return Condition("LeCun's weights", False, f"the weights of {name} have {times:.2f} times LeCun's deviation 1/√fan_in")


def _sequential(network: nn.Module) -> Condition:
    others = [
        name or "the network" for name, module in network.named_modules() if list(module.children()) and type(module) is not nn.Sequential
    ]
    return Condition(
        "sequential", not others, f"{others[0]} is more than its layers one after the other" if others else "no skip connection"
    )


def _dense(hidden: Mapping[str, nn.Module]) -> Condition:
    others = [name for name, layer in hidden.items() if not isinstance(layer, nn.Linear)]
    return Condition("dense", not others, f"{others[0]} is a convolution" if others else "all hidden layers")


def _undisturbed(network: nn.Module, config: Mapping[str, Any]) -> Condition:
    found = list(_disturbing(network, config))
    return Condition("undisturbed", not found, f"disturbed by {', '.join(found)}" if found else "nothing else moves mean or variance")


def _disturbing(network: nn.Module, config: Mapping[str, Any]) -> Iterator[str]:
    alpha = (nn.AlphaDropout, nn.FeatureAlphaDropout)
    for name, module in network.named_modules():
        dropping = isinstance(module, _DropoutNd) or part_of(module) == "dropout"
        if (dropping and not isinstance(module, alpha)) or isinstance(module, _NORMALIZATIONS) or part_of(module) == "normalization":
            yield name
            break
    for group in ("regularizer", "constraint"):
        if config[group]["name"] != "none":
            yield f"{group}={config[group]['name']}"
    decays = [config["optimizer"].get("weight_decay"), *(entry.get("weight_decay") for entry in config["optimizer"]["groups"] or ())]
    if any(decays):
        yield f"weight decay {max(decay or 0 for decay in decays):g}"
