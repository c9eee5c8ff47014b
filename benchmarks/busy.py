"""Training beside processes that each keep a core: what is left of the tokens/s of a quiet machine.

    python benchmarks/busy.py --data DATA --rounds 3
    python benchmarks/busy.py --data DATA --contenders lorakit,lorakit:0,lorakit:300000

Each contender is a process of its own that holds its model and takes a few steps when it is its turn;
the others wait for their input. All of them take their turns quiet, beside one process that computes
without end, and beside two (`--beside`), in every round, every second round backwards. Medians over
rounds of real tokens/s are printed, the ratio to the same contender quiet, the ratio to peft's beside
the same processes, and the ratio quiet to the last contender, pair by pair, with the lower end of its
interval (95 %, from a t-distribution over the logarithms).

    lorakit          as it comes: threads wait awake or asleep by what others do (execution/waiting.py)
    lorakit:NUMBER   GOMP_SPINCOUNT=NUMBER: how long a thread waits awake (300000 is libgomp's own)
    lorakit:passive  OMP_WAIT_POLICY=passive
    peft             the careful loop of benchmarks/peft_loop.py; peft:… as for lorakit
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bench
import tables

from lorakit.execution.other_work import OtherWork

MANY = 200  # steps that a contender could take
SETTLE = 4.0  # seconds until everyone has seen that the machine is another: a busy one lasts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds e2e/")
    parser.add_argument("--contenders", default="lorakit,peft,lorakit:300000")
    parser.add_argument("--beside", default="0,1,2", help="processes that compute, commas between")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    parser.add_argument("--batch-size", type=int, default=16, help="E2E rows of a step")
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    options = parser.parse_args()
    names = options.contenders.split(",")
    tasks = [{"contender": name, "data": str(options.data)} for name in names]
    same = bench.session() | {"batch_size": options.batch_size}
    lines: list[bench.Line] = []
    workers = {t["contender"]: Worker(t | {"batch_size": options.batch_size}) for t in tasks}
    try:
        for worker in workers.values():
            worker.loaded()
        for worker in workers.values():
            worker.turn(1)  # warms up
        for turn in range(options.rounds):
            for beside in (int(n) for n in options.beside.split(",")):
                with computing(beside):
                    time.sleep(SETTLE)
                    for name in names if turn % 2 == 0 else reversed(names):
                        done = workers[name].turn(options.steps)
                        line = same | workers[name].known | {"contender": name, "beside": beside}
                        lines.append(line | {"round": turn} | done)
                        bench.note(
                            f"round {turn}, beside {beside} ({done['others']:.1f} cores), {name}: "
                            f"{done['tokens_per_second']:.0f} tokens/s"
                        )
    finally:
        for worker in workers.values():
            worker.end()
    bench.append(options.out, lines)
    print(tables.busy(lines))


class Worker:
    """A contender's process, from its start to its end."""

    def __init__(self, task: bench.Line) -> None:
        _, _, waiting = task["contender"].partition(":")
        own = {} if not waiting else {"GOMP_SPINCOUNT": waiting}
        if waiting == "passive":
            own = {"OMP_WAIT_POLICY": waiting}
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_WAIT"))}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--task", json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=kept | own,
        )
        self.known: bench.Line = {}

    def loaded(self) -> None:
        """Wait until its model is there."""
        self.known = self._read()

    def turn(self, steps: int) -> bench.Line:
        """Real tokens/s of so many steps; the cores that everyone else kept, those beside it included."""
        assert self.process.stdin is not None
        work, began = OtherWork(), time.perf_counter()
        print(steps, file=self.process.stdin, flush=True)
        done = [self._read() for _ in range(steps)]
        wall = time.perf_counter() - began
        tokens, seconds, own = (
            sum(step[name] for step in done) for name in ("tokens", "seconds", "processor_seconds")
        )
        others = (work.cores() or math.nan) - own / wall
        return {"tokens_per_second": tokens / seconds, "others": others}

    def _read(self) -> bench.Line:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a contender ended with {self.process.wait()}")
        answer: bench.Line = json.loads(line)
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def computing(count: int) -> Iterator[None]:
    """So many processes that each keep a core, as long as the context lasts."""
    endless = "while True: pass"
    processes = [subprocess.Popen([sys.executable, "-c", endless]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


class Turns:
    """Says each step of a contender on standard output, and lets it go on when it is its turn."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.left, self.used = 0, 0.0

    def say(self, line: bench.Line) -> None:
        print(json.dumps(line), file=self.out, flush=True)

    def wait(self) -> None:
        """Before a step."""
        while self.left == 0:
            self.left = int(sys.stdin.readline() or sys.exit())
        self.left, self.used = self.left - 1, time.process_time()

    def after(self, event: Any) -> None:
        """After a step."""
        used = time.process_time() - self.used
        self.say({k: event[k] for k in ("tokens", "seconds")} | {"processor_seconds": used})
        self.wait()


def work(given: bench.Line) -> bench.Line:
    """One contender: train for ever, a turn at a time."""
    from lorakit.run.limits import limit_caches

    limit_caches()  # before torch is imported, as the command does
    from contenders import CONTENDERS, lorakit, peft, prepare

    name = given["contender"].partition(":")[0]
    same = {"rows": "e2e", "rank": 8, "seed": 0, "steps": MANY, "held_out": 0}
    task = prepare(given | same, CONTENDERS[name])
    turns = Turns()
    turns.say(
        {"dtype": str(task.model.dtype).removeprefix("torch.")}
        | bench.surroundings(task.model.device, "peft")
    )
    turns.wait()
    {"lorakit": lorakit, "peft": peft}[name](task, turns.after)
    return {}


if __name__ == "__main__":
    bench.run(main, work)
