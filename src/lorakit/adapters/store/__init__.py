"""The store: the adapters of many tasks, their versions, and which name means which.

    references.py   'invoices', 'invoices@3', 'invoices@4f1d…': what a user may write
    records.py      Version, Entry, StoreEvent: what the index says, as values
    summary.py      what an adapter folder is worth listing by
    contents.py     folders called by the hash of their content
    index.py        SQLite: the tables, and a transaction that is whole or not at all
    lines.py        what the tables say of names and their histories
    default.py      where the user's own store is
    reading.py      StoreReader: resolve, list, history, log
    store.py        Store: add, rename, remove, roll back
    upkeep.py       verify and gc

Nothing here imports torch until an adapter is added, so that listing costs nothing.
The names below are loaded when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.adapters.store.contents import content_id
    from lorakit.adapters.store.default import default_path
    from lorakit.adapters.store.records import Added, Entry, StoredFile, StoreEvent, Version
    from lorakit.adapters.store.store import Store, store_of
    from lorakit.adapters.store.summary import Summary
    from lorakit.adapters.store.upkeep import Collected, Fault, collect, verify

_HOMES = {
    "Added": "records",
    "Collected": "upkeep",
    "Entry": "records",
    "Fault": "upkeep",
    "Store": "store",
    "StoreEvent": "records",
    "StoredFile": "records",
    "Summary": "summary",
    "Version": "records",
    "collect": "upkeep",
    "content_id": "contents",
    "default_path": "default",
    "store_of": "store",
    "verify": "upkeep",
}

__all__ = [
    "Added",
    "Collected",
    "Entry",
    "Fault",
    "Store",
    "StoreEvent",
    "StoredFile",
    "Summary",
    "Version",
    "collect",
    "content_id",
    "default_path",
    "store_of",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
