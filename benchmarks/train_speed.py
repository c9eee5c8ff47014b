"""Training speed: lorakit beside a careful peft loop, interleaved, each run in its own process.

    python benchmarks/train_speed.py --data DATA --rows e2e --steps 8 --rounds 3

Every round starts each contender anew (A B A B …) on the same rows in the same order; medians over
all steps but each run's first are printed, with real tokens/s (padding does not count), the ratio to lorakit,
the fraction of the limit (F · tokens/s over the matmul rate measured in lorakit's process at the
model's own shapes), peak memory and the last loss. `peft` computes in the number format in which
this machine is fastest; `peft-bf16` in bfloat16 whatever the machine.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROWS = {
    "e2e": ("e2e/train.jsonl.gz", "{context}", "{completion}"),
    "gsm8k": ("gsm8k/train.jsonl.gz", "{question}", "{answer}"),
}
CONTENDERS = ("lorakit", "peft", "peft-bf16")
RATE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds e2e/, gsm8k/")
    parser.add_argument("--rows", choices=ROWS, default="e2e")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--contenders", default="lorakit,peft")
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(work(options)))
        return
    names = options.contenders.split(",")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            runs[name].append(start(name))
            print(name, f"{speed(runs[name][-1:]):.1f} real tokens/s", file=sys.stderr)
    report(options, runs)


def start(name: str) -> dict[str, Any]:
    """One contender in a process of its own, with this process's arguments."""
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def work(options: argparse.Namespace) -> dict[str, Any]:
    """Train for the steps asked for, and say how it went."""
    import torch

    from lorakit import forecast
    from lorakit.config import load_config
    from lorakit.data import load_data, order
    from lorakit.lora import attach, detach, lora_layers, plan
    from lorakit.models import load_model
    from lorakit.run.fitting import fit_model
    from lorakit.run.machine import machine, peak_memory, versions

    file, prompt, completion = ROWS[options.rows]
    count = options.steps * options.batch_size
    config = load_config(
        None,
        {
            "data": (str(options.data / file),),
            "prompt": prompt,
            "completion": completion,
            "max_rows": count,
            "eval_share": 0.0,
            "rank": options.rank,
            "batch_size": options.batch_size,
            "warmup": 0.0,
            "learning_rate": RATE,
            "schedule": "constant",
            "dtype": "bfloat16" if options.worker == "peft-bf16" else "auto",
        },
    )
    model, tokenizer = load_model(config.model)
    data = load_data(config.data, tokenizer, seed=0)
    shape, chosen = forecast.shape_of(model), plan(model, config.lora)
    lengths = data.train.lengths
    mean = float((lengths**2).sum() / lengths.sum())
    flops = forecast.flops_per_token(
        shape, chosen.trainable, mean, data.train.loss_tokens / data.train.tokens
    )
    attach(model, chosen, seed=0)
    steps = list(order(len(data.train), options.batch_size, steps=options.steps, seed=0))
    answer: dict[str, Any] = {
        "contender": options.worker,
        "dtype": str(model.dtype),
        "flops_per_token": flops,
        "mean_length": float(lengths.mean()),
        "tokens": [int(lengths[list(rows)].sum()) for rows in steps],
        "machine": machine(model.device),
        "versions": versions(),
    }
    if options.worker == "lorakit":
        answer["matmul_flops"] = forecast.matmul_rate(shape, model.dtype, model.device)
        events: list[Any] = []
        fit_model(
            model,
            data.train,
            data.eval,
            config.train,
            steps=options.steps,
            learning_rate=RATE,
            report=lambda e: events.append(e) if e["kind"] == "train" else None,
        )
        answer["seconds"] = [e["seconds"] for e in events]
        answer["losses"] = [e["loss"] for e in events]
    else:
        import peft_loop

        begun = {path: layer.A.detach().clone() for path, layer in lora_layers(model).items()}
        adapted = peft_loop.attach(
            detach(model), rank=options.rank, alpha=config.lora.alpha, seed=0
        )
        peft_loop.copy_start(adapted, begun)
        torch.manual_seed(0)
        run = peft_loop.train(
            adapted,
            data.train,
            data.eval,
            steps,
            [RATE] * options.steps,
            pad=tokenizer.pad_token_id,
            clip=config.train.clip,
        )
        answer["seconds"], answer["losses"] = run.step_seconds, run.train_losses
    answer["peak_memory_bytes"] = peak_memory(model.device)
    return answer


def speed(runs: list[dict[str, Any]]) -> float:
    """Median real tokens/s over all steps but each run's first."""
    return statistics.median(
        t / s for run in runs for t, s in zip(run["tokens"][1:], run["seconds"][1:], strict=True)
    )


def report(options: argparse.Namespace, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Print the table and append the raw runs."""
    ours = runs["lorakit"]
    peak = statistics.median(run["matmul_flops"] for run in ours)
    memory = {
        name: statistics.median(r["peak_memory_bytes"] for r in of) for name, of in runs.items()
    }
    print(f"{options.rows}: mean {ours[0]['mean_length']:.0f} tokens, {ours[0]['machine']['cpu']}")
    print("| | dtype | real tokens/s | lorakit / it | fraction of the limit | peak memory | loss |")
    print("|---|---|---|---|---|---|---|")
    for name, of in runs.items():
        rate = speed(of)
        print(
            f"| {name} | {of[0]['dtype'].removeprefix('torch.')} | {rate:.0f} "
            f"| {speed(ours) / rate:.2f} | {rate * of[0]['flops_per_token'] / peak:.2f} "
            f"| {memory[name] / 1e9:.2f} GB | {statistics.median(r['losses'][-1] for r in of):.4f} |"
        )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a") as file:
            for run in (run for of in runs.values() for run in of):
                run["command"] = shlex.join(["python", *sys.argv])
                file.write(json.dumps(run) + "\n")


if __name__ == "__main__":
    main()
