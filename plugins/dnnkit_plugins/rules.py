"""Rules of the linter: choices that are right by themselves and do not go together.

A rule that asks for `network` sees the network with its initial weights, whatever model made it; `data` is the prepared data
set, `steps` the number of optimizer steps of the run. `clipped_gradients`, what each clipping clips in the first minibatches, is
measured by the doctor, which alone asks a rule for that. The first paragraph of a docstring is the reason that a reader is given.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dnnkit.config.groups import entries
from dnnkit.data import DataSet
from dnnkit.diagnostics import evenly_spaced, far_from_lecun, standardised
from dnnkit.diagnostics.clipping import KINDS, Clipped, bite
from dnnkit.lint import Fault
from dnnkit.network import has_offset
from dnnkit.network.blocks import Block, blocks, is_dropout, is_normalization
from dnnkit.registry import REGISTRIES, rules

Config = Mapping[str, Any]

#: From so many hidden layers on, what a layer does to the variance of its signal is a matter of whether a network learns.
DEEP, VERY_DEEP, DEEP_FOR_SIGMOID = 10, 20, 6
#: Rates from here on are far above what the second moments of gradients leave room for.
ADAPTIVE_RATE = 0.05
SMALL_BATCH = 8
#: Times the deviation of weights that keeps the variance of a signal, 1/√fan_in, from which on units saturate.
SATURATING_GAIN = 4.0
_SATURATING = (nn.Sigmoid, nn.Tanh, nn.Hardsigmoid, nn.Softsign)
_RELU_FAMILY = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU)
_ALPHA = (nn.AlphaDropout, nn.FeatureAlphaDropout)


def _hidden(network: nn.Module) -> list[Block]:
    return blocks(network)[:-1]


def _with(network: nn.Module, *kinds: type[nn.Module]) -> list[Block]:
    """The hidden blocks that have an activation of one of these types."""
    return [block for block in _hidden(network) if isinstance(block.activation, kinds)]


def _is_more_than_a_sequence(module: nn.Module) -> bool:
    return type(module) is not nn.Sequential and any(True for _ in module.children())


def _modules(network: nn.Module, wanted: Callable[[nn.Module], bool]) -> list[str]:
    """The names of those for which `wanted` holds; the network itself is the empty name."""
    return [name for name, module in network.named_modules() if wanted(module)]


def _many(found: Sequence[Block]) -> str:
    return found[0].name if len(found) == 1 else f"{len(found)} layers from {found[0].name} on"


def _chosen(config: Config, group: str) -> str:
    return f"{group}={config[group]['name']}"


def _parts_in(config: Config) -> str | None:
    """The setting of the model in which it names parts of its own, by the fact `parts_in`; None where it takes those of the config."""
    setting = REGISTRIES["model"].get(config["model"]["name"]).facts.get("parts_in")
    return None if setting is None else f"model.{setting}"


def _of_part(config: Config, group: str, found: str, *fix: str) -> Fault:
    """A fault of a part, mended by choosing another one, unless the model names it itself: then no override of the group does."""
    own = _parts_in(config)
    if own is None or (group == "initializer" and config[group]["name"] != "auto"):
        return Fault((f"{group}.name",), f"{_chosen(config, group)} {found}", fix)
    return Fault((own,), f"the {group} of {own} {found}")


# SELU


def _on_selu(config: Config, network: nn.Module, group: str) -> Iterator[Fault]:
    """That a SELU network has any choice of a group but none."""
    if config[group]["name"] != "none" and _with(network, nn.SELU):
        yield Fault((f"{group}.name",), f"{_chosen(config, group)} on a SELU network", (f"{group}=none",))


@rules.register("selu_initializer")
def selu_initializer(config: Config, network: nn.Module) -> Iterator[Fault]:
    """SELU keeps mean 0 and variance 1 from layer to layer only if the weights have variance 1/fan_in.

    Found by the weights themselves: their deviation is more than a tenth away from it.
    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017.
    """
    if config["init_from"]:
        return
    far = far_from_lecun({block.name: block.layer for block in _with(network, nn.SELU)})
    if far:
        name, times = max(far.items(), key=lambda pair: abs(math.log(max(pair[1], 1e-9))))
        found = f"gives the weights of {name}, before a SELU, {times:.2f} times LeCun's deviation"
        yield _of_part(config, "initializer", found, "initializer=lecun_normal")


@rules.register("selu_inputs")
def selu_inputs(config: Config, network: nn.Module, data: DataSet) -> Iterator[Fault]:
    """SELU normalizes what comes in with mean 0 and variance 1; other inputs start its fixed point from elsewhere.

    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017.
    """
    if not _with(network, nn.SELU):
        return
    condition = standardised(data.train.x[evenly_spaced(len(data.train.x), 1000)])
    if not condition.holds:
        yield Fault(("data.standardize",), f"a SELU network's {condition.found}", ("data.standardize=auto",))


@rules.register("selu_dropout")
def selu_dropout(config: Config, network: nn.Module) -> Iterator[Fault]:
    """Dropout sets units to 0, which moves the mean and the variance that SELU keeps; alpha dropout keeps both.

    It disturbs more at the same probability: its authors took .05 and .1.
    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017, section on new dropout technique.
    """
    plain = _modules(network, lambda module: is_dropout(module) and not isinstance(module, _ALPHA))
    if plain and _with(network, nn.SELU):
        yield _of_part(config, "dropout", f"({plain[0]}) in a SELU network", *_other_dropout(config, "alpha_dropout"))


@rules.register("selu_normalization")
def selu_normalization(config: Config, network: nn.Module) -> Iterator[Fault]:
    """A normalization between SELU layers replaces the mean and the variance that they keep by themselves.

    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017.
    """
    found = _modules(network, is_normalization)
    if found and _with(network, nn.SELU):
        yield _of_part(config, "normalization", f"({found[0]}) in a SELU network", "normalization=none")


@rules.register("selu_penalty")
def selu_penalty(config: Config, network: nn.Module) -> Iterator[Fault]:
    """A penalty pulls the weights together, and SELU's fixed point rests on their variance of 1/fan_in.

    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017; Géron 2019, ch. 11.
    """
    yield from _on_selu(config, network, "regularizer")


@rules.register("selu_weight_decay")
def selu_weight_decay(config: Config, network: nn.Module) -> Iterator[Fault]:
    """Weight decay pulls the weights together, and SELU's fixed point rests on their variance of 1/fan_in.

    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017; Géron 2019, ch. 11.
    """
    if not _with(network, nn.SELU):
        return
    amount = config["optimizer"].get("weight_decay")
    if amount:
        yield Fault(("optimizer.weight_decay",), f"optimizer.weight_decay={amount:g} on a SELU network", ("optimizer.weight_decay=0.0",))
    for entry in entries(config["optimizer"]):
        if entry.weight_decay:
            yield Fault((f"{entry.where}.weight_decay",), f"{entry.where} decays weights of a SELU network by {entry.weight_decay:g}")


@rules.register("selu_constraint")
def selu_constraint(config: Config, network: nn.Module) -> Iterator[Fault]:
    """A bound on weights changes their variance, on which SELU's fixed point rests.

    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017; Géron 2019, ch. 11.
    """
    yield from _on_selu(config, network, "constraint")


@rules.register("selu_skip_connection")
def selu_skip_connection(config: Config, network: nn.Module) -> Iterator[Fault]:
    """A skip connection adds two signals, whose variances add up; SELU's fixed point is that of layers one after the other.

    Found by modules that are more than an `nn.Sequential` of layers. ELU does not need the fixed point.
    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017; Géron 2019, ch. 11.
    """
    if not _with(network, nn.SELU):
        return
    others = _modules(network, _is_more_than_a_sequence)
    if others:
        text = (
            f"activation=selu in {_chosen(config, 'model')}, where {others[0] or 'the network'} is more than its layers one after the other"
        )
        yield Fault(("activation.name", "model.name"), text, ("activation=elu", "initializer=auto"))


@rules.register("alpha_dropout_without_selu")
def alpha_dropout_without_selu(config: Config, network: nn.Module) -> Iterator[Fault]:
    """Alpha dropout sets units to SELU's lowest value and rescales for SELU's mean and variance; after other activations it keeps neither.

    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017.
    """
    found = _modules(network, lambda module: isinstance(module, _ALPHA))
    if found and not _with(network, nn.SELU):
        yield _of_part(config, "dropout", f"({found[0]}) in a network without SELU", *_other_dropout(config, "dropout"))


def _other_dropout(config: Config, name: str) -> tuple[str, ...]:
    """The overrides that choose another dropout with the same probability."""
    p = config["dropout"].get("p")
    return (f"dropout={name}", *([f"dropout.p={p}"] if p is not None else []))


# Initial weights


@rules.register("he_before_saturation", severity="hint")
def he_before_saturation(config: Config, network: nn.Module) -> Iterator[Fault]:
    """He's weights are twice as wide in variance, for units that let half of the signal through; sigmoid and tanh let it all through.

    No more than a hint: where few layers or few epochs were measured, the wider weights did better.
    Source: Glorot & Bengio 2010; He, Zhang, Ren & Sun 2015.
    """
    found = [block for block in _with(network, *_SATURATING) if block.initializer in ("he_normal", "he_uniform")]
    if found and not config["init_from"]:
        text = f"before {type(found[0].activation).__name__} in {_many(found)}"
        yield _of_part(config, "initializer", text, "initializer=glorot_uniform")


@rules.register("narrow_weights_before_relu")
def narrow_weights_before_relu(config: Config, network: nn.Module) -> Iterator[Fault]:
    """Each layer of the ReLU family halves the second moment under Glorot's or LeCun's weights, so that a deep network's signal fades.

    From ten hidden layers on. He's weights make up for the half.
    Source: He, Zhang, Ren & Sun 2015.
    """
    names = ("glorot_normal", "glorot_uniform", "lecun_normal", "lecun_uniform")
    found = [block for block in _with(network, *_RELU_FAMILY) if block.initializer in names]
    normalized = _modules(network, is_normalization)
    if len(found) >= DEEP and not normalized and not config["init_from"]:
        text = f"before {type(found[0].activation).__name__} in {_many(found)}"
        yield _of_part(config, "initializer", text, "initializer=he_normal")


@rules.register("wide_weights_before_saturation")
def wide_weights_before_saturation(config: Config, network: nn.Module) -> Iterator[Fault]:
    """Weights of deviation 1 make sums whose variance is the number of inputs, at which sigmoid and tanh are flat and pass no gradient.

    Found by the weights: their deviation is 4/√fan_in or more.
    Source: Glorot & Bengio 2010.
    """
    found = {block.name: far for block in _with(network, *_SATURATING) if (far := _gain(block)) >= SATURATING_GAIN}
    if found and not config["init_from"]:
        name, times = max(found.items(), key=lambda pair: pair[1])
        text = f"gives the weights of {name}, before a saturating unit, {times:.0f} times 1/√fan_in"
        yield _of_part(config, "initializer", text, "initializer=glorot_uniform")


def _gain(block: Block) -> float:
    weight = block.layer.weight.detach()
    return float(weight.double().std(correction=0)) * math.sqrt(weight[0].numel())


@rules.register("deep_sigmoid")
def deep_sigmoid(config: Config, network: nn.Module) -> Iterator[Fault]:
    """A sigmoid's slope is 1/4 at most, so that the gradient shrinks at least fourfold at every layer.

    From six hidden layers on.
    Source: Hochreiter 1991; Glorot & Bengio 2010.
    """
    found = _with(network, nn.Sigmoid)
    if len(found) >= DEEP_FOR_SIGMOID and not _modules(network, is_normalization):
        yield _of_part(config, "activation", f"in {len(found)} hidden layers", "activation=selu", "initializer=auto")


@rules.register("redundant_bias")
def redundant_bias(config: Config, network: nn.Module) -> Iterator[Fault]:
    """A normalization takes the mean away, and with it the bias before it; its own offset takes that part.

    Source: Ioffe & Szegedy 2015, section 3.2.
    """
    found = []
    for block in _hidden(network):
        first = next(iter(block.followers.values()), None)
        if block.layer.bias is not None and first is not None and is_normalization(first) and has_offset(first):
            found.append(block)
    if not found:
        return
    text = f"{_many(found)} has a bias straight before a normalization"
    if config["model"]["use_bias"] is True:
        yield Fault(("model.use_bias",), f"model.use_bias=true: {text}", ("model.use_bias=auto",))
    else:
        yield Fault((_parts_in(config) or "model.name",), text)


# Updates


@rules.register("decay_of_offsets")
def decay_of_offsets(config: Config) -> Iterator[Fault]:
    """Biases and the parameters of normalizations do not overfit, and pulling them to 0 costs accuracy.

    Reached by an entry of optimizer.groups alone: optimizer.weight_decay leaves them out.
    Source: Goodfellow, Bengio & Courville 2016, section 7.1; He et al. 2019, section 3.1.
    """
    for entry in entries(config["optimizer"]):
        if entry.weight_decay and (entry.names("bias") or entry.names("norm")):
            role = "bias" if entry.names("bias") else "norm"
            rest = [group for index, group in enumerate(config["optimizer"]["groups"]) if entry.where != f"optimizer.groups[{index}]"]
            fix = ("optimizer.groups=null",) if not rest else ()
            yield Fault((f"{entry.where}.weight_decay",), f"{entry.where} decays parameters of the role {role}", fix)


@rules.register("adaptive_rate")
def adaptive_rate(config: Config) -> Iterator[Fault]:
    """Optimizers that divide by the size of the gradient take steps of about the rate itself in every weight, so that .05 is a leap.

    Source: Kingma & Ba 2015, who use 0.001.
    """
    optimizer = config["optimizer"]
    record = REGISTRIES["optimizer"].get(optimizer["name"])
    if record.facts.get("adaptive") and optimizer["lr"] >= ADAPTIVE_RATE:
        own = next(setting.default for setting in record.settings if setting.name == "lr")
        text = f"optimizer.lr={optimizer['lr']:g} with optimizer={optimizer['name']}"
        yield Fault(("optimizer.lr",), text, (f"optimizer.lr={own}",))


@rules.register("plain_sgd_at_depth")
def plain_sgd_at_depth(config: Config, network: nn.Module) -> Iterator[Fault]:
    """Without momentum a step along a long, flat valley is as short as its slope, and a deep network's loss is full of them.

    From twenty hidden layers on.
    Source: Polyak 1964; Sutskever, Martens, Dahl & Hinton 2013.
    """
    hidden = len(_hidden(network))
    if config["optimizer"]["name"] == "sgd" and hidden >= VERY_DEEP:
        yield Fault(("optimizer.name",), f"optimizer=sgd, without momentum, on {hidden} hidden layers", ("optimizer=momentum",))


@rules.register("schedule_length")
def schedule_length(config: Config, steps: int) -> Iterator[Fault]:
    """A schedule whose own length is not that of the run does not do what it says: the rate never falls, or stops falling early.

    Source: Smith & Topin 2019, whose cycle is the length of the run.
    """
    node = config["scheduler"]
    facts = REGISTRIES["scheduler"].get(node["name"]).facts
    places, length, stage = (str(facts.get(fact, "")) for fact in ("boundaries", "length", "stage"))
    late = [boundary for boundary in node.get(places) or () if isinstance(boundary, int) and boundary >= steps]
    if late:
        text = f"scheduler.{places} has {late[0]}, which is never reached: the run has {steps} optimizer steps"
        yield Fault((f"scheduler.{places}",), text, _as_shares(places, node[places], late))
    if node.get(length) and node[length] != steps:
        text = f"scheduler.{length}={node[length]} is the length of the schedule, and the run has {steps} optimizer steps"
        yield Fault((f"scheduler.{length}",), text, (f"scheduler.{length}=null",))
    if node.get(stage) and node[stage] >= steps:
        text = (
            f"scheduler.{stage}={node[stage]} is the length of one stage, and the run ends within the first, after {steps} optimizer steps"
        )
        yield Fault((f"scheduler.{stage}",), text, (f"scheduler.{stage}=null",))


def _as_shares(key: str, given: Sequence[int | float], late: Sequence[int]) -> tuple[str, ...]:
    """The same boundaries over the run, the last one at nine tenths of it, where all are counts."""
    if not all(isinstance(boundary, int) for boundary in given):
        return ()
    last = max(late)
    return (f"scheduler.{key}=[{','.join(f'{0.9 * boundary / last:.3g}' for boundary in given)}]",)


# Batches


@rules.register("small_batch_norm")
def small_batch_norm(config: Config, network: nn.Module) -> Iterator[Fault]:
    """Batch normalization takes mean and variance from the minibatch; of a few examples they are noise.

    Fewer than eight on a device.
    Source: Ioffe 2017; Wu & He 2018, who measured it.
    """
    size, devices = config["data"]["batch_size"], config["trainer"]["devices"]
    together = config["trainer"]["sync_batch_norm"] or devices == 1
    each = size if together else size // devices
    if each < SMALL_BATCH and _modules(network, lambda module: isinstance(module, _BatchNorm)):
        text = f"data.batch_size={size}{'' if together else f' over {devices} devices'}: batch normalization over {each} examples"
        fix = f"data.batch_size={SMALL_BATCH if together else SMALL_BATCH * devices}"
        yield Fault(("data.batch_size",), text, (fix,))


@rules.register("unsynchronised_batch_norm")
def unsynchronised_batch_norm(config: Config, network: nn.Module) -> Iterator[Fault]:
    """Each device normalizes its own share, so that the run is another experiment than on one device, and one device's statistics are kept.

    Source: Goyal et al. 2017, section 2.3, for whom the size of the share is a part of the loss.
    """
    devices = config["trainer"]["devices"]
    there = _modules(network, lambda module: isinstance(module, _BatchNorm))
    if devices > 1 and there and not config["trainer"]["sync_batch_norm"]:
        text = f"trainer.devices={devices}, and the batch normalization {there[0]} is not synchronised"
        yield Fault(("trainer.sync_batch_norm", "trainer.devices"), text, ("trainer.sync_batch_norm=true",))


# Said on request


_RANKING = ("selu", "elu", "leaky_relu", "relu", "tanh", "sigmoid")


@rules.register("clipping_bound")
def clipping_bound(config: Config, clipped_gradients: Sequence[Clipped]) -> Iterator[Fault]:
    """Gradients fall as a network learns: a bound far above the first changes nothing, one far below leaves every step equally long.

    Far above: more than three times the largest of the first minibatches. Far below: nine tenths are over it were they a tenth
    as large; cut by value, they have only signs.
    Source: Pascanu, Mikolov & Bengio 2013, section 3.2, who take the bound from the mean norm over many updates.
    """
    for one in clipped_gradients:
        kind = KINDS.get(one.node["name"])
        found = None if kind is None else bite(kind, one.node[kind.setting], one.gradients)
        if found is not None and (found.never or found.always):
            setting = f"{one.where}.{found.kind.setting}"
            # Of an entry in a list no override changes one setting.
            fix = (f"{setting}={found.offered:g}",) if one.where == "clipping" else ()
            yield Fault((setting,), f"{setting}={found.bound:g} {'never' if found.never else 'always'} bites: {found.text}", fix)


@rules.register("activation_ranking", severity="hint")
def activation_ranking(config: Config, network: nn.Module) -> Iterator[Fault]:
    """SELU > ELU > leaky ReLU > ReLU > tanh > sigmoid; ELU where a network cannot normalize itself, leaky ReLU where it has to be fast.

    Source: Géron 2019, ch. 11.
    """
    name = config["activation"]["name"]
    plain = not _modules(network, lambda module: is_normalization(module) or is_dropout(module))
    best = "selu" if plain and not _modules(network, _is_more_than_a_sequence) else "elu"
    used = {block.name for block in _hidden(network) if block.activation is not None}
    if used and _parts_in(config) is None and name in _RANKING and _RANKING.index(name) > _RANKING.index(best):
        why = "normalizes itself here" if best == "selu" else "does not have to normalize itself, as this network cannot"
        text = f"activation={name}: {best}, which {why}, mostly does better"
        yield Fault(("activation.name",), text, (f"activation={best}", "initializer=auto"))
