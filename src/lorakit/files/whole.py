"""A file that appears whole or not at all."""

import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from lorakit.errors import OutputError


def write_file(file: Path, fill: Callable[[Path], None], *, what: str) -> Path:
    """Let `fill` write a hidden file beside the place where it is wanted, then rename it.

    Args:
        file: where it shall be; nothing may be there.
        fill: writes the file whose path it is given.
        what: names the file in errors.

    Raises:
        OutputError: something is there, the disk is full, or writing is not allowed.
    """
    if file.exists():
        raise OutputError(f"{file} exists: give the {what} another name")
    partial = file.absolute().with_name(f".{file.name}.partial-{secrets.token_hex(4)}")
    try:
        file.absolute().parent.mkdir(parents=True, exist_ok=True)
        fill(partial)
        handle = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(partial, file)
    except OSError as error:
        hint = "; make room and try again" if error.errno == errno.ENOSPC else ""
        raise OutputError(f"cannot write the {what} {file}: {error.strerror}{hint}") from error
    finally:
        partial.unlink(missing_ok=True)
    return file
