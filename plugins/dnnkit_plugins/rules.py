"""Rules of the linter: choices that are right by themselves and do not go together.

Those about SELU, initial weights and the length of a run have files of their own.
A rule that asks for `network` sees the network with its initial weights, whatever model made it; `data` is the prepared data
set, `steps` the number of optimizer steps of the run. `clipped_gradients`, what each clipping clips in the first minibatches, is
measured by the doctor, which alone asks a rule for that. The first paragraph of a docstring is the reason that a reader is given.
"""

from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dnnkit.config.groups import entries
from dnnkit.diagnostics.clipping import KINDS, Clipped, bite
from dnnkit.lint import Fault
from dnnkit.network.blocks import is_dropout, is_normalization
from dnnkit.registry import REGISTRIES, rules
from dnnkit_plugins.rule_parts import Config, hidden, measured, modules, more_than_a_sequence, parts_in, remark

#: From so many hidden layers on plain gradient descent is slow.
VERY_DEEP = 20
#: Rates from here on are far above what the second moments of gradients leave room for: of small minibatches, and of any.
ADAPTIVE_RATE, ADAPTIVE_RATE_AT_ALL = 0.05, 0.1
SMALL_FOR_ADAPTIVE, SMALL_BATCH = 64, 8


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

    A rate below .1 with minibatches of more than 64 examples is a remark.
    Source: Kingma & Ba 2015, who use 0.001.
    """
    optimizer = config["optimizer"]
    record = REGISTRIES["optimizer"].get(optimizer["name"])
    if record.facts.get("adaptive") and optimizer["lr"] >= ADAPTIVE_RATE:
        own = next(setting.default for setting in record.settings if setting.name == "lr")
        text = f"optimizer.lr={optimizer['lr']:g} with optimizer={optimizer['name']}"
        fault = Fault(("optimizer.lr",), text, (f"optimizer.lr={own}",))
        harmful = optimizer["lr"] >= ADAPTIVE_RATE_AT_ALL or config["data"]["batch_size"] <= SMALL_FOR_ADAPTIVE
        yield fault if harmful else remark(fault, "adaptive_rate")


@rules.register("plain_sgd_at_depth")
def plain_sgd_at_depth(config: Config, network: nn.Module) -> Iterator[Fault]:
    """Without momentum a step along a long, flat valley is as short as its slope, and a deep network's loss is full of them.

    From twenty hidden layers on.
    Source: Polyak 1964; Sutskever, Martens, Dahl & Hinton 2013.
    """
    depth = len(hidden(network))
    if config["optimizer"]["name"] == "sgd" and depth >= VERY_DEEP:
        yield Fault(("optimizer.name",), f"optimizer=sgd, without momentum, on {depth} hidden layers", ("optimizer=momentum",))


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
    if each < SMALL_BATCH and modules(network, lambda module: isinstance(module, _BatchNorm)):
        text = f"data.batch_size={size}{'' if together else f' over {devices} devices'}: batch normalization over {each} examples"
        fix = f"data.batch_size={SMALL_BATCH if together else SMALL_BATCH * devices}"
        yield Fault(("data.batch_size",), text, (fix,))


@rules.register("unsynchronised_batch_norm", severity="remark")
def unsynchronised_batch_norm(config: Config, network: nn.Module) -> Iterator[Fault]:
    """Each device normalizes its own share, so that the run is another experiment than on one device, and one device's statistics are kept.

    Source: Goyal et al. 2017, section 2.3, for whom the size of the share is a part of the loss.
    """
    devices = config["trainer"]["devices"]
    there = modules(network, lambda module: isinstance(module, _BatchNorm))
    if devices > 1 and there and not config["trainer"]["sync_batch_norm"]:
        text = f"trainer.devices={devices}, and the batch normalization {there[0]} is not synchronised"
        yield remark(Fault(("trainer.sync_batch_norm", "trainer.devices"), text), "unsynchronised_batch_norm")


# What the doctor measures, and what is said on request


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


@rules.register("activation_ranking", severity="hint", on_request=True)
def activation_ranking(config: Config, network: nn.Module) -> Iterator[Fault]:
    """SELU > ELU > leaky ReLU > ReLU > tanh > sigmoid; ELU where a network cannot normalize itself, leaky ReLU where it has to be fast.

    A ranking of deep networks: of two layers ReLU and SELU did equally well. So it is given only where it is asked for.
    Source: Géron 2019, ch. 11.
    """
    name = config["activation"]["name"]
    plain = not modules(network, lambda module: is_normalization(module) or is_dropout(module))
    best = "selu" if plain and not modules(network, more_than_a_sequence) else "elu"
    used = {block.name for block in hidden(network) if block.activation is not None}
    if used and parts_in(config) is None and name in _RANKING and _RANKING.index(name) > _RANKING.index(best):
        why = "normalizes itself here" if best == "selu" else "does not have to normalize itself, as this network cannot"
        text = f"activation={name}: {best}, which {why}, mostly does better"
        fix = (f"activation={best}", "initializer=auto")
        yield Fault(("activation.name",), text, fix, measured("activation_ranking"))
