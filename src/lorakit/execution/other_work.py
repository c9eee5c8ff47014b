"""How many cores other processes keep, and what that means for a run."""

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
# Below this a machine is called quiet: a desktop's own processes, and the clock's ticks of 10 ms.
_QUIET = 0.3


class OtherWork:
    """Cores that other processes kept since this was made.

    The processor time of all processes over wall time, less that of this process (/proc/stat, which counts
    in hundredths of a second: half a second says it to about .05 of a core). What another virtual machine
    took of the processor (steal) is other work too.
    """

    def __init__(self) -> None:
        self._began = _used()

    def cores(self) -> float | None:
        """How many; None where the system does not say."""
        now = _used()
        if self._began is None or now is None:
            return None
        wall, everyone, own = (b - a for a, b in zip(self._began, now, strict=True))
        return max(0.0, (everyone - own) / wall) if wall > 0 else None


def _used() -> tuple[float, float, float] | None:
    """Now; seconds of the processor that everyone used so far; and this process alone."""
    if not _STAT.exists():
        return None
    name, *fields = _STAT.read_text().split("\n", 1)[0].split() or [""]
    if name != "cpu" or len(fields) < 8 or not all(x.isdecimal() for x in fields[:8]):
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(x) for x in fields[:8])
    ticks = user + nice + system + irq + softirq + steal
    return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()


def is_busy(others: float | None, cores: int, threads: int) -> bool:
    """Whether so many threads and other processes' work want more cores than there are."""
    return others is not None and others >= _QUIET and others + threads > cores + _QUIET


def said(others: float | None, cores: int, threads: int) -> str:
    """What others' work means for a run whose forecast is of a quiet machine; '' where it is quiet.

    Args:
        others: cores that other processes keep, see `OtherWork`.
        cores: of this machine.
        threads: that the run computes with.
    """
    if others is None or not is_busy(others, cores, threads):
        return ""
    # The system shares the cores out evenly: threads of so many that want one. Threads that wait for one
    # another get less out of their share, and one for each free core gets more (docs/performance.md).
    share, free = cores / (others + threads), max(1, cores - round(others))
    advice = f"; OMP_NUM_THREADS={free} before the command may take less" if free < threads else ""
    return (
        f"the machine is busy: other processes keep {others:.1f} of {cores} cores, so that training takes "
        f"at least {1 / share:.1f} times as long as that{advice}"
    )
