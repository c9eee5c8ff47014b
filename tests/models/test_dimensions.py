"""Sizes that families name otherwise, do not have, or have for each layer."""

import pytest
from transformers import AutoConfig

from architectures import tiny_config, tiny_model
from lorakit.adapters.export.families import GgufBase
from lorakit.execution.lengths import context_length
from lorakit.models.dimensions import attention_heads, block_count, hidden_width


@pytest.mark.parametrize(
    ("family", "heads", "blocks", "longest"),
    [
        ("bloom", 8, 2, None),
        ("mpt", 16, 24, 2048),
        ("mamba", None, 32, None),
        ("mamba2", 128, 64, None),
        ("xlnet", 16, 24, None),
        ("whisper", 6, 4, 448),
        ("rwkv", None, 32, 1024),
        ("blt", None, None, 4096),
        ("dots3_note_text", None, 46, 524288),
        ("gpt2", 12, 12, 1024),
    ],
)
def test_sizes_by_the_names_of_families(
    family: str, heads: int | None, blocks: int | None, longest: int | None
) -> None:
    config = AutoConfig.for_model(family)
    assert attention_heads(config) == heads
    assert block_count(config) == blocks
    assert context_length(config) == longest
    assert GgufBase.of(config).heads == (heads or 0)


@pytest.mark.parametrize("family", ["mamba", "blt"])
def test_the_width_is_that_of_the_embedding_where_none_is_named(family: str) -> None:
    model = tiny_model(family)
    assert hidden_width(model) == model.get_input_embeddings().weight.shape[1]


def test_a_size_that_differs_by_layer_is_none() -> None:
    assert attention_heads(tiny_config("dots3_note_text")) is None
