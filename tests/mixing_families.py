"""Tiny models of the kinds that mix tokens by something else than an attention that can be switched."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from families import COMMON

# Without a width of heads: some of these have heads of their own.
_COMMON = {key: value for key, value in COMMON.items() if key != "head_dim"}
_MAMBA2 = {
    "mamba_n_heads": 12,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_chunk_size": 16,
}
_GATED_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
# What of the model gets the sequences apart, by the last name of its path.
KINDS = {
    "mamba": ({"state_size": 8}, {"mixer"}),
    "mamba2": (
        {"state_size": 8, "num_heads": 12, "head_dim": 8, "n_groups": 2, "chunk_size": 16},
        {"mixer"},
    ),
    "jamba": (
        {"mamba_d_state": 8, "num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2}
        | {"attn_layer_offset": 1, "use_mamba_kernels": False},
        {"mamba"},
    ),
    "bamba": (_MAMBA2 | {"attn_layer_indices": [1]}, {"mamba"}),
    "falcon_h1": (_MAMBA2 | {"mamba_d_ssm": 96}, {"mamba"}),
    "qwen3_5_text": (_GATED_DELTA | {"head_dim": 8}, {"linear_attn"}),
    "olmo_hybrid": (_GATED_DELTA | {"linear_num_value_heads": 2}, {"linear_attn"}),
    "recurrent_gemma": (
        {"lru_width": 48, "block_types": ["recurrent", "attention"], "attention_window_size": 16},
        {"temporal_block"},
    ),
    "rwkv": ({"attention_hidden_size": 48}, {"attention", "time_shift"}),
    "xlstm": ({"num_heads": 4, "embedding_dim": 48, "chunk_size": 16}, {"mlstm_backend"}),
    "bloom": ({"n_head": 6, "n_layer": 2}, {"self_attention"}),
    "mpt": ({"d_model": 48, "n_heads": 6, "n_layers": 2}, {"attn"}),
}


def tiny_kind(family):
    settings = _COMMON | KINDS[family][0]
    if family in ("bloom", "mpt"):
        settings.pop("num_key_value_heads")
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **settings)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
