"""What the store says, without changing it: names, versions, history, log.

See `Store` for what can be changed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from sqlite3 import Connection
from typing import Any, TypeVar

from lorakit.adapters.measurements import Measurement
from lorakit.adapters.store.contents import Contents
from lorakit.adapters.store.default import default_path
from lorakit.adapters.store.index import Index, measurements_of, version_of
from lorakit.adapters.store.lines import Lines, NameLine
from lorakit.adapters.store.records import Entry, StoreEvent, Version
from lorakit.adapters.store.references import check_name, parse
from lorakit.errors import StoreError

Result = TypeVar("Result")


class StoreReader:
    """The adapters that a store has, by name, version and id.

    Args:
        path: its folder; `default_path` where none is given.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path is not None else default_path()
        self.index = Index(self.path)
        self.contents = Contents(self.path)

    def resolve(self, reference: str) -> Entry:
        """The adapter that a reference means; see `references`.

        Raises:
            StoreError: there is none, or more than one; the message says which names are near.
        """
        asked = parse(reference)
        if not self.index.exists():
            raise StoreError(f"there is no adapter {reference!r}: the store {self.path} is empty")
        with self.index.read() as db:
            lines = self._lines(db)
            if not asked.name:
                return lines.by_id(asked.prefix or "")
            return lines.pick(lines.named(asked.name), asked)

    def checked(self, reference: str) -> Entry:
        """As `resolve`, with every file hashed again.

        Raises:
            StoreError: there is no such adapter, or a file of it is not what was stored.
        """
        entry = self.resolve(reference)
        if faults := self.contents.faults(entry.version.id, entry.version.files):
            raise StoreError(
                f"{entry} is not what was stored: {'; '.join(faults)}. Add the adapter again, or "
                f"roll {entry.name or 'its name'} back"
            )
        return entry

    def list(self) -> tuple[Entry, ...]:
        """What each name points at, sorted by name."""
        if not self.index.exists():
            return ()
        with self.index.read() as db:
            rows = db.execute(
                "SELECT name, current, versions.* FROM names JOIN lines USING (line) "
                "JOIN history ON history.line = lines.line AND number = current "
                "JOIN versions ON versions.id = version WHERE living ORDER BY name"
            ).fetchall()
        return tuple(
            Entry(row["name"], row["current"], version_of(row, self.contents.objects))
            for row in rows
        )

    def history(self, name: str) -> tuple[Entry, ...]:
        """All versions that a name has, by number.

        Raises:
            StoreError: there is no such name.
        """
        return self._look(name, lambda db, line: self._lines(db).entries(line))

    def log(self, name: str | None = None) -> tuple[StoreEvent, ...]:
        """What happened, oldest first: to one name, removed ones included, or to all.

        A renamed adapter's events go on under its new name.

        Raises:
            StoreError: there never was such a name.
        """
        if name is None and not self.index.exists():
            return ()
        query = "SELECT at, name, action, number, version, note FROM events"
        if name is None:
            with self.index.read() as db:
                return tuple(StoreEvent(*row) for row in db.execute(query + " ORDER BY event"))
        rows = query + " WHERE line = ? ORDER BY event"
        return self._look(
            name,
            lambda db, line: tuple(StoreEvent(*row) for row in db.execute(rows, (line.line,))),
            removed=True,
        )

    def called(self, version: Version) -> tuple[str, ...]:
        """What a version is called now: 'invoices@3', under every name that has it."""
        rows = (
            "SELECT name, number FROM history JOIN names USING (line) "
            "WHERE version = ? AND living AND dropped IS NULL ORDER BY name, number"
        )
        with self.index.read() as db:
            return tuple(f"{name}@{number}" for name, number in db.execute(rows, (version.id,)))

    def parents(self, version: Version) -> tuple[tuple[Mapping[str, Any], Version | None], ...]:
        """What a version was trained on from or made of: as recorded, and as far as it is here."""
        found = []
        for parent in version.summary.parents:
            id, tensors = parent.get("content_sha256"), parent.get("tensors_sha256")
            here = self.version(id) if isinstance(id, str) else None
            if here is None and isinstance(tensors, str):
                with self.index.read() as db:
                    here = self._lines(db).with_file(tensors)
            found.append((parent, here))
        return tuple(found)

    def measurements(self) -> Mapping[str, tuple[Measurement, ...]]:
        """The scores that were recorded later, by version, oldest first."""
        if not self.index.exists():
            return {}
        with self.index.read() as db:
            return measurements_of(db)

    def version(self, id: str) -> Version | None:
        """The version with this whole id, if the store has it."""
        if not self.index.exists():
            return None
        with self.index.read() as db:
            return self._lines(db).version(id)

    def _lines(self, db: Connection) -> Lines:
        return Lines(db, self.path, self.contents.objects)

    def _require(self) -> None:
        if not self.index.exists():
            raise StoreError(f"the store {self.path} is empty")

    def _look(
        self, name: str, ask: Callable[[Connection, NameLine], Result], *, removed: bool = False
    ) -> Result:
        check_name(name)
        self._require()
        with self.index.read() as db:
            return ask(db, self._lines(db).named(name, removed=removed))
