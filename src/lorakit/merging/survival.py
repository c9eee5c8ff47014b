"""How much of an update arrives in a quantized weight.

    Δ  = s·B·A in float32             what the adapter adds
    Δ' = dequantized(written) - W_q   what the merged folder adds to the quantized base
    share    <Δ', Δ> / <Δ, Δ>         1: all of it arrives on average; 0: none
    cosine   <Δ', Δ> / (‖Δ'‖ ‖Δ‖)     1: and nothing else; small beside a large share: rounding noise

W_q already lies on the levels of its format. A change of less than half a step then goes back to where
it was, so that small updates do not arrive at all. Of full-precision weights, which lie anywhere between
two levels, an update moves a share of them over the middle, and that share is the update on average.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Survival:
    """Sums over the entries of one weight, or of several.

    Attributes:
        both: <Δ', Δ>.
        update: <Δ, Δ>.
        change: <Δ', Δ'>.
    """

    both: float = 0.0
    update: float = 0.0
    change: float = 0.0

    @classmethod
    def of(cls, update: Tensor, change: Tensor) -> "Survival":
        """Of some rows; both are summed in float64."""
        wanted, found = update.double(), change.double()
        return cls(
            float((found * wanted).sum()),
            float(wanted.square().sum()),
            float(found.square().sum()),
        )

    @classmethod
    def total(cls, parts: Iterable["Survival"]) -> "Survival":
        """Of several weights as one."""
        both = update = change = 0.0
        for part in parts:
            both, update, change = both + part.both, update + part.update, change + part.change
        return cls(both, update, change)

    @property
    def share(self) -> float:
        """<Δ', Δ> / <Δ, Δ>; 1 where there is no update."""
        return self.both / self.update if self.update else 1.0

    @property
    def cosine(self) -> float:
        """Of Δ' and Δ; 1 where there is no update, 0 where none of it arrived."""
        if not self.update:
            return 1.0
        return self.both / math.sqrt(self.update * self.change) if self.change else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON's own types."""
        return {"share": self.share, "cosine": self.cosine}
