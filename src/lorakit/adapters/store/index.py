"""The index: SQLite tables that say which versions there are and which name means which.

    versions   one row a content: id, when, its files, its summary (both JSON)
    lines      one row an adapter's history: the number that is current, the next number to give
    names      name -> line; a name that was renamed away or removed stays, and is not `living`
    history    (line, number) -> version; a number is never given twice
    events     what happened, in order
    measurements   scores of a version, recorded later; made with the first of them

A change is one transaction under SQLite's write lock: after a kill at any instant it is there
whole or not at all. The journal is a file beside (not WAL), which works on network file systems
too. No row holds a tensor, and no file is opened under the lock.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from sqlite3 import Connection, Row

from lorakit.adapters.measurements import Measurement
from lorakit.adapters.store.records import StoredFile, Version
from lorakit.adapters.store.summary import Summary
from lorakit.errors import OutputError, StoreError

INDEX = "index.sqlite"
_FORMAT = 1
_PATIENCE = 120.0  # seconds that a process waits for others' changes
_TABLES = """
CREATE TABLE versions (id TEXT PRIMARY KEY, added REAL NOT NULL, size INTEGER NOT NULL,
    files TEXT NOT NULL, summary TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE lines (line INTEGER PRIMARY KEY, current INTEGER NOT NULL, next INTEGER NOT NULL,
    removed REAL);
CREATE TABLE names (name TEXT PRIMARY KEY, line INTEGER NOT NULL REFERENCES lines,
    living INTEGER NOT NULL) WITHOUT ROWID;
CREATE UNIQUE INDEX one_living_name ON names (line) WHERE living;
CREATE TABLE history (line INTEGER NOT NULL REFERENCES lines, number INTEGER NOT NULL,
    version TEXT NOT NULL REFERENCES versions, dropped REAL,
    PRIMARY KEY (line, number), UNIQUE (line, version)) WITHOUT ROWID;
CREATE INDEX by_version ON history (version);
CREATE TABLE events (event INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL,
    line INTEGER NOT NULL, name TEXT NOT NULL, action TEXT NOT NULL, number INTEGER, version TEXT,
    note TEXT NOT NULL);
CREATE INDEX by_line ON events (line);
"""


class Index:
    """The index of a store.

    Args:
        root: the store's folder.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / INDEX

    def exists(self) -> bool:
        """Whether there is one.

        Raises:
            StoreError: the folder is a file, or holds something that is no store.
        """
        root = self.path.parent
        if self.path.is_file():
            return True
        if root.exists() and not root.is_dir():
            raise StoreError(f"{root} is a file; a store is a folder")
        inside = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
        if inside and not self.path.is_file():  # another process may have begun it just now
            raise StoreError(
                f"{root} is no store: it holds {', '.join(inside[:3])}, and no {INDEX}"
            )
        return self.path.is_file()

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent look at the tables; what others change meanwhile is not seen."""
        with self._open("rw") as db:
            db.execute("BEGIN")
            yield db
            db.execute("COMMIT")

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """The only change at this time: kept when the block ends, dropped when it raises."""
        if not self.exists():
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"cannot make {self.path.parent}: {error.strerror}") from error
        with self._open("rwc") as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    @contextlib.contextmanager
    def _open(self, mode: str) -> Iterator[Connection]:
        """A connection whose own errors are ours; closed at the end."""
        try:
            uri = f"{self.path.absolute().as_uri()}?mode={mode}"
            db = sqlite3.connect(uri, uri=True, timeout=_PATIENCE, isolation_level=None)
            with contextlib.closing(db):
                db.row_factory = Row
                db.execute("PRAGMA foreign_keys = ON")
                if _format(db) == 0:
                    _make_tables(db)
                if _format(db) != _FORMAT:
                    raise StoreError(f"{self.path} is of format {_format(db)}; use a newer lorakit")
                yield db
        except sqlite3.OperationalError as error:
            raise OutputError(f"{self.path}: {error}; nothing was changed") from error
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{self.path} is damaged ({error}); the adapters themselves lie in "
                f"{self.path.parent / 'objects'}, whole: add them to a new store"
            ) from error


def _format(db: Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _make_tables(db: Connection) -> None:
    """Also in a file that a killed process made and left empty."""
    db.execute("BEGIN IMMEDIATE")
    if _format(db) == 0:
        for statement in _TABLES.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {_FORMAT}")
    db.execute("COMMIT")


def version_of(row: Row, objects: Path) -> Version:
    """The version in a row with the columns of `versions`; its folder lies in `objects`."""
    return Version(
        row["id"],
        row["added"],
        row["size"],
        row["files"],
        Summary.from_dict(json.loads(row["summary"])),
        objects,
    )


def put_version(
    db: Connection, id: str, added: float, files: tuple[StoredFile, ...], summary: Summary
) -> None:
    """Record a content, unless it is recorded."""
    db.execute(
        "INSERT OR IGNORE INTO versions VALUES (?, ?, ?, ?, ?)",
        (
            id,
            added,
            sum(file.size for file in files),
            json.dumps([astuple(file) for file in files]),
            json.dumps(summary.to_dict()),
        ),
    )


def put_event(
    db: Connection,
    at: float,
    line: int,
    name: str,
    action: str,
    number: int | None = None,
    version: str | None = None,
    note: str = "",
) -> None:
    """Record what happened."""
    db.execute(
        "INSERT INTO events (at, line, name, action, number, version, note) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (at, line, name, action, number, version, note),
    )


def put_measurement(db: Connection, version: str, measured: Measurement) -> None:
    """Keep scores of a version, unless the same are kept."""
    db.execute(
        "CREATE TABLE IF NOT EXISTS measurements (version TEXT NOT NULL, at REAL NOT NULL, "
        "content TEXT NOT NULL, UNIQUE (version, content))"
    )
    content = json.dumps(measured.to_dict(), sort_keys=True)
    db.execute(
        "INSERT OR IGNORE INTO measurements VALUES (?, ?, ?)", (version, measured.at, content)
    )


def measurements_of(db: Connection) -> dict[str, tuple[Measurement, ...]]:
    """The recorded scores of every version that has some, oldest first."""
    found: dict[str, tuple[Measurement, ...]] = {}
    if _has_measurements(db):
        for row in db.execute("SELECT version, content FROM measurements ORDER BY at"):
            one = Measurement.from_dict(json.loads(row["content"]))
            found[row["version"]] = (*found.get(row["version"], ()), one)
    return found


def forget_measurements(db: Connection, version: str) -> None:
    """Drop the recorded scores of a version."""
    if _has_measurements(db):
        db.execute("DELETE FROM measurements WHERE version = ?", (version,))


def _has_measurements(db: Connection) -> bool:
    found = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'measurements'").fetchone()
    return found is not None


def known_versions(db: Connection) -> set[str]:
    """Ids of all versions."""
    return {row["id"] for row in db.execute("SELECT id FROM versions")}
