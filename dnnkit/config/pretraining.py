"""The experiment that `init_from` names, composed and validated together with the config that needs it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from dnnkit.config.triage import parse
from dnnkit.errors import ConfigError, Problem
from dnnkit.schema import node

Tree = dict[str, Any]
#: Words of a command line, and what is done to the composed tree before its references are resolved: the values of the config.
Compose = Callable[[Sequence[str], Callable[[Tree], None]], Tree]
#: An experiment whose overrides grow from phase to phase never leads back to itself.
MOST_PHASES = 20

#: What a pretraining takes over from the config that needs it, unless its own overrides set it.
TRAINER = ("name", "devices", "precision", "threads", "limit_train_batches", "limit_val_batches", "progress_bar")
#: What of the same data it takes over too: what is held out from this run is held out from its pretraining.
HELD_OUT = ("val_size", "test_size", "split", "standardize", "standardize_target")
#: How many of the data are trained on and how is its own, also where `data: same` gives it the data of the config.
ITS_OWN = ("batch_size", "train_size", "loader", "memory_share", "workers")


def with_pretraining(values: Tree, compose: Compose, chain: tuple[tuple[str, ...], ...] = ()) -> Tree:
    """The values with the config of the pretraining, and of what that begins with in turn, in `init_from.config`.

    Raises ConfigError with everything wrong with it, and where experiments lead back to themselves.
    """
    wanted = values["init_from"]
    if wanted is None or wanted["experiment"] is None or wanted["config"] is not None:
        return values
    words = (f"+experiment={wanted['experiment']}", *(wanted["overrides"] or ()))
    if words in chain or len(chain) == MOST_PHASES:
        way = " → ".join(phase[0].removeprefix("+experiment=") for phase in (*chain, words)[-4:])
        raise ConfigError([Problem("init_from.experiment", f"leads back to itself: {way}")])
    own = {override.key_or_group for override in parse(words)[0]}
    try:
        phase = with_pretraining(
            compose(words, lambda tree: inherit(tree, values, own, same=wanted["data"] == "same")), compose, (*chain, words)
        )
    except ConfigError as error:
        raise ConfigError([_inside(problem, words) for problem in error.problems]) from error
    return {**values, "init_from": {**wanted, "config": phase}}


def _inside(problem: Problem, words: Sequence[str]) -> Problem:
    """The problem with the name of the experiment that it is in."""
    if problem.where.startswith("init_from"):
        return problem
    origin = problem.origin.replace("command line", "init_from.overrides")
    return Problem(f"init_from ({words[0].lstrip('+')}): {problem.where}", problem.message, problem.nearest, origin)


def inherit(tree: Tree, outer: Mapping[str, Any], own: Collection[str], same: bool) -> None:
    """Put what a pretraining takes over from the config `outer` into its tree; `own`: the keys that its own overrides set.

    `same`: it is to be trained on the data of `outer`, whatever its experiment names.
    """
    _put(tree, {"seed": outer["seed"]}, "", own)
    _put(tree["tracking"], outer["tracking"], "tracking", own)
    _put(tree["trainer"], {key: outer["trainer"][key] for key in TRAINER}, "trainer", own)
    data, wanted = tree["data"], outer["data"]
    if same and data["name"] != wanted["name"] and "data" not in own:
        tree["data"] = data = {**wanted, **{key: data[key] for key in ITS_OWN}}
    taken = {"root": wanted["root"]}
    if data["name"] == wanted["name"]:
        default = node("data", data["name"])
        left_open = [key for key in wanted if key not in (*ITS_OWN, *HELD_OUT, "name") and data.get(key) == default.get(key)]
        taken |= {key: wanted[key] for key in (*HELD_OUT, *left_open)}
    _put(data, taken, "data", {*own} - {"data"})


def _put(section: Tree, values: Mapping[str, Any], name: str, own: Collection[str]) -> None:
    section.update({key: value for key, value in values.items() if name not in own and f"{name}.{key}".lstrip(".") not in own})
