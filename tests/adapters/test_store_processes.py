"""Many processes at once, and processes killed at any instant: the store stays whole.

What the store has confirmed is there afterwards. Each worker writes down what it does to names
that are its own; a plain dictionary replays that here, and the store has to say the same.
"""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from store_folders import describe

from lorakit.adapters.store import Store, collect, verify

WORKER = Path(__file__).with_name("store_worker.py")


def start(root, scratch, who, rounds):
    return subprocess.Popen([sys.executable, str(WORKER), root, scratch, who, str(rounds)])


def states(log: Path) -> list[dict[str, str]]:
    """Name -> content after a worker's log: one state, or two where a change was cut off."""
    lines = log.read_text().splitlines()[1:]
    changes = [line.split()[1:] for line in lines if line.startswith("will")]
    ends = [line for line in lines if not line.startswith("will")]
    now: dict[str, str] = {}
    for change, end in zip(changes, ends, strict=False):
        if end == "did":
            now = after(now, *change)
    return [now] if len(changes) == len(ends) else [now, after(now, *changes[-1])]


def after(now, action, name, other, content):
    """The state after a change; '?' is some content that the name has had."""
    then = dict(now)
    if name.startswith("shared"):  # what others do to it is not in this log
        return then
    match action:
        case "add":
            then[name] = content
        case "rename":
            then[other] = then.pop(name, "?")
        case "remove":
            then.pop(name, None)
        case "rollback":
            then[name] = "?"
    return then


def held(store, who):
    """What the store says that a worker's own names mean."""
    return {
        entry.name: json.loads((entry.folder / "adapter_config.json").read_text())["content"]
        for entry in store.list()
        if entry.name.startswith(f"{who}-")
    }


def check(store, scratch, workers):
    assert verify(store) == []
    for who in workers:
        found = held(store, who)
        possible = states(scratch / f"{who}.log")
        assert any(
            found.keys() == state.keys()
            and all(content in ("?", found[name]) for name, content in state.items())
            for state in possible
        ), (who, found, possible)


def test_twenty_processes_at_once(tmp_path):
    root, scratch = tmp_path / "store", tmp_path / "scratch"
    scratch.mkdir()
    workers = {f"w{n}": start(root, scratch, f"w{n}", 12) for n in range(20)}
    assert [process.wait(timeout=120) for process in workers.values()] == [0] * 20
    store = Store(root, describe=describe)
    check(store, scratch, workers)
    done = "".join((scratch / f"{who}.log").read_text() for who in workers)
    assert done.count("did") > 100
    collect(store, older_than=0.0)
    check(store, scratch, workers)
    assert list((root / "staging").iterdir()) == []


def test_a_hundred_kills_at_random_instants(tmp_path):
    root, scratch = tmp_path / "store", tmp_path / "scratch"
    scratch.mkdir()
    draw = random.Random(0)
    store = Store(root, describe=describe)
    killed = []
    for generation in range(10):
        workers = {f"g{generation}w{n}": None for n in range(10)}
        for who in workers:
            workers[who] = start(root, scratch, who, 1_000_000)
        logs = [scratch / f"{who}.log" for who in workers]
        deadline = time.monotonic() + 60
        while not all(log.exists() for log in logs) and time.monotonic() < deadline:
            time.sleep(0.01)
        for process in workers.values():
            time.sleep(draw.uniform(0.0, 0.1))
            process.send_signal(signal.SIGKILL)
        assert [process.wait(timeout=30) for process in workers.values()] == [-signal.SIGKILL] * 10
        killed += workers
        check(store, scratch, killed)
    assert len(killed) == 100
    done = "".join((scratch / f"{who}.log").read_text() for who in killed)
    assert done.count("did") > 200
    assert any(len(states(scratch / f"{who}.log")) == 2 for who in killed)
    collect(store, older_than=0.0)
    check(store, scratch, killed)
    assert list((root / "staging").iterdir()) == []
