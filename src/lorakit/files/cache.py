"""The user's cache: where it is, how a folder appears in it whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
from filelock import FileLock

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``; the unit is bytes for "download", steps else."""


def no_progress(stage: str, done: int, total: int) -> None:
    """The progress callback that shows nothing."""


def cache_dir() -> Path:
    """The folder of everything that can be fetched or computed again.

    The variable LORAKIT_CACHE overrides the platform's place (``~/.cache/lorakit`` on Linux).
    """
    override = os.environ.get("LORAKIT_CACHE")
    return Path(override) if override else Path(platformdirs.user_cache_dir("lorakit"))


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock that belongs to `target`; another process waits. The system frees it on a kill."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f".{target.name}.lock"):
        yield


def build_folder(target: Path, build: Callable[[Path], None]) -> Path:
    """Return `target`, built by ``build(empty_folder)`` if it is not there yet.

    The folder is filled beside its place, written through to the disk and renamed, all under a
    lock: whoever looks sees nothing or all of it, and two processes build it once. What a killed
    process left is removed by the next one.
    """
    if target.is_dir():
        return target
    with locked(target):
        if target.is_dir():
            return target
        partial = target.parent / f".{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            build(partial)
            for path in partial.rglob("*"):
                if path.is_file():
                    sync(path)
            sync(partial)
            partial.rename(target)
            sync(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def write_atomically(path: Path, text: str) -> None:
    """Replace the file `path` by `text`; a reader meets the old or the new, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    sync(beside)
    beside.replace(path)


def sync(path: Path) -> None:
    """Write a file or a folder's entries through to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle to a folder that can be synced
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
