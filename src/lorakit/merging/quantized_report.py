"""What the certificate of a merged quantized folder says: what was written, and what arrived of the update."""

from dataclasses import asdict, dataclass
from typing import Any

from lorakit.merging.merge_files import WeightCheck
from lorakit.merging.survival import Survival

LOW = 0.9
"""Below this share of the update, people are told what keeps it."""


@dataclass(frozen=True)
class QuantizedCheck:
    """One quantized tensor as it was written.

    Attributes:
        name: of the tensor.
        largest_error: largest difference from W + s·B·A, as a share of half its widest step.
        survival: of its update; None of a weight without a pair.
        passed: that difference is at most half a step, give or take a thousandth.
    """

    name: str
    largest_error: float
    survival: Survival | None
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON's own types."""
        survived = None if self.survival is None else self.survival.to_dict()
        return {**asdict(self), "survival": survived}


@dataclass(frozen=True)
class QuantizedReport:
    """All tensors of a merged quantized folder.

    Attributes:
        format: how they are quantized.
        quantized: the tensors that are.
        merged: those that took an update and stay in a float format.
        copied: how many were copied as they are.
        base_distance: ‖W - W_q‖ / ‖W_q‖ over the quantized weights, where W came from another folder.
    """

    format: str
    quantized: tuple[QuantizedCheck, ...]
    merged: tuple[WeightCheck, ...]
    copied: int
    base_distance: float | None

    @property
    def passed(self) -> bool:
        """Whether every tensor is what it should be. A low share is no failure."""
        quantized = all(check.passed for check in self.quantized)
        return quantized and all(check.passed for check in self.merged)

    @property
    def survival(self) -> Survival:
        """Of the update of all quantized weights together."""
        return Survival.total(c.survival for c in self.quantized if c.survival is not None)

    def to_dict(self) -> dict[str, Any]:
        """JSON's own types."""
        return {
            "passed": self.passed,
            "format": self.format,
            "update_survived": self.survival.to_dict(),
            "base_distance": self.base_distance,
            "copied": self.copied,
            "quantized": [check.to_dict() for check in self.quantized],
            "merged": [asdict(check) for check in self.merged],
        }

    def __str__(self) -> str:
        worst = max(check.largest_error for check in self.quantized)
        shares = [check.survival.share for check in self.quantized if check.survival is not None]
        there = self.survival
        if shares:
            range_ = f", from {min(shares):.1%} to {max(shares):.1%} by layer"
            survived = (
                f"of the update, {there.share:.1%} survived{range_} (projection; cosine "
                f"{there.cosine:.2f})"
            )
        else:
            survived = "no adapter changes any of them"
        return (
            f"weights read back: {len(self.quantized)} in {self.format}, each within "
            f"{worst:.2f} of half a step of W + s·B·A; {survived}"
        )


def advice(report: QuantizedReport, *, based: bool) -> str | None:
    """What keeps an update of which little arrived, in one sentence; None where it did.

    Args:
        report: of the merge.
        based: whether it was added to weights that lie on levels already.
    """
    share = report.survival.share
    if share >= LOW:
        return None
    name = report.format
    if based:
        return (
            f"only {share:.1%} of the update survived, because the base lies on {name}'s levels already and "
            "a change of less than half a step goes back to where it was; what keeps it: --full-base FOLDER "
            "(adds it to the full-precision weights and quantizes once), a merged model in full precision "
            "(without --quantize), the adapter beside its base (unmerged), or training with "
            f"--merge-aware {name}"
        )
    return (
        f"only {share:.1%} of the update survived quantizing to {name}; what keeps it: a merged model in "
        "full precision (without --quantize), the adapter beside its base (unmerged), or training with "
        f"--merge-aware {name}"
    )
