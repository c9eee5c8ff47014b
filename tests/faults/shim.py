"""Counts what a process writes under one folder, and strikes at the n-th time.

Installed in a forked child alone. An audit hook sees every open for writing, rename, folder made and
name removed, whichever library does it: `Path.write_text`, `os.replace`, `tempfile`, `shutil`. Four
things have no audit event and are wrapped: the bytes that leave for a file, fsync, safetensors' own
writer (it is in Rust) and SQLite's commits. The Rust writer of `tokenizers` is not seen.
"""

import builtins
import errno
import io
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITES = ("open", "write", "rename", "mkdir", "fsync", "tensors", "commit")
REMOVALS = ("remove", "rmdir")
STEP = "step"

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FULL = "No space left on device"


class Shim:
    """What is counted, and the fault.

    Args:
        root: changes under this folder count, and no others.
        trace: gets one line an event, kind and path, before the event happens.
        at: the event, from 1, that is hit; None for none.
        how: "kill" ends the process there; "fail" raises that the disk is full, once.
    """

    def __init__(self, root: Path, trace: Path, at: int | None, how: str) -> None:
        self._root, self._at, self._how, self._seen = str(root), at, how, 0
        self._trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def holds(self, path: Any) -> bool:
        """Whether a path is under the root."""
        return not isinstance(path, int) and absolute(path).startswith(self._root + os.sep)

    def count(self, kind: str, path: Any) -> bool:
        """Count an event; True for the one that is to be hit."""
        name = os.path.relpath(absolute(path), self._root) if path else "."
        os.write(self._trace, f"{kind}\t{name}\n".encode())
        self._seen += 1
        return self._seen == self._at

    def strike(self, path: Any, error: type[Exception] = OSError) -> None:
        """End the process, or raise what a full disk raises."""
        if self._how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if error is OSError:
            raise OSError(errno.ENOSPC, _FULL, os.fspath(path))
        raise error(f"{_FULL} (os error {errno.ENOSPC})")

    def before(self, kind: str, path: Any, error: type[Exception] = OSError) -> None:
        """Count an event that happens whole or not at all."""
        if self.holds(path) and self.count(kind, path):
            self.strike(path, error)


def absolute(path: Any, folder: int = -1) -> str:
    """A path as one text; `folder` is the handle that it is relative to, -1 for none."""
    name = os.fsdecode(path)
    return os.path.join(of_handle(folder), name) if folder >= 0 else os.path.abspath(name)


def of_handle(handle: int) -> str:
    """The path of an open file."""
    return os.readlink(f"/proc/self/fd/{handle}")


def install(shim: Shim) -> None:
    """Put the shim into this process, for good."""
    _wrap_files(shim)
    _wrap_tensors(shim)
    _wrap_commits(shim)
    _wrap_steps(shim)
    sys.addaudithook(lambda event, arguments: _audit(shim, event, arguments))


def _audit(shim: Shim, event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        path, _, flags = arguments
        if flags & _WRITING:
            shim.before("open", path)
    elif event == "os.rename":
        shim.before("rename", arguments[1])
    elif event == "os.mkdir":
        path = absolute(arguments[0], arguments[2])
        if os.path.isdir(os.path.dirname(path)) and not os.path.isdir(path):  # it will be made
            shim.before("mkdir", path)
    elif event in ("os.remove", "os.rmdir"):
        path = absolute(*arguments)
        if os.path.lexists(path):
            shim.before(event.removeprefix("os."), path)


def _wrap_files(shim: Shim) -> None:
    real, fsync, sendfile = io.open, os.fsync, os.sendfile

    class CountedFile(io.FileIO):
        """A file of which each piece that leaves the buffer counts: half of it may be the last."""

        def write(self, data: Any) -> int:
            if shim.count("write", self.name):
                content = memoryview(data).cast("B")
                super().write(content[: len(content) // 2])
                shim.strike(self.name)
            return super().write(data)

    def counted(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        if not set(mode) & set("wax+") or not shim.holds(file):
            return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = CountedFile(os.fspath(file), mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        inner = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return inner
        return io.TextIOWrapper(inner, encoding, errors, newline, line_buffering=buffering == 1)

    def synced(handle: int) -> None:
        path = of_handle(handle)
        if not os.path.isdir(path):  # a full disk shows in the entries of a folder at the rename
            shim.before("fsync", path)
        fsync(handle)

    def sent(out: int, *arguments: Any, **named: Any) -> int:
        shim.before("write", of_handle(out))
        return sendfile(out, *arguments, **named)

    builtins.open = io.open = counted
    os.fsync, os.sendfile = synced, sent


def _wrap_tensors(shim: Shim) -> None:
    import safetensors.torch
    from safetensors import SafetensorError

    real = safetensors.torch.serialize_file

    def counted(tensors: Any, filename: Any, *arguments: Any, **named: Any) -> None:
        hit = shim.holds(filename) and shim.count("tensors", filename)
        real(tensors, filename, *arguments, **named)
        if hit:
            os.truncate(filename, os.path.getsize(filename) // 2)
            shim.strike(filename, SafetensorError)

    safetensors.torch.serialize_file = counted


def _wrap_commits(shim: Shim) -> None:
    real = sqlite3.connect

    class Counted(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            if sql == "COMMIT" and self.total_changes and shim.count("commit", "index"):
                shim.strike("index", sqlite3.OperationalError)
            return super().execute(sql, *arguments)

    def connect(*arguments: Any, **named: Any) -> sqlite3.Connection:
        return real(*arguments, **{"factory": Counted, **named})

    sqlite3.connect = connect


def _wrap_steps(shim: Shim) -> None:
    from lorakit.training.course import Course

    real: Callable[..., None] = Course.advance

    def advance(self: Course, *arguments: Any) -> None:
        if shim.count(STEP, ""):
            shim.strike("a step")
        real(self, *arguments)

    Course.advance = advance
