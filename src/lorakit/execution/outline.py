"""What training would keep of a model whose weights are not here: known by its parts, not by a trial."""

from collections.abc import Sequence
from typing import Any

import torch

from lorakit.execution.family import read_decoder
from lorakit.execution.fused import elements_kept
from lorakit.execution.settings import AttentionSettings
from lorakit.models.dimensions import attention_heads, hidden_width


def outline_elements_kept(
    model: Any, lengths: Sequence[int], dtype: torch.dtype, device: torch.device
) -> float | None:
    """Elements kept for the backward pass for each token, where every block has the fused parts.

    A loaded model runs fused where a trial gives the answer of its own code; here that is taken for
    granted.

    Args:
        model: on the meta device.
        lengths: tokens of each sequence.
        dtype: that it would compute in.
        device: where it would compute.

    Returns:
        None where a block has other parts: its own code would run.
    """
    decoder = read_decoder(model)
    if decoder is None or not decoder.whole or not all(block.fits for block in decoder.blocks):
        return None
    config = model.config.get_text_config()
    heads = attention_heads(config)
    if heads is None:
        return None
    width = int(getattr(config, "head_dim", None) or hidden_width(model) // heads)
    settings = AttentionSettings(
        heads=heads,
        scale=width**-0.5,
        window=getattr(config, "sliding_window", None),
        softcap=getattr(config, "attn_logit_softcapping", None),
        dropout=0.0,
        key_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        width=width,
    )
    by_block = {block.path: settings for block in decoder.blocks}
    return elements_kept(decoder.blocks, by_block, lengths, dtype, device)
