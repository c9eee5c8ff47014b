"""Training pairs on fused experts: lorakit and peft's target_parameters, one step each in turn.

    python benchmarks/experts.py [--repeats 7] [--out FILE.jsonl]

Two random models of about 100 M parameters, in the manner of Mixtral (8 large experts, 2 for a token) and of
Qwen3-MoE (64 small ones, 8 for a token), the same rows, float32, the same torch threads. A step is the
forward and the backward pass to the gradients of every A and B. Both run transformers' own code for experts;
peft forms W + s·B·A of all experts at every pass, and its gradient, and lorakit neither. The two take turns,
A B A B, so that what else the machine does meets both; the ratio is that of the medians. Before anything is
timed, both have to have the same loss and the same gradients.
"""

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from lorakit.lora import LoraSpec, attach, lora_layers

RANK, ALPHA, TARGETS = 8, 16.0, ("q_proj", "k_proj", "v_proj", "o_proj")
COMMON: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


def model_of(name: str) -> Any:
    """A random model of about 100 M parameters in the manner of a family."""
    torch.manual_seed(0)
    if name == "mixtral":
        own = {"num_hidden_layers": 6, "intermediate_size": 1216, "num_local_experts": 8}
        return MixtralForCausalLM(MixtralConfig(**COMMON, **own, num_experts_per_tok=2))
    own = {"num_hidden_layers": 6, "moe_intermediate_size": 152, "num_experts": 64}
    more = {"num_experts_per_tok": 8, "norm_topk_prob": True, "intermediate_size": 1024}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**COMMON, **own, **more))


def ours_and_theirs(name: str) -> tuple[Any, Any]:
    """The same model with the same pairs, by lorakit and by peft."""
    ours, theirs = model_of(name), model_of(name)
    spec = LoraSpec(rank=RANK, alpha=ALPHA, targets=TARGETS, target_parameters=("experts",))
    attach(ours, spec)
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=list(TARGETS),
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
    )
    theirs = get_peft_model(theirs, config)
    pairs = peft_pairs(theirs)
    generator = torch.Generator().manual_seed(1)
    for path, layer in lora_layers(ours).items():
        for mine, other in zip((layer.A, layer.B), pairs[path], strict=True):
            draw = torch.empty(mine.shape).normal_(0, 0.02, generator=generator)
            mine.data.copy_(draw)
            other.data.copy_(draw)
    return ours.train(), theirs.train()


def peft_pairs(model: Any) -> dict[str, tuple[Any, Any]]:
    """A and B of a peft model by the path of what they adapt."""
    pairs = {}
    for path, module in model.base_model.model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        own = getattr(module, "parameter_name", "weight")
        stem = path.replace(".base_layer", "")
        name = f"{stem}.{own}" if own != "weight" else stem
        pairs[name] = (module.lora_A["default"].weight, module.lora_B["default"].weight)
    return pairs


def step(model: Any, ids: torch.Tensor) -> float:
    """One forward and backward pass; the loss."""
    model.zero_grad(set_to_none=True)
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return float(loss)


def check_same(ours: Any, theirs: Any, ids: torch.Tensor) -> float:
    """The largest relative difference of the gradients, once losses agree."""
    losses = step(ours, ids), step(theirs, ids)
    if abs(losses[0] - losses[1]) > 1e-4 * abs(losses[1]):
        raise SystemExit(f"the losses differ: {losses}")
    pairs, largest = peft_pairs(theirs), 0.0
    for path, layer in lora_layers(ours).items():
        for mine, other in zip((layer.A, layer.B), pairs[path], strict=True):
            apart = float((mine.grad - other.grad).abs().max())
            largest = max(largest, apart / float(other.grad.abs().max()))
    if largest > 1e-3:
        raise SystemExit(f"the gradients differ by {largest:.1e} of the largest")
    return largest


def measure(name: str, tokens: int, repeats: int) -> dict[str, Any]:
    """Seconds of a step of each, in turn."""
    ours, theirs = ours_and_theirs(name)
    generator = torch.Generator().manual_seed(2)
    rows = max(tokens // 128, 1)
    ids = torch.randint(8192, (rows, tokens // rows), generator=generator)
    apart = check_same(ours, theirs, ids)
    seconds: dict[str, list[float]] = {"lorakit": [], "peft": []}
    for _ in range(repeats):
        for who, model in (("lorakit", ours), ("peft", theirs)):
            began = time.perf_counter()
            step(model, ids)
            seconds[who].append(time.perf_counter() - began)
    medians = {who: statistics.median(times) for who, times in seconds.items()}
    return {
        "model": name,
        "parameters": sum(p.numel() for p in model_of(name).parameters()),
        "trained": sum(p.numel() for p in ours.parameters() if p.requires_grad),
        "tokens": ids.numel(),
        "threads": torch.get_num_threads(),
        "gradients_differ": apart,
        "seconds": medians,
        "ratio": medians["peft"] / medians["lorakit"],
        "pairwise": sorted(t / o for o, t in zip(seconds["lorakit"], seconds["peft"], strict=True)),
    }


def main() -> None:
    """Measure both models and write one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("mixtral", "qwen3_moe"):
        for tokens in args.tokens:
            line = json.dumps(measure(name, tokens, args.repeats))
            print(line, flush=True)
            if args.out:
                with args.out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
