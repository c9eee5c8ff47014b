"""`lorakit.combine` for Python and notebooks."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lorakit.adapters.combine import Combined
from lorakit.adapters.specs import CombineSpec
from lorakit.errors import ConfigError, did_you_mean
from lorakit.run.commands.shaping import Output, run_combine
from lorakit.run.notebook.given import Adapter, adapter_folders, weighted


def combine(
    adapters: Sequence[Adapter | tuple[Adapter, float]] | Mapping[str, float],
    *,
    out: str | Path | None = None,
    name: str | None = None,
    store: str | Path | None = None,
    force: bool = False,
    **options: Any,
) -> Combined:
    """Put several adapters of one base together into one.

    >>> import lorakit
    >>> model, tokenizer = lorakit.load_model("tiny-model")
    >>> plan = lorakit.attach(model, lorakit.LoraSpec(rank=2))
    >>> first, second = lorakit.save_adapter(model, "a"), lorakit.save_adapter(model, "b")
    >>> combined = lorakit.combine([(first, 0.7), (second, 0.3)], out="both")
    >>> combined.overall
    0.0
    >>> adapter = lorakit.read_adapter("both")

    Args:
        adapters: folders, names in the store, or models with pairs attached; with their weights
            as (adapter, weight), or as a mapping. A weight is 1 where none is given.
        out: a new folder for the result; or
        name: a name in the store.
        store: its folder; the user's own by default.
        force: combine although the bases differ.
        **options: the fields of `lorakit.adapters.specs.CombineSpec`: how, rank, energy, density,
            seed.

    Returns:
        The adapter that was written, and how far it is from the weighted sum.

    Raises:
        InputError: an option is unknown, or something given cannot be used.
    """
    known = [f.name for f in fields(CombineSpec)]
    for option in options:
        if option not in known:
            raise ConfigError(f"combine: unknown option {option!r}; {did_you_mean(option, known)}")
    parts = weighted(adapters)
    target = Output(None if out is None else Path(out), name, store)
    with adapter_folders([adapter for adapter, _ in parts]) as folders:
        texts = [f"{f}:{weight!r}" for f, (_, weight) in zip(folders, parts, strict=True)]
        made, _ = run_combine(texts, CombineSpec(**options), target, force=force)
    return made
