"""The store: the adapters of many tasks, their versions, and which name means which.

    references.py   'invoices', 'invoices@3', 'invoices@4f1d…': what a user may write
    records.py      Version, Entry, StoreEvent: what the index says, as values
    summary.py      what an adapter folder is worth listing by
    contents.py     folders called by the hash of their content
    index.py        SQLite: the tables, and a transaction that is whole or not at all
    lines.py        what the tables say of names and their histories
    reading.py      StoreReader: resolve, list, history, log
    store.py        Store: add, rename, remove, roll back
    upkeep.py       verify and gc

Nothing here imports torch until an adapter is added, so that listing costs nothing.
"""

from lorakit.adapters.store.contents import content_id
from lorakit.adapters.store.reading import default_path
from lorakit.adapters.store.records import Added, Entry, StoredFile, StoreEvent, Version
from lorakit.adapters.store.store import Store
from lorakit.adapters.store.summary import Summary
from lorakit.adapters.store.upkeep import Collected, Fault, collect, verify

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
    "verify",
]
