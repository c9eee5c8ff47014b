"""DoRA: weight-decomposed low-rank adaptation (Liu et al., arXiv 2402.09353).

    W' = diag(m / ‖W + s·B·A‖) · (W + s·B·A)        y = f · (W x + s·B (A x)) + b,  f = m / ‖W + s·B·A‖

The norm is of each output's row of W; m, one number for each output, is trained beside A and B and
begins at ‖W‖, so that f = 1 and nothing changes before the first step. In training the norm is a
constant (section 4.3 of the paper, and peft): f gets a gradient through m alone.

The product B·A is never formed for the norm, so that a step needs W once and no second matrix of its
size:

    ‖W + s·B·A‖² = ‖W‖² + 2 s ⟨W Aᵀ, B⟩ + s² ⟨B A Aᵀ, B⟩        by row; ‖W‖² is computed once

A row of W + s·B·A that is zero has no direction: its factor is 1 (peft divides by zero there).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorakit.lora import equations
from lorakit.lora.plain import PlainLora
from lorakit.lora.variant import Capability

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lorakit.lora.kinds import Geometry
    from lorakit.lora.variant import WeightRows

MAGNITUDE = "magnitude"


@dataclass(frozen=True)
class Dora(PlainLora):
    """W' = diag(m / ‖W + s·B·A‖) · (W + s·B·A) with s = alpha / rank."""

    name: str = "DoRA"
    options: frozenset[str] = frozenset({"dora"})
    peft_keys: frozenset[str] = frozenset({"use_dora"})
    capabilities: frozenset[Capability] = frozenset(
        {
            Capability.FACTOR,
            Capability.DROPOUT,
            Capability.MERGE,
            Capability.MERGE_ROWS,
            Capability.SLOTS,
        }
    )

    @property
    def peft_suffixes(self) -> Mapping[str, str]:
        """The magnitude's."""
        return {MAGNITUDE: ".lora_magnitude_vector"}

    def unfit(self, geometry: Geometry) -> str | None:
        """Experts, which peft refuses too, and grouped convolutions, of which there is no W + s·B·A."""
        if geometry.kind == "experts":
            return (
                f"a bare parameter cannot be adapted by {self.name}, in peft neither: leave it out of "
                "target_parameters, or train plain LoRA"
            )
        if geometry.groups > 1:
            return (
                f"a convolution with groups={geometry.groups} has no W + s·B·A whose norm {self.name} "
                "could take: leave it out with exclude, or train plain LoRA"
            )
        return None

    def tensors(self, geometry: Geometry, rank: int) -> Mapping[str, tuple[int, ...]]:
        """A, B, and one number for each output, in the shape that peft gives it."""
        pair = super().tensors(geometry, rank)
        ones = (1,) * len(geometry.kernel)
        front = (1,) if ones else ()
        return {**pair, MAGNITUDE: (*front, geometry.out_features, *ones)}

    def initialise(
        self,
        tensors: Mapping[str, Tensor],
        weight: WeightRows,
        generator: torch.Generator,
        *,
        geometry: Geometry,
        how: str,
    ) -> None:
        """A and B as plain LoRA's, m = ‖W‖."""
        import torch

        super().initialise(tensors, weight, generator, geometry=geometry, how=how)
        m = tensors[MAGNITUDE]
        if not m.is_meta:
            with torch.no_grad():
                m.copy_(weight.squares().sqrt().view(m.shape))

    def delta(self, tensors: Mapping[str, Tensor], weight: Tensor, s: float) -> Tensor:
        """F · (W + s·B·A) - W."""
        from lorakit.lora.rows import DenseRows

        update = super().delta(tensors, weight, s)
        W = weight.to(update.dtype)
        f = self.factor(tensors, DenseRows(W), s)
        return f.view(-1, *[1] * (W.dim() - 1)) * (W + update) - W

    def factor(self, tensors: Mapping[str, Tensor], weight: WeightRows, s: float) -> Tensor:
        """F = m / ‖W + s·B·A‖, the norm detached."""
        import torch

        m = tensors[MAGNITUDE].flatten()
        with torch.no_grad():
            squares = weight.squares()
            A, B = (tensors[name].detach().flatten(1).to(squares.dtype) for name in "AB")
            crossed = 2 * s * weight.products(A) + s * s * B @ (A @ A.t())
            squares = (squares + (crossed * B).sum(dim=1)).clamp_min(0)
            alive = squares > 0
            norms = torch.where(alive, squares, 1.0).sqrt()
        return torch.where(alive, m.to(norms.dtype) / norms, 1.0)


@dataclass(frozen=True)
class RankStabilizedDora(Dora):
    """DoRA with the scale of rsLoRA, s = alpha / sqrt(rank)."""

    name: str = "DoRA with rsLoRA's scale"
    options: frozenset[str] = frozenset({"dora", "rslora"})
    peft_keys: frozenset[str] = frozenset({"use_dora", "use_rslora"})
    scale_formula: str = "alpha / sqrt(rank)"

    def scale(self, alpha: float, rank: int) -> float:
        """s = alpha / sqrt(rank)."""
        return equations.scale(alpha, rank, rslora=True)
