"""Adapters as they were saved when transformers kept each expert as a module, and their oracle.

The oracle adds s·B·A to each matrix of the older checkpoint, which transformers itself writes and converts.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

CONFIG: dict[str, Any] = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none"}
# The names of an expert's matrices in older checkpoints, and of the router beside them.
FAMILIES = {
    "mixtral": ("w1", "w2", "w3", "gate"),
    "phimoe": ("w1", "w2", "w3", "gate"),
    "qwen3_moe": ("gate_proj", "up_proj", "down_proj", "gate"),
    "olmoe": ("gate_proj", "up_proj", "down_proj", "gate"),
    "jamba": ("gate_proj", "up_proj", "down_proj", "router"),
    "lfm2_moe": ("w1", "w2", "w3"),
    "nemotron_h": ("up_proj", "down_proj"),
    "deepseek_v3": ("gate_proj", "up_proj", "down_proj", "q_b_proj"),
}


def older_checkpoint(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a model by their older names."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def older_adapter(
    held: dict[str, torch.Tensor],
    folder: Path,
    names: tuple[str, ...],
    *,
    only: Any = lambda path: True,
    **config: Any,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Write an adapter on every linear layer of these last names, as older peft did; A and B by path."""
    rank, generator = config.setdefault("r", 2), torch.Generator().manual_seed(3)
    pairs = {}
    for name, weight in held.items():
        path = name.removesuffix(".weight")
        if path.rsplit(".", 1)[-1] not in names or weight.dim() != 2 or not only(path):
            continue
        own = next((r for k, r in config.get("rank_pattern", {}).items() if path.endswith(k)), rank)
        A = torch.randn(own, weight.shape[1], generator=generator) / 4
        B = torch.randn(weight.shape[0], own, generator=generator) / 4
        pairs[path] = (A, B)
    folder.mkdir()
    tensors = {}
    for path, (A, B) in pairs.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = A
        tensors[f"base_model.model.{path}.lora_B.weight"] = B
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    content = {**CONFIG, "lora_alpha": 6, "target_modules": list(names), **config}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return pairs


def merged(folder: Path, held: dict[str, torch.Tensor], pairs: Any, scale: Any) -> Any:
    """The model of an older checkpoint with s·B·A added to its matrices, converted by transformers."""
    for path, (A, B) in pairs.items():
        held[f"{path}.weight"] = held[f"{path}.weight"] + scale(path, len(A)) * (B @ A)
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(5, 60, (1, 19), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model(ids).logits


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return float((one - other).abs().max()) <= 1e-4 * float(other.abs().max())
