"""The user's cache: where it is, and how a folder is built in it once."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
from filelock import FileLock

from lorakit.files.whole import write_folder

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

    Under a lock: two processes build it once, and whoever looks sees nothing or all of it.

    Raises:
        OutputError: it cannot be written.
    """
    if target.is_dir():
        return target
    with locked(target):
        if not target.is_dir():
            write_folder(target, build, what="cache folder")
    return target
