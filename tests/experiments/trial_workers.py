"""Workers of the trials' tests, found by their processes through PYTHONPATH."""

import os
import time
from pathlib import Path

from lorakit.errors import DataError


def square(spec, where, folder, report):
    report({"kind": "half", "value": spec["x"]})
    (folder / "note.txt").write_text("here")
    print("printed by a worker")
    return {"square": spec["x"] ** 2, "process": os.getpid()}


def fail(spec, where, folder, report):
    raise DataError("rows.jsonl:3: no such column")


def crash(spec, where, folder, report):
    raise ZeroDivisionError("oh")


def kill_itself(spec, where, folder, report):
    os.kill(os.getpid(), 9)


def meet(spec, where, folder, report):
    """Ends once the other has begun: two of them end only where both run at once."""
    import torch  # not for the others: one of them weighs its process

    place = Path(where["place"])
    (place / str(spec["me"])).touch()
    deadline = time.monotonic() + 60
    while len(list(place.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    return {"met": len(list(place.iterdir())), "threads": torch.get_num_threads()}


def memory(spec, where, folder, report):
    lines = Path("/proc/self/status").read_text().splitlines()
    return {"kilobytes": next(int(x.split()[1]) for x in lines if x.startswith("VmHWM"))}


def wait(spec, where, folder, report):
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(600)
    return {}
