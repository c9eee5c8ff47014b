"""Rows a second of the ways to answer a file: the server's engine beside transformers' own batches.

    python benchmarks/answer_ways.py --out benchmarks/results/answer_ways.jsonl

Prompts of 20 to 59 random tokens; four answers in five end after 4 tokens and one after 40, so that a
batch has both. The engine takes rows in the order of the file and lets one join where another has
ended; batches are of prompts of like length and end with their longest answer. Nothing else is timed.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

SHORT, LONG = 4, 40


def rows_of(session: Any, count: int) -> list[tuple[list[int], int]]:
    """Prompts in tokens, and how many tokens each answer has."""
    draw = random.Random(0)
    most = session.embeddings
    return [
        (
            [draw.randrange(5, most) for _ in range(draw.randrange(20, 60))],
            SHORT if draw.random() < 0.8 else LONG,
        )
        for _ in range(count)
    ]


def by_engine(session: Any, rows: list[tuple[list[int], int]], running: int) -> float:
    from lorakit.serving.answers import Prompt
    from lorakit.serving.cache import size_for
    from lorakit.serving.engine import Engine
    from lorakit.serving.forward import open_forward
    from lorakit.serving.sampling import Sampling
    from lorakit.serving.spec import EngineSpec

    largest = size_for(60 + LONG)
    spec = EngineSpec(
        slots=1, max_running=running, max_queue=len(rows), step_tokens=512, max_output=LONG
    )
    ended = []
    engine = Engine(
        *(open_forward(session.model, spec, largest), session.tokenizer, spec, largest),
        lambda events: ended.extend(tag for tag, event in events if event.finish),
        clock=lambda: 0.0,
    )
    began = time.perf_counter()
    greedy = Sampling(temperature=0, logprobs=0)
    for number, (ids, length) in enumerate(rows):
        prompt = Prompt(ids, "", None, "row", length, frozenset(), sampling=greedy)
        engine.submit([prompt], number)
    while len(ended) < len(rows):
        engine.step()
    seconds = time.perf_counter() - began
    engine.stop()
    return seconds


def by_batches(session: Any, rows: list[tuple[list[int], int]], running: int) -> float:
    from lorakit.execution.generate import generate

    order = sorted(rows, key=lambda row: -len(row[0]))
    began = time.perf_counter()
    for first in range(0, len(order), running):
        part = order[first : first + running]
        generate(
            *(session.model, session.tokenizer, [ids for ids, _ in part]),
            max_new_tokens=max(length for _, length in part),
            batch_size=running,
            logprobs=True,
        )
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, default=64, help="of the built-in model")
    parser.add_argument("--tiny-rows", type=int, default=1000)
    options = parser.parse_args()
    from families import saved
    from lorakit.models import ModelSpec
    from lorakit.run.machine import machine
    from lorakit.run.session import open_base

    with tempfile.TemporaryDirectory() as place:
        tiny = str(saved(Path(place) / "tiny"))
        for name, model, count in (
            ("tiny", tiny, options.tiny_rows),
            ("smollm2-135m", "smollm2-135m", options.rows),
        ):
            for way, running in ((by_engine, 64), (by_engine, 32), (by_batches, 32)):
                session = open_base(ModelSpec(model=model))
                rows = rows_of(session, count)
                seconds = way(session, rows, running)
                found = {
                    "model": name,
                    "way": way.__name__,
                    "at_once": running,
                    "rows_per_second": round(count / seconds, 2),
                    "machine": machine(session.model.device),
                }
                print(json.dumps(found), flush=True)
                if options.out is not None:
                    with options.out.open("a") as file:
                        file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
