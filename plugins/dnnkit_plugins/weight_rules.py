"""Rules of the linter about initial weights: those that let a signal fade, or units saturate."""

import math
from collections.abc import Iterator

from torch import nn

from dnnkit.lint import Fault
from dnnkit.network import has_offset
from dnnkit.network.blocks import Block, is_normalization
from dnnkit.registry import rules
from dnnkit_plugins.rule_parts import Config, hidden, many, modules, of_part, parts_in, remark, with_activation

#: From so many hidden layers on, what a layer does to the variance of its signal is a matter of whether a network learns.
DEEP, DEEP_FOR_SIGMOID = 10, 6
#: Times the deviation of weights that keeps the variance of a signal, 1/√fan_in, from which on units saturate.
SATURATING_GAIN = 4.0
_CENTRED = (nn.Tanh, nn.Softsign)
_SATURATING = (nn.Sigmoid, nn.Hardsigmoid, *_CENTRED)
_RELU_FAMILY = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU)


@rules.register("he_before_saturation", severity="remark")
def he_before_saturation(config: Config, network: nn.Module) -> Iterator[Fault]:
    """He's weights are twice as wide in variance, for units that let half of the signal through; sigmoid and tanh let it all through.

    In a few epochs the wider weights did better.
    Source: Glorot & Bengio 2010; He, Zhang, Ren & Sun 2015.
    """
    found = [block for block in with_activation(network, *_SATURATING) if block.initializer in ("he_normal", "he_uniform")]
    if found and not config["init_from"]:
        text = f"before {type(found[0].activation).__name__} in {many(found)}"
        yield remark(of_part(config, "initializer", text), "he_before_saturation")


@rules.register("narrow_weights_before_relu")
def narrow_weights_before_relu(config: Config, network: nn.Module) -> Iterator[Fault]:
    """Each layer of the ReLU family halves the second moment under Glorot's or LeCun's weights, so that a deep network's signal fades.

    From ten hidden layers on. He's weights make up for the half.
    Source: He, Zhang, Ren & Sun 2015.
    """
    names = ("glorot_normal", "glorot_uniform", "lecun_normal", "lecun_uniform")
    found = [block for block in with_activation(network, *_RELU_FAMILY) if block.initializer in names]
    normalized = modules(network, is_normalization)
    if len(found) >= DEEP and not normalized and not config["init_from"]:
        text = f"before {type(found[0].activation).__name__} in {many(found)}"
        yield of_part(config, "initializer", text, "initializer=he_normal")


@rules.register("wide_weights_before_saturation")
def wide_weights_before_saturation(config: Config, network: nn.Module) -> Iterator[Fault]:
    """Weights of deviation 1 make sums whose variance is the number of inputs, at which sigmoid and tanh are flat and pass no gradient.

    Found by the weights: their deviation is 4/√fan_in or more. Where all are before units that are not centred on 0, such as
    sigmoid, this is a remark: those learn slowly from small weights too.
    Source: Glorot & Bengio 2010.
    """
    found = [block for block in with_activation(network, *_SATURATING) if _gain(block) >= SATURATING_GAIN]
    if found and not config["init_from"]:
        centred = [block for block in found if isinstance(block.activation, _CENTRED)]
        widest = max(centred or found, key=_gain)
        text = f"gives the weights of {widest.name}, before a saturating unit, {_gain(widest):.0f} times 1/√fan_in"
        fault = of_part(config, "initializer", text, "initializer=glorot_uniform")
        yield fault if centred else remark(fault, "wide_weights_before_saturation")


def _gain(block: Block) -> float:
    weight = block.layer.weight.detach()
    return float(weight.double().std(correction=0)) * math.sqrt(weight[0].numel())


@rules.register("deep_sigmoid")
def deep_sigmoid(config: Config, network: nn.Module) -> Iterator[Fault]:
    """A sigmoid's slope is 1/4 at most, so that the gradient shrinks at least fourfold at every layer.

    From six hidden layers on.
    Source: Hochreiter 1991; Glorot & Bengio 2010.
    """
    found = with_activation(network, nn.Sigmoid)
    if len(found) >= DEEP_FOR_SIGMOID and not modules(network, is_normalization):
        yield of_part(config, "activation", f"in {len(found)} hidden layers", "activation=selu", "initializer=auto")


@rules.register("redundant_bias", severity="remark")
def redundant_bias(config: Config, network: nn.Module) -> Iterator[Fault]:
    """A normalization takes the mean away, and with it the bias before it; its own offset takes that part.

    Source: Ioffe & Szegedy 2015, section 3.2.
    """
    found = []
    for block in hidden(network):
        first = next(iter(block.followers.values()), None)
        if block.layer.bias is not None and first is not None and is_normalization(first) and has_offset(first):
            found.append(block)
    if not found:
        return
    text = f"{many(found)} has a bias straight before a normalization"
    if config["model"]["use_bias"] is True:
        fault = Fault(("model.use_bias",), f"model.use_bias=true: {text}")
    else:
        fault = Fault((parts_in(config) or "model.name",), text)
    yield remark(fault, "redundant_bias")
