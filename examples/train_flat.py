"""LoRA fine-tuning of a causal language model in one flat file: torch and transformers alone.

    python examples/train_flat.py rows.jsonl --out my-adapter

rows.jsonl holds one {"prompt": …, "completion": …} a line. The folder written is in peft's
format. Nothing here comes from lorakit, so that tests/training/test_flat_example.py can hold
lorakit's trainer against it, step by step: same rows, same order, same losses.

Legend: B rows, T tokens, V vocabulary, R rank, I in, O out.
"""

import argparse
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Token ids, and for each whether it bears loss (0 or 1).
Row = tuple[list[int], list[int]]


class LoraLinear(nn.Module):
    """y = W x + b + s · B (A x): the base's W and b are frozen, A and B are trained."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, draw: torch.Generator) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        like = {"dtype": torch.promote_types(base.weight.dtype, torch.float32)}
        bound = 1 / math.sqrt(base.in_features)  # Kaiming-uniform with a = sqrt 5
        A_RI = torch.empty(rank, base.in_features, **like).uniform_(-bound, bound, generator=draw)
        self.A = nn.Parameter(A_RI.to(base.weight.device))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, **like).to(base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) -> (…, O)."""
        low = x @ self.A.T.to(x.dtype) @ self.B.T.to(x.dtype)
        return self.base(x) + self.scale * low


def adapt(model: Any, *, rank: int, alpha: float, seed: int = 0) -> Any:
    """Freeze the model and put a pair beside every linear layer but the output head, in place."""
    model.requires_grad_(False)
    draw = torch.Generator().manual_seed(seed)
    head = model.get_output_embeddings()
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not head:
            model.set_submodule(path, LoraLinear(module, rank, alpha, draw))
    return model


def encode(tokenizer: Any, prompt: str, completion: str) -> Row:
    """The prompt bears no loss; the completion and the token that ends it do."""
    if tokenizer.chat_template:
        asked = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        start = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        start = tokenizer(prompt)["input_ids"]
    answer = tokenizer(completion, add_special_tokens=False)["input_ids"]
    answer = [*answer, tokenizer.eos_token_id]
    return [*start, *answer], [0] * len(start) + [1] * len(answer)


def shuffled(rows: int, batch_size: int, epochs: int, seed: int = 0) -> list[list[int]]:
    """The rows of each step: every epoch another order, its last step what is left over."""
    steps, draw = [], random.Random(seed)
    for _ in range(epochs):
        order = draw.sample(range(rows), rows)
        steps += [order[i : i + batch_size] for i in range(0, rows, batch_size)]
    return steps


def learning_rate_at(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up over that share of the steps, then a cosine to zero one step past the last."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def nll_sum(model: Any, rows: Sequence[Row]) -> Tensor:
    """Σ -log p(token | tokens before it) over the loss-bearing tokens of these rows, in nats."""
    longest = max(len(ids) for ids, _ in rows)
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    mask_BT, labels_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, -100)
    for b, (ids, bears) in enumerate(rows):
        values_T = torch.tensor(ids)
        ids_BT[b, : len(ids)], mask_BT[b, : len(ids)] = values_T, 1
        labels_BT[b, : len(ids)] = values_T.where(torch.tensor(bears) > 0, -100)
    ids_BT, mask_BT, labels_BT = (t.to(model.device) for t in (ids_BT, mask_BT, labels_BT))
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    logits_BTV = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))
    # The logits at t predict the token at t + 1.
    before, after = logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten()
    return nn.functional.cross_entropy(before, after, ignore_index=-100, reduction="sum")


def train(
    model: Any,
    rows: Sequence[Row],
    steps: Sequence[Sequence[int]],
    *,
    learning_rate: float = 1e-3,
    warmup: float = 0.06,
    clip: float = 1.0,
    micro_rows: int = 4,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """Train what needs a gradient on the given rows of each step, `micro_rows` at a time.

    Returns the loss of every step before its update, in nats per loss-bearing token.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    losses = []
    model.train()
    for step, chosen in enumerate(steps):
        picked = [rows[i] for i in chosen]
        # Divided by the count of the whole step, not by each micro-batch's own: how the step is
        # split then changes nothing. The first token of a row is predicted by nothing.
        count = sum(sum(bears[1:]) for _, bears in picked)
        total = 0.0
        for i in range(0, len(picked), micro_rows):
            nll = nll_sum(model, picked[i : i + micro_rows])
            (nll / count).backward()
            total += float(nll.detach())
        nn.utils.clip_grad_norm_(parameters, clip)
        for group in adam.param_groups:
            group["lr"] = learning_rate_at(step, len(steps), learning_rate, warmup)
        adam.step()
        adam.zero_grad()
        losses.append(total / count)
        report(step, losses[-1])
    model.eval()
    return losses


def save(model: Any, folder: Path, *, rank: int, alpha: float) -> None:
    """Write the pairs as an adapter folder in peft's format."""
    from safetensors.torch import save_file

    pairs = {path: m for path, m in model.named_modules() if isinstance(m, LoraLinear)}
    tensors = {}
    for path, layer in pairs.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = layer.A.detach().cpu().contiguous()
        tensors[f"base_model.model.{path}.lora_B.weight"] = layer.B.detach().cpu().contiguous()
    config = {
        "base_model_name_or_path": model.config.name_or_path or None,
        "bias": "none",
        "lora_alpha": alpha,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted({path.rsplit(".", 1)[-1] for path in pairs}),
        "task_type": "CAUSAL_LM",
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """Read the rows, train, save."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description="LoRA fine-tuning in one flat file")
    parser.add_argument("rows", type=Path, help='JSON lines with "prompt" and "completion"')
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--out", type=Path, required=True, help="folder of the adapter")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    asked = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    model = AutoModelForCausalLM.from_pretrained(asked.model, use_safetensors=True)
    adapt(model, rank=asked.rank, alpha=32.0)
    lines = [json.loads(line) for line in asked.rows.read_text().splitlines() if line.strip()]
    rows = [encode(tokenizer, line["prompt"], line["completion"]) for line in lines]
    steps = shuffled(len(rows), 16, asked.epochs)
    train(
        model, rows, steps, report=lambda step, loss: print(f"{step + 1}/{len(steps)} {loss:.4f}")
    )
    save(model, asked.out, rank=asked.rank, alpha=32.0)


if __name__ == "__main__":
    main()
