"""The settings of an experiment: the run's options that it has, and those of its own protocol."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from lorakit.config import (
    MODEL_OPTIONS,
    ROW_OPTIONS,
    RunConfig,
    load_config,
    plain,
    read_yaml,
)
from lorakit.errors import ConfigError
from lorakit.lora.variants import variant_options
from lorakit.option import options_of, parse
from lorakit.other_names import unknown_keys

Spec = TypeVar("Spec")

# Options of a run that every experiment has: not those that its protocol decides.
RUN_OPTIONS = (
    *MODEL_OPTIONS,
    *("data", "eval_data", *ROW_OPTIONS, "max_eval_rows", "eval_share"),
    *("alpha", *variant_options(), "targets", "target_parameters", "exclude", "layers"),
    *("dropout", "init"),
    *("batch_size", "batch_tokens", "schedule", "warmup", "weight_decay", "beta1", "beta2"),
    *("clip", "moments", "activation_checkpointing", "seed"),
    *("out", "resume", "samples", "max_new_tokens"),
)


@dataclass(frozen=True)
class Form(Generic[Spec]):
    """Which settings a kind of experiment has.

    Attributes:
        spec: frozen dataclass of the protocol's own options.
        section: heading of these options in --help.
        options: names of the run's options that it has.
        defaults: of run options whose default is another one here.
        decided_by: what decides the other options of a run, for a message.
    """

    spec: type[Spec]
    section: str
    options: tuple[str, ...]
    defaults: Mapping[str, Any]
    decided_by: str

    def read(self, path: Path | None, flags: Mapping[str, Any]) -> "Settings[Spec]":
        """The settings in a YAML file, with flags over it.

        Raises:
            ConfigError: a key is unknown or this kind of experiment does not have it, or a value is
                not of its kind.
        """
        values = dict(read_yaml(path)) if path is not None else {}
        source = str(path) if path is not None else "the command line"
        values |= flags
        own = {option.name: option for option in options_of(self.spec, self.section)}
        rest = {name: value for name, value in values.items() if name not in own}
        for name in rest:
            if name in self.options:
                continue
            if name in load_config(None, {}).to_flat():
                raise ConfigError(
                    f"{source}: {name} is decided by {self.decided_by}, or has no place in it"
                )
            raise ConfigError(unknown_keys({name: rest[name]}, [*own, *self.options], source))
        spec = self.spec(**parse(own, {n: v for n, v in values.items() if n in own}, source))
        return Settings(load_config(None, {**self.defaults, **rest}), spec, self)


@dataclass(frozen=True)
class Settings(Generic[Spec]):
    """A whole experiment: the run's options and the protocol's."""

    config: RunConfig
    spec: Spec
    form: Form[Spec]

    def to_flat(self) -> dict[str, Any]:
        """All options by name, as config.yaml keeps them."""
        flat = self.config.to_flat()
        own = options_of(self.form.spec, self.form.section)
        return {name: flat[name] for name in self.form.options} | {
            option.name: plain(getattr(self.spec, option.field)) for option in own
        }
