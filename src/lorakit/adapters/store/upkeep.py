"""Is the store whole? And what in it does nobody need?"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection

from lorakit.adapters.store.index import (
    forget_measurements,
    known_versions,
    put_event,
    version_of,
)
from lorakit.adapters.store.records import Version
from lorakit.adapters.store.store import Store
from lorakit.errors import LorakitError

DAY = 86_400.0
_FREED = """
SELECT version, max(coalesce(dropped, removed, -1)) AS since,
    min(dropped IS NOT NULL OR removed IS NOT NULL) AS free
FROM history JOIN lines USING (line) GROUP BY version HAVING free AND since <= ?
"""


@dataclass(frozen=True)
class Fault:
    """Something that is not as it was stored; `where` is an adapter or a part of the store."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class Collected:
    """What `collect` removed, or would remove.

    Attributes:
        versions: contents that no name's history needs.
        size: their bytes.
        leftovers: what dead processes left: folders never recorded, copies never finished.
    """

    versions: tuple[Version, ...]
    size: int
    leftovers: tuple[str, ...]


def verify(
    store: Store,
    references: Iterable[str] = (),
    *,
    check: Callable[[Version], Iterable[str]] = lambda version: (),
) -> list[Fault]:
    """Hash every stored file again and check the index; an empty list says that all is whole.

    What a killed process left in `staging`, or in `objects` before it could record it, is no
    fault: nothing refers to it.

    Args:
        store: the store.
        references: look at these adapters only; by default at every version of every name, and at
            the index itself.
        check: further sentences about a version whose files are right.

    Raises:
        StoreError: a reference means nothing.
    """
    if not store.index.exists():
        return []
    faults: list[Fault] = []
    chosen = [(str(entry), entry.version) for entry in map(store.resolve, references)]
    if not chosen:
        with store.index.read() as db:
            faults += [Fault(store.index.path.name, what) for what in _index_faults(db)]
            chosen = _named_versions(db, store)
    for where, version in chosen:
        found = store.contents.faults(version.id, version.files)
        if not found:
            try:
                store.describe(version.folder)
                found = list(check(version))
            except LorakitError as error:
                found = [str(error)]
        # One that was collected while this ran is not missing.
        if found and store.version(version.id) is not None:
            faults += [Fault(where, what) for what in found]
    return faults


def _named_versions(db: Connection, store: Store) -> list[tuple[str, Version]]:
    """Every version once, with the first of the names that have it."""
    rows = db.execute(
        "SELECT min(name || '@' || number) AS called, versions.* FROM versions "
        "LEFT JOIN history ON version = id LEFT JOIN names USING (line) "
        "GROUP BY id ORDER BY called"
    )
    return [
        (row["called"] or f"@{row['id'][:12]}", version_of(row, store.contents.objects))
        for row in rows
    ]


def _index_faults(db: Connection) -> list[str]:
    """Damage of the file, and what the tables say that cannot be."""
    found = [row[0] for row in db.execute("PRAGMA integrity_check") if row[0] != "ok"]
    found += [f"{row['table']} refers to nothing" for row in db.execute("PRAGMA foreign_key_check")]
    pointless = db.execute(
        "SELECT name, current FROM names JOIN lines USING (line) LEFT JOIN history "
        "ON history.line = lines.line AND number = current AND dropped IS NULL "
        "WHERE living AND (version IS NULL OR removed IS NOT NULL)"
    )
    found += [f"{row['name']} points at @{row['current']}, which it has not" for row in pointless]
    beyond = db.execute(
        "SELECT line, max(number) AS last FROM history JOIN lines USING (line) "
        "GROUP BY line HAVING last >= next"
    )
    return found + [f"line {row['line']} would give @{row['last']} again" for row in beyond]


def collect(store: Store, *, older_than: float = 14 * DAY, dry_run: bool = False) -> Collected:
    """Remove the contents that no name's history needs, and what dead processes left.

    A content is needed while any name that is there has it among its versions, the current one or
    an earlier one. It is free once every name that had it was removed (`remove NAME`) or dropped
    it (`remove NAME@N`), and goes when that is longer ago than `older_than`. Then a removed name
    cannot be brought back to it; the log still tells of it. Leftovers go at once.

    Args:
        store: the store.
        older_than: seconds; 0 takes all that is free.
        dry_run: say what would go, and remove nothing.
    """
    if not store.index.exists():
        return Collected((), 0, ())
    now = store.clock()
    look = store.index.read if dry_run else store.index.write
    with look() as db:
        ids = [row["version"] for row in db.execute(_FREED, (now - older_than,))]
        rows = [db.execute("SELECT * FROM versions WHERE id = ?", (id,)).fetchone() for id in ids]
        versions = tuple(version_of(row, store.contents.objects) for row in rows)
        if not dry_run:
            for id in ids:
                _forget(db, id, now)
        unknown = store.contents.unknown(known_versions(db) | set(ids))
    leftovers = [_called(path) for path in unknown]
    if not dry_run:
        store.contents.sweep(store.index.write, known_versions)
    staged = store.contents.leftovers(store.index.write, remove=not dry_run)
    size = sum(version.size for version in versions)
    return Collected(versions, size, (*leftovers, *(f"staging/{token}" for token in staged)))


def _called(path: Path) -> str:
    return f"objects/{path.parent.name}/{path.name}"


def _forget(db: Connection, id: str, now: float) -> None:
    """Take a version out of the tables; its folder goes afterwards, as one nobody refers to."""
    lines = db.execute(
        "SELECT line, number, min(name) AS name FROM history JOIN names USING (line) "
        "WHERE version = ? GROUP BY line, number",
        (id,),
    ).fetchall()
    for row in lines:
        put_event(db, now, row["line"], row["name"], "collect", row["number"], id)
    forget_measurements(db, id)
    db.execute("DELETE FROM history WHERE version = ?", (id,))
    db.execute("DELETE FROM versions WHERE id = ?", (id,))
