"""Rows answered by `lorakit generate --data`: the same file after kills, and memory that does not grow.

    python benchmarks/answer_rows.py --rows 100000 --few 10000 --out benchmarks/results/answer_rows.jsonl

A tiny random llama answers --rows prompts of mixed lengths. One run is left alone. Another is ended by
SIGKILL twice, at a third and at two thirds, and resumed each time; its file must have the same bytes.
The peak is the largest resident size (VmHWM) of the process, once for --few rows and once for all:
what grows with the rows would show between the two.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

WORDS = ("lamp", "desk", "river", "stone", "cloud", "paper", "window", "garden")
TOKENS = 2


def make(folder: Path, rows: int, few: int) -> None:
    from families import saved

    saved(folder / "model")
    draw = random.Random(0)
    for name, count in (("few", few), ("all", rows)):
        with (folder / f"{name}.jsonl").open("w") as file:
            for i in range(count):
                prompt = " ".join(draw.choices(WORDS, k=draw.randrange(1, 6)))
                file.write(json.dumps({"id": i, "prompt": prompt, "value": i / 8}) + "\n")


def started(folder: Path, name: str, out: str, *more: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "lorakit", "generate", "--model", "model", "--out", out]
    command += ["--data", f"{name}.jsonl", "--max-new-tokens", str(TOKENS), *more]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)


def watched(process: "subprocess.Popen[bytes]", until: Any = lambda: False) -> tuple[float, int]:
    """Seconds and peak bytes until a process ends, or is killed where `until` says so."""
    began, peak = time.perf_counter(), 0
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            peak = max([peak, *(int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM"))])
        except OSError:
            pass
        if until():
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.1)
    return time.perf_counter() - began, peak


def size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--few", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder, options.rows, options.few)
        _, few_peak = watched(started(folder, "few", "few-answers.jsonl"))
        # The size of what is kept, from the few: a third and two thirds of the rows.
        seconds, peak = watched(started(folder, "all", "alone.jsonl"))
        third = size(folder / "alone.jsonl") / 3 / 3  # an answer is about a third of its row
        killed, codes = folder / "killed.jsonl.unfinished", []
        for at in (third, 2 * third):
            more = ["--resume"] if killed.exists() else []
            process = started(folder, "all", "killed.jsonl", *more)
            watched(process, lambda at=at: size(killed) > at)
            codes.append(process.returncode)
        last = started(folder, "all", "killed.jsonl", "--resume")
        watched(last)
        same = digest(folder / "alone.jsonl") == digest(folder / "killed.jsonl")
        rows = sum(1 for _ in (folder / "killed.jsonl").open())
    found = {
        "rows": options.rows,
        "few": options.few,
        "seconds": round(seconds, 1),
        "rows_per_second": round(options.rows / seconds, 1),
        "peak_bytes": peak,
        "few_peak_bytes": few_peak,
        "ended_by": [*codes, last.returncode],
        "rows_after_kills": rows,
        "same_bytes": same,
    }
    print(json.dumps(found))
    if options.out is not None:
        with options.out.open("a") as file:
            file.write(json.dumps(found) + "\n")
    assert same
    assert codes == [-signal.SIGKILL, -signal.SIGKILL]
    assert rows == options.rows


if __name__ == "__main__":
    main()
