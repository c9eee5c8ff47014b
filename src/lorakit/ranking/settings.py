"""The settings of a search: the run's options that it has, and its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.config import RunConfig, load_config, options_of, parse, plain, read_yaml
from lorakit.errors import ConfigError, did_you_mean
from lorakit.ranking.spec import RankSpec

SECTION = "search"
OUT, SAMPLES = "runs/rank", 64

# Options of a run that a search has: not the rank, nor what the search decides.
OPTIONS = (
    *("model", "revision", "device", "dtype", "trust_remote_code"),
    *("data", "eval_data", "prompt", "completion", "system", "template", "max_length"),
    *("too_long", "max_rows", "max_eval_rows", "eval_share"),
    *("alpha", "rslora", "targets", "exclude", "layers", "dropout", "init"),
    *("learning_rate", "epochs", "max_steps", "batch_size", "batch_tokens", "schedule", "warmup"),
    *("weight_decay", "beta1", "beta2", "clip", "activation_checkpointing", "seed"),
    *("out", "resume", "samples", "max_new_tokens"),
)


@dataclass(frozen=True)
class Settings:
    """A whole search: the run's options and the search's."""

    config: RunConfig
    spec: RankSpec

    def to_flat(self) -> dict[str, Any]:
        """All options by name, as config.yaml keeps them."""
        flat = self.config.to_flat()
        return {name: flat[name] for name in OPTIONS} | {
            option.name: plain(getattr(self.spec, option.field))
            for option in options_of(RankSpec, SECTION)
        }


def settings(path: Path | None, flags: Mapping[str, Any]) -> Settings:
    """The settings in a YAML file, with flags over it.

    Raises:
        ConfigError: a key is unknown or is none of a search's, or a value is not of its kind.
    """
    values = dict(read_yaml(path)) if path is not None else {}
    source = str(path) if path is not None else "the command line"
    values |= flags
    own = {option.name: option for option in options_of(RankSpec, SECTION)}
    rest = {name: value for name, value in values.items() if name not in own}
    for name in rest:
        if name in OPTIONS:
            continue
        if name in load_config(None, {}).to_flat():
            raise ConfigError(f"{source}: {name} is decided by the search, or has no place in it")
        known = did_you_mean(str(name), [*own, *OPTIONS])
        raise ConfigError(f"{source}: unknown key {name!r}; {known}")
    spec = RankSpec(**parse(own, {n: v for n, v in values.items() if n in own}, source))
    defaults = {"out": OUT, "samples": SAMPLES}
    return Settings(load_config(None, {**defaults, **rest}), spec)
