"""Folders called by the hash of their content, which appear whole or not at all.

    STORE/objects/4f/4f1d…/     one version: adapter_config.json, adapter_model.safetensors, …
    STORE/staging/TOKEN/        what is being written, or removed
    STORE/staging/TOKEN.lock    held by the process that does it, freed by the system on its death

A folder is filled in `staging`, flushed, and renamed into `objects`; one that goes is renamed back
and then removed. Whatever lies in `staging` without a living owner is a leftover.
"""

import contextlib
import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection
from typing import Any

from filelock import FileLock, Timeout

from lorakit.adapters.store.records import StoredFile, place
from lorakit.errors import AdapterError
from lorakit.files.copying import copy_hashed, hash_of
from lorakit.files.whole import move, sync

KEPT = (
    *("README.md", "adapter_config.json", "adapter_model.safetensors", "lorakit.json"),
    # How another trainer wrote its prompts, see `lorakit.adapters.saved_template`.
    *("chat_template.jinja", "chat_template.json", "tokenizer_config.json"),
    # What a run that goes on needs, see `lorakit.adapters.moments` and `lorakit.adapters.trained_rows`.
    *("optimizer.safetensors", "trained_rows.safetensors"),
)
"""The files of an adapter's folder that a store keeps."""

Guard = Callable[[], AbstractContextManager[Connection]]
"""Makes the context in which no other process begins, keeps or sweeps (the index's write lock)."""


@dataclass(frozen=True)
class Staged:
    """A copy of an adapter folder, flushed, beside the place where it will be."""

    id: str
    folder: Path
    files: tuple[StoredFile, ...]
    left_out: tuple[str, ...]


def id_of(files: Iterable[StoredFile]) -> str:
    """A version's id: SHA-256 over the names, sizes and SHA-256 of its files, sorted by name."""
    lines = sorted([file.name, file.size, file.sha256] for file in files)
    return hashlib.sha256(json.dumps(lines, separators=(",", ":")).encode()).hexdigest()


def content_id(folder: str | Path) -> str:
    """The id that an adapter folder has, or would have, in any store."""
    folder = Path(folder)
    return id_of(hash_file(folder / name) for name in KEPT if (folder / name).is_file())


def signature(folder: Path) -> tuple[Any, ...]:
    """Changes when a file of the folder is replaced."""
    parts: list[Any] = [str(folder)]
    for name in KEPT:
        try:
            stat = (folder / name).stat()
        except OSError:
            continue
        parts.append((name, stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return tuple(parts)


def hash_file(path: Path) -> StoredFile:
    """Name, size and SHA-256 of a file."""
    return StoredFile(path.name, *hash_of(path))


class Contents:
    """The folders of a store."""

    def __init__(self, root: Path) -> None:
        self.objects = root / "objects"
        self._staging = root / "staging"

    def folder(self, version: str) -> Path:
        """Where a version lies."""
        return place(self.objects, version)

    @contextlib.contextmanager
    def stage(self, source: Path, guard: Guard) -> Iterator[Staged]:
        """Copy an adapter folder beside its place; what `keep` does not take is removed.

        It is hashed as it is copied: what the id speaks of is what lies here, whatever happens to
        the source meanwhile.

        Raises:
            AdapterError: the source is no folder, or a file of it cannot be read.
        """
        if not source.is_dir():
            raise AdapterError(f"there is no adapter folder {source}")
        inside = {path.name: path for path in sorted(source.iterdir())}
        with self._own(guard) as own:
            folder, files = own / "new", []
            folder.mkdir()
            for name in KEPT:
                if name in inside and inside[name].is_file():
                    copied = copy_hashed(inside.pop(name), folder / name, error=AdapterError)
                    files.append(StoredFile(name, *copied))
            if not files:
                raise AdapterError(f"{source} is no adapter: it has no adapter_config.json")
            sync(folder)
            yield Staged(id_of(files), folder, tuple(files), tuple(inside))

    def keep(self, staged: Staged, *, damaged: bool = False) -> None:
        """Put a staged folder in its place, unless the content is there; inside the guard.

        Args:
            staged: as `stage` made it.
            damaged: what is there is not what it should be, and is replaced.
        """
        there = self.folder(staged.id)
        if there.is_dir():
            if not damaged:
                return
            move(there, staged.folder.with_name("old"))
        there.parent.mkdir(parents=True, exist_ok=True)
        move(staged.folder, there)
        sync(self.objects)

    def faults(self, version: str, files: Collection[StoredFile]) -> list[str]:
        """What differs between a version's folder and its record; each names its file."""
        folder = self.folder(version)
        if not folder.is_dir():
            return [f"{folder} is missing"]
        found = []
        known = {file.name: file for file in files}
        for path in sorted(folder.iterdir()):
            if path.name not in known:
                found.append(f"{path} was never stored")
        for name, file in known.items():
            path = folder / name
            if not path.is_file():
                found.append(f"{path} is missing")
                continue
            try:
                now = hash_file(path)
            except OSError as error:
                found.append(f"{path} cannot be read: {error.strerror}")
                continue
            if now.size != file.size:
                found.append(f"{path} has {now.size:,} bytes; {file.size:,} were stored")
            elif now.sha256 != file.sha256:
                found.append(
                    f"{path} was changed: its SHA-256 is {now.sha256[:12]}…, and "
                    f"{file.sha256[:12]}… was stored"
                )
        if not found and id_of(files) != version:
            found.append(f"{folder}: the id is not the hash of its files")
        return found

    def unknown(self, known: Collection[str]) -> list[Path]:
        """Folders that no version is recorded for: a process died before it could record them."""
        folders = sorted(self.objects.glob("*/*")) if self.objects.is_dir() else []
        return [folder for folder in folders if folder.name not in known]

    def sweep(self, guard: Guard, known: Callable[[Connection], Collection[str]]) -> list[Path]:
        """Remove the folders that no version is recorded for.

        They are renamed out of `objects` while nothing can be kept there, so that a process that
        adds the same content finds it whole or not at all.

        Args:
            guard: the index's write lock.
            known: asks the index for the ids it has.
        """
        with self._own(guard) as own:
            with guard() as db:
                gone = self.unknown(known(db))
                for folder in gone:
                    move(folder, own / folder.name)
            return gone

    def leftovers(self, guard: Guard, *, remove: bool) -> list[str]:
        """What dead processes left in `staging`, removed if asked; a living one's is let alone."""
        if not self._staging.is_dir():
            return []
        found = []
        with guard():
            tokens = sorted({path.name.removesuffix(".lock") for path in self._staging.iterdir()})
            for token in tokens:
                lock = self._lock(token)
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    continue
                found.append(token)
                if remove:
                    shutil.rmtree(self._staging / token, ignore_errors=True)
                    (self._staging / f"{token}.lock").unlink(missing_ok=True)
                lock.release()
        return found

    @contextlib.contextmanager
    def _own(self, guard: Guard) -> Iterator[Path]:
        """A folder in `staging` that belongs to this process for as long as it lives."""
        token = secrets.token_hex(8)
        lock = self._lock(token)
        with guard():  # a sweep between the lock's file and its lock would take it for a leftover
            self.objects.mkdir(exist_ok=True)
            self._staging.mkdir(exist_ok=True)
            lock.acquire()
        try:
            folder = self._staging / token
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(self._staging / token, ignore_errors=True)
            (self._staging / f"{token}.lock").unlink(missing_ok=True)
            lock.release()

    def _lock(self, token: str) -> FileLock:
        return FileLock(self._staging / f"{token}.lock")
