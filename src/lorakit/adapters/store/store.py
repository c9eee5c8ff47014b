"""The store: names, versions, and what became of them.

A name points at one of its versions. Versions are numbered from 1 as they are put under the name,
and a number is never given twice, whatever is removed or renamed: `invoices@3` means the same
adapter for as long as it means anything.
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from sqlite3 import Connection
from typing import Any, TypeVar

import platformdirs

from lorakit.adapters.store.contents import Contents
from lorakit.adapters.store.index import Index, put_event, put_version, version_of
from lorakit.adapters.store.lines import Line, Lines
from lorakit.adapters.store.records import Added, Entry, Event, Version
from lorakit.adapters.store.references import Reference, check_name, parse
from lorakit.adapters.store.summary import Summary, summarise
from lorakit.errors import LorakitError, StoreError

Result = TypeVar("Result")
STORE_HELP = (
    "Folder of the store of named adapters. Default: the environment variable LORAKIT_STORE, else "
    "lorakit/store in the user's data folder."
)


def default_path() -> Path:
    """The folder of the user's store: LORAKIT_STORE, or `store` in the user's data folder."""
    override = os.environ.get("LORAKIT_STORE")
    return Path(override) if override else Path(platformdirs.user_data_dir("lorakit")) / "store"


class Store:
    """The adapters of many tasks, beside any number of bases.

    Several processes may use it at once. A change is there whole or not at all, also after a kill
    at any instant; what a killed process leaves is removed by `collect`.

    >>> store = Store()                                              # doctest: +SKIP
    >>> store.add("runs/first/adapter", "invoices").entry            # doctest: +SKIP
    >>> lorakit.load_adapter(model, store.resolve("invoices").folder)   # doctest: +SKIP

    Args:
        path: its folder, made when something is first added; `default_path` where none is given.
        describe: checks an adapter folder and sums it up.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        describe: Callable[[Path], Summary] = summarise,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = Path(path) if path is not None else default_path()
        self.index = Index(self.path)
        self.contents = Contents(self.path)
        self.describe = describe
        self.clock = clock

    def add(self, folder: str | Path, name: str, *, note: str = "") -> Added:
        """Keep a copy of an adapter folder, and let a name point at it.

        A name that was removed comes back with its history. Content that the name has had before
        keeps its number; content that is in the store already takes no more room.

        Args:
            folder: in peft's format; read while it is copied, and not needed afterwards.
            name: a new one, or one whose history it goes on.
            note: kept in the log, beside what the adapter was trained on from.

        Raises:
            StoreError: the name is none.
            AdapterError: the folder is no whole adapter; nothing was added.
            OutputError: the store cannot be written.
        """
        check_name(name)
        with self.contents.stage(Path(folder), self.index.write) as staged:
            summary = self._describe(staged.folder, Path(folder))
            # An adapter that is added again mends a copy that was damaged in the store.
            damaged = self.contents.folder(staged.id).is_dir() and bool(
                self.contents.faults(staged.id, staged.files)
            )
            with self.index.write() as db:
                now = self.clock()
                self.contents.keep(staged, damaged=damaged)
                put_version(db, staged.id, now, staged.files, summary)
                lines = self._lines(db)
                line, how = lines.point(name, staged.id)
                if how != "unchanged":
                    told = "; ".join(part for part in (note, _origin(summary)) if part)
                    put_event(db, now, line.line, name, "add", line.current, staged.id, told)
                entry = lines.pick(line, Reference(name))
        return Added(entry, how, staged.left_out)

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

    def log(self, name: str | None = None) -> tuple[Event, ...]:
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
                return tuple(Event(*row) for row in db.execute(query + " ORDER BY event"))
        rows = query + " WHERE line = ? ORDER BY event"
        return self._look(
            name,
            lambda db, line: tuple(Event(*row) for row in db.execute(rows, (line.line,))),
            removed=True,
        )

    def remove(self, reference: str) -> Entry:
        """Remove a name, or one of its versions; the content stays until `collect` takes it.

        `rollback` brings a removed name back, as long as its content is there.

        Returns:
            What was removed: what the name pointed at, or the one version.

        Raises:
            StoreError: there is no such adapter, or the version is the one the name points at.
        """
        asked = parse(reference)
        if not asked.name:
            raise StoreError(f"{reference!r} is no name: remove NAME or NAME@VERSION")
        self._require()
        with self.index.write() as db:
            now = self.clock()
            lines = self._lines(db)
            line = lines.named(asked.name)
            entry = lines.pick(line, asked)
            if asked.bare:
                db.execute("UPDATE names SET living = 0 WHERE name = ?", (line.name,))
                db.execute("UPDATE lines SET removed = ? WHERE line = ?", (now, line.line))
            elif entry.current:
                raise StoreError(
                    f"{line.name} points at {entry}: roll it back first, or remove {line.name}"
                )
            else:
                db.execute(
                    "UPDATE history SET dropped = ? WHERE line = ? AND number = ?",
                    (now, line.line, entry.number),
                )
            put_event(
                db,
                *(now, line.line, line.name, "remove", entry.number, entry.version.id),
                "the name, with its history" if asked.bare else "this version",
            )
        return entry

    def rename(self, old: str, new: str) -> Entry:
        """Give an adapter another name; its history and its numbers go with it.

        Raises:
            StoreError: `old` is not there, or `new` is taken or has a history of its own.
        """
        check_name(new)
        self._require()
        with self.index.write() as db:
            lines = self._lines(db)
            line, other = lines.named(old), lines.find(new)
            if old == new:
                raise StoreError(f"{old} is called so already")
            if other is not None and other.line != line.line:
                state = (
                    "is taken" if other.living else "had an adapter before, whose numbers it keeps"
                )
                raise StoreError(f"the name {new!r} {state}: choose another one for {old}")
            db.execute("UPDATE names SET living = 0 WHERE name = ?", (old,))
            db.execute(
                "INSERT INTO names VALUES (?, ?, 1) ON CONFLICT (name) DO UPDATE SET living = 1",
                (new, line.line),
            )
            entry = lines.pick(lines.named(new), Reference(new))
            put_event(
                db,
                *(self.clock(), line.line, new, "rename", entry.number, entry.version.id),
                f"from {old}",
            )
        return entry

    def rollback(self, name: str, to: str | int | None = None) -> Entry:
        """Let a name point at an earlier version of its own, or bring a removed name back.

        Args:
            name: one that was removed comes back as it was, unless `to` says otherwise.
            to: a number, or the first digits of an id; without it the version with the next lower
                number.

        Raises:
            StoreError: there is no such name or version, or none before the current one.
        """
        self._require()
        with self.index.write() as db:
            lines = self._lines(db)
            line = lines.named(parse(name).name, removed=True)
            if to is not None:
                entry = lines.pick(line, parse(f"{line.name}@{to}"))
            elif not line.living:
                if not any(e.current for e in lines.entries(line)):
                    raise StoreError(f"{line.name} was removed, and its content was collected")
                entry = lines.pick(line, Reference(line.name))
            else:
                earlier = [e for e in lines.entries(line) if e.number < line.current]
                if not earlier:
                    raise StoreError(f"{line.name}@{line.current} is the earliest version there is")
                entry = earlier[-1]
            lines.aim(line, entry.number)
            put_event(
                db,
                *(self.clock(), line.line, line.name, "rollback", entry.number, entry.version.id),
                f"from @{line.current}" if line.living else "the name was removed",
            )
        return Entry(line.name, entry.number, entry.version)

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

    def version(self, id: str) -> Version | None:
        """The version with this whole id, if the store has it."""
        if not self.index.exists():
            return None
        with self.index.read() as db:
            return self._lines(db).version(id)

    def _describe(self, copy: Path, source: Path) -> Summary:
        """Sum up a copy; what is wrong with it is said of the source, which the user knows."""
        try:
            return self.describe(copy)
        except LorakitError as error:
            raise type(error)(str(error).replace(str(copy), str(source))) from error

    def _lines(self, db: Connection) -> Lines:
        return Lines(db, self.path, self.contents.objects)

    def _require(self) -> None:
        if not self.index.exists():
            raise StoreError(f"the store {self.path} is empty")

    def _look(
        self, name: str, ask: Callable[[Connection, Line], Result], *, removed: bool = False
    ) -> Result:
        check_name(name)
        self._require()
        with self.index.read() as db:
            return ask(db, self._lines(db).named(name, removed=removed))


def _origin(summary: Summary) -> str:
    """'from invoices@1', where an adapter records what it was made of."""
    names = [str(parent.get("name")) for parent in summary.parents]
    return f"from {', '.join(names)}" if names else ""
