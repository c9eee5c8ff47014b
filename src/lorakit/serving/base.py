"""Which base a server has where none was named, and how it is held: as its adapters record."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lorakit.adapters import AdapterInfo, read_adapter
from lorakit.adapters.store import Entry, Store
from lorakit.errors import ConfigError
from lorakit.models import ModelSpec, default, identify
from lorakit.models.kept_packed import stays_packed
from lorakit.models.spec import FULL
from lorakit.run.named import find_adapter
from lorakit.run.recorded import recorded_base, recorded_packing
from lorakit.serving.catalog import find_folders


def base_to_serve(
    given: ModelSpec, adapters: Sequence[str | Path], store: str | Path | None
) -> ModelSpec:
    """The base of the adapters that are served.

    Args:
        given: device and number format; its model is the built-in one.
        adapters: folders, or names in the store: the first that records a base decides. Without any
            the store is looked at: the built-in model where one of its adapters belongs to it, or
            else the one base of all.
        store: its folder.

    Raises:
        ConfigError: the store's adapters belong to several bases.
        AdapterError: the base is not here.
        StoreError: there is no such name.
    """
    folders, names = find_folders(adapters)
    asked: list[str | Path] = [*folders.values(), *names]
    if not asked:
        entries = list(Store(store).list())
        known = {_called(entry): entry for entry in entries}
        if not known or default.NAME in known:
            return given
        if len({entry.version.summary.base.get("weights_sha256") for entry in entries}) > 1:
            bases = ", ".join(sorted(known))
            raise ConfigError(
                f"the store holds adapters of several bases ({bases}): say which one to serve with "
                "--base"
            )
        asked = [entries[0].folder]
    for adapter in asked:
        found = find_adapter(adapter, store)
        base = recorded_base(given, found.name, read_adapter(found.folder))
        if base is not None:
            return base
    return given


def packing_to_serve(
    given: ModelSpec, adapters: Sequence[str | Path], store: str | Path | None
) -> tuple[ModelSpec, tuple[str, ...]]:
    """The base, held in the packing that all served adapters were trained beside, where there is one.

    Args:
        given: the base; nothing was said of how it is held.
        adapters: folders, or names in the store; without any those of the store that belong to it.
        store: its folder.

    Returns:
        The base, and notes for the user: how it is held, or which adapters were trained on another.

    Raises:
        AdapterError: an adapter that was named cannot be read.
        StoreError: there is no such name.
    """
    if stays_packed(given):
        return given, ()
    held = {name: recorded_packing(info) for name, info in _served(given, adapters, store)}
    packings = sorted({packing for packing in held.values() if packing})
    if not packings:
        return given, ()
    if len(packings) == 1 and all(held.values()):
        who = "the adapter was" if len(held) == 1 else f"all {len(held)} adapters were"
        note = (
            f"base held in {packings[0]}, as {who} trained (--base-dtype {FULL} for full precision)"
        )
        return replace(given, base_dtype=packings[0]), (note,)
    lists = "; ".join(
        f"in {packing}: {', '.join(sorted(name for name, own in held.items() if own == packing))}"
        for packing in packings
    )
    note = (
        "base held in full precision, because the adapters were trained on bases that are held in "
        f"different ways ({lists}; the others in full precision): --base-dtype {packings[0]} holds it so"
    )
    return given, (note,)


def _served(
    given: ModelSpec, adapters: Sequence[str | Path], store: str | Path | None
) -> Iterator[tuple[str, AdapterInfo]]:
    """The adapters that will be served, by name; of a store that is served whole those of the base."""
    folders, names = find_folders(adapters)
    for name, folder in folders.items():
        yield name, read_adapter(folder)
    for name in names:
        yield name, read_adapter(find_adapter(name, store).folder)
    if folders or names:
        return
    known = [(entry, read_adapter(entry.folder)) for entry in Store(store).list()]
    if not any(recorded_packing(info) for _, info in known):
        return  # nothing to be decided: the base is not hashed for it
    own = identify(given).weights_sha256
    for entry, info in known:
        if entry.version.summary.base.get("weights_sha256") == own:
            yield entry.name, info


def _called(entry: Entry) -> str:
    summary = entry.version.summary
    return str(summary.model or summary.base_name)
