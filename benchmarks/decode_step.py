"""A decoding step of `lorakit serve`, by plain torch and by the compiled kernels, without HTTP.

    python benchmarks/decode_step.py --rounds 3 --threads 1 --out benchmarks/results/decode_step.jsonl

The built-in model, 32 sequences of 80 to 111 tokens, one token each; no adapter, 8, and 32 of rank 16 on all
linears, and a step of four prompts of 63 tokens. Each side is a process; they take turns. With one thread
processor time is counted, which other processes on the machine change little; else wall time. Least of six.
"""

import argparse
import json
import os
import time
from pathlib import Path

import bench

ROWS, RANK, PAST, PROMPTS, PROMPT = 32, 16, 80, 4, 63
KINDS = ("0 adapters", "8 adapters", "32 adapters", "4 prompts")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kernels", default="plain,avx2", help="sides, with a comma")
    parser.add_argument("--dtype", default="float32", help="number format of the model")
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    given = parser.parse_args()
    same, lines, sides = bench.session(), [], given.kernels.split(",")
    for turn in range(given.rounds):
        for side in sides:
            task = {"kernels": side, "threads": given.threads, "dtype": given.dtype}
            line = same | {"turn": turn} | bench.measure(task)
            bench.note(json.dumps({kind: line[kind] for kind in ("kernels", *KINDS)}))
            bench.append(given.out, [line])
            lines.append(line)
    rows = []
    for kind in KINDS:
        least = [min(line[kind] for line in lines if line["kernels"] == side) for side in sides]
        cells = [f"{1e3 * seconds:.0f} ms" for seconds in least]
        rows.append([kind, *cells, f"{least[0] / least[-1]:.2f}"])
    print(bench.table(["a step", *sides, "ratio"], rows))


def work(task: bench.Line) -> bench.Line:
    os.environ["LORAKIT_KERNELS"] = task["kernels"]
    import torch

    from lorakit.execution.cached import cached_layers
    from lorakit.execution.lean import LeanBlocks
    from lorakit.execution.steps import Place
    from lorakit.kernels.slot_plan import SlotRun
    from lorakit.models import load_model
    from lorakit.serving.forward import Forward, cell_bytes
    from lorakit.serving.room import room_in_cells
    from lorakit.serving.spec import EngineSpec

    torch.set_num_threads(task["threads"])
    clock = time.process_time if task["threads"] == 1 else time.perf_counter
    model, _ = load_model("smollm2-135m", dtype=task["dtype"])
    spec = EngineSpec(slots=ROWS, slot_rank=RANK)
    layers = cached_layers(model)
    blocks, settings = LeanBlocks.of(model, layers), list(layers.values())
    assert blocks is not None
    room = room_in_cells(spec, cell_bytes(settings, model.dtype), 1024)
    forward = Forward(blocks, settings, model, spec, room)
    for group in forward.bank.groups:
        pairs = [
            (torch.randn(RANK, group.in_features), torch.randn(out, RANK) * 0.01, 1.0)
            for out in group.out_features
        ]
        for slot in range(ROWS):
            group.write(slot, 1, pairs)

    def step(kind: str) -> None:
        if kind == "4 prompts":
            places = [Place(i * 256, 256, 0, PROMPT) for i in range(PROMPTS)]
            runs = [SlotRun(i, 1, PROMPT) for i in range(PROMPTS)]
        else:
            adapters = int(kind.split()[0])
            places = [Place(i * 256, 256, PAST + i, 1) for i in range(ROWS)]
            runs = [SlotRun(i, 1, ROWS // adapters) for i in range(adapters)]
        tokens = sum(place.count for place in places)
        keep, last = [], -1
        for place in places:
            last += place.count
            keep.append(last)
        forward.run([1000 + i for i in range(tokens)], places, keep, runs)

    made: bench.Line = dict(task) | {"way": blocks.way}
    for kind in KINDS:
        step(kind)
        seconds = []
        for _ in range(6):
            began = clock()
            step(kind)
            seconds.append(clock() - began)
        made[kind] = min(seconds)
    return made | bench.surroundings(model.device)


if __name__ == "__main__":
    bench.run(main, work)
