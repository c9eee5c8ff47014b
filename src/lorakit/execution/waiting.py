"""How threads wait for one another: awake on a quiet machine, asleep on a busy one.

A product is computed by a team of threads (libgomp's, which torch brings), and whoever is done first waits.
libgomp lets it wait awake for some milliseconds, which is best where every thread has a core: waking a
sleeper costs 50 µs, and a step has some thousand products. Where another process keeps a core it is the
worst: the awake one holds the core that the late one needs. `GOMP_SPINCOUNT` and `OMP_WAIT_POLICY` choose
once, before torch is loaded. But libgomp itself sleeps almost at once while it manages more threads than
there are cores, and asks that anew each time. So a second team, which computes nothing, is held while other
processes keep a core, and is let go of when they do not. The threads that compute stay the same, and so do
all results, to the bit.

Source: libgomp, config/linux/wait.h (do_spin), team.c (gomp_managed_threads), env.c; GCC 5 to 15.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from lorakit.execution.ending import EndedAtExit
from lorakit.execution.other_work import OtherWork, is_busy

# Seconds between two looks. A look reads one line of /proc/stat.
_PAUSE = 1.0
# Looks in a row at a quiet machine, until threads wait awake again.
_QUIET_LOOKS = 2
# Where a user has chosen how threads wait, nothing is changed.
_CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")

_watching = threading.Lock()
_watcher: threading.Thread | None = None
_ended = threading.Event()
# Cores that others leave, while the machine is busy.
_free: int | None = None


def watch() -> None:
    """Begin to look at the machine, once for the process; nothing where libgomp's team has no other.

    That is: one thread alone, a system without /proc, another OpenMP than libgomp, or one whose waiting
    was set by `OMP_WAIT_POLICY` or `GOMP_SPINCOUNT`.
    """
    global _watcher
    with _watching:
        if _watcher is not None or torch.get_num_threads() < 2:
            return
        if any(name in os.environ for name in _CHOSEN) or _libgomp() is None:
            return
        _watcher = threading.Thread(
            target=_look, args=(torch.get_num_threads(),), name="lorakit-waiting", daemon=True
        )
        _watcher.start()
        EndedAtExit(_watcher, _ended.set)


def team(threads: int) -> int:
    """Of so many threads those that have a core now; all of them on a quiet machine, one at least.

    For work whose last bits depend on what else happens anyway, such as serving: sums may be taken in
    another order by another number of threads.
    """
    return threads if _free is None else min(threads, _free)


def _look(threads: int) -> None:
    """Hold the second team while the machine is busy, for as long as the process lives."""
    global _free
    cores = os.cpu_count() or 1
    second: SecondTeam | None = None
    quiet = 0
    while True:
        work = OtherWork()
        if _ended.wait(_PAUSE):
            break
        others = work.cores()
        busy = is_busy(others, cores, threads)
        quiet = 0 if busy else quiet + 1
        if busy:
            # Where others want every core, half of them: the system shares the cores out evenly.
            _free = max(1, cores // 2, cores - round(others or 0.0))
            second = second or SecondTeam.hold(threads)
        elif quiet >= _QUIET_LOOKS and second is not None:
            second.let_go()
            second, _free = None, None
    if second is not None:
        second.let_go()


class SecondTeam:
    """A team of threads that sleeps; while it is there, libgomp has more threads than cores."""

    def __init__(self, run: Callable[[], None]) -> None:
        self._end, self._there = threading.Event(), threading.Event()
        self._run = run
        self._thread = threading.Thread(target=self._hold, name="lorakit-second-team", daemon=True)
        self._thread.start()
        self._there.wait()

    @classmethod
    def hold(cls, threads: int) -> "SecondTeam | None":
        """Hold one beside a team of so many threads; None where there is no libgomp."""
        library = _libgomp()
        if library is None:
            return None
        # free(NULL) does nothing, in every thread of the team. Both teams together have two threads
        # more than this process has cores; the thread that makes the second is not counted.
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
        parallel = library.GOMP_parallel
        parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        size = max(2, len(os.sched_getaffinity(0)) - threads + 3)
        return cls(lambda: parallel(nothing, None, size, 0))

    def let_go(self) -> None:
        """End its threads; returns when they have ended."""
        self._end.set()
        self._thread.join()

    def _hold(self) -> None:
        self._run()
        self._there.set()
        self._end.wait()  # the team ends with the thread that made it


def _libgomp() -> ctypes.CDLL | None:
    """The libgomp that torch computes with: the one of this process that lies in torch's folder, or the
    only one."""
    maps = Path("/proc/self/maps")
    if not maps.exists() or "OpenMP" not in torch.__config__.parallel_info():
        return None
    words = [line.split() for line in maps.read_text().splitlines()]
    paths = list(dict.fromkeys(w[5] for w in words if len(w) > 5 and "libgomp" in w[5]))
    own = [path for path in paths if Path(path).is_relative_to(Path(torch.__file__).parent)]
    chosen = own or paths
    if len(chosen) != 1:
        return None
    library = ctypes.CDLL(chosen[0])
    return library if hasattr(library, "GOMP_parallel") else None
