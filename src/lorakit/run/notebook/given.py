"""What a Python user hands over -> what the use cases take: options, sessions, adapter folders."""

import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from lorakit.adapters import save_adapter
from lorakit.adapters.asking import MAPPING
from lorakit.adapters.attached import attached_mapping, attached_template, loaded_info
from lorakit.config import MODEL_OPTIONS, ROW_OPTIONS, RunConfig, load_config
from lorakit.data import DataSpec, Template, resolve_template
from lorakit.errors import ConfigError, did_you_mean
from lorakit.models import identify
from lorakit.models.fingerprint import BaseIdentity
from lorakit.models.load import source_of
from lorakit.models.spec import ModelSpec
from lorakit.run.session import Session, recorded_template
from lorakit.tasks import CAUSAL_LM

BASE = MODEL_OPTIONS[1:]
ROWS = ROW_OPTIONS

Base = str | Path | ModelSpec | nn.Module
"""A built-in name, a folder, a .gguf file or a hub id; a whole spec; or a model that is loaded."""
Adapter = str | Path | nn.Module
"""A folder, a name in the store, or a model with pairs attached."""


def config_of(
    function: str, base: Base | None, options: Mapping[str, Any], known: Collection[str]
) -> RunConfig:
    """The options of a call as a configuration, its model in it where it is named.

    Args:
        function: the public name, for messages.
        base: the model; None for the built-in one.
        options: by name, as the command line has them.
        known: the names that this function takes.

    Raises:
        ConfigError: an option is unknown (the nearest is named), or its value is not of its kind.
    """
    for name in options:
        if name not in known:
            raise ConfigError(f"{function}: unknown option {name!r}; {did_you_mean(name, known)}")
    model: dict[str, Any] = {}
    if isinstance(base, str | Path):
        model = {"model": str(base)}
    elif base is not None:
        twice = [name for name in options if name in BASE]
        if twice:
            raise ConfigError(f"{function}: {twice[0]} is decided already by the model you gave")
        spec = base if isinstance(base, ModelSpec) else source_of(base)
        names = ("model", *BASE)
        model = {name: getattr(spec, name) for name in names} if spec is not None else {}
        model = {name: str(v) if name == "model" else v for name, v in model.items()}
    return load_config(None, {**options, **model})


def session_of(model: nn.Module, tokenizer: Any, data: DataSpec) -> Session:
    """A session around a model that the caller holds, with the pairs that are attached to it.

    Raises:
        ConfigError: its tokenizer is not given.
    """
    if tokenizer is None:
        raise ConfigError("a model that is loaded needs its tokenizer: give tokenizer=…")
    spec = source_of(model)
    if spec is not None:
        identity = identify(spec)
    else:
        # Made elsewhere: it has a name for people, and nothing that its hashes could be taken of.
        name = str(getattr(model.config, "name_or_path", "")) or type(model).__name__
        identity = BaseIdentity(name, None, *("unknown",) * 3)
    template = template_of(model, data) or resolve_template(data, tokenizer)
    return Session(model, tokenizer, identity, template, CAUSAL_LM)


def template_of(model: nn.Module, data: DataSpec) -> Template | None:
    """The template that a model's pairs were trained with; None where another is asked for.

    A system text and variables of `data` go over those that were recorded.
    """
    info, trained = loaded_info(model), attached_template(model)
    if trained is not None and data.template == "auto":
        return Template.from_dict(trained).changed(data.system, data.template_options)
    return recorded_template(info, data) if info is not None else None


def with_attached(config: RunConfig, model: nn.Module) -> RunConfig:
    """The configuration with the mapping of rows that a model's pairs were trained with.

    What was given stays, as in `lorakit.run.recorded.with_recorded`.
    """
    known = attached_mapping(model)
    mapping: dict[str, Any] = {name: known[name] for name in MAPPING if known.get(name)}
    if not mapping or not config.given.isdisjoint(MAPPING):
        return config
    return replace(config, data=replace(config.data, **mapping))


@contextmanager
def adapter_folders(adapters: Collection[Adapter]) -> Iterator[list[str]]:
    """Each adapter as a folder or a name; pairs on a model are saved for as long as this lasts.

    Raises:
        AdapterError: a model has no pairs.
    """
    with tempfile.TemporaryDirectory() as place:
        yield [
            str(save_adapter(adapter, Path(place) / f"adapter-{number}"))
            if isinstance(adapter, nn.Module)
            else str(adapter)
            for number, adapter in enumerate(adapters, 1)
        ]


def weighted(adapters: Any) -> list[tuple[Adapter, float]]:
    """One adapter, several, or several with their weights: a mapping, or pairs.

    >>> weighted("a"), weighted(["a", "b"]), weighted({"a": 0.7, "b": 0.3})
    ([('a', 1.0)], [('a', 1.0), ('b', 1.0)], [('a', 0.7), ('b', 0.3)])

    Raises:
        ConfigError: there are none.
    """
    if isinstance(adapters, str | Path | nn.Module):
        return [(adapters, 1.0)]
    pairs = adapters.items() if isinstance(adapters, Mapping) else adapters
    found = [pair if isinstance(pair, tuple) else (pair, 1.0) for pair in pairs]
    if not found:
        raise ConfigError("no adapter is given")
    return [(adapter, float(weight)) for adapter, weight in found]
