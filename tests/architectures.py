"""Tiny random models of every causal architecture of the installed transformers.

A default configuration is shrunk by the names of its fields: widths, layers, heads, experts, states.
Every window, chunk and position limit becomes 16 to 32 tokens, so that rows of 9 to 50 cross it. What
the names do not tell stands in one table, `_OWN`.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from families import VOCABULARY, tokenizer

# The first pattern that fits a field's whole name decides.
_FIELDS: tuple[tuple[str, int], ...] = (
    (r"(unpadded_|decoder_)?vocab_size(_per_layer_input)?", VOCABULARY),
    (r"(pronunciation|shape)_vocab_size", VOCABULARY),
    (r"bos_token_id|cls_token_id|decoder_start_token_id", 0),
    (r"eos_token_id|sep_token_id|forced_eos_token_id|eod_token_id|unk_index", 1),
    (r"pad_token_id", 2),
    (r"mask_token_id|mask_index", 3),
    (r"num_kv_shared_layers", 0),
    (r"num_nextn_predict_layers", 0),
    (
        r"(num_)?((en|de)coder_)?(num_)?(hidden_)?layers|n_layers?|num_(en|de)coder_layers|num_blocks",
        2,
    ),
    (r"first_k_dense_replace|num_dense_layers", 1),
    (r"hidden_size_per_layer_input", 8),
    (
        r"(attention_)?hidden_size(_global)?|d_model|n_embd|emb_dim|embedding_(dim|size)|word_embed_proj_dim",
        48,
    ),
    (r"input_embedding_size|output_embedding_size|lru_width|dim", 48),
    (r".*_embed_dim", 48),
    (r"router_hidden_size|moe_intermediate_size|expert_ffn_hidden_size", 32),
    (r"(moe_)?shared_(expert_)?intermediate_size|.*shared_experts?_intermediate_size", 32),
    (
        r".*intermediate_size(_mlp)?|(en|de)coder_ffn_dim|ffn_(dim|hidden_size)|dim_ff|dff|d_inner",
        64,
    ),
    (r"feed_forward_size", 64),
    (r"(swa_)?num_key_value_heads|num_kv_heads|num_query_groups", 2),
    (r"(swa_)?num_(en|de)?(coder_)?attention_heads|(en|de)coder_attention_heads", 6),
    (r"attention_heads|n_heads?|num_heads", 6),
    (r"(swa_)?head_dim|attention_head_(size|dim)|dim_head|d_head|kv_channels", 8),
    (r"qk_rope_head_dim|rotary_dim", 4),
    (r"qk_nope_head_dim", 8),
    (r"qk_head_dim", 12),
    (r"v_head_dim", 8),
    (r"kv_lora_rank|o_lora_rank", 12),
    (r"q_lora_rank", 16),
    (r"index_head_dim", 8),
    (r"index_n_heads", 16),
    (r"index_topk", 16),
    (r"(num|n_routed|num_local|moe_num|zero)_experts?(_num)?", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k", 2),
    (r"n_group|topk_group|num_expert_group", 1),
    (r"(n|num|moe_num)_shared_experts", 1),
    (r"linear_num_key_heads", 2),
    (r"linear_num_value_heads", 4),
    (r"linear_(key_|value_)?head_dim", 8),
    (r"linear_num_heads", 4),
    (r"mamba_d_state|state_size|ssm_state_size", 8),
    (r"time_step_rank|mamba_dt_rank", 4),
    (r"mamba_n_groups|n_groups|mamba_ngroups", 1),
    (r"mamba_d_head|mamba_head_dim|mamba_headdim", 8),
    (r"mamba_n_heads|mamba_num_heads", 12),
    (r"mamba_d_ssm", 96),
    (r"laurel_rank|gated_norm_rank|loop_gate_rank|adapter_rank|hc_lowrank", 4),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|model_max_length", 512),
    (r"max_(source|target)_positions", 512),
    (r"max_inference_chunksize", 512),
    (
        r"sliding_window(_size)?|attention_window_size|window_size|local_attention|keep_window_size",
        16,
    ),
    (r"attention_chunk_size|(mamba_)?chunk_size", 16),
    (r"original_max_position_embeddings|floor_scale|log_scaling_n_floor", 24),
    (r"relative_max_distance|position_bias_max_distance|rel_extent", 32),
    (r"(position_bias_)?num_buckets", 16),
    (r"max_window_layers|mtp_num_hidden_layers|num_mtp_layers", 1),
    (r"encoder_hash_byte_group_vocab", VOCABULARY),
    (r".*window.*|.*_chunk_length|block_size", 16),
    (r"image_size", 16),
    (r"(temporal_)?patch_size", 8),
    (r"adapter_(in|out)(put)?_(dim|size)", 48),
    (r"num_centroids", 16),
    (r"depth", 1),
    (r"attn_layer_period|expert_layer_period", 2),
    (r"attn_layer_offset|expert_layer_offset", 1),
)
# What the names of fields do not tell: sizes that must fit each other, and switches that make the
# causal model.
_INDEXER = {"indexer_n_heads": 16, "indexer_kv_heads": 1, "indexer_head_dim": 8}
_INDEXER |= {"indexer_budget": 16, "indexer_compress_ratio": 4}
_OWN: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "dory": {
        "n_input_layers": 2,
        "n_recurrent_layers": 2,
        "n_output_layers": 2,
        "num_hidden_layers": 6,
        "layer_types": [
            "sliding_attention",
            "mlp",
            *["full_attention", "mlp", "sliding_attention", "mlp"],
        ],
    },
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "dots3_note": {"num_key_value_heads": 6, "head_dim": 16},
    "dots3_note_text": {"num_key_value_heads": 6, "head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 12},
    "mimo_v2_flash": {"head_dim": 12, "num_key_value_heads": 3},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp": _INDEXER,
    "qwen4_exp_text": _INDEXER,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [16, 32],
        "num_buckets": 4,
    },
    # Its cache rounds the widths of keys and values up to multiples of 64.
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "num_heads": 4},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 96,
        "attention_head_dim": 16,
        "num_key_value_heads": 6,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 96,
        "attention_head_dim": 16,
        "num_key_value_heads": 6,
        "hybrid_layer_ids": [1, 3],
        "n_mamba_heads": 8,
        "mamba_headdim": 12,
    },
    "zaya": {"num_experts_per_tok": 1},
}
_FAILS: dict[str, str] = {
    "gemma4_assistant": "transformers builds no default configuration of it",
    "gemma4_unified_assistant": "no model of its own: it reads the hidden states of another one",
    "gemma3n": "its vision tower needs the package timm",
    "musicgen": "two decoders: a text encoder's and one of audio codes",
    "musicgen_melody": "two decoders: a text encoder's and one of audio codes",
}
# Settings that are not an architecture's default and that change what a token depends on.
_LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [2.0, 4.0, 6.0, 8.0],
    "original_max_position_embeddings": 24,
}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
_WINDOWS = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
_WINDOWS |= {"layer_types": ["full_attention", "sliding_attention"]}
VARIANTS: dict[str, dict[str, Any]] = {
    "bert+encoder": {"is_decoder": False},
    "gemma3_text+bidirectional": {"use_bidirectional_attention": True},
    "llama+dynamic": {"rope_parameters": _DYNAMIC, "max_position_embeddings": 24},
    "phi3+longrope": {"rope_parameters": _LONG_ROPE},
    "phimoe+window": {"sliding_window": 16},
    "qwen2+window": _WINDOWS,
    "qwen2_moe+window": _WINDOWS,
    "roberta+encoder": {"is_decoder": False},
}
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def names() -> list[str]:
    """Every causal architecture that the installed transformers names and that can be built."""
    return [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in _FAILS]


def not_built() -> dict[str, str]:
    """The other names, and why no model of theirs is built here."""
    return dict(_FAILS)


def tiny_config(name: str, **changes: Any) -> Any:
    """A small configuration of an architecture or a variant; `changes` go to its text part."""
    changes = {**VARIANTS.get(name, {}), **changes}
    name = name.split("+")[0]
    config = AutoConfig.for_model(name)
    text = config.get_text_config()
    given = {}
    for key in config.sub_configs:
        part = getattr(config, key, None)
        if isinstance(part, PreTrainedConfig) and part is not text:
            given[key] = _small_part(part)
    small = {**_shrunk(text.to_dict(), _OWN.get(name, {})), **changes}
    if text is config:
        return AutoConfig.for_model(name, **{**given, **small})
    key = next(key for key in config.sub_configs if getattr(config, key, None) is text)
    return AutoConfig.for_model(name, **{**_shrunk(_own_fields(config)), **given, key: small})


def tiny_model(name: str, seed: int = 0, **changes: Any) -> Any:
    """A model in evaluation mode, float32, of weights large enough to tell tokens apart."""
    torch.manual_seed(seed)
    config = tiny_config(name, **changes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    _enliven(model)
    return model


def tiny_folder(name: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """The model as transformers saves one, beside the byte-level tokenizer of families.py."""
    tiny_model(name, seed, **changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def _own_fields(config: Any) -> dict[str, Any]:
    """The fields that are not configurations themselves."""
    return {k: v for k, v in config.to_dict().items() if k not in config.sub_configs}


def _small_part(config: Any) -> dict[str, Any]:
    """The tower of another kind of input, as small as it can be told from names."""
    small = _shrunk(_own_fields(config))
    for key in config.sub_configs:
        if isinstance(part := getattr(config, key, None), PreTrainedConfig):
            small[key] = _small_part(part)
    return {"model_type": config.model_type, **small}


def _size(key: str) -> int | None:
    return next((size for pattern, size in _FIELDS if re.fullmatch(pattern, key)), None)


def _shrunk(fields: dict[str, Any], own: dict[str, Any] | None = None) -> dict[str, Any]:
    """`own`, and small values of the fields whose names say a size; lists by layer keep one of each kind."""
    small: dict[str, Any] = {}
    for key, value in fields.items():
        if isinstance(value, int) and not isinstance(value, bool) and _size(key) is not None:
            small[key] = _size(key)
        elif key == "is_decoder":
            small[key] = True
        elif isinstance(value, float) and re.search("drop|jitter", key):
            small[key] = 0.0
        elif key in ("initializer_range", "init_std", "initializer_std"):
            small[key] = 0.2
        elif key == "rope_parameters" and "original_max" in repr(value):
            small[key] = _shrunk_rope(value)
    if "kv_lora_rank" in fields:  # latent attention has as many keys as queries
        small |= {"num_key_value_heads": small["num_attention_heads"]}
        if "head_dim" in small and "head_dim" not in (own or {}):
            rope = fields["head_dim"] == fields["qk_rope_head_dim"]
            small["head_dim"] = small["qk_rope_head_dim"] + (
                0 if rope else small["qk_nope_head_dim"]
            )
    small |= own or {}
    layers = next((fields[key] for key in _LAYERS if isinstance(fields.get(key), int)), None)
    if layers is None:
        return small
    by_layer = {k: v for k, v in fields.items() if isinstance(v, list) and len(v) == layers}
    by_layer = {k: v for k, v in by_layer.items() if k not in (own or {})}
    counted = [values for values in by_layer.values() if values != list(range(layers))]
    chosen = _one_of_each(counted, layers)
    small |= {key: len(chosen) for key in _LAYERS if key in small and key not in (own or {})}
    for key, values in by_layer.items():
        size = _size(key)
        kept = [values[i] if size is None else size for i in chosen]
        small[key] = kept if values in counted else list(range(len(chosen)))
    if isinstance(different := fields.get("per_layer_config"), dict):
        small["per_layer_config"] = {
            f"{new:02d}": {
                key: small[key] * value // fields[key] for key, value in different[old].items()
            }
            for new, i in enumerate(chosen)
            if (old := f"{i:02d}") in different
        }
    return small


def _shrunk_rope(value: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _shrunk_rope(inner) if isinstance(inner, dict) else _size(key) or inner
        for key, inner in value.items()
    }


def _one_of_each(lists: Iterable[list[Any]], layers: int) -> list[int]:
    """Layers, at least two, among which every value of every list stands."""
    chosen = []
    for values in lists:
        for value in dict.fromkeys(map(repr, values)):
            if not any(repr(values[i]) == value for i in chosen):
                chosen.append(next(i for i, v in enumerate(values) if repr(v) == value))
    for i in range(layers):
        if len(chosen) < 2 and i not in chosen:
            chosen.append(i)
    return sorted(set(chosen))


@torch.no_grad()
def _enliven(model: Any) -> None:
    """Make what a fresh model leaves at zero, one or almost nothing tell in its answers."""
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
            # Where such a token asks for keys all scores are equal, and the choice is anybody's.
            row = module.weight[module.padding_idx]
            row.add_(module.weight.std() * torch.randn_like(row))
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        noise = torch.randn_like(parameter)
        if parameter.ndim < 2:
            parameter.add_(0.05 * noise)
        elif parameter.std() < 0.05:
            parameter.add_(0.2 * noise)
