"""A composed and validated config: typed and read-only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex, TypeVar

from omegaconf import OmegaConf

from dnnkit.config.sections import GROUPS, SECTIONS, Checkpoint, Diagnostics, Lint, Section, Top, Tracking, Trainer
from dnnkit.schema import DataSettings, DropoutSettings, ModelSettings, NormalizationSettings, OptimizerSettings, SchedulerSettings

S = TypeVar("S", bound=Section)


def _refuse(self: object, *given: object, **named: object) -> NoReturn:
    raise TypeError("a config is read-only: compose another one, with the words that change it")


class FrozenList(list[Any]):
    """A list in a config. A copy of it is an ordinary list."""

    __setitem__ = __delitem__ = __iadd__ = __imul__ = append = extend = insert = pop = remove = clear = sort = reverse = _refuse

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return list, (list(self),)


class FrozenDict(dict[str, Any]):
    """A mapping in a config. A copy of it is an ordinary one."""

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return dict, (dict(self),)


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return FrozenDict({key: _frozen(part) for key, part in value.items()})
    return FrozenList(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


class Node(FrozenDict):
    """What a config chose of one group: the component's `name` and its settings, as attributes or items, read-only.

    What every component of a kind has is typed, as `cfg.data.batch_size` is; the rest is `Any`.
    """

    name: str

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__") or key not in self:
            raise AttributeError(f"there is no setting {key!r}; there are: {', '.join(self)}")
        return self[key]

    def __setattr__(self, key: str, value: Any) -> NoReturn:
        _refuse(self)


if TYPE_CHECKING:
    # Every component's node is a `Node`; these say which settings all components of a kind have.
    class DataNode(Node, DataSettings):
        """A data source."""

    class ModelNode(Node, ModelSettings):
        """A model."""

    class NormalizationNode(Node, NormalizationSettings):
        """A normalization, or `none`."""

    class DropoutNode(Node, DropoutSettings):
        """A dropout, or `none`."""

    class OptimizerNode(Node, OptimizerSettings):
        """An optimizer."""

        lr: float

    class SchedulerNode(Node, SchedulerSettings):
        """A scheduler."""

    class _Keys(Top):
        """A config's keys and their types."""

        trainer: Trainer
        tracking: Tracking
        checkpoint: Checkpoint
        diagnostics: Diagnostics
        lint: Lint
        data: DataNode
        augmentation: Node
        model: ModelNode
        activation: Node
        initializer: Node
        normalization: NormalizationNode
        dropout: DropoutNode
        regularizer: Node
        constraint: Node
        clipping: Node
        loss: Node
        optimizer: OptimizerNode
        scheduler: SchedulerNode
else:
    _Keys = object


class Config(_Keys):
    """A composed and validated config, read-only. Keys are read as attributes (`cfg.optimizer.lr`) or items.

    `values` is a copy of the whole config as plain data, every reference resolved and every default filled in, as records and
    checkpoints keep it; `overrides` are the words it was composed from, `config_dir` the folder of presets that was looked in too.
    """

    overrides: tuple[str, ...]
    config_dir: str | None
    _values: FrozenDict
    _parts: dict[str, Any]

    def __init__(self, values: Mapping[str, Any], overrides: Sequence[str] = (), config_dir: str | None = None) -> None:
        parts = {key: _part(key, value) for key, value in values.items()}
        self.__dict__.update(_values=_frozen(values), _parts=parts, overrides=tuple(overrides), config_dir=config_dir)

    @property
    def values(self) -> dict[str, Any]:
        """The whole config as plain data; what is done to it does not change the config."""
        return dict(_plain(self._values))

    if not TYPE_CHECKING:  # so that a key that no config has is an error to type checkers

        def __getattr__(self, key: str) -> Any:
            if key.startswith("_") or key not in self._parts:
                raise AttributeError(f"a config has no key {key!r}")
            return self._parts[key]

    def __getitem__(self, key: str) -> Any:
        return self._parts[key]

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError(f"a config is read-only: compose another one with {key}=…")

    def changed(self, **changes: Any) -> Config:
        """The same config with other values under some of its keys, plain data, which are not validated again."""
        return Config({**self._values, **changes}, self.overrides, self.config_dir)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and (self._values, self.overrides) == (other._values, other.overrides)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[Config], tuple[Any, ...]]:
        return type(self), (self.values, self.overrides, self.config_dir)

    def __repr__(self) -> str:
        return f"Config({self._values!r}, {self.overrides!r})"

    def to_yaml(self) -> str:
        """The config as YAML, as it is written to `config/config.yaml`."""
        return OmegaConf.to_yaml(OmegaConf.create(self.values))


def _part(key: str, value: Any) -> Any:
    """What is read under one key of a config: a section, a component's node, or the value itself."""
    if key in SECTIONS:
        return _section(SECTIONS[key], value)
    return Node(_frozen(value)) if key in GROUPS else _frozen(value)


def _section(declared: type[S], values: Mapping[str, Any]) -> S:
    """A section from plain data; a setting that is newer than these has its default."""
    return declared(**_frozen(values))
