"""Plain LoRA (Hu et al., arXiv 2106.09685) and rsLoRA (Kalajdzievski, arXiv 2312.03732).

A `LoraSpec` asks for its variant before torch is needed, so torch is imported where it computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorakit.lora import equations
from lorakit.lora.variant import Capability

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lorakit.lora.kinds import Geometry
    from lorakit.lora.variant import WeightRows


@dataclass(frozen=True)
class PlainLora:
    """ΔW = s·B·A with s = alpha / rank: the pair alone on every token, with which everything may be done."""

    name: str = "LoRA"
    options: frozenset[str] = frozenset()
    peft_keys: frozenset[str] = frozenset()
    scale_formula: str = "alpha / rank"
    capabilities: frozenset[Capability] = frozenset(Capability) - {
        Capability.FACTOR,
        Capability.POSITION,
    }

    @property
    def peft_suffixes(self) -> Mapping[str, str]:
        """No tensor but A and B."""
        return {}

    def scale(self, alpha: float, rank: int) -> float:
        """s = alpha / rank."""
        return equations.scale(alpha, rank)

    def unfit(self, geometry: Geometry) -> str | None:
        """Nothing: a pair goes beside everything that can be adapted."""
        return None

    def tensors(self, geometry: Geometry, rank: int) -> Mapping[str, tuple[int, ...]]:
        """A and B."""
        return dict(zip("AB", geometry.pair_shapes(rank), strict=True))

    def initialise(
        self,
        tensors: Mapping[str, Tensor],
        weight: WeightRows,
        generator: torch.Generator,
        *,
        geometry: Geometry,
        how: str,
    ) -> None:
        """A at random and B zero; for an embedding A zero and B standard normal.

        A is Kaiming-uniform (a = sqrt 5) or gaussian (std 1/rank). An embedding is initialised as
        in loralib and peft, so that only the columns of A that were seen ever move; `how` is for
        the others.
        """
        import torch

        A, B = tensors["A"], tensors["B"]
        if A.is_meta:
            return
        embedding = geometry.kind == "embedding"
        random, zero = (B, A) if embedding else (A, B)
        draw = torch.empty(random.shape, dtype=random.dtype)
        if embedding:
            draw.normal_(generator=generator)
        elif how == "gaussian":
            draw.normal_(0.0, 1.0 / geometry.rank_of(A), generator=generator)
        else:
            bound = equations.kaiming_bound(A[0].numel())
            draw.uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            random.copy_(draw)
            zero.zero_()

    def delta(self, tensors: Mapping[str, Tensor], weight: Tensor, s: float) -> Tensor:
        """s·B·A; W does not matter."""
        return equations.delta(tensors["A"], tensors["B"], s)

    def factor(self, tensors: Mapping[str, Tensor], weight: WeightRows, s: float) -> Tensor | None:
        """None: the outputs are W x + s·B (A x)."""
        return None


@dataclass(frozen=True)
class RankStabilizedLora(PlainLora):
    """Plain LoRA but for its scale, s = alpha / sqrt(rank)."""

    name: str = "rsLoRA"
    options: frozenset[str] = frozenset({"rslora"})
    peft_keys: frozenset[str] = frozenset({"use_rslora"})
    scale_formula: str = "alpha / sqrt(rank)"

    def scale(self, alpha: float, rank: int) -> float:
        """s = alpha / sqrt(rank)."""
        return equations.scale(alpha, rank, rslora=True)
