"""Exchange the names of two folders in one step, where the system can do that."""

import ctypes
import errno
import os
import sys
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
# What a system or a file system answers that cannot exchange names.
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names on one file system; whoever looks finds one of the two under each.

    Source: renameat2(2) with RENAME_EXCHANGE, Linux 3.15 and glibc 2.28.

    Returns:
        False where the system or the file system cannot do it; then nothing has changed.

    Raises:
        OSError: it can, but not here, as where one of the names is not there.
    """
    if not sys.platform.startswith("linux"):
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    done = call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    if done == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))
