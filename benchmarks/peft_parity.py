"""lorakit's held-out loss beside a plain peft loop's: same rows, order, learning rate and steps.

    python benchmarks/peft_parity.py --run runs/e2e --out benchmarks/results/peft_parity.jsonl

reads a finished `lorakit train` run, repeats it with peft (benchmarks/peft_loop.py) from the
same start of A, and prints both losses and their ratio.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import peft_loop
import torch

from lorakit.config import load_config
from lorakit.data import load_data, order
from lorakit.lora import attach, detach, lora_layers
from lorakit.models import load_model
from lorakit.run.fitting import peak_rate, steps_of
from lorakit.run.machine import machine, versions
from lorakit.training import learning_rate_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="a finished lorakit run folder")
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    options = parser.parse_args()
    config = load_config(options.run / "config.yaml", {})
    ours = json.loads((options.run / "result.json").read_text())
    spec = config.train
    model, tokenizer = load_model(config.model)
    data = load_data(config.data, tokenizer, seed=spec.seed, context_length=8192)
    assert data.data_sha256 == ours["data_sha256"]
    steps = steps_of(len(data.train), spec)
    peak = peak_rate(model, steps, spec)
    rates = [learning_rate_at(step, steps, peak, spec) for step in range(steps)]
    rows = list(order(len(data.train), spec.batch_size, steps=steps, seed=spec.seed))

    attach(model, config.lora, seed=spec.seed)
    start = {path: layer.A.detach().clone() for path, layer in lora_layers(model).items()}
    adapted = peft_loop.attach(
        detach(model), rank=config.lora.rank, alpha=config.lora.alpha, seed=spec.seed
    )
    peft_loop.copy_start(adapted, start)
    pad = tokenizer.pad_token_id
    theirs = peft_loop.train(adapted, data.train, rows, rates, pad=pad, clip=spec.clip)
    held_out = peft_loop.evaluate(adapted, data.eval, pad)
    # The run kept its best evaluation; the last one is what the loop is held against.
    events = [json.loads(x) for x in (options.run / "metrics.jsonl").read_text().splitlines()]
    last = [e["loss"] for e in events if e["kind"] == "eval"][-1]
    line = {
        "command": shlex.join(["python", *sys.argv]),
        "steps": steps,
        "learning_rate": peak,
        "lorakit_eval_loss": last,
        "peft_eval_loss": held_out,
        "ratio": last / held_out,
        "largest_train_loss_difference": max(
            abs(a["loss"] - b)
            for a, b in zip(
                (e for e in events if e["kind"] == "train"), theirs.train_losses, strict=True
            )
        ),
        "lorakit_real_tokens_per_second": ours["real_tokens_per_second"],
        "peft_real_tokens_per_second": sum(theirs.step_tokens) / sum(theirs.step_seconds),
        "dtype": str(model.dtype),
        "machine": machine(torch.device("cpu")),
        "versions": versions(),
    }
    print(json.dumps(line, indent=2))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
