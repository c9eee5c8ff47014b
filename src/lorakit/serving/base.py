"""Which base a server has where none was named: the one that its adapters record."""

from collections.abc import Sequence
from pathlib import Path

from lorakit.adapters import read_adapter
from lorakit.adapters.store import Entry, Store
from lorakit.errors import ConfigError
from lorakit.models import ModelSpec, default
from lorakit.run.named import find_adapter
from lorakit.run.recorded import recorded_base
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


def _called(entry: Entry) -> str:
    summary = entry.version.summary
    return str(summary.model or summary.base_name)
