"""Tiny random-weight models of every family that is tested, and a small real tokenizer."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    PreTrainedTokenizerFast,
)

VOCABULARY = 300
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
# Sliding windows are shorter than the test's sequences, so that they matter.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 5},
    "gemma2": {
        "sliding_window": 5,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 8,
    },
    "gemma3_text": {"sliding_window": 5, "query_pre_attn_scalar": 8},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {},
    "gpt2": {"n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 512},
    "gpt_neox": {},
}
_MLA: dict[str, Any] = {
    "q_lora_rank": 40,
    "kv_lora_rank": 40,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "num_key_value_heads": 6,
}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
# Kinds of attention, each with two families where there are two.
ATTENTION_KINDS: dict[str, dict[str, Any]] = {
    # values of another width than keys
    "deepseek_v3": {
        **(_MLA | _EXPERTS | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1}),
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
    },
    "minicpm3": _MLA,
    # sinks
    "gpt_oss": {
        "sliding_window": 5,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "granite_swa": {"sliding_window": 5},
    # windows that are in the mask alone
    "qwen2_moe": {
        **(_EXPERTS | {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1}),
        "num_experts": 4,
        "shared_expert_intermediate_size": 48,
    },
    "phimoe": {"sliding_window": 5, "num_local_experts": 4, "num_experts_per_tok": 2},
    # chunks
    "llama4_text": {
        "attention_chunk_size": 5,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "attn_temperature_tuning": False,
        "intermediate_size_mlp": 64,
    },
}
# Packed rows, but some of their modules get the sequences apart.
BY_SEQUENCE: dict[str, dict[str, Any]] = {
    "bloom": {"n_layer": 2, "n_head": 6},
    "mamba": {"state_size": 8},
}
NOT_PACKABLE: dict[str, dict[str, Any]] = {
    "xlm": {"causal": True, "emb_dim": 48, "n_layers": 2, "n_heads": 6},
}


def tiny(family: str, seed: int = 0, **changes: Any) -> Any:
    """A two-layer model in eval mode, float32, with weights large enough to tell tokens apart."""
    own = FAMILIES | BY_SEQUENCE | NOT_PACKABLE | ATTENTION_KINDS
    settings = {**COMMON, **own[family], **changes}
    without = ("gpt2", "bloom", "mamba", "gpt_neox", "phi3", "xlm", "deepseek_v3", "minicpm3")
    if family in without:
        settings.pop("head_dim")
    config = AutoConfig.for_model(family, **settings)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def gemma3_config(**text_changes: Any) -> Any:
    """A two-layer vision-language configuration; its files have other names than its modules."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    names += ("num_attention_heads", "num_key_value_heads", "head_dim", "initializer_range")
    text = {name: COMMON[name] for name in names} | text_changes
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    return Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)


def tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level, no merges: 256 bytes, then <s>, </s>, <pad>, <|im_end|> among the first ids."""
    special = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Qwen's and GPT-2's tokenizer classes add <|endoftext|> where a vocabulary lacks it.
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet, "<|endoftext|>"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    if chat:
        made.chat_template = (
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )
    return made


def saved(folder: Path, family: str = "llama", chat: bool = True) -> Path:
    """A model folder as transformers writes one."""
    tiny(family).save_pretrained(folder)
    tokenizer(chat).save_pretrained(folder)
    return folder
