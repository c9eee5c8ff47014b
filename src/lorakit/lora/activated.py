"""Activated LoRA (Greenewald et al., arXiv 2504.12397): a pair that acts from its invocation on.

    y_t = W x_t + [t >= p] · s·B (A x_t)      p: where the last invocation begins in t's sequence

The tokens before p are computed by the base alone, so that their keys and values are those of the base
and of every other adapter of this kind. Where the invocation is absent nothing acts. This is what peft
calls `alora_invocation_tokens`; how a layer knows p is in acting.py.
"""

from dataclasses import dataclass

from lorakit.lora import equations
from lorakit.lora.plain import PlainLora
from lorakit.lora.variant import Capability


@dataclass(frozen=True)
class ActivatedLora(PlainLora):
    """Plain LoRA from the invocation on; before it the base alone, so that nothing can be merged."""

    name: str = "activated LoRA"
    options: frozenset[str] = frozenset({"alora"})
    peft_keys: frozenset[str] = frozenset({"alora_invocation_tokens"})
    capabilities: frozenset[Capability] = frozenset(
        {
            Capability.KERNELS,
            Capability.POSITION,
            Capability.DROPOUT,
            Capability.SHRINK,
            Capability.FOLD,
            Capability.SLOTS,
            Capability.LLAMA_CPP,
        }
    )


@dataclass(frozen=True)
class ActivatedRankStabilized(ActivatedLora):
    """The same with rsLoRA's scale, s = alpha / sqrt(rank)."""

    name: str = "activated rsLoRA"
    options: frozenset[str] = frozenset({"alora", "rslora"})
    peft_keys: frozenset[str] = frozenset({"alora_invocation_tokens", "use_rslora"})
    scale_formula: str = "alpha / sqrt(rank)"

    def scale(self, alpha: float, rank: int) -> float:
        """s = alpha / sqrt(rank)."""
        return equations.scale(alpha, rank, rslora=True)
