"""Files and folders that appear whole or not at all: the one place that writes them.

    PARENT/.NAME.partial-TOKEN/    hidden, beside the place where NAME is wanted
      lock                         held by the process that writes; the system frees it on a kill
      new/NAME                     what is being written
      old/NAME                     what it replaces, where the system cannot exchange two folders

What is written is flushed to the disk and takes its name by one rename. A reader finds what was there
before or all of the new; a full disk or a kill at any instant changes nothing that was there. What a
killed process leaves is hidden, and removed by the next process that writes into the same parent.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lorakit.errors import OutputError
from lorakit.files.exchange import exchange

_STAGE = re.compile(r"\.(?P<name>.+)\.partial-[0-9a-f]{8}")


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
    with explained(file, what), _stage(file) as stage:
        new = stage / "new" / file.name
        fill(new)
        sync(new)
        os.replace(new, file)
    return file


def write_pieces(
    file: Path, pieces: Iterable[bytes], *, what: str = "file", overwrite: bool = False
) -> Path:
    """Write a file piece by piece as they come, so that no more than one is in memory; see `write_file`."""

    def fill(partial: Path) -> None:
        with partial.open("wb") as out:
            out.writelines(pieces)

    return write_file(file, fill, what=what, overwrite=overwrite)


def write_text(file: Path, text: str, *, what: str = "file") -> Path:
    """Replace a file by a text in UTF-8; see `write_file`."""
    return write_file(file, lambda partial: _write(partial, text), what=what, overwrite=True)


def write_json(
    file: Path,
    content: Any,
    *,
    sort_keys: bool = False,
    allow_nan: bool = True,
    what: str = "file",
) -> Path:
    """Replace a file by indented JSON with a newline at its end; see `write_file`.

    Args:
        file: where it shall be.
        content: of JSON's own types.
        sort_keys: order the keys by name rather than as they were given.
        allow_nan: write NaN and infinities, which JSON lacks and Python reads.
        what: names the file in errors.

    Raises:
        OutputError: see `write_file`.
        ValueError: a number is not finite and `allow_nan` is off.
    """
    text = json.dumps(
        content, indent=2, ensure_ascii=False, sort_keys=sort_keys, allow_nan=allow_nan
    )
    return write_text(file, text + "\n", what=what)


def write_folder(
    folder: Path, fill: Callable[[Path], None], *, overwrite: bool = False, what: str = "output"
) -> Path:
    """Let `fill` write the files of a folder, which then takes its name.

    With `overwrite` the old folder and the new one exchange their names in one step where the system
    can do that (Linux). Elsewhere the old one is renamed aside, and a kill between the two renames
    leaves it there until the next process that writes into the same parent puts it back.

    Args:
        folder: where it shall be.
        fill: writes the files into the empty folder that it is given; it may use this module.
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
    with explained(folder, what), _stage(folder) as stage:
        new = stage / "new" / folder.name
        new.mkdir()
        fill(new)
        _open_up(new)
        sync_folder(new)
        _swap(new, folder, stage / "old" / folder.name)
        sync(folder.absolute().parent)
    return folder


def remove_folder(folder: Path) -> None:
    """Remove a folder: whoever looks finds all of it or nothing.

    Raises:
        OutputError: the system refuses, a full disk among the reasons; it is still there.
    """
    try:
        with _stage(folder) as stage:
            os.replace(folder, stage / "new" / folder.name)
    except OSError as error:
        raise OutputError(f"cannot remove {folder}: {error.strerror or error}") from error


def is_stage(path: Path) -> bool:
    """Whether a path is the hidden folder of a process that writes, or wrote until it was killed."""
    return _STAGE.fullmatch(path.name) is not None and path.is_dir()


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
def explained(path: Path, what: str) -> Iterator[None]:
    """Whatever the system refuses within the block is said in words that name the path.

    A file in a folder that is being filled has a hidden path, which means nothing to the user: the
    error of the file becomes that of the folder.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(_words(path, what, error)) from error
    except OutputError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise OutputError(_words(path, what, error.__cause__)) from error.__cause__


def _words(path: Path, what: str, error: OSError) -> str:
    hint = "; make room and try again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    said = error.strerror or str(error)
    return f"cannot write the {what} {path}: {said}{hint}; what was there is unchanged"


@contextlib.contextmanager
def _stage(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` that belongs to this process for as long as it lives."""
    parent = target.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # the parent is a file
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
    sweep(parent)
    while True:
        stage = parent / f".{target.name}.partial-{secrets.token_hex(4)}"
        stage.mkdir()
        lock = FileLock(stage / "lock", thread_local=False)
        try:
            lock.acquire()
            (stage / "new").mkdir()
            (stage / "old").mkdir()
            break
        except FileNotFoundError:  # a sweep took the folder, not locked yet, for a dead process's
            lock.release()
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            lock.release()
            raise
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        lock.release()


def sweep(parent: Path) -> None:
    """Remove what dead processes left in a folder, and put back what they had renamed aside.

    Every writer does it first; who only reads a folder of its own may ask for it.

    It never fails: where it may not write, the writer's own error says more.
    """
    with contextlib.suppress(OSError):
        for stage in parent.glob(".*.partial-*"):
            match = _STAGE.fullmatch(stage.name)
            if match is None or not stage.is_dir():
                continue
            lock = FileLock(stage / "lock")
            try:
                lock.acquire(timeout=0)
            except (Timeout, OSError):
                continue  # its process lives, or another one sweeps
            old, place = stage / "old" / match["name"], parent / match["name"]
            if old.exists() and not place.exists():
                os.replace(old, place)
            shutil.rmtree(stage, ignore_errors=True)
            lock.release()


def _open_up(folder: Path) -> None:
    """Give every file the permissions of an ordinary new one; safetensors' own shut others out."""
    probe = folder.with_name("permissions")
    probe.touch()
    mode = probe.stat().st_mode
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def _swap(new: Path, folder: Path, old: Path) -> None:
    """Put `new` in the place of `folder`; what was there is under `new` or `old` afterwards."""
    if not folder.exists() or not any(folder.iterdir()):
        os.replace(new, folder)
        return
    if exchange(new, folder):
        return
    os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        os.replace(old, folder)
        raise
