"""A folder that appears whole or not at all."""

import errno
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from lorakit.errors import OutputError


def write_folder(
    folder: Path, fill: Callable[[Path], None], *, overwrite: bool = False, what: str = "output"
) -> Path:
    """Fill a folder beside the place where it is wanted, flush it to the disk, then rename it.

    Whatever happens on the way, what was there before stays. With `overwrite` the old folder is
    renamed aside, the new one takes its name, and the old one is removed: a kill between the two
    renames leaves both, whole, under hidden names beside `folder`.

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
    try:
        partial.mkdir(parents=True)
        fill(partial)
        _open_up(partial)
        for file in sorted(partial.rglob("*")):
            _sync(file)
        _sync(partial)
        _swap(partial, folder)
        _sync(folder.parent)
    except OSError as error:
        raise OutputError(_explain(folder, what, error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


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


def _explain(folder: Path, what: str, error: OSError) -> str:
    hint = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "; make room and try again"
    return f"cannot write the {what} {folder}: {error.strerror}{hint}; what was there is unchanged"


def _beside(folder: Path, what: str) -> Path:
    """A hidden name beside the folder that nobody else has: several processes may write."""
    return folder.absolute().with_name(f".{folder.name}.{what}-{secrets.token_hex(4)}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
