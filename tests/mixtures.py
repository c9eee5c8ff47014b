"""Tiny random mixtures of experts, one for each way in which transformers keeps and computes experts."""

from typing import Any

import torch

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralForCausalLM", {"intermediate_size": 24, "num_local_experts": 4}),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        {
            "moe_intermediate_size": 12,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "intermediate_size": 24,
            "head_dim": 8,
            "mlp_only_layers": [0],
        },
    ),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        {
            "moe_intermediate_size": 12,
            "shared_expert_intermediate_size": 20,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "intermediate_size": 24,
        },
    ),
    "olmoe": (
        "OlmoeForCausalLM",
        {"intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        {
            "intermediate_size": 12,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 8,
            "sliding_window": 8,
        },
    ),
    "llama4_text": (
        "Llama4ForCausalLM",
        {
            "intermediate_size": 12,
            "intermediate_size_mlp": 24,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "head_dim": 8,
            "attention_chunk_size": 16,
            "interleave_moe_layer_step": 1,
        },
    ),
    "granitemoe": (
        "GraniteMoeForCausalLM",
        {"intermediate_size": 12, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "dbrx": (
        "DbrxForCausalLM",
        {
            "d_model": 16,
            "n_heads": 2,
            "n_layers": 2,
            "max_seq_len": 64,
            "ffn_config": {"ffn_hidden_size": 12, "moe_num_experts": 4, "moe_top_k": 2},
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        },
    ),
}


def mixture(family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **more: Any) -> Any:
    """A tiny random model of a family of mixtures, in evaluation mode."""
    import transformers

    name, own = MIXTURES[family]
    config_name = {"llama4_text": "Llama4TextConfig"}.get(family)
    cls = getattr(transformers, name)
    config_cls = getattr(transformers, config_name) if config_name else cls.config_class
    config = config_cls(**{**SIZES, **own, **more})
    torch.manual_seed(seed)
    return cls(config).to(dtype).eval()


def rows(count: int = 3, seed: int = 1) -> list[list[int]]:
    """Rows of token ids of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [5, 11, 8, 3, 9][:count]
    return [torch.randint(3, 64, (n,), generator=generator).tolist() for n in lengths]
