"""A file's SHA-256, and a copy that is hashed while it is made."""

import hashlib
import os
from pathlib import Path

from lorakit.errors import InputError, OutputError

_CHUNK = 1 << 20


def hash_of(file: Path) -> tuple[int, str]:
    """A file's size in bytes and its SHA-256 in hex.

    Raises:
        OSError: it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def copy_hashed(source: Path, target: Path, *, error: type[InputError]) -> tuple[int, str]:
    """Copy a file to a new name, synced; what is hashed are the very bytes that were written.

    Args:
        source: the file.
        target: in a folder that becomes visible as a whole; nothing may be there.
        error: the error where the source cannot be read, of the caller's own kind.

    Returns:
        The size in bytes and the SHA-256 in hex.

    Raises:
        InputError: of the kind given: the source cannot be read.
        OutputError: the copy cannot be written.
    """
    digest, size = hashlib.sha256(), 0
    try:
        read = source.open("rb")
    except OSError as problem:
        raise error(f"{source} cannot be read: {problem.strerror}") from problem
    try:
        with read, target.open("xb") as write:
            while chunk := read.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                write.write(chunk)
            write.flush()
            os.fsync(write.fileno())
    except OSError as problem:
        raise OutputError(f"cannot copy {source} to {target}: {problem.strerror}") from problem
    return size, digest.hexdigest()
