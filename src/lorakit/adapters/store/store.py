"""The store: names, versions, and what became of them.

A name points at one of its versions. Versions are numbered from 1 as they are put under the name,
and a number is never given twice, whatever is removed or renamed: `invoices@3` means the same
adapter for as long as it means anything.
"""

import time
from collections.abc import Callable
from pathlib import Path

from lorakit.adapters.measurements import FILE, Measurement, read_measurements
from lorakit.adapters.store.index import INDEX, put_event, put_measurement, put_version
from lorakit.adapters.store.reading import StoreReader
from lorakit.adapters.store.records import Added, Entry, Version
from lorakit.adapters.store.references import StoreReference, check_name, parse
from lorakit.adapters.store.summary import Summary, summarise
from lorakit.errors import LorakitError, StoreError


class Store(StoreReader):
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
        super().__init__(path)
        self.describe = describe
        self.clock = clock

    def add(self, folder: str | Path, name: str, *, note: str = "", current: bool = True) -> Added:
        """Keep a copy of an adapter folder, and let a name point at it.

        A name that was removed comes back with its history. Content that the name has had before
        keeps its number; content that is in the store already takes no more room.

        Args:
            folder: in peft's format; read while it is copied, and not needed afterwards.
            name: a new one, or one whose history it goes on.
            note: kept in the log, beside what the adapter was trained on from.
            current: whether the name shall point at it; without, it is kept as a further version
                beside the current one, and `rollback` can make it current.

        Raises:
            StoreError: the name is none; or it points at nothing that could stay current.
            AdapterError: the folder is no whole adapter; nothing was added.
            OutputError: the store cannot be written.
        """
        check_name(name)
        with self.contents.stage(Path(folder), self.index.write) as staged:
            summary = self._describe(staged.folder, Path(folder))
            measured = read_measurements(Path(folder), staged.id)
            # An adapter that is added again mends a copy that was damaged in the store.
            damaged = self.contents.folder(staged.id).is_dir() and bool(
                self.contents.faults(staged.id, staged.files)
            )
            with self.index.write() as db:
                now = self.clock()
                self.contents.keep(staged, damaged=damaged)
                put_version(db, staged.id, now, staged.files, summary)
                for one in measured:
                    put_measurement(db, staged.id, one)
                lines = self._lines(db)
                if current:
                    line, number, how = lines.point(name, staged.id)
                else:
                    line, number, how = lines.beside(name, staged.id)
                if how != "unchanged":
                    more = "" if current else f"not current: {name} stays @{line.current}"
                    told = "; ".join(part for part in (note, _origin(summary), more) if part)
                    put_event(db, now, line.line, name, "add", number, staged.id, told)
                entry = lines.pick(line, StoreReference(name, number=number))
        return Added(entry, how, tuple(name for name in staged.left_out if name != FILE))

    def record(self, id: str, measured: Measurement) -> Version:
        """Keep scores with a version, whose content and id stay as they are.

        Raises:
            StoreError: the store has no version with this whole id.
        """
        version = self.version(id)
        if version is None:
            raise StoreError(f"the store {self.path} has no version {id}")
        with self.index.write() as db:
            put_measurement(db, id, measured)
        return version

    def remove(self, reference: str) -> Entry:
        """Remove a name, or one of its versions; the content stays until `collect` takes it.

        `rollback` brings a removed name back, and with `to` a removed version, as long as its
        content is there.

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
                others = [one for one in lines.entries(line) if not one.current]
                first = "roll it back first, or " if others else ""
                raise StoreError(f"{line.name} points at {entry}: {first}remove {line.name}")
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
            entry = lines.pick(lines.named(new), StoreReference(new))
            put_event(
                db,
                *(self.clock(), line.line, new, "rename", entry.number, entry.version.id),
                f"from {old}",
            )
        return entry

    def rollback(self, name: str, to: str | int | None = None) -> Entry:
        """Let a name point at an earlier version of its own, or bring back what was removed.

        Args:
            name: one that was removed comes back as it was, unless `to` says otherwise.
            to: a number, or the first digits of an id, also of a version that was removed; without
                it the version with the next lower number.

        Raises:
            StoreError: there is no such name or version, or none before the current one.
        """
        self._require()
        with self.index.write() as db:
            lines = self._lines(db)
            line = lines.named(parse(name).name, removed=True)
            if to is not None:
                entry = lines.pick(line, parse(f"{line.name}@{to}"), dropped=True)
            elif not line.living:
                if not any(e.current for e in lines.entries(line)):
                    raise StoreError(f"{line.name} was removed, and its content was collected")
                entry = lines.pick(line, StoreReference(line.name))
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

    def _describe(self, copy: Path, source: Path) -> Summary:
        """Sum up a copy; what is wrong with it is said of the source, which the user knows."""
        try:
            return self.describe(copy)
        except LorakitError as error:
            raise type(error)(str(error).replace(str(copy), str(source))) from error


def store_of(folder: Path) -> Store | None:
    """The store whose version lies in this folder; None for a folder elsewhere."""
    real = folder.resolve()
    root = real.parent.parent.parent
    if real.parent.parent.name != "objects" or not (root / INDEX).is_file():
        return None
    return Store(root)


def _origin(summary: Summary) -> str:
    """'from invoices@1', where an adapter records what it was made of."""
    names = [str(parent.get("name")) for parent in summary.parents]
    return f"from {', '.join(names)}" if names else ""
