"""A folder that every version of vLLM loads, and scales as it was trained.

vLLM reads one `r` and one `lora_alpha` from adapter_config.json and scales every pair by them;
some versions heed neither `rank_pattern` nor `alpha_pattern`. It lays its buffers out for one of a
few ranks, so the pairs are padded with zeros to the next of those.
"""

from dataclasses import replace
from typing import Any

from lorakit.adapters.experts_refused import refuse_beside, refuse_experts
from lorakit.adapters.export.fold import with_alpha
from lorakit.adapters.pairs import StoredAdapter
from lorakit.adapters.vllm_ranks import RANKS, next_rank
from lorakit.errors import AdapterError
from lorakit.lora.variant import Capability, require_capability


def vllm_safe(adapter: StoredAdapter) -> StoredAdapter:
    """The same products s·B·A at one rank and one alpha, as plain LoRA.

    Where one scale is trained everywhere and the padded rank keeps alpha a whole number, only
    zeros are added; otherwise alpha becomes the rank, and each scale moves into its B.

    Args:
        adapter: what `read_stored` gave.

    Raises:
        AdapterError: a variant that vLLM does not take; a convolution; a rank above the highest that vLLM takes.
    """
    for capability in (Capability.VLLM, Capability.FOLD):
        require_capability(
            *(adapter.spec.variant, capability, adapter.source),
            "merge it instead, and serve the merged model: lorakit merge",
        )
    refuse_beside(
        adapter,
        "vLLM takes pairs alone",
        "merge the adapter instead, and serve the merged model: lorakit merge",
    )
    refuse_experts(
        adapter,
        "this export is for linear layers only",
        "merge the adapter instead, and serve the merged model: lorakit merge",
    )
    for path, pair in adapter.pairs.items():
        if pair.kind == "conv":
            raise AdapterError(
                f"{adapter.source}: {path} is a convolution, and vLLM adapts none; merge the "
                "adapter instead: lorakit merge"
            )
    rank = next_rank(max(pair.rank for pair in adapter.pairs.values()))
    if rank is None:
        raise AdapterError(
            f"{adapter.source} has a rank above {RANKS[-1]}, the highest that vLLM takes: cut it "
            "to a lower one first, or merge it"
        )
    scales = {pair.scale for pair in adapter.pairs.values()}
    alpha = scales.pop() * rank
    if scales or not alpha.is_integer():
        alpha = float(rank)
    named = adapter.config.target_modules
    off: Any = dict.fromkeys(adapter.spec.variant.options, False)
    spec = replace(
        adapter.spec,
        rank=rank,
        alpha=alpha,
        rank_pattern={},
        alpha_pattern={},
        dropout=0.0,
        init="kaiming",
        **off,
    )
    config = replace(
        adapter.config,
        spec=spec,
        # A list: what a regular expression may name differs from version to version.
        target_modules=tuple(adapter.pairs) if isinstance(named, str) else named,
        # vLLM keeps these layers by their own names.
        taken=(),
        moved={},
    )
    pairs = {path: with_alpha(pair, alpha, rank) for path, pair in adapter.pairs.items()}
    return replace(adapter, config=config, pairs=pairs)
