"""A process that uses a store until it is told to stop or is killed; imports no torch.

    python store_worker.py STORE SCRATCH WHO ROUNDS

Each change that the store has confirmed is written to SCRATCH/WHO.log, flushed, before the next
begins: a line 'will …' before it, and 'did' after it.
"""

import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from store_folders import describe, make_folder

from lorakit.adapters.store import Store, collect
from lorakit.errors import StoreError

root, scratch, who, rounds = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
assert "torch" not in sys.modules
store = Store(root, describe=describe)
draw = random.Random(who)
log = os.open(scratch / f"{who}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
own = [f"{who}-{n}" for n in range(4)]
shared = [f"shared-{n}" for n in range(3)]
os.write(log, b"ready\n")

for _ in range(rounds):
    name = draw.choice(own + shared)
    other = draw.choice(own if name in own else shared)
    action = draw.choice(["add", "add", "add", "rename", "remove", "rollback", "collect"])
    # Some contents are the same for all, which two may add at once; most are new to the store.
    content = draw.choice([f"c{draw.randrange(6)}", f"{who}-{draw.randrange(10**9)}"])
    folder = make_folder(scratch / who, content)
    os.write(log, f"will {action} {name} {other} {content}\n".encode())
    try:
        if action == "add":
            store.add(folder, name)
        elif action == "rename":
            store.rename(name, other)
        elif action == "remove":
            store.remove(name)
        elif action == "rollback":
            store.rollback(name)
        else:
            collect(store, older_than=0.0)
    except StoreError:
        os.write(log, b"refused\n")
    else:
        os.write(log, b"did\n")
