"""What somebody meant who typed a key that there is not: a setting without its section, or the name it has elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from omegaconf import DictConfig, OmegaConf

from dnnkit.config.sections import GROUPS, top_level
from dnnkit.errors import nearest
from dnnkit.registry import KINDS, REGISTRIES

#: The keys of other programs, and short names, by the key that they have here.
_ELSEWHERE: Mapping[str, str] = {
    "trainer.max_epochs": "epochs epoch n_epochs num_epochs nb_epoch nb_epochs max_iter",
    "data.batch_size": "batch bs batchsize minibatch minibatch_size mini_batch_size train_batch_size",
    "data.val_size": "val_split validation_split validation_size val_fraction",
    "data.root": "data_dir data_root dataset_dir",
    "optimizer.lr": "learning_rate learningrate eta eta0 learning_rate_init rate step_size",
    "optimizer.weight_decay": "wd",
    "model.hidden": "hidden_layers hidden_sizes hidden_dim hidden_units layers units neurons hidden_layer_sizes width",
    "trainer.threads": "n_threads num_threads cores cpus n_jobs num_workers",
    "trainer.early_stopping": "patience n_iter_no_change",
    "trainer.precision": "amp fp16 bf16 dtype",
    "trainer.accumulate_grad_batches": "grad_accum gradient_accumulation gradient_accumulation_steps accumulate",
    "dropout.p": "dropout_rate drop_rate drop dropout_p",
    "tracking.uri": "tracking_uri mlflow_uri",
    "tracking.experiment": "experiment_name project",
    "name": "run_name title",
    "seed": "random_state random_seed rng",
    "activation": "act activations activation_fn activation_function act_fn nonlinearity",
    "initializer": "init initialization initialiser initialisation weight_init kernel_initializer weights_init",
    "normalization": "norm norm_layer normalisation",
    "regularizer": "reg regularization penalty",
    "optimizer": "opt optim optimiser solver",
    "scheduler": "sched schedule lr_scheduler lr_schedule learning_rate_scheduler",
    "data": "dataset data_set ds source",
    "model": "net network arch architecture",
    "loss": "criterion objective loss_fn loss_function",
    "clipping": "clip grad_clip gradient_clip",
    "clipping.max_norm": "gradient_clip_val clip_norm clipnorm max_grad_norm",
    "augmentation": "augment aug transforms transform",
    "init_from": "pretrained weights checkpoint_path ckpt resume_from",
    "+experiment": "exp preset recipe",
    "+sweeps": "sweep study grid",
}
_HERE = {name: key for key, names in _ELSEWHERE.items() for name in names.split()}
_DEVICES = ("device", "devices", "accelerator", "gpus", "gpu", "num_gpus", "ngpus", "n_gpus", "cuda")
_MOST = 3


def meant_by(key: str, value: str, base: DictConfig) -> tuple[str, ...]:
    """The overrides that `key=value` may stand for in a config like `base`, the surest first; none where nothing is like it.

    A name of other programs; a setting of that name in a section or in what is chosen, then of other components; a component
    of that name; then what is spelt alike.
    """
    if key in _DEVICES:
        return (_device(key, value),)
    exact = [*_translated(key, value, base), *_settings(key, value, base)] or list(_components(key))
    if exact:
        return tuple(dict.fromkeys(exact))[:_MOST]
    known = {name.lstrip("+"): name for name in (*top_level(), "+experiment", "+sweeps")}
    spelt = [f"{known[name]}={value}" for name in nearest(key, known)]
    places = {name for node in base.values() if OmegaConf.is_dict(node) for name in map(str, node)} - {"name"}
    spelt += [word for name in nearest(key, sorted({*places, *_HERE})) for word in meant_by(name, value, base)] if not spelt else []
    return tuple(dict.fromkeys(spelt))[:_MOST]


def with_number(group: str, value: object) -> tuple[str, ...]:
    """The overrides that a number in the place of a name may stand for: `dropout=0.2`, `clipping=1.0`, `optimizer=0.1`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or group not in GROUPS:
        return ()
    if KINDS[group].required:
        return (f"{group}.{KINDS[group].required[0]}={value}",)
    first = {record.name: record.settings[0] for record in REGISTRIES[group] if record.settings}
    fitting = [name for name, setting in first.items() if setting.type in ("float", "int")]
    ranked = sorted(fitting, key=lambda name: (name != group, len(name)))
    return tuple(f"{group}={name} {group}.{first[name].name}={value}" for name in ranked[:_MOST])


def choosing(name: str) -> tuple[str, ...]:
    """The words that choose a component by its bare name: `activation=selu` for `selu`."""
    return tuple(_components(name))[:_MOST]


def _device(key: str, value: str) -> str:
    """The trainer that a device, or a number of them, stands for."""
    kind = value.strip("'\"").lower().partition(":")[0]
    if kind.isdecimal():
        return {"0": "trainer=cpu", "1": "trainer=gpu"}.get(kind, f"trainer=ddp trainer.devices={kind}")
    named = {"cpu": "cpu", "auto": "auto", "false": "cpu", "ddp": "ddp"}
    return f"trainer={named.get(kind, 'gpu')}"


def _translated(key: str, value: str, base: DictConfig) -> Iterator[str]:
    known = _HERE.get(key.lower().replace("-", "_"))
    if known is None:
        return
    group, _, setting = known.partition(".")
    missing = setting and group in GROUPS and setting not in (base.get(group) or {})
    yield from _elsewhere(group, setting, value) if missing else [f"{known}={value}"]


def _settings(key: str, value: str, base: DictConfig) -> Iterator[str]:
    """A setting of this name, in the sections and components of the config, then in others that might be chosen."""
    sections = [name for name in top_level() if OmegaConf.is_dict(base.get(name)) and key in base[name]] if key != "name" else []
    yield from (f"{section}.{key}={value}" for section in sections)
    if not sections:
        words = [word for group in GROUPS for word in _elsewhere(group, key, value)]
        yield from sorted(words, key=lambda word: f"={key} " not in word)  # momentum is first of all optimizer=momentum


def _elsewhere(group: str, setting: str, value: str) -> Iterator[str]:
    owners = [record.name for record in REGISTRIES[group] if setting in [own.name for own in record.settings]]
    ranked = sorted(owners, key=lambda owner: owner not in (group, setting))
    yield from (f"{group}={owner} {group}.{setting}={value}" for owner in ranked)


def _components(name: str) -> Iterator[str]:
    yield from (f"{group}={name}" for group in GROUPS if name in REGISTRIES[group])
