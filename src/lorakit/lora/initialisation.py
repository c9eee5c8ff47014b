"""The seam behind which initialisations of A and B stand: what one fills, trains, and needs to know.

    y = W x + s·B (A x)                     B A = 0 at the start
    y = W x + s·(B A - B₀ A₀) x             `splits`: the pair begins inside the weight, and W stays

A pair that begins inside the weight is held whole, at twice its rank:

    A_held = [A; A₀]  (2r, in)      B_held = [B, -B₀]  (out, 2r)      s as of rank r

A₀ and B₀ never move. Kernels, checkpoints, files and servers see one plain pair of rank 2r beside the
untouched base, which is what peft writes with `path_initial_model_for_weight_conversion`.
`initialisations.py` lists the initialisations there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LINEAR = frozenset({"linear", "conv1d"})
ANY = frozenset({*LINEAR, "embedding", "conv", "experts"})


@dataclass(frozen=True)
class LayerStart:
    """What an initialisation may look at for one layer.

    Attributes:
        weight: reads W as (out, in), float32 at least.
        rank: r, of the pair that is trained.
        scale: s.
        generator: of the CPU, so that the same seed gives the same bits on every device.
        evidence: what was found on training rows; None for initialisations that need none.
    """

    weight: Callable[[], Tensor]
    rank: int
    scale: float
    generator: torch.Generator
    evidence: Tensor | None = None


Fill = Callable[[LayerStart], "tuple[Tensor, Tensor]"]
"""A (r, in) and B (out, r) of one layer."""


@dataclass(frozen=True)
class Initialisation:
    """One way to begin.

    Attributes:
        name: as `LoraSpec.init` has it.
        help: what it does, for the help of the option.
        fill: gives A and B; None where the variant's own random A and zero B are meant.
        splits: A and B begin inside the weight, see above.
        rows: what it needs of training rows: the inputs of a layer, or the gradient of its weight.
        frozen: tensors that are never trained.
        moves: the tensor that the first step moves; the other's gradient may be zero there.
        sides: how many ranks must fit into the smaller side of a module.
        kinds: of modules that it is for.
    """

    name: str
    help: str
    fill: Fill | None = None
    splits: bool = False
    rows: Literal["inputs", "gradients"] | None = None
    frozen: frozenset[str] = frozenset()
    moves: str = "B"
    sides: int = 1
    kinds: frozenset[str] = LINEAR

    @property
    def held(self) -> int:
        """How many times the trained rank a pair holds."""
        return 2 if self.splits else 1

    def unfit(self, kind: str, side: int, rank: int) -> str | None:
        """Why it is not for a module of this kind and smaller side; None where it is."""
        if kind not in self.kinds:
            return f"is for linear layers, and this module is of the kind {kind}"
        if self.sides > 1 and self.sides * rank > side:
            return f"needs {self.sides} times the rank {rank} within the smaller side, {side}"
        return None
