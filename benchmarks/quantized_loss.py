"""Held-out loss of the built-in model on a base in fewer bits, beside bfloat16: three data sets, three seeds.

    python benchmarks/quantized_loss.py DATA --out benchmarks/results/quantized_loss.jsonl
    python benchmarks/quantized_loss.py --table benchmarks/results/quantized_loss.jsonl

DATA holds e2e, snips and gsm8k as public files (docs/measured.md names them). A run trains rank 8 on all linear
layers for one epoch at the rate of `auto`, and measures the held-out loss after the last step. A
seed chooses the training rows, their order and A; the held-out rows are the same in all runs. `full` is the built-in
model in bfloat16, which is its Q4_1 file dequantized; `packed` is that file with its blocks kept.

One JSON line a run; runs that --out holds already are not repeated, and --most ends after that number of runs.
"""

import argparse
import gzip
import itertools
import json
import random
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMATS = ("full", "nf4", "int8", "int4", "packed")
Row = dict[str, str]


@dataclass(frozen=True)
class Task:
    """A data set: its files, how a row is read, and how many of them are used."""

    train: str
    held: str
    prompt: str
    completion: str
    rows: int
    held_rows: int
    batch_size: int


TASKS = {
    "snips": Task(
        "snips/train.jsonl",
        "snips/valid.jsonl",
        "{text}\n",
        '{{"intent": "{intent}", "slots": {slots}}}',
        *(128, 64, 16),
    ),
    "e2e": Task(
        "e2e/train.jsonl.gz",
        "e2e/valid.jsonl.gz",
        "{context} ||",
        " {completion}",
        *(96, 48, 16),
    ),
    "gsm8k": Task(
        "gsm8k/train.jsonl.gz",
        "gsm8k/test.jsonl.gz",
        "{question}\n",
        "{answer}",
        *(40, 24, 8),
    ),
}


def drawn(path: Path, count: int, seed: int) -> list[Row]:
    """Rows of a file, chosen by the seed."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    rows = [json.loads(line) for line in text.splitlines()]
    return random.Random(seed).sample(rows, count)


def trained(task: Task, data: Path, base_dtype: str, seed: int) -> dict[str, Any]:
    import lorakit

    spec = lorakit.ModelSpec(dtype="bfloat16", device="cpu", base_dtype=base_dtype)
    model, tokenizer = lorakit.load_model(spec)
    lorakit.attach(model, lorakit.LoraSpec(rank=8), seed=seed)
    began = time.perf_counter()
    fitted = lorakit.train(
        *(model, tokenizer, drawn(data / task.train, task.rows, seed)),
        prompt=task.prompt,
        completion=task.completion,
        batch_size=task.batch_size,
        eval_share=0.0,
        keep="last",
        seed=seed,
    )
    seconds = round(time.perf_counter() - began, 1)
    held = drawn(data / task.held, task.held_rows, 0)
    measured = lorakit.evaluate(
        *(model, held),
        tokenizer=tokenizer,
        prompt=task.prompt,
        completion=task.completion,
        metrics="none",
    )
    return {
        "loss_after": measured["eval_loss"],
        "train_loss": fitted.train_loss,
        "steps": fitted.steps,
        "seconds": seconds,
    }


def measure(options: argparse.Namespace) -> None:
    import torch

    from lorakit.run.machine import versions

    torch.set_num_threads(options.threads)
    wanted = itertools.product(options.tasks, options.seeds, options.formats)
    done = {(line["data"], line["seed"], line["base_dtype"]) for line in lines_of(options.out)}
    left = [run for run in wanted if run not in done]
    for name, seed, base_dtype in left[: options.most]:
        task = TASKS[name]
        line = {"data": name, "seed": seed, "base_dtype": base_dtype}
        line |= trained(task, options.data, base_dtype, seed)
        line |= {"rows": task.rows, "held": task.held_rows, "batch": task.batch_size}
        line |= {"threads": options.threads, "versions": versions()}
        print(json.dumps(line), flush=True)
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    print(f"{max(0, len(left) - (options.most or len(left)))} runs are left")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(lines: Iterable[dict[str, Any]]) -> str:
    """The mean over the seeds of each data set and format, and how far each lies from `full` of the same seed."""
    by: dict[tuple[str, str], dict[int, float]] = {}
    for line in lines:
        by.setdefault((line["data"], line["base_dtype"]), {})[line["seed"]] = line["loss_after"]
    out = [
        "| data | base | held-out loss, mean | beside bfloat16, mean | each seed |",
        "|" + "---|" * 5,
    ]
    for (data, form), losses in by.items():
        full = by.get((data, "full"), {})
        apart = [100 * (losses[seed] / full[seed] - 1) for seed in sorted(losses) if seed in full]
        mean = f"{statistics.mean(apart):+.2f}%" if apart else ""
        each = ", ".join(f"{share:+.2f}%" for share in apart)
        out.append(
            f"| {data} | `{form}` | {statistics.mean(losses.values()):.4f} | {mean} | {each} |"
        )
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--most", type=int, help="end after that number of runs")
    options = parser.parse_args()
    if options.table:
        print(table(lines_of(options.table)))
    else:
        if not options.data or not options.out:
            parser.error("DATA and --out are needed")
        measure(options)


if __name__ == "__main__":
    main()
