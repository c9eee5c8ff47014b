"""What the tables say of names and their lines, inside a transaction of the caller."""

from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection

from lorakit.adapters.store.index import version_of
from lorakit.adapters.store.records import Entry, Version
from lorakit.adapters.store.references import StoreReference
from lorakit.errors import StoreError, did_you_mean


@dataclass(frozen=True)
class NameLine:
    """An adapter's history, under one of its names.

    Attributes:
        line: its number in the index.
        name: the name it was asked for by.
        current: number of the version it points at.
        next: the number that the next version gets.
        living: whether the adapter is called so now.
        removed: when it was removed, or None.
    """

    line: int
    name: str
    current: int
    next: int
    living: bool
    removed: float | None


class Lines:
    """The names of a store in one transaction.

    Args:
        db: the transaction.
        store: the store's folder, for messages.
        objects: the folder of its contents.
    """

    def __init__(self, db: Connection, store: Path, objects: Path) -> None:
        self._db = db
        self._store = store
        self._objects = objects

    def find(self, name: str) -> NameLine | None:
        """The line that a name has, or had."""
        row = self._db.execute(
            "SELECT line, name, current, next, living, removed FROM names JOIN lines USING (line) "
            "WHERE name = ?",
            (name,),
        ).fetchone()
        if row is None:
            return None
        line, _, current, following, living, removed = row
        return NameLine(line, name, current, following, bool(living), removed)

    def named(self, name: str, *, removed: bool = False) -> NameLine:
        """The line of a name that is there or, if asked, was removed.

        Raises:
            StoreError: there is none; the message says what became of it, or which names are near.
        """
        line = self.find(name)
        if line is not None and (line.living or (removed and self.current_name(line) is None)):
            return line
        if line is not None and (now := self.current_name(line)):
            raise StoreError(f"the adapter {name!r} is called {now!r} now")
        if line is not None:
            raise StoreError(
                f"the adapter {name!r} was removed; `lorakit adapters rollback {name}` brings it "
                "back while its content is there"
            )
        names = [row["name"] for row in self._db.execute("SELECT name FROM names WHERE living")]
        raise StoreError(f"no adapter {name!r} in {self._store}; {did_you_mean(name, names)}")

    def current_name(self, line: NameLine) -> str | None:
        """What the adapter is called now; None where it was removed."""
        row = self._db.execute(
            "SELECT name FROM names WHERE line = ? AND living", (line.line,)
        ).fetchone()
        return str(row["name"]) if row else None

    def entries(self, line: NameLine, *, dropped: bool = False) -> tuple[Entry, ...]:
        """The versions that a line has, by number; if asked, those that were removed of it too."""
        rows = self._db.execute(
            "SELECT number, versions.* FROM history JOIN versions ON versions.id = version "
            "WHERE line = ? AND (? OR dropped IS NULL) ORDER BY number",
            (line.line, dropped),
        )
        return tuple(
            Entry(
                line.name,
                row["number"],
                version_of(row, self._objects),
                row["number"] == line.current,
            )
            for row in rows
        )

    def pick(self, line: NameLine, asked: StoreReference, *, dropped: bool = False) -> Entry:
        """The version of a line that a reference means.

        Args:
            line: of the name.
            asked: what was written.
            dropped: whether a version that was removed may be meant.

        Raises:
            StoreError: there is none, or more than one.
        """
        entries = self.entries(line, dropped=dropped)
        if asked.number is not None:
            found = [entry for entry in entries if entry.number == asked.number]
            what = f"{line.name}@{asked.number}"
        elif asked.prefix is not None:
            found = [entry for entry in entries if entry.version.id.startswith(asked.prefix)]
            what = f"{line.name}@{asked.prefix}"
        else:
            found = [entry for entry in entries if entry.current]
            what = line.name
        if len(found) == 1:
            return found[0]
        has = ", ".join(f"@{entry.number} ({entry.version.short})" for entry in entries[-8:])
        problem = "means several versions" if found else "is not in the store"
        if not found and not dropped:
            gone = {str(each.number) for each in self.entries(line, dropped=True)}
            if str(asked.number) in gone:
                raise StoreError(
                    f"{what} was removed; `lorakit adapters rollback {line.name} --to "
                    f"{asked.number}` brings it back while its content is there"
                )
        raise StoreError(f"{what} {problem}; {line.name} has {has or 'none'}")

    def by_id(self, prefix: str) -> Entry:
        """The version, of whatever name, whose id begins so.

        Raises:
            StoreError: there is none, or more than one.
        """
        rows = self._db.execute(
            "SELECT * FROM versions WHERE id >= ? AND id < ? LIMIT 2",
            (prefix, f"{prefix}g"),  # 'g' comes after the hexadecimal digits
        ).fetchall()
        if len(rows) != 1:
            problem = "more than one version" if rows else "no version"
            raise StoreError(f"the store {self._store} has {problem} that begins @{prefix}")
        return Entry("", 0, version_of(rows[0], self._objects))

    def version(self, id: str) -> Version | None:
        """The version with this whole id."""
        row = self._db.execute("SELECT * FROM versions WHERE id = ?", (id,)).fetchone()
        return version_of(row, self._objects) if row else None

    def with_file(self, sha256: str) -> Version | None:
        """The first version with a file of this hash."""
        row = self._db.execute(
            "SELECT * FROM versions WHERE instr(files, ?) ORDER BY added LIMIT 1", (sha256,)
        ).fetchone()
        return version_of(row, self._objects) if row else None

    def point(self, name: str, version: str) -> tuple[NameLine, int, str]:
        """Let a name point at a version that is recorded.

        Returns:
            The line, the version's number, and "new", "again" or "unchanged", see `Added`.
        """
        line = self.find(name)
        if line is None or (not line.living and self.current_name(line) is not None):
            # A name whose adapter was renamed away starts anew, above the numbers it had.
            begun = self._begin(name, line.next if line else 1, version)
            return begun, begun.current, "new"
        known = self._number(line, version)
        if known == line.current and line.living:
            return line, known, "unchanged"
        number = self._put(line, version, known)
        self.aim(line, number)
        return self._again(name), number, "new" if known is None else "again"

    def beside(self, name: str, version: str) -> tuple[NameLine, int, str]:
        """Record a version under a name that goes on pointing at another one.

        Returns:
            As `point`; "beside" is a version that the name does not point at.

        Raises:
            StoreError: there is no such name, so that nothing could stay current.
        """
        line = self.named(name)
        known = self._number(line, version)
        if known == line.current:
            return line, known, "unchanged"
        number = self._put(line, version, known)
        self._db.execute(
            "UPDATE lines SET next = max(next, ? + 1) WHERE line = ?", (number, line.line)
        )
        return self._again(name), number, "beside"

    def _number(self, line: NameLine, version: str) -> int | None:
        row = self._db.execute(
            "SELECT number FROM history WHERE line = ? AND version = ?", (line.line, version)
        ).fetchone()
        return int(row["number"]) if row else None

    def _put(self, line: NameLine, version: str, known: int | None) -> int:
        """A version's number in a line: the one that it has had, or the next."""
        number = line.next if known is None else known
        if known is not None:
            self._db.execute(
                "UPDATE history SET dropped = NULL WHERE line = ? AND number = ?",
                (line.line, number),
            )
        else:
            self._db.execute(
                "INSERT INTO history VALUES (?, ?, ?, NULL)", (line.line, number, version)
            )
        return number

    def aim(self, line: NameLine, number: int) -> None:
        """Let a line point at one of its numbers; what was removed of the two is there again."""
        self._db.execute(
            "UPDATE lines SET current = ?, next = max(next, ? + 1), removed = NULL WHERE line = ?",
            (number, number, line.line),
        )
        self._db.execute(
            "UPDATE history SET dropped = NULL WHERE line = ? AND number = ?", (line.line, number)
        )
        self._db.execute("UPDATE names SET living = 1 WHERE name = ?", (line.name,))

    def _begin(self, name: str, first: int, version: str) -> NameLine:
        made = self._db.execute("INSERT INTO lines VALUES (NULL, ?, ?, NULL)", (first, first + 1))
        self._db.execute(
            "INSERT INTO names VALUES (?, ?, 1) "
            "ON CONFLICT (name) DO UPDATE SET line = excluded.line, living = 1",
            (name, made.lastrowid),
        )
        self._db.execute(
            "INSERT INTO history VALUES (?, ?, ?, NULL)", (made.lastrowid, first, version)
        )
        return self._again(name)

    def _again(self, name: str) -> NameLine:
        line = self.find(name)
        assert line is not None
        return line
