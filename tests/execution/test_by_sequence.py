"""Recurrences, convolutions and attentions of a model's own in packed rows: equal to each row alone.

The oracle is transformers' own code on each sequence alone, with the pairs' s·B·A beside it.
"""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lorakit.execution.runnable import Packed, Runnable
from lorakit.lora import LoraSpec, attach, lora_layers

LENGTHS = (9, 37, 23, 24, 1)
_COMMON = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
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


def adapted(family):
    model = tiny_kind(family)
    attach(model, LoraSpec(rank=2))
    generator = torch.Generator().manual_seed(5)
    for layer in lora_layers(model).values():
        layer.B.data.copy_(torch.randn(layer.B.shape, generator=generator) / 4)
    return model


def packed_rows():
    ids_T = torch.randint(5, 300, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    return Packed(ids_T, torch.cat([torch.arange(n) for n in LENGTHS]), LENGTHS)


def loss_and_gradients(model, logits_of):
    """A loss in which every token has a weight of its own, and what A and B get."""
    model.zero_grad()
    weights = torch.randn(sum(LENGTHS), 300, generator=torch.Generator().manual_seed(2))
    loss = (logits_of().log_softmax(-1) * weights).sum() / len(weights)
    loss.backward()
    gradients = {
        f"{path}.{name}": tensor.grad.clone()
        for path, layer in lora_layers(model).items()
        for name, tensor in (("A", layer.A), ("B", layer.B))
        if tensor.grad is not None
    }
    return loss.detach(), gradients


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("family", KINDS)
def test_packed_rows_have_the_loss_and_gradients_of_each_alone(family):
    model, rows = adapted(family), packed_rows()
    loss, gradients = loss_and_gradients(
        model,
        lambda: torch.cat(
            [model(ids[None], use_cache=False).logits[0] for ids in rows.ids_T.split(LENGTHS)]
        ),
    )
    runnable = Runnable(model)
    assert runnable.packs
    assert {path.rsplit(".", 1)[1] for path in runnable.by_sequence} == KINDS[family][1]
    every = torch.arange(sum(LENGTHS))
    for recompute in (False, True) if model.supports_gradient_checkpointing else (False,):
        own, mine = loss_and_gradients(
            model,
            lambda again=recompute: runnable.logits(rows, every, training=True, recompute=again),
        )
        runnable.rest()
        assert (own - loss).abs() < 1e-4 * loss.abs()
        assert mine.keys() == gradients.keys()
        for name, gradient in gradients.items():
            apart = (mine[name] - gradient).abs().max()
            assert apart <= 1e-3 * gradient.abs().max() + 1e-7, (name, recompute)
