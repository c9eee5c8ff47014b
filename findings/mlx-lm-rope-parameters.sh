#!/usr/bin/env bash
# mlx-lm 0.32.2 rotates by its own default where transformers 5 wrote config.json.
#
# transformers 5 keeps the base of the rotary embedding in `rope_parameters.rope_theta`. Most models of
# mlx-lm 0.32.2 (llama among them) read the older `rope_theta` at the top level alone, and take a default
# where it is missing: no error and no warning, other angles, other answers. With `rope_theta` written
# beside it, mlx-lm computes what transformers does.
#
# Versions: mlx-lm 0.32.2, mlx 0.32.4 (CPU), transformers 5.24.0, torch 2.13.0.
# Seen: largest difference of a logit 5.6 (of 7.9) as transformers wrote it, 1.2e-05 with `rope_theta`.
# Exits with 1 where either has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0
"$place/venv/bin/pip" install --quiet transformers==5.24.0 mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2
"$place/venv/bin/python" - "$place" <<'PYTHON'
import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.utils import load_model
from transformers import LlamaConfig, LlamaForCausalLM

folder = Path(sys.argv[1]) / "model"
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=300, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=6, num_key_value_heads=2, head_dim=8, initializer_range=0.3,
    rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
)
model = LlamaForCausalLM(config).eval()
model.save_pretrained(folder)
ids = [[5, 9, 2, 60, 33, 7, 8, 100, 200, 17, 40, 41, 42, 90, 91, 92]]
with torch.no_grad():
    expected = model(torch.tensor(ids)).logits.numpy()


def difference() -> float:
    """The largest difference between a logit of mlx-lm and of transformers."""
    loaded = load_model(folder)[0]
    logits = np.array(loaded(mx.array(ids)).astype(mx.float32))
    return float(np.abs(logits - expected).max())


as_written = difference()
written = json.loads((folder / "config.json").read_text())
assert "rope_theta" not in written, "transformers writes rope_theta again"
written["rope_theta"] = written["rope_parameters"]["rope_theta"]
(folder / "config.json").write_text(json.dumps(written))
with_theta = difference()
print(f"as transformers wrote it {as_written:.2g}, with rope_theta {with_theta:.2g}, "
      f"of logits up to {np.abs(expected).max():.2g}")
sys.exit(0 if as_written > 0.5 and with_theta < 1e-3 else 1)
PYTHON
