#!/usr/bin/env bash
# peft 0.21.2 makes an rsLoRA adapter on experts of transformers 4 larger by the square root of 2.
#
# Adapters on Mixtral's w1 and w3 (modules in transformers 4) are converted to one pair on `gate_up_proj`
# (a parameter in transformers 5). peft doubles its rank, and alpha too, so that alpha / r stays. With
# `use_rslora` the scale is alpha / sqrt(r): it grows by the square root of 2, without a message, and the model
# answers otherwise than it was trained to. Without rsLoRA the answers are right.
#
# Versions: peft 0.21.2, transformers 5.24.0, torch 2.13.0.
# Seen: largest difference of a logit to the weights W + s·B·A, as a share of the largest logit: 1e-07 without
# rsLoRA, 0.3 with it; the scale of gate_up_proj is 4.24 in place of 3.
# Exits with 1 where either has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0
"$place/venv/bin/pip" install --quiet transformers==5.24.0 peft==0.21.2
"$place/venv/bin/python" - "$place" <<'PYTHON'
import copy
import json
import sys
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import MixtralConfig, MixtralForCausalLM

warnings.simplefilter("ignore")
torch.manual_seed(0)
experts, width, inner, rank, alpha = 4, 32, 48, 4, 6.0
config = MixtralConfig(
    vocab_size=64, hidden_size=width, intermediate_size=inner, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=2, num_local_experts=experts,
)
base = MixtralForCausalLM(config).eval()
for parameter in base.parameters():
    parameter.data.normal_(0, 0.2)
sizes = {"w1": (inner, width), "w3": (inner, width), "w2": (width, inner)}
pairs = {
    (e, name): (torch.randn(rank, i) / 4, torch.randn(o, rank) / 4)
    for e in range(experts) for name, (o, i) in sizes.items()
}
tensors = {}
for (e, name), (A, B) in pairs.items():
    stem = f"base_model.model.model.layers.0.block_sparse_moe.experts.{e}.{name}"
    tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = A, B
ids = torch.tensor([[5, 9, 2, 60, 33, 7, 8, 10, 20, 17]])


def difference(rslora: bool) -> float:
    """How far peft's logits are from those of W + s·B·A, as a share of the largest."""
    folder = Path(sys.argv[1]) / f"rslora-{rslora}"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    described = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha,
                 "target_modules": ["w1", "w2", "w3"], "use_rslora": rslora}
    (folder / "adapter_config.json").write_text(json.dumps(described))
    scale = alpha / (rank**0.5 if rslora else rank)
    merged = copy.deepcopy(base)
    held = merged.model.layers[0].mlp.experts
    for (e, name), (A, B) in pairs.items():
        rows = {"w1": slice(0, inner), "w3": slice(inner, 2 * inner)}.get(name)
        matrix = held.down_proj[e] if rows is None else held.gate_up_proj[e, rows]
        matrix.data += scale * B @ A
    model = PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
    with torch.no_grad():
        expected, got = merged(ids).logits, model(ids).logits
    scales = {n: m.scaling["default"] for n, m in model.named_modules() if isinstance(getattr(m, "scaling", 0), dict)}
    print(f"rsLoRA {rslora}: s = {scale:g}, in peft {sorted(set(scales.values()))}")
    return float((got - expected).abs().max() / expected.abs().max())


plain, rooted = difference(False), difference(True)
print(f"difference without rsLoRA {plain:.1e}, with it {rooted:.1e}")
sys.exit(0 if plain < 1e-4 and rooted > 1e-2 else 1)
PYTHON
