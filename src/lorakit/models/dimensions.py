"""Sizes that a configuration names, under whatever name its family gives them; None where it names none.

transformers maps many families' names to common ones (`attribute_map`). Some families name a size
otherwise, have none (a state-space model has no attention heads), or have one for each layer.
"""

from typing import Any

_HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "decoder_attention_heads")
_BLOCKS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "decoder_layers")
_REACHED = ("num_experts_per_tok", "moe_topk", "moe_k", "moe_top_k", "top_k_experts")
_WIDTH = ("hidden_size", "d_model", "n_embd", "dim")


def attention_heads(config: Any) -> int | None:
    """Heads of the queries in a block; None where there are none, or not as many in each block.

    Args:
        config: of a transformers model. Of one with several towers that of text counts.
    """
    return _size(config, _HEADS)


def block_count(config: Any) -> int | None:
    """Transformer blocks; None where the configuration does not count them.

    Args:
        config: of a transformers model. Of one with several towers that of text counts.
    """
    return _size(config, _BLOCKS)


def hidden_width(model: Any) -> int:
    """Numbers of a token between two blocks: that of its embedding where no size is named."""
    named = _size(model.config, _WIDTH)
    return named or int(model.get_input_embeddings().weight.shape[1])


def experts_a_token(config: Any) -> int | None:
    """Experts that a router sends each token to; None where the configuration does not count them.

    Args:
        config: of a transformers model. Of one with several towers that of text counts.
    """
    inside = getattr(config.get_text_config(), "ffn_config", None)  # DBRX keeps it apart
    return _size(config, _REACHED) or next(
        (n for name in _REACHED if isinstance(n := getattr(inside, name, None), int)), None
    )


def _size(config: Any, names: tuple[str, ...]) -> int | None:
    text = config.get_text_config()
    for name in names:
        try:
            value = getattr(text, name)
        except (AttributeError, RuntimeError):  # the second of a size that differs by layer
            continue
        if isinstance(value, int) and value > 0:
            return value
    return None
