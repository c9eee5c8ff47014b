"""What it saves that trials are kept on disk: seconds until a model is ready, tried and known.

    python benchmarks/trials.py --out benchmarks/results/trials.jsonl

One process a measurement, taking turns: with LORAKIT_TRIALS=again, and with what a process before has
kept. Timed are the trials of training (packed, fused, head), of `generate` (alone, in company) and of
serving 512 tokens, on a base that is loaded already; the clock is the wall's, beside the processor's.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bench

PROMPTS = [list(range(100, 120)), list(range(100, 109))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3, help="of each")
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    options = parser.parse_args()
    session = bench.session()
    with tempfile.TemporaryDirectory() as folder:
        task = {"model": options.model, "cache": folder}
        bench.measure({**task, "trials": ""})  # keeps what it finds
        for _ in range(options.rounds):
            for trials in ("again", ""):
                line = bench.measure({**task, "trials": trials})
                bench.append(options.out, [{"trials": trials or "kept", **line, **session}])
                bench.note(f"{trials or 'kept':6}{line['seconds']}")


def work(task: bench.Line) -> bench.Line:
    """Load a model and make it ready three times over, as three commands would."""
    from lorakit.files.cache import cache_dir

    # The model itself comes from the user's cache; what trials find goes elsewhere.
    base = cache_dir()
    kept = Path(task["cache"])
    for name in ("models", "fingerprints", "downloads"):
        if (base / name).is_dir() and not (kept / name).exists():
            (kept / name).symlink_to(base / name)
    os.environ |= {"LORAKIT_CACHE": str(kept), "LORAKIT_TRIALS": task["trials"]}
    from lorakit import LoraSpec, attach
    from lorakit.execution.generate import generate
    from lorakit.execution.runnable import Runnable
    from lorakit.execution.stepping import open_steps
    from lorakit.models import load_model

    seconds: dict[str, float] = {}
    busy: dict[str, float] = {}

    def timed(name: str, ready: Callable[[], Any]) -> None:
        wall, processor = time.perf_counter(), time.process_time()
        ready()
        seconds[name] = round(time.perf_counter() - wall, 3)
        busy[name] = round(time.process_time() - processor, 3)

    model, words = load_model(task["model"])
    generate(
        model, words, PROMPTS[:1], max_new_tokens=1
    )  # imports, and memory of the first forward
    timed("generate", lambda: generate(model, words, PROMPTS, max_new_tokens=1))
    model, words = load_model(task["model"])
    attach(model, LoraSpec())
    timed("train", lambda: Runnable(model).head)
    model, words = load_model(task["model"])
    timed("serve", lambda: open_steps(model, 512))
    return {"seconds": seconds, "busy": busy, **bench.surroundings(model.device)}


def table(lines: Sequence[bench.Line]) -> str:
    """Medians of what the newest command measured."""
    lines = bench.newest(lines)
    rows = []
    for name in lines[0]["seconds"]:
        cells = []
        for trials in ("again", "kept"):
            runs = [line for line in lines if line["trials"] == trials]
            wall, processor = (
                statistics.median(line[what][name] for line in runs) for what in ("seconds", "busy")
            )
            cells.append(f"{wall:.2f} s ({processor:.2f} s)")
        rows.append((name, *cells))
    return bench.table(("ready to", "tried (of the processor)", "known (of the processor)"), rows)


if __name__ == "__main__":
    bench.run(main, work)
