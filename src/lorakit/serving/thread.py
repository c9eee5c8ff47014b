"""The one thread in which a server computes: loading, trials and steps.

OpenMP gives every thread that computes in parallel a team of its own, and with more team members
than processors all of them sleep between products instead of waiting awake. A base that one thread
has loaded and another runs steps of has two teams: on two cores a step of 32 rows took 83 ms so,
and 49 ms with one.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from lorakit.execution.ending import EndedAtExit

T = TypeVar("T")


class ComputeThread:
    """Does what it is given, one thing after the other, until `end` is called or the process ends."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]
        self._work = queue.SimpleQueue()
        thread = threading.Thread(target=self._run, name="lorakit-engine", daemon=True)
        thread.start()
        self._ending = EndedAtExit(thread, lambda: self._work.put(None))

    def begin(self, do: Callable[[], T]) -> "Future[T]":
        """Have something done; its result, once there is one."""
        future: Future[T] = Future()
        self._work.put((do, future))
        return future

    def call(self, do: Callable[[], T]) -> T:
        """Have something done, and wait for it.

        Raises:
            BaseException: what `do` raises.
        """
        return self.begin(do).result()

    def end(self) -> None:
        """Take no more work; returns when what was given is done, and the thread has ended."""
        self._ending.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            do, future = work
            try:
                future.set_result(do())
            except BaseException as error:
                future.set_exception(error)
            # Whoever waits has it; kept here it would live until there is more work.
            del work, do, future
