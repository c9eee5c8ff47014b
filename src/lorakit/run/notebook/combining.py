"""`lorakit.combine` for Python and notebooks."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, overload

from lorakit.adapters.combine import Combined
from lorakit.adapters.specs import CombineSpec
from lorakit.config import MODEL_OPTIONS, load_config
from lorakit.data.given import as_source
from lorakit.errors import ConfigError, did_you_mean
from lorakit.run.commands.shaping import Output, run_combine, run_combine_best
from lorakit.run.commands.trying import Tried
from lorakit.run.notebook.given import Adapter, adapter_folders, weighted

Adapters = Sequence[Adapter | tuple[Adapter, float]] | Mapping[str, float]
_MEASURING = (*MODEL_OPTIONS, "max_eval_rows", "max_new_tokens")


@overload
def combine(adapters: Adapters, *, data: None = None, **options: Any) -> Combined: ...
@overload
def combine(adapters: Adapters, *, data: Sequence[Any], **options: Any) -> Tried: ...
def combine(
    adapters: Adapters,
    *,
    data: Sequence[Any] | None = None,
    out: str | Path | None = None,
    name: str | None = None,
    store: str | Path | None = None,
    force: bool = False,
    **options: Any,
) -> Combined | Tried:
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
        data: rows of each adapter's task, in their order: files, or rows in memory. The sum, the
            weighted sum, TIES and DARE are measured on held-out rows of every task, and the best is
            written, or the one that `how` names.
        out: a new folder for the result; or
        name: a name in the store.
        store: its folder; the user's own by default.
        force: combine although the bases differ.
        **options: the fields of `lorakit.adapters.specs.CombineSpec`: how, rank, energy, density,
            seed. With data also model, device, dtype, max_eval_rows, max_new_tokens, as on the
            command line.

    Returns:
        The adapter that was written, and how far it is from the weighted sum; with data what was
        measured of all ways, the adapter as its `made`.

    Raises:
        InputError: an option is unknown, or something given cannot be used.
    """
    known = [f.name for f in fields(CombineSpec)] + [*_MEASURING] * (data is not None)
    for option in options:
        if option not in known:
            raise ConfigError(f"combine: unknown option {option!r}; {did_you_mean(option, known)}")
    parts = weighted(adapters)
    target = Output(None if out is None else Path(out), name, store)
    with adapter_folders([adapter for adapter, _ in parts]) as folders:
        texts = [f"{f}:{weight!r}" for f, (_, weight) in zip(folders, parts, strict=True)]
        if data is not None:
            measuring = {name: options.pop(name) for name in _MEASURING if name in options}
            config = load_config(None, measuring | ({"store": str(store)} if store else {}))
            sources = tuple(as_source(rows) for rows in data)
            config = replace(config, data=replace(config.data, data=sources))
            return run_combine_best(config, texts, options, target, force=force)
        made, _ = run_combine(texts, CombineSpec(**options), target, force=force)
    return made
