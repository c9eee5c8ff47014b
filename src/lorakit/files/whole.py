"""Files and folders that appear whole or not at all: the one place that writes them.

What is written lies beside its place under a hidden name, is flushed to the disk, and takes its name by
one rename. A reader finds what was there before or all of the new; a full disk or a kill at any instant
changes nothing that was there.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lorakit.errors import OutputError


def write_file(
    file: Path, fill: Callable[[Path], None], *, what: str = "file", overwrite: bool = False
) -> Path:
    """Let `fill` write a file, which then takes its name.

    Args:
        file: where it shall be; the folder that it lies in is made.
        fill: writes the file whose path it is given.
        what: names the file in errors.
        overwrite: replace a file that is there.

    Raises:
        OutputError: something is there, the disk is full, or writing is not allowed.
    """
    if file.exists() and not overwrite:
        raise OutputError(f"{file} exists: give the {what} another name")
    partial = _beside(file, "partial")
    with _explained(file, what):
        try:
            file.absolute().parent.mkdir(parents=True, exist_ok=True)
            fill(partial)
            sync(partial)
            os.replace(partial, file)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
    return file


def write_text(file: Path, text: str, *, what: str = "file") -> Path:
    """Replace a file by a text in UTF-8; see `write_file`."""
    return write_file(file, lambda partial: _write(partial, text), what=what, overwrite=True)


def write_json(file: Path, content: Any, *, what: str = "file") -> Path:
    """Replace a file by indented JSON with a newline at its end; see `write_file`."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return write_text(file, text, what=what)


def write_folder(
    folder: Path, fill: Callable[[Path], None], *, overwrite: bool = False, what: str = "output"
) -> Path:
    """Let `fill` write the files of a folder, which then takes its name.

    With `overwrite` the old folder is renamed aside, the new one takes its name, and the old one is
    removed: a kill between the two renames leaves both, whole, under hidden names beside `folder`.

    Args:
        folder: where it shall be.
        fill: writes the files into the folder that it is given.
        overwrite: replace a folder that holds something.
        what: names the folder in errors.

    Raises:
        OutputError: the folder holds something and `overwrite` is off, the path is a file, the
            disk is full, or writing is not allowed.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; the {what} needs a folder")
    if not overwrite and folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty: give the {what} another folder")
    partial = _beside(folder, "partial")
    with _explained(folder, what):
        try:
            partial.mkdir(parents=True)
            fill(partial)
            _open_up(partial)
            sync_folder(partial)
            _swap(partial, folder)
            sync(folder.absolute().parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def leftovers(folder: Path) -> list[Path]:
    """What writers that were killed left in a folder under hidden names, and nobody will finish.

    A writer that is still alive has such names too: ask only where one process writes.
    """
    return sorted(path for path in folder.glob(".*") if _HIDDEN.fullmatch(path.name))


def remove_leftovers(folder: Path) -> None:
    """Remove the `leftovers` of a folder."""
    for path in leftovers(folder):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def move(source: Path, target: Path) -> None:
    """Let a file or folder that is whole take another name on the same disk, and its place say so.

    Raises:
        OSError: the system refuses.
    """
    os.replace(source, target)
    sync(target.absolute().parent)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle to a folder that can be flushed
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Flush everything in a folder to the disk."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _explained(path: Path, what: str) -> Iterator[None]:
    """Whatever the system refuses within the block is said in words that name the path."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "; make room and try again" if full else ""
        raise OutputError(
            f"cannot write the {what} {path}: {error.strerror or error}{hint}; what was there is "
            "unchanged"
        ) from error


def _open_up(partial: Path) -> None:
    """Give every file the permissions of an ordinary new one; safetensors' own shut others out."""
    probe = partial / ".permissions"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for file in partial.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def _swap(partial: Path, folder: Path) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        os.replace(partial, folder)
        return
    aside = _beside(folder, "replaced")
    os.replace(folder, aside)
    try:
        os.replace(partial, folder)
    except OSError:
        os.replace(aside, folder)
        raise
    shutil.rmtree(aside)


_HIDDEN = re.compile(r"\..+\.(partial|replaced)-[0-9a-f]{8}")  # as `_beside` makes them


def _beside(path: Path, what: str) -> Path:
    """A hidden name beside the path that nobody else has: several processes may write."""
    return path.absolute().with_name(f".{path.name}.{what}-{secrets.token_hex(4)}")
