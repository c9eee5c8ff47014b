"""What the index says, as values."""

import json
from dataclasses import dataclass
from pathlib import Path

from lorakit.adapters.store.summary import Summary


@dataclass(frozen=True)
class StoredFile:
    """One file of a version: its name, size in bytes and SHA-256."""

    name: str
    size: int
    sha256: str


def place(objects: Path, id: str) -> Path:
    """The folder of a content; spread over 256, since some file systems slow down in a large one."""
    return objects / id[:2] / id


@dataclass(frozen=True)
class Version:
    """One adapter's content, whatever names point at it.

    Attributes:
        id: hash of the content, see `lorakit.adapters.store.contents.id_of`.
        added: when, in seconds since 1970.
        size: bytes of all its files.
        listing: names, sizes and hashes of its files as the index has them, JSON; `files` reads it.
        summary: what it is listed by.
        objects: the store's folder of contents.
    """

    id: str
    added: float
    size: int
    listing: str
    summary: Summary
    objects: Path

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """All of its files."""
        return tuple(StoredFile(*file) for file in json.loads(self.listing))

    @property
    def folder(self) -> Path:
        """Where it lies: an ordinary adapter folder, to be read only."""
        return place(self.objects, self.id)

    @property
    def short(self) -> str:
        """Enough of the id for a person."""
        return self.id[:12]


@dataclass(frozen=True)
class Entry:
    """A version under a name.

    Attributes:
        name: "" for a version that was asked for by its id alone.
        number: of the version under the name, from 1; 0 without a name.
        version: the content.
        current: whether the name points at it now.
    """

    name: str
    number: int
    version: Version
    current: bool = True

    def __str__(self) -> str:
        return f"{self.name}@{self.number}" if self.name else f"@{self.version.short}"

    @property
    def folder(self) -> Path:
        """Where the adapter's files lie."""
        return self.version.folder


@dataclass(frozen=True)
class StoreEvent:
    """One change of what a name means.

    Attributes:
        at: when, in seconds since 1970.
        name: the name it happened to, as it was called then.
        action: add, rollback, rename, remove, or collect.
        number, version: what the name pointed at afterwards, or what was removed.
        note: what else there is to say.
    """

    at: float
    name: str
    action: str
    number: int | None
    version: str | None
    note: str


@dataclass(frozen=True)
class Added:
    """What adding came to.

    Attributes:
        entry: where it is now.
        how: "new" (a new version of the name), "again" (an earlier version of the name, which now
            points at it again), "unchanged" (the name pointed at it already) or "beside" (a version
            of the name, which goes on pointing at another one).
        left_out: files of the folder that are no part of an adapter and were not kept.
    """

    entry: Entry
    how: str
    left_out: tuple[str, ...]
