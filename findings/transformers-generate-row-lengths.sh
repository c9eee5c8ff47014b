#!/usr/bin/env bash
# transformers 5.24.0: `generate` continues some models otherwise than their own forward does.
#
# Phi-4 multimodal: once prompt and answer have more than `original_max_position_embeddings` tokens, its
# prepare_inputs_for_generation drops the cache, but still hands on the newest token alone (Phi-3 hands on
# the whole row): that one token is run as if nothing stood before it. No error and no warning.
# RoBERTa: `generate` gives position ids from 0 on, where the model's own forward counts them from
# pad_token_id + 1 on: the first new token is another already.
# Doge: past `keep_window_size` each layer sees the keys of the highest scores. Equal tokens have equal scores
# in the first layer, and which of them torch.topk takes depends on the row's length: the logits of a
# beginning are not those that its tokens have in the whole row.
#
# Versions: transformers 5.24.0, torch 2.13.0 (CPU). Tiny random models, float32, no padding.
# Seen: with an original length of 16, 12 tokens are continued by 5 as by whole rows, and then otherwise;
# RoBERTa's logits of the first step are 0.67 of the largest off; Doge's up to 0.25, and 6e-07 up to 16 tokens.
# Exits with 1 where one of them has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0
"$place/venv/bin/pip" install --quiet transformers==5.24.0
"$place/venv/bin/python" - <<'PYTHON'
import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = dict(vocab_size=300, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
             num_attention_heads=6, num_key_value_heads=6, initializer_range=0.3,
             bos_token_id=0, eos_token_id=None, pad_token_id=2)
LIMIT, NEW = 16, 8


def tiny(family, **more):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **more})
    return AutoModelForCausalLM.from_config(config).eval()


def rows(model, ids, new):
    """Greedy, the whole row through the model's own forward for each token; and the logits."""
    logits = []
    for _ in range(new):
        with torch.no_grad():
            logits.append(model(input_ids=ids, use_cache=False).logits[0, -1])
        ids = torch.cat([ids, logits[-1].argmax()[None, None]], 1)
    return ids[0, -new:].tolist(), torch.stack(logits)


def generated(model, ids, new):
    made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new,
                          output_logits=True, return_dict_in_generate=True)
    return made.sequences[0, -new:].tolist(), torch.cat(made.logits)


prompt = torch.randint(5, 300, (1, LIMIT - 4), generator=torch.Generator().manual_seed(1))

other = dict(hidden_size=48, intermediate_size=64, num_attention_heads=6)  # towers that text does not run
phi = tiny("phi4_multimodal", original_max_position_embeddings=LIMIT, max_position_embeddings=64,
           vision_config=dict(other, num_hidden_layers=2, image_size=16, patch_size=8),
           audio_config=dict(other, num_blocks=1, nemo_conv_channels=16))
whole, theirs = rows(phi, prompt, NEW)[0], generated(phi, prompt, NEW)[0]
same = next((i for i, (a, b) in enumerate(zip(whole, theirs)) if a != b), NEW)
print(f"Phi-4 multimodal: {prompt.shape[1]} + {same} tokens are equal; whole rows {whole}, generate {theirs}")

roberta = tiny("roberta", is_decoder=True, max_position_embeddings=64)
whole, theirs = (run(roberta, prompt, 1)[1][0] for run in (rows, generated))
positions = float((whole - theirs).abs().max() / whole.abs().max())
print(f"RoBERTa: the first step's logits are {positions:.1e} of the largest off")

doge = tiny("doge", keep_window_size=LIMIT, max_position_embeddings=64)
with torch.no_grad():
    doge.model.layers[0].self_attn.A.normal_(std=0.5)
    few = torch.tensor([7, 30, 99, 200])[torch.randint(4, (1, 40), generator=torch.Generator().manual_seed(2))]
    whole = doge(input_ids=few, use_cache=False).logits[0]
    parts = [doge(input_ids=few[:, :n], use_cache=False).logits[0, -1] - whole[n - 1] for n in range(1, 41)]
ties = max(float(part.abs().max()) for part in parts) / float(whole.abs().max())
below = max(float(part.abs().max()) for part in parts[:LIMIT]) / float(whole.abs().max())
print(f"Doge: logits of beginnings are {ties:.1e} of the largest off, {below:.1e} up to {LIMIT} tokens")

sys.exit(0 if same == 5 and positions > 0.1 and ties > 1e-3 > 1e-4 > below else 1)
PYTHON
