"""The store: the adapters of many tasks, their versions, and which name means which.

    references.py   'invoices', 'invoices@3', 'invoices@4f1d…': what a user may write
    records.py      Version, Entry, Event: what the index says, as values
    summary.py      what an adapter folder is worth listing by
    contents.py     folders called by the hash of their content
    index.py        SQLite: the tables, and a transaction that is whole or not at all
    lines.py        what the tables say of names and their histories
    store.py        Store: add, resolve, list, rename, remove, roll back
    upkeep.py       verify and gc

Nothing here imports torch until an adapter is added, so that listing costs nothing.
"""

from lorakit.adapters.store.contents import content_id
from lorakit.adapters.store.records import Added, Entry, Event, StoredFile, Version
from lorakit.adapters.store.store import Store, default_path
from lorakit.adapters.store.summary import Summary
from lorakit.adapters.store.upkeep import Collected, Fault, collect, verify

__all__ = [
    "Added",
    "Collected",
    "Entry",
    "Event",
    "Fault",
    "Store",
    "StoredFile",
    "Summary",
    "Version",
    "collect",
    "content_id",
    "default_path",
    "verify",
]
