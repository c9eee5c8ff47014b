"""Eight jobs trained together on one base, against the same eight in turn: time and memory.

    python benchmarks/together.py --out benchmarks/results/together.jsonl
    python benchmarks/together.py --try            # two steps on few rows, nothing kept

No data is needed: rows are words drawn by a seeded generator. Two settings: small steps (2 rows of
64 tokens a job, where one pass holds all jobs) and ordinary ones (16 rows). Each way is a process of
its own; in turn, every job has a model that is loaded anew, as eight commands would. Seconds are
those of the steps alone, so that loading, which eight commands pay eight times, is told apart.
"""

import argparse
import gc
import itertools
import time
from functools import partial
from pathlib import Path

import bench

RANKS = (1, 2, 4, 8, 8, 16, 16, 32)
SETTINGS = {"small steps": 2, "ordinary steps": 16}
LENGTH = 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=6, help="of each job; the first is not timed")
    parser.add_argument("--rounds", type=int, default=3, help="times that each way is measured")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--try", action="store_true", dest="tries", help="2 steps, nothing kept")
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    given = parser.parse_args()
    session, lines = bench.session(), list[bench.Line]()
    rounds, steps = (1, 2) if given.tries else (given.rounds, given.steps)
    for _, (name, rows), way in itertools.product(
        range(rounds), SETTINGS.items(), ("in turn", "together")
    ):
        if given.tries and name != "small steps":
            continue
        task = {"setting": name, "batch_size": rows, "way": way, "steps": steps}
        line = session | bench.measure(task | {"model": given.model})
        bench.note(
            f"{name}, {way}: {line['seconds']:.1f} s, {bench.gigabytes(line['peak_memory_bytes'])}"
        )
        lines.append(line)
        if not given.tries:
            bench.append(given.out, [line])
    print(table(lines))


def table(lines: list[bench.Line]) -> str:
    """Medians of each way, and their ratios."""
    rows = []
    for name in dict.fromkeys(line["setting"] for line in lines):
        turn, joint = (
            [line for line in lines if (line["setting"], line["way"]) == (name, way)]
            for way in ("in turn", "together")
        )
        seconds = [bench.median(each, "seconds") for each in (turn, joint)]
        loading = [bench.median(each, "loading_seconds") for each in (turn, joint)]
        memory = [bench.median(each, "peak_memory_bytes") for each in (turn, joint)]
        rows.append(
            [
                name,
                f"{seconds[1] / seconds[0]:.2f}",
                f"{(seconds[1] + loading[1]) / (seconds[0] + loading[0]):.2f}",
                f"{memory[1] / memory[0]:.2f}",
                f"{memory[1] / (len(RANKS) * memory[0]):.2f}",
            ]
        )
    head = [
        "eight jobs", "time of the steps, together / in turn", "the same with loading",
        "memory, together / one alone", "memory, together / eight processes at once",
    ]  # fmt: skip
    return bench.table(head, rows)


def work(given: bench.Line) -> bench.Line:
    """All jobs, one way."""
    import random
    from dataclasses import replace

    from growth import WORDS

    from lorakit.config import load_config
    from lorakit.data.table import TokenTable
    from lorakit.lora import LoraSpec, plan
    from lorakit.lora.jobs import Jobs
    from lorakit.run.fitting import Work, fit_models
    from lorakit.run.machine import peak_memory
    from lorakit.run.session import open_base

    config = load_config(None, {"model": given["model"], "template": "raw"})
    spec = replace(
        config.train, batch_size=given["batch_size"], keep="last", eval_every=given["steps"]
    )
    draw = random.Random(0)
    loading, seconds, trained = 0.0, 0.0, 0
    groups = [RANKS] if given["way"] == "together" else [(rank,) for rank in RANKS]
    for group in groups:
        started = time.perf_counter()
        session = open_base(config.model, config.data)
        rows = TokenTable.build(_rows(session.tokenizer, draw, WORDS, 64))
        model = session.model
        jobs = Jobs(
            model, [plan(model, LoraSpec(rank=rank)) for rank in group], list(range(len(group)))
        )
        loading += time.perf_counter() - started
        steps: list[tuple[int, float]] = []
        tell = partial(_note, steps)
        empty = rows.take(())
        works = [Work(rows, empty, spec, given["steps"], 1e-4, report=tell) for _ in group]
        fit_models(jobs, works, batch_tokens=spec.batch_tokens)
        # The first step warms up.
        seconds += sum(took for step, took in steps if step > 1)
        trained += sum(layer.A.numel() for layers in jobs.layers for layer in layers.values())
        device = model.device
        del session, model, jobs
        gc.collect()  # in turn, no job is to find the model of the one before it in memory
    return (
        given
        | bench.surroundings(device)
        | {
            "seconds": seconds,
            "loading_seconds": loading,
            "peak_memory_bytes": peak_memory(device),
            "numbers_of_A": trained,
        }
    )


def _note(steps: list[tuple[int, float]], event: bench.Line) -> None:
    if event["kind"] == "train":
        steps.append((event["step"], event["seconds"]))


def _rows(tokenizer, draw, words, count):
    """Rows of LENGTH tokens, the second half of which bears loss."""
    import numpy as np

    from lorakit.data.table import Encoded

    for i in range(count):
        text = " ".join(draw.choices(words, k=LENGTH))
        ids = np.array(tokenizer.encode(text)[:LENGTH], dtype=np.int32)
        weight = (np.arange(len(ids)) >= len(ids) // 2).astype(np.uint8)
        yield Encoded(ids, weight, f"row:{i + 1}")


if __name__ == "__main__":
    bench.run(main, work)
