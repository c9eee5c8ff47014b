"""Runs a program that ends with its parent: `python -m lorakit.serving.vllm.tied FOLDER… -- COMMAND…`.

The parent holds the other end of standard input. When it closes it, or is killed, the program is
asked to end, then killed with all its processes; then the folders are removed, of which the first is
where it works. The program's process id is the one line on standard output; what the program prints
goes to standard error. It has a session of its own, so that Ctrl-C is for the parent alone.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

GRACE = 8.0
"""Seconds from being asked to end to being killed."""


def main(arguments: list[str]) -> int:
    """Run the command; its exit code, as a shell would give it."""
    at = arguments.index("--")
    folders, command = arguments[:at], arguments[at + 1 :]
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        cwd=folders[0],  # not where the user is, where a folder may be called like a module
    )
    print(child.pid, flush=True)
    gone = threading.Event()
    threading.Thread(target=_end_with_parent, args=(child, gone), daemon=True).start()
    code = child.wait()
    end_group(child.pid)  # a program that fell may have left processes of its own
    if gone.is_set():
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    return code if code >= 0 else 128 - code


def end_group(leader: int) -> None:
    """Kill what is left of a program and of what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _end_with_parent(child: "subprocess.Popen[bytes]", gone: threading.Event) -> None:
    while os.read(0, 1):
        pass
    gone.set()
    child.terminate()
    until = time.monotonic() + GRACE
    while child.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    end_group(child.pid)


if __name__ == "__main__":
    # The parent's signals are not this process's: it ends when standard input does.
    signal.signal(signal.SIGTERM, lambda *_: None)
    sys.exit(main(sys.argv[1:]))
