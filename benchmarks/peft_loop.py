"""A careful loop around peft: the peer that lorakit is held against.

What a practitioner who knows what they are doing writes by hand: padded batches sorted within the
step, labels masked on the prompt, token-exact division, AdamW fused, no activation checkpointing,
SDPA attention. It shares lorakit's rows and order, so that the losses can be compared, and none
of its layers, loss or attention.

    python benchmarks/peft_loop.py rows.jsonl --model FOLDER

trains so on prompts and completions, as a script of one's own; benchmarks/startup.py times it up to the
end of its first step, benchmarks/busy.py beside other processes.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy


@dataclass
class PeftRun:
    """Of each step: loss in nats per loss-bearing token, real tokens (without padding), seconds."""

    train_losses: list[float]
    step_tokens: list[int]
    step_seconds: list[float]


def attach(model: Any, *, rank: int, alpha: float, seed: int) -> Any:
    """peft's LoRA on all linear layers of the blocks."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def copy_start(adapted: Any, start: dict[str, torch.Tensor]) -> None:
    """Give peft's A the values that lorakit's began with: {module path: A}."""
    with torch.no_grad():
        for path, A in start.items():
            adapted.base_model.model.get_submodule(path).lora_A["default"].weight.copy_(A)


def padded(table: Any, rows: list[int], pad: int) -> tuple[torch.Tensor, ...]:
    """ids, mask and labels (-100 where no loss falls): (B, T) each, padded on the right."""
    items = [table[row] for row in rows]
    longest = max(len(item) for item in items)
    ids = torch.full((len(items), longest), pad, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, item in enumerate(items):
        values = torch.from_numpy(item.ids.astype("int64"))
        ids[i, : len(item)], mask[i, : len(item)] = values, 1
        bears = torch.from_numpy(item.weight.astype(bool))
        labels[i, : len(item)][bears] = values[bears]
    return ids, mask, labels


def nll(model: Any, batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, int]:
    """Summed negative log-likelihood and its tokens, by the model's own forward."""
    ids, mask, labels = (part.to(model.device) for part in batch)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    flat = logits[:, :-1].reshape(-1, logits.shape[-1]).float()
    target = labels[:, 1:].reshape(-1)
    return cross_entropy(flat, target, ignore_index=-100, reduction="sum"), int((target >= 0).sum())


def evaluate(model: Any, table: Any, pad: int, batch_size: int = 16) -> float:
    """Mean held-out loss in nats per loss-bearing token."""
    model.eval()
    by_length = sorted(range(len(table)), key=lambda i: len(table[i]))
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(by_length), batch_size):
            batch = padded(table, by_length[start : start + batch_size], pad)
            loss, tokens = nll(model, batch)
            total, count = total + float(loss), count + tokens
    return total / count


def train(
    model: Any,
    train_rows: Any,
    steps: list[tuple[int, ...]],
    rates: list[float],
    *,
    pad: int,
    clip: float,
    micro_rows: int = 16,
    report: Callable[[dict[str, Any]], None] = lambda event: None,
) -> PeftRun:
    """Plain training: AdamW, the given rows and learning rate of each step, clipping.

    `report` is told of each step.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(parameters, lr=rates[0], weight_decay=0.0, fused=True)
    losses, tokens, times = [], [], []
    model.train()
    for rows, rate in zip(steps, rates, strict=True):
        started = time.perf_counter()
        ordered = sorted(rows, key=lambda i: len(train_rows[i]))
        batches = [
            padded(train_rows, ordered[i : i + micro_rows], pad)
            for i in range(0, len(ordered), micro_rows)
        ]
        count = sum(int((labels[:, 1:] >= 0).sum()) for _, _, labels in batches)
        total = 0.0
        for batch in batches:
            loss, _ = nll(model, batch)
            (loss / count).backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
        adam.zero_grad()
        assert math.isfinite(total)
        losses.append(total / count)
        tokens.append(sum(len(train_rows[i]) for i in rows))
        times.append(time.perf_counter() - started)
        if report:
            print(
                json.dumps({"kind": "train", "tokens": tokens[-1], "seconds": times[-1]}),
                flush=True,
            )
    return PeftRun(losses, tokens, times)


@dataclass
class Row:
    """Token ids of a prompt and its completion, and 1 where loss falls."""

    ids: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def read(path: Path, tokenizer: Any) -> list[Row]:
    """Prompts and completions as raw text, an end token after each."""
    rows = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
        weight = [0] * len(prompt) + [1] * len(answer)
        rows.append(Row(np.array(prompt + answer), np.array(weight)))
    return rows


def main() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path, help="JSONL file with prompt and completion")
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--dtype", default="float32", help="number format of the base")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=1)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype)
    base.requires_grad_(False)
    rows = read(options.rows, tokenizer)
    size = options.batch_size
    steps = [tuple((i * size + j) % len(rows) for j in range(size)) for i in range(options.steps)]
    train(
        attach(base, rank=options.rank, alpha=32.0, seed=0),
        rows,
        steps,
        [options.rate] * options.steps,
        pad=tokenizer.pad_token_id or tokenizer.eos_token_id,
        clip=1.0,
        report=lambda event: print(json.dumps(event), flush=True),
    )


if __name__ == "__main__":
    main()
