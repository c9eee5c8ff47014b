"""A file of lines that grows while work is done: after a kill each line is there whole or not at all."""

import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from lorakit.errors import OutputError
from lorakit.files.whole import explained


class Journal:
    """Lines that are appended and flushed to the disk one by one, by one process at a time.

    What a killed process left of a line is removed when the file is opened again.

    Args:
        path: of the file, which is made where it is not there.
        what: names the file in errors.

    Raises:
        OutputError: another process has it open, or it cannot be written.
    """

    def __init__(self, path: Path, *, what: str = "file") -> None:
        self.path, self._what = path, what
        with explained(path, what):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(f"{path}.lock", thread_local=False)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise OutputError(f"{path} is being written by another process") from None
            self._file = path.open("ab", buffering=0)
            self._file.truncate(_end_of_lines(path))

    def append(self, line: str) -> None:
        """Add a line and flush it to the disk.

        Raises:
            OutputError: the disk is full, or writing is not allowed.
        """
        with explained(self.path, self._what):
            rest = memoryview(f"{line}\n".encode())
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file; it stays where it is."""
        self._file.close()
        self._lock.release()

    def remove(self) -> None:
        """Remove the file: what it stood for is elsewhere now.

        Raises:
            OutputError: the system refuses.
        """
        with explained(self.path, self._what):
            self._file.close()
            self.path.unlink(missing_ok=True)
            self._lock.release()
            Path(self._lock.lock_file).unlink(missing_ok=True)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        if not self._file.closed:
            self.close()


def whole_lines(path: Path) -> Iterator[str]:
    """The lines of a journal without their ends, one at a time; what follows the last end is left out.

    Raises:
        UnicodeDecodeError: a line is no text.
    """
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line[:-1].decode()


def _end_of_lines(path: Path) -> int:
    """Bytes up to the last line end, itself included; read from the end in pieces."""
    with path.open("rb") as file:
        at = file.seek(0, os.SEEK_END)
        while at:
            size = min(at, 1 << 16)
            at = file.seek(at - size)
            if (found := file.read(size).rfind(b"\n")) >= 0:
                return at + found + 1
    return 0
