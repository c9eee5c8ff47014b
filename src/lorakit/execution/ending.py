"""Threads that compute end before the interpreter does.

A daemon thread that wants the interpreter back while the process ends is ended where it stands (Python up
to 3.13), or never runs again (3.14). Where it stands inside one of torch's operations, the C++ code around
it does not allow that, and the process ends with SIGABRT, exit code 134, whatever it had done before (seen
with torch 2.13 on Python 3.11). So each such thread is told to end, and waited for, before that.

Source: Python's C API, PyEval_RestoreThread; docs.python.org/3/c-api/init.html.
"""

import atexit
import contextlib
import threading
from collections.abc import Callable, Generator
from typing import TypeVar
from weakref import WeakSet

T = TypeVar("T")

# Seconds that a thread may take to end: an operation of torch cannot be interrupted, loading a base is many.
_SECONDS = 10.0

_open: "WeakSet[Generator[object, None, None]]" = WeakSet()


def closed_at_exit(pieces: Generator[T, None, None]) -> Generator[T, None, None]:
    """A generator that is closed before the interpreter ends, where nobody has read it to its end.

    Later, what it needs to put things back in order is no longer there.
    """
    _open.add(pieces)
    return pieces


@atexit.register
def _close() -> None:
    for pieces in list(_open):
        with contextlib.suppress(ValueError):  # another thread is reading it
            pieces.close()


class EndedAtExit:
    """What the interpreter does with a thread when it ends: `end` is called, and the thread is waited for.

    Args:
        thread: that computes.
        end: tells it to end; may be called in any thread, more than once.
    """

    def __init__(self, thread: threading.Thread, end: Callable[[], object]) -> None:
        self._thread, self._end = thread, end
        atexit.register(self._at_exit)

    def join(self) -> None:
        """Tell the thread to end and wait until it has; nothing is left to do at exit."""
        self._end()
        if self._thread is not threading.current_thread():
            self._thread.join()
        atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        self._end()
        self._thread.join(_SECONDS)
