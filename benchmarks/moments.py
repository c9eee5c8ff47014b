"""AdamW's moments in 8 bits beside 32: memory, time of a step and held-out loss of the built-in model.

    python benchmarks/moments.py DATA --out benchmarks/results/moments.jsonl
    python benchmarks/moments.py --step --out benchmarks/results/moments.jsonl

DATA holds snips as public files (docs/measured.md names them). A run is a process of its own: the built-in model in
bfloat16 is trained on SNIPS rows, all of it (full) or pairs of rank 128, for one epoch at the rate of `auto`; the
held-out rows are the same in all runs, a seed chooses the others. --step takes the optimizer's step alone, of all of the
built-in model's parameters with random gradients, 32 and 8 bits in turn.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import quantized_loss

HOW = ("32bit", "8bit")
ROWS, HELD, BATCH = 128, 48, 16


def once(data: Path, what: str, how: str, seed: int) -> dict[str, Any]:
    import torch

    import lorakit

    torch.set_num_threads(1)
    task = quantized_loss.TASKS["snips"]
    model, tokenizer = lorakit.load_model(lorakit.ModelSpec(dtype="bfloat16", device="cpu"))
    if what == "full":
        model.requires_grad_(True)
    else:
        lorakit.attach(model, lorakit.LoraSpec(rank=int(what.removeprefix("rank"))), seed=seed)
    began = time.perf_counter()
    fitted = lorakit.train(
        *(model, tokenizer, quantized_loss.drawn(data / task.train, ROWS, seed)),
        eval_data=quantized_loss.drawn(data / task.held, HELD, 0),
        prompt=task.prompt,
        completion=task.completion,
        batch_size=BATCH,
        eval_every=10**6,
        keep="last",
        seed=seed,
        moments=how,
    )
    return {
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "loss_before": fitted.eval_loss_before,
        "loss_after": fitted.eval_loss,
        "steps": fitted.steps,
        "state_bytes": fitted.state_bytes,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds": round(time.perf_counter() - began, 1),
    }


def runs(options: argparse.Namespace) -> None:
    done = {
        (line["what"], line["seed"], line["moments"])
        for line in quantized_loss.lines_of(options.out)
        if line["kind"] == "run"
    }
    for what in options.what:
        for seed in options.seeds:
            for how in HOW:
                if (what, seed, how) in done:
                    continue
                words = [sys.executable, __file__, "once", str(options.data), what, how, str(seed)]
                run = subprocess.run(words, capture_output=True, text=True, check=False)
                if run.returncode:
                    raise SystemExit(run.stderr)
                found = json.loads(run.stdout.splitlines()[-1])
                line = {"kind": "run", "what": what, "seed": seed, "moments": how, **found}
                write(options.out, line | {"rows": ROWS, "held": HELD, "batch": BATCH})
                if options.one:
                    return
    print("0 runs are left")


def step(options: argparse.Namespace) -> None:
    """The optimizer's step alone; the two in turn, so that both meet the same machine."""
    import torch

    from lorakit.models import empty_model
    from lorakit.training.moments import of_embeddings
    from lorakit.training.optimizer import FlatAdamW
    from lorakit.training.spec import TrainSpec

    torch.set_num_threads(options.threads)
    seconds: dict[str, list[float]] = {how: [] for how in HOW}
    optimizers = {}
    for how in HOW:
        model = empty_model("smollm2-135m", dtype="bfloat16").to_empty(device="cpu")
        model.requires_grad_(True)
        wide = of_embeddings(model.modules())
        optimizers[how] = FlatAdamW(model.parameters(), TrainSpec(moments=how), wide)
        optimizers[how].flat.normal_(std=0.02)
        optimizers[how].master.copy_(optimizers[how].flat)
    for _ in range(options.rounds):
        for how, optimizer in optimizers.items():
            optimizer.grad.normal_()
            began = time.perf_counter()
            optimizer.step(1e-5, divide_by=1.0, clip=1.0)
            seconds[how].append(time.perf_counter() - began)
    found = {f"seconds_{how}": statistics.median(each) for how, each in seconds.items()}
    best = {f"best_{how}": min(each) for how, each in seconds.items()}
    write(options.out, {"kind": "step", "threads": options.threads, **found, **best})


def write(out: Path, line: dict[str, Any]) -> None:
    from lorakit.run.machine import versions

    line = line | {"versions": versions()}
    print(json.dumps(line), flush=True)
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def main() -> None:
    if sys.argv[1:2] == ["once"]:
        data, what, how, seed = sys.argv[2:]
        print(json.dumps(once(Path(data), what, how, int(seed))))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--what", nargs="+", default=["full", "rank128"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--one", action="store_true", help="end after one run")
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    step(options) if options.step else runs(options)


if __name__ == "__main__":
    main()
